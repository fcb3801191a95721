"""A page in the browser: drop or record a video, see its classes, frames, timeline, feature colours, reconstruction."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
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

from hiera_video.cells import cells
from hiera_video.data.reading.child_process import isolated_reader
from hiera_video.data.views import Loaded, Segment, load_views
from hiera_video.data.windows import Walk, Windows, walk
from hiera_video.errors import HieraVideoError, RequestError, UnknownModel
from hiera_video.models.checkpoints.build import from_disk
from hiera_video.models.checkpoints.formats import split_state
from hiera_video.models.mae import HieraMAE
from hiera_video.models.masks import random_keep
from hiera_video.models.zoo import BUILT_IN, CHECKPOINTS, list_models, mae_from_pretrained
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import VideoClassifier, best_classes, score_views
from hiera_video.tasks.classify.segments import SegmentRule
from hiera_video.tasks.classify.timeline import IMAGE_HOP_S, timeline
from hiera_video.tasks.features.colours import draw_colours
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.tasks.records import Results
from hiera_video.training.devices import Precision
from hiera_video.visual.reconstructions import show_reconstructions
from hiera_video.visual.strips import draw_strips

log = logging.getLogger("hiera_video")

#: A picture, uint8 [h, w, 3].
Picture: TypeAlias = NDArray[np.uint8]
#: Told how far a step is, 0 to 1, and what it is called.
Progress: TypeAlias = Callable[..., Any]

#: What a page shows of a video, in its order: part -> heading.
PARTS = {
    "note": "note",
    "classes": "classes",
    "frames": "frames",
    "timeline": "scores over time",
    "colours": "feature colours",
    "reconstruction": "reconstruction",
}
#: Requests answered at the same time, and waiting at most; models kept in memory.
NUM_AT_ONCE, NUM_WAITING, NUM_KEPT = 2, 20, 2
#: Windows of a timeline at most, and windows whose features are drawn.
NUM_WINDOWS, NUM_DRAWN = 200, 4
#: The stage whose maps are drawn.
STAGE = "stage3"
#: Files that the page keeps for its visitors are removed after so many seconds, looked for every minute.
KEPT_S, LOOK_EVERY_S = 1800, 60
#: gradio asks for its own page when it starts: a proxy is not to be asked for this machine's addresses.
OWN_ADDRESSES = "127.0.0.1,localhost"


@dataclass(frozen=True)
class Served:
    """Where the page is."""

    address: str
    error: None = None

    def to_dict(self) -> dict[str, Any]:
        """``{"address"}``."""
        return {"address": self.address}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]

    def text(self) -> str:
        """One line."""
        return cells(self.to_dict())


def serve(
    *,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: float = 500,
    time_limit: float = 300,
    top_k: int = 5,
    device: str = "auto",
    precision: Precision = "auto",
) -> Results[Served]:
    """Open a page in the browser for videos that are dropped on it; Ctrl-C closes it.

    Args:
        model: Models to choose from, with commas: names, files, folders or hub ids. Default: every name with weights.
        host: 127.0.0.1 is this machine alone; 0.0.0.0 is all who can reach it.
        port: 0 takes any that is free.
        max_upload_mb: The largest file that is taken, in megabytes.
        time_limit: Seconds that one answer may take.
        top_k: How many classes to name.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto is bf16 on a GPU that has it, else fp32.
    """
    folder = tempfile.TemporaryDirectory(prefix="hiera_video_serve_")
    gradio = import_gradio(folder.name)
    for name, value in (("max_upload_mb", max_upload_mb), ("time_limit", time_limit)):
        if not 0 < value < float("inf"):
            raise RequestError(f"{name} is {value:g}, but is a number above 0")
    if top_k < 1:
        raise RequestError(f"top_k is {top_k}, but is at least 1")
    if model is None:
        names = [BUILT_IN, *(name for name in list_models(pretrained=True) if name != BUILT_IN)]
    else:
        names = [name.strip() for name in model.split(",") if name.strip()]
    desk = Desk(names, time_limit=time_limit, top_k=top_k, device=device, precision=precision)
    desk.model(names[0])  # what is wrong with it is said now
    return Results(None, _serve(gradio, folder, desk, host, _free_port(host, port), max_upload_mb))


def _serve(
    gradio: Any, folder: tempfile.TemporaryDirectory[str], desk: Desk, host: str, port: int, max_upload_mb: float
) -> Iterator[Served]:
    with folder:
        page = build_page(gradio, desk)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then too
        try:
            page.launch(
                server_name=host,
                server_port=port,
                max_file_size=round(max_upload_mb * 1e6),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                theme=_theme(gradio),
            )
            yield Served(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}")
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


def import_gradio(folder: str) -> Any:
    """gradio, keeping its files in ``folder``. Raises :class:`RequestError`, with the remedy, where it is missing."""
    # Read when it is imported, and later; it neither asks for its newest version nor counts visits.
    os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder})
    for name in ("NO_PROXY", "no_proxy"):
        if OWN_ADDRESSES not in os.environ.get(name, ""):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), OWN_ADDRESSES]))
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise RequestError('serve needs gradio: pip install "hiera-video[serve]"') from error


def _theme(gradio: Any) -> Any:
    """One whose letters are the system's: the page loads nothing from elsewhere."""
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(gradio: Any, desk: Desk) -> Any:
    """The page, as ``gradio.Blocks`` that are not launched yet."""
    with gradio.Blocks(title="hiera-video", analytics_enabled=False, delete_cache=(LOOK_EVERY_S, KEPT_S)) as page:
        gradio.Markdown("# hiera-video\nDrop a video, or record one; choose a model.")
        with gradio.Row():
            with gradio.Column(scale=1):
                # With its sound: else the page would call an ffmpeg program to take it off.
                video = gradio.Video(label="video", sources=["upload", "webcam"], include_audio=True, elem_id="video")
                model = gradio.Dropdown(desk.names, value=desk.names[0], label="model", elem_id="model")
                button = gradio.Button("Answer", variant="primary", elem_id="answer")
                room = gradio.HTML(min_height=140, elem_id="progress")
            with gradio.Column(scale=2):
                shown = [
                    gradio.Textbox(label=PARTS["note"], interactive=False, visible=False, elem_id="note"),
                    gradio.Label(label=PARTS["classes"], num_top_classes=desk.top_k, visible=False, elem_id="classes"),
                ]
                looks: dict[str, Any] = {"format": "png", "visible": False, "buttons": ["fullscreen", "download"]}
                shown += [gradio.Image(label=PARTS[part], elem_id=part, **looks) for part in list(PARTS)[2:]]

        progress = gradio.Progress()  # gradio looks for it among the defaults

        def answer(video: str | None, model: str, progress: Any = progress) -> Iterator[list[Any]]:
            for found in desk.answer(video, model, progress):
                yield [gradio.update(value=found.get(part), visible=part in found) for part in PARTS]

        how: dict[str, Any] = {"concurrency_limit": NUM_AT_ONCE, "show_progress_on": room, "api_name": "answer"}
        button.click(answer, [video, model], shown, **how)
    page.queue(max_size=NUM_WAITING)
    return page


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
            views = load_views(path, spec, num_clips, num_crops, reader=reader)
            if views.error is not None:
                yield "note", views.error.replace(path, name)
            best = []
            if loaded.mae is None:
                (scored,) = score_views(loaded.classifier.scorer, [Loaded(Segment(path, 0), views, views.error)])
                assert scored.scores is not None
                best = best_classes(scored.scores, loaded.classifier.labels, self.top_k)
                yield "classes", {score.label: score.score for score in best}
            frames = views.middle()
            draw_strips([(name, frames, best)], picture)
            yield "frames", _pixels(picture)

            hop = max(spec.span / 2 if spec.num_frames > 1 else IMAGE_HOP_S, views.duration / NUM_WINDOWS)
            if best and views.duration > spec.span + hop:
                windows = self._on_time(walk(path, Walk(spec, hop), reader=reader), deadline, progress)
                target = picture.with_suffix("")
                timeline(loaded.classifier, name, windows, target, top_k=self.top_k, batch_size=8, rule=SegmentRule())
                yield "timeline", _pixels(picture)

            self._check(deadline)
            progress(0.5, desc=PARTS["colours"])
            how = loaded.extractor.walk(hop=max(spec.span, views.duration / NUM_DRAWN))
            draw_colours(loaded.extractor, path, how, STAGE, picture, reader)
            yield "colours", _pixels(picture)
            if loaded.mae is not None:
                self._check(deadline)
                progress(0.5, desc=PARTS["reconstruction"])
                _draw_reconstruction(loaded.mae, frames, picture)
                yield "reconstruction", _pixels(picture)

    def _on_time(self, windows: Iterator[Windows], deadline: float, progress: Progress) -> Iterator[Windows]:
        for part in windows:
            self._check(deadline)
            progress((part.first, part.total), desc=PARTS["timeline"], unit="windows")
            yield part

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise RequestError(f"the answer takes longer than {self.time_limit:g} s: send a shorter video")


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
    show_reconstructions(clips[:, :, ::stride].numpy(), masked, filled, picture, title)


def _pixels(path: Path) -> Picture:
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _free_port(host: str, port: int) -> int:
    """``port``, or for 0 any. Raises :class:`RequestError` where it cannot be had."""
    try:
        with socket.create_server((host, port), reuse_port=False) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{host}:{port} cannot be opened ({why}): choose another --port or --host") from error
