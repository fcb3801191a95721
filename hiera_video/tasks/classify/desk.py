"""Answers to visitors of the page: a video's classes, frames, scores over time, feature colours, reconstruction."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.data.reading.child_process import isolated_reader
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.views import load_views, open_input
from hiera_video.data.windows import Walk, Windows, walk
from hiera_video.errors import HieraVideoError, RequestError, UnknownModel, UnreadableVideo
from hiera_video.models.checkpoints.build import from_disk
from hiera_video.models.checkpoints.formats import split_state
from hiera_video.models.evidence import METHODS
from hiera_video.models.mae import HieraMAE
from hiera_video.models.masks import random_keep
from hiera_video.models.zoo import CHECKPOINTS, mae_from_pretrained
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import VideoClassifier, best_classes, score_clips
from hiera_video.tasks.classify.explain import explain_views
from hiera_video.tasks.classify.segments import SegmentRule, find_segments
from hiera_video.tasks.classify.timeline import IMAGE_HOP_S, NUM_THUMBNAILS, score_windows
from hiera_video.tasks.features.colours import draw_colours
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.training.devices import Precision
from hiera_video.visual.evidence import EvidenceRow, draw_evidence
from hiera_video.visual.reconstructions import show_reconstructions
from hiera_video.visual.scores_html import scores_html
from hiera_video.visual.strips import draw_strips

#: A picture, uint8 [h, w, 3].
Picture: TypeAlias = NDArray[np.uint8]
#: Told how far a step is, 0 to 1, and what it is called.
Progress: TypeAlias = Callable[..., Any]

#: What a page shows of a video, in its order: part -> heading.
PARTS = {
    "note": "note",
    "classes": "classes",
    "frames": "frames",
    "timeline": "scores over time, and where each class is seen",
    "evidence": "evidence for the best class",
    "colours": "feature colours",
    "reconstruction": "reconstruction",
}
#: Models kept in memory.
NUM_KEPT = 2
#: Windows of a timeline at most, windows whose features are drawn, and frames of a reconstruction.
NUM_WINDOWS, NUM_DRAWN, NUM_REBUILT = 200, 4, 4
#: The stage whose maps are drawn.
STAGE = "stage3"
#: A preview: its short side in pixels, frames a second and in all at most, and seconds that are spent on making it.
PREVIEW_SIDE, PREVIEW_FPS, PREVIEW_FRAMES, PREVIEW_LIMIT_S = 360, 15, 6000, 60
#: Frames of a preview that are in memory at once.
CHUNK = 16


@dataclass(frozen=True)
class _Loaded:
    """A model, of an MAE its encoder; ``mae`` is the whole of it, which has no classes."""

    classifier: VideoClassifier
    extractor: FeatureExtractor
    mae: HieraMAE | None


class Desk:
    """Answers requests, several at a time, each with a decoder and a temporary folder of its own."""

    def __init__(self, names: list[str], *, time_limit: float, top_k: int, device: str, precision: Precision) -> None:
        if not names:
            raise RequestError("model names nothing: leave it out, or name at least one")
        self.names, self.time_limit, self.top_k = names, time_limit, top_k
        self._device, self._precision = device, precision
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Loaded] = OrderedDict()

    def model(self, name: str) -> _Loaded:
        """The model of one of ``names``, loaded when it is first asked for. Raises :class:`HieraVideoError`."""
        if name not in self.names:
            raise UnknownModel(f"there is no model {name!r} on this page")
        with self._lock:
            if name not in self._kept:
                mae = mae_from_pretrained(name) if _has_decoder(name) else None
                classifier = VideoClassifier.from_pretrained(name, device=self._device, precision=self._precision)
                extractor = FeatureExtractor(classifier.model, device=self._device, precision=self._precision)
                self._kept[name] = _Loaded(classifier, extractor, mae and mae.to(classifier.device))
            self._kept.move_to_end(name)
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
            return self._kept[name]

    def answer(self, path: str | None, model: str, progress: Progress) -> Iterator[dict[str, Any]]:
        """What is known so far, again with every part of ``PARTS`` that is found; what goes wrong is its ``note``.

        A note is one sentence, the command line's, in which the file has the name that the visitor knows.
        """
        found: dict[str, Any] = {}
        try:
            if path is None:
                raise RequestError("there is no video yet: drop one on the page, or record one")
            for part, value in self._parts(path, model, progress):
                found[part] = value
                yield dict(found)
        except HieraVideoError as error:
            yield found | {"note": str(error).replace(path or "", Path(path or "").name)}

    def _parts(self, path: str, model: str, progress: Progress) -> Iterator[tuple[str, Any]]:
        deadline = time.monotonic() + self.time_limit
        progress(0, desc="loading the model")
        loaded = self.model(model)
        spec, name = loaded.classifier.model.spec, Path(path).name
        with (
            tempfile.TemporaryDirectory(prefix="hiera_video_") as folder,
            isolated_reader(self.time_limit) or nullcontext() as reader,
        ):
            picture = Path(folder) / "picture.png"
            progress(0, desc="reading the video")
            num_clips, num_crops = parse_views(loaded.classifier.model.views)
            views = load_views(path, spec, num_clips, num_crops, reader=reader, keep_pictures="all")
            if views.error is not None:
                yield "note", views.error.replace(path, name)
            best = []
            if loaded.mae is None:
                scores = score_clips(loaded.classifier.scorer, views.clips)
                best = best_classes(scores.mean(axis=0), loaded.classifier.labels, self.top_k)
                yield "classes", {score.label: score.score for score in best}
            draw_strips([("", views.shown(num_clips // 2), [])], picture)
            yield "frames", _pixels(picture)

            hop = max(spec.span / 2 if spec.num_frames > 1 else IMAGE_HOP_S, views.duration / NUM_WINDOWS)
            if best and views.duration > spec.span + hop:
                how = Walk(spec, hop, num_pictures=NUM_THUMBNAILS)
                windows = self._on_time(walk(path, how, reader=reader), deadline, progress)
                yield "timeline", _over_time(loaded.classifier, windows, self.top_k)

            self._check(deadline)
            if best:
                progress(0.5, desc=PARTS["evidence"])
                why = explain_views(loaded.classifier, views, scores)
                row = EvidenceRow(f"{why.label} {why.score:.0%}", why.frames, why.over_frames(), why.times)
                draw_evidence([row], picture, METHODS[why.method], num_frames=4)
                yield "evidence", _pixels(picture)
                self._check(deadline)
            progress(0.5, desc=PARTS["colours"])
            how = loaded.extractor.walk(hop=max(spec.span, views.duration / NUM_DRAWN))
            draw_colours(loaded.extractor, path, how, STAGE, picture, reader)
            yield "colours", _pixels(picture)
            if loaded.mae is not None:
                self._check(deadline)
                progress(0.5, desc=PARTS["reconstruction"])
                _draw_reconstruction(loaded.mae, views.middle(), picture)
                yield "reconstruction", _pixels(picture)

    def preview(self, path: str, target: Path) -> str | None:
        """Writes a video that every browser plays: H.264 in an mp4, small, without sound.

        Args:
            path: The video.
            target: The mp4 file.

        Returns:
            One sentence about the preview; None where nothing of the video can be read.
        """
        limit = min(PREVIEW_LIMIT_S, self.time_limit)
        deadline, seconds = time.monotonic() + limit, np.zeros(0)
        num_written = 0
        try:
            with (
                isolated_reader(limit) or nullcontext() as reader,
                open_input(path, reader, decode="fast") as video,
            ):
                step = max(1, round(video.fps / PREVIEW_FPS), -(-len(video) // PREVIEW_FRAMES))
                numbers = np.arange(0, len(video), step)
                seconds = video.times[numbers] - video.times[0]

                def frames() -> Iterator[Picture]:
                    nonlocal num_written
                    for first in range(0, len(numbers), CHUNK):
                        if first and time.monotonic() > deadline:
                            return
                        pixels = video.frames(numbers[first : first + CHUNK], short_side=PREVIEW_SIDE).pixels
                        num_written = first + len(pixels)
                        yield from pixels

                how: dict[str, Any] = {"crf": 26, "options": {"preset": "veryfast"}, "pixel_aspect": video.pixel_aspect}
                write_mp4(target, frames(), video.fps / step, times=seconds.tolist(), **how)
        except UnreadableVideo:
            return None  # the answer says why
        part = "" if num_written == len(seconds) else f" of its first {seconds[num_written - 1]:.0f} s"
        return f"Your browser does not play this kind of file: here is a preview{part}, small and without sound."

    def _on_time(self, windows: Iterator[Windows], deadline: float, progress: Progress) -> Iterator[Windows]:
        for part in windows:
            self._check(deadline)
            progress((part.first, part.total), desc=PARTS["timeline"], unit="windows")
            yield part

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise RequestError(f"the answer takes longer than {self.time_limit:g} s: send a shorter video")


def _over_time(classifier: VideoClassifier, windows: Iterator[Windows], top_k: int) -> str:
    """HTML of the scores of each window and of the segments made of them."""
    curves, labels = score_windows(classifier, windows, batch_size=8), classifier.labels
    segments = [
        (segment.label, segment.start, segment.end, segment.mean)
        for segment in find_segments(curves.times, curves.scores, labels, SegmentRule())
    ]
    return scores_html(curves.times, curves.scores, labels, curves.thumbnails, segments, top_k=top_k)


def _has_decoder(name: str) -> bool:
    """Whether a model on this disk has a decoder's tensors. Remote MAEs are recognised by their prefix `mae_`."""
    if name not in CHECKPOINTS and Path(name).exists():
        return bool(split_state(from_disk(Path(name))[0])[1])
    return name.rpartition("/")[2].startswith("mae_")


@torch.inference_mode()
def _draw_reconstruction(mae: HieraMAE, frames: Picture, picture: Path) -> None:
    """``frames`` uint8 [T, h, w, 3]: the clip to hide parts of."""
    spec, device, clips = mae.spec, mae.mask_token.device, torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)
    clip = spec.model_input(spec.normalize(clips.to(device)))
    generator = torch.Generator().manual_seed(0)  # the same question every time
    keep = random_keep(1, mae.num_mask_units(tuple(clip.shape[2:])), mae.arch.mask_ratio, generator=generator)
    masked, filled = (
        spec.denormalize(pixels.view(1, 3, -1, *spec.size)).cpu().numpy() for pixels in mae.reconstruct(clip, keep)
    )
    stride = mae.arch.patch_stride[0] if clip.ndim == 5 else 1
    title = f"{mae.arch.mask_ratio:.0%} of the mask units hidden"
    show_reconstructions(clips[:, :, ::stride].numpy(), masked, filled, picture, title, num_frames=NUM_REBUILT)


def _pixels(path: Path) -> Picture:
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))
