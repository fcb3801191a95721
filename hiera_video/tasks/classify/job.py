"""Classify videos and images: files in, labels with scores out, in the order of the inputs."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.data.reading.files import find_inputs
from hiera_video.data.views import Views, load_views
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.files import check_output
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import BUILT_IN, KINETICS, from_pretrained
from hiera_video.spec import parse_views
from hiera_video.tasks.records import Results
from hiera_video.training.devices import Precision, autocast, pick_device, pick_precision

log = logging.getLogger("hiera_video")

#: Rows of a picture: more would not be looked at.
MAX_ROWS = 40


@dataclass(frozen=True)
class Score:
    """One class and its softmax score, averaged over the views."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one input: the best classes first, or an ``error``, or both where only a part was read.

    ``duration`` is in seconds, 0 for an image and None for what could not be read. ``frames`` uint8
    ``[T, H, W, 3]`` are those of the middle clip, kept only where a picture is asked for.
    """

    input: str
    duration: float | None
    predictions: list[Score]
    error: str | None = None
    frames: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """``{"input", "duration", "predictions": [{"label", "index", "score"}], "error"}``."""
        scores = [vars(score) for score in self.predictions]
        return {"input": self.input, "duration": self.duration, "predictions": scores, "error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """A flat row per class, for tables; one row with the error where there is no class."""
        shared = {"input": self.input, "duration": self.duration}
        rows = [shared | {"rank": rank} | vars(score) for rank, score in enumerate(self.predictions, start=1)]
        empty = shared | {"rank": None, "label": None, "index": None, "score": None}
        return [row | {"error": self.error} for row in rows or [empty]]


class VideoClassifier:
    """A classifier that takes files.

    >>> classifier = VideoClassifier.from_pretrained()  # doctest: +SKIP
    >>> classifier("clip.mp4").predictions[0].label  # doctest: +SKIP
    'pan_left'
    """

    def __init__(self, model: Hiera, *, device: str = "auto", precision: Precision = "auto") -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.precision = pick_precision(precision, self.device)
        self.labels = model.labels or [f"class_{index}" for index in range(model.arch.num_classes)]

    @classmethod
    def from_pretrained(
        cls, model: str | Path = BUILT_IN, *, device: str = "auto", precision: Precision = "auto", **kwargs: Any
    ) -> VideoClassifier:
        """Any model that :func:`hiera_video.from_pretrained` reads, by name, path or hub id; so are its ``kwargs``."""
        return cls(from_pretrained(model, **kwargs), device=device, precision=precision)

    def __call__(self, path: str | os.PathLike[str], *, top_k: int = 5, views: str | None = None) -> Prediction:
        """The answer for one file. Raises :class:`UnreadableVideo` where nothing of it can be read."""
        (answer,) = self.stream([os.fspath(path)], top_k=top_k, views=views)
        if not answer.predictions:
            raise UnreadableVideo(answer.error)
        return answer

    def stream(
        self,
        inputs: Sequence[str],
        *,
        top_k: int = 5,
        views: str | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        keep_frames: bool = False,
    ) -> Results[Prediction]:
        """Answers in the order of ``inputs``: files, folders, globs and http(s) addresses.

        ``views`` are "clips x crops", such as "5x3" (default: the model's own); ``batch_size`` clips go through the
        model at once, while ``num_workers`` threads decode ahead. What cannot be read is answered by its ``error``.
        """
        if top_k < 1:
            raise RequestError(f"top_k is {top_k}, but is at least 1")
        if batch_size < 1:
            raise RequestError(f"batch_size is {batch_size}, but is at least 1")
        num_clips, num_crops = parse_views(views or self.model.views)
        files = find_inputs(inputs)
        loaded = _ahead(files, self.model, num_clips, num_crops, num_workers)
        return Results(
            len(files), self._answers(loaded, min(top_k, len(self.labels)), batch_size, num_crops, keep_frames)
        )

    def _answers(
        self, loaded: Iterable[tuple[str, Views | str]], top_k: int, batch_size: int, num_crops: int, keep_frames: bool
    ) -> Iterator[Prediction]:
        waiting: list[tuple[str, Views | str]] = []
        num_views = 0
        for name, views in loaded:
            waiting.append((name, views))
            num_views += 0 if isinstance(views, str) else len(views.times)
            if num_views >= batch_size:
                yield from self._answer(waiting, top_k, batch_size, num_crops, keep_frames)
                waiting, num_views = [], 0
        yield from self._answer(waiting, top_k, batch_size, num_crops, keep_frames)

    def _answer(
        self, files: list[tuple[str, Views | str]], top_k: int, batch_size: int, num_crops: int, keep_frames: bool
    ) -> Iterator[Prediction]:
        clips = [views.clips for _, views in files if not isinstance(views, str)]
        scores = iter(self.scores(torch.cat(clips), batch_size).split([len(clip) for clip in clips]) if clips else ())
        cut = iter(clips)
        for name, views in files:
            if isinstance(views, str):
                yield Prediction(name, None, [], views)
                continue
            mean = next(scores).mean(dim=0)
            best = [Score(self.labels[index], index, float(mean[index])) for index in mean.topk(top_k).indices.tolist()]
            shown = next(cut)
            middle = shown[len(shown) // num_crops // 2 * num_crops + num_crops // 2]
            # A copy: a view would keep every clip of the file in memory until the picture is drawn.
            frames = middle.permute(1, 2, 3, 0).clone().numpy() if keep_frames else None
            yield Prediction(name, round(views.duration, 6), best, views.error, frames)

    @torch.inference_mode()
    def scores(self, clips: Tensor, batch_size: int = 8) -> Tensor:
        """uint8 ``[N, C, T, H, W]`` -> softmax scores float32 ``[N, num_classes]``, on the CPU."""
        if len(self.model.arch.input_size) == 2:
            clips = clips[:, :, 0]
        found = []
        for part in clips.split(batch_size):
            with autocast(self.device, self.precision):
                logits = self.model(self.model.spec.normalize(part.to(self.device)))
            found.append(logits.float().softmax(dim=-1).cpu())
        return torch.cat(found)


def classify(
    inputs: list[str],
    *,
    model: str | None = None,
    top_k: int = 5,
    views: str | None = None,
    batch_size: int = 8,
    device: str = "auto",
    precision: Precision = "auto",
    picture: Path | None = None,
    timeline: Path | None = None,
    hop: float | None = None,
    live: bool = False,
) -> Results[Prediction]:
    """Classify videos and images, or a camera or stream while it comes.

    Args:
        inputs: Files, folders (to their depths), globs, http(s) addresses; or one camera's number or stream (rtsp://).
        model: A name (see `hiera-video models`), a file, a folder or a hub id. Default: the built-in model.
        top_k: How many classes to name.
        views: Clips x crops that scores are averaged over, such as 5x3. Default: the model's own.
        batch_size: Clips that go through the model at once.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto is bf16 on a GPU that has it, else fp32.
        picture: Write a PNG here: each input's frames with its best classes as bars.
        timeline: A folder for scores over time: of each input a CSV file and a PNG. The answer is then their mean.
        hop: Seconds from one window of a timeline to the next (default: half a clip), or of a stream (default: 0.5).
        live: Read an http(s) address as a live stream; other schemes and cameras are always live.
    """
    from hiera_video.tasks.classify.live import is_live, live_answers

    if views is not None:
        parse_views(views)
    picture, timeline = picture and Path(picture), timeline and Path(timeline)
    live = live or any(map(is_live, inputs))
    if live and (views, picture, timeline) != (None, None, None):
        raise RequestError("a live stream has neither views nor a picture or timeline: leave them out")
    if timeline is None and hop is not None and not live:
        raise RequestError("hop is of a timeline: name its folder (--timeline)")
    if timeline is not None and (views is not None or picture is not None):
        raise RequestError("a timeline has windows for views and a picture of its own: leave out views and picture")
    if picture is not None:
        check_output(picture)
    if model is None:
        log.info(
            "the built-in model answers: %s, nine camera motions; for Kinetics actions add --model %s",
            BUILT_IN,
            KINETICS,
        )
    classifier = VideoClassifier.from_pretrained(model or BUILT_IN, device=device, precision=precision)
    if live:
        return live_answers(classifier, inputs, hop=hop, top_k=top_k)
    if timeline is not None:
        from hiera_video.tasks.classify.timeline import timelines

        return timelines(classifier, inputs, timeline, hop=hop, top_k=top_k, batch_size=batch_size)
    results = classifier.stream(
        inputs, top_k=top_k, views=views, batch_size=batch_size, keep_frames=picture is not None
    )
    return results if picture is None else Results(len(results), _with_picture(results, picture))


def _with_picture(results: Iterable[Prediction], picture: Path) -> Iterator[Prediction]:
    from hiera_video.visual.strips import draw_strips

    shown: list[Prediction] = []
    for result in results:
        if result.frames is not None and len(shown) < MAX_ROWS:
            shown.append(result)
        yield result
    draw_strips(
        [(Path(row.input).name, row.frames, row.predictions) for row in shown if row.frames is not None], picture
    )


def _ahead(
    files: list[tuple[str, str | None]], model: Hiera, num_clips: int, num_crops: int, num_workers: int
) -> Iterator[tuple[str, Views | str]]:
    """Each file's views, or one sentence on why there are none, decoded ahead by threads (decoders free the GIL)."""

    def load(name: str, error: str | None) -> Views | str:
        if error is not None:
            return error
        try:
            return load_views(name, model.spec, num_clips, num_crops)
        except UnreadableVideo as problem:
            return str(problem)

    with ThreadPoolExecutor(num_workers) as executor:
        waiting: deque[tuple[str, Future[Views | str]]] = deque()
        try:
            for name, error in files:
                waiting.append((name, executor.submit(load, name, error)))
                if len(waiting) > 2 * num_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
