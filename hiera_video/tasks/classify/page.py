"""A page in the browser: drop or record a video, see what a model says of it. ``desk`` answers, this is the layout."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hiera_video.cells import cells
from hiera_video.errors import RequestError
from hiera_video.models.zoo import BUILT_IN, list_models
from hiera_video.tasks.classify.desk import PARTS, Desk
from hiera_video.tasks.records import Results
from hiera_video.training.devices import Precision
from hiera_video.visual.strips import doubt

#: Requests answered at the same time, and waiting at most.
NUM_AT_ONCE, NUM_WAITING = 2, 20
#: Files that the page keeps for its visitors are removed after so many seconds, looked for every minute.
KEPT_S, LOOK_EVERY_S = 1800, 60
#: A video for visitors who have none: the camera pans right, rests, zooms in. Made by ``scripts/make_example.py``.
EXAMPLE = Path(__file__).with_name("example.mp4")
#: gradio asks for its own page when it starts: a proxy is not to be asked for this machine's addresses.
OWN_ADDRESSES = "127.0.0.1,localhost"
#: How the page looks, and what a click in the scores does.
LOOKS, SCRIPT = (Path(__file__).with_name(name) for name in ("page.css", "page.js"))


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
        precision: auto is bf16 where GPU or CPU has it and the model is wide enough to gain, else fp32.
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
        page = build_page(gradio, desk, Path(folder.name))
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
                css_paths=LOOKS,
                js=SCRIPT.read_text(),
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


def build_page(gradio: Any, desk: Desk, folder: Path) -> Any:
    """The page, as ``gradio.Blocks`` that are not launched yet; its own files are in ``folder``."""
    example = folder / EXAMPLE.name
    example.write_bytes(EXAMPLE.read_bytes())
    with gradio.Blocks(title="hiera-video", analytics_enabled=False, delete_cache=(LOOK_EVERY_S, KEPT_S)) as page:
        gradio.Markdown("# hiera-video\nDrop a video, or record one; choose a model.")
        with gradio.Row():
            with gradio.Column(scale=1):
                # With its sound: else the page would call an ffmpeg program to take it off.
                video = gradio.Video(label="video", sources=["upload", "webcam"], include_audio=True, elem_id="video")
                preview = gradio.HTML(visible=False, elem_id="preview")
                try_one = gradio.Button("Try an example video", size="sm", elem_id="example")
                model = gradio.Dropdown(_choices(desk.names), value=desk.names[0], label="model", elem_id="model")
                button = gradio.Button("Answer", variant="primary", elem_id="answer")
                room = gradio.HTML(min_height=140, elem_id="progress")
            with gradio.Column(scale=2):
                shown = [_part(gradio, part, desk.top_k) for part in PARTS]
        playable = gradio.Checkbox(visible=False)

        progress = gradio.Progress()  # gradio looks for it among the defaults

        def answer(video: str | None, model: str, progress: Any = progress) -> Iterator[list[Any]]:
            for parts in desk.answer(video, model, progress):
                yield [_update(gradio, part, parts.get(part)) for part in PARTS]

        def show_preview(video: str | None, playable: bool) -> Any:
            target = folder / f"{secrets.token_hex(16)}.mp4"
            says = None if video is None or playable else desk.preview(video, target)
            if says is None:
                return gradio.update(value="", visible=False)
            preview.temp_files.add(str(target))  # removed as uploads are
            player = f'<video controls playsinline muted src="{escape(_address(target))}"></video>'
            return gradio.update(value=player + escape(says), visible=True)

        how: dict[str, Any] = {"concurrency_limit": NUM_AT_ONCE, "show_progress_on": room}
        button.click(answer, [video, model], shown, api_name="answer", **how)
        video.change(
            show_preview, [video, playable], preview, js="(video) => canPlay(video)", api_name="preview", **how
        )
        chosen: dict[str, Any] = {"path": str(example), "url": _address(example), "meta": {"_type": "gradio.FileData"}}
        try_one.click(None, None, video, js=f"() => ({json.dumps(chosen)})")
    page.queue(max_size=NUM_WAITING)
    return page


def _choices(names: list[str]) -> list[tuple[str, str]]:
    """What visitors see of each model: of a path its last part, where that is its alone."""
    shown = [Path(name).name if Path(name).exists() else name for name in names]
    return [(label if shown.count(label) == 1 else name, name) for label, name in zip(shown, names, strict=True)]


def _part(gradio: Any, part: str, top_k: int) -> Any:
    """What shows one of ``PARTS``."""
    looks: dict[str, Any] = {"label": PARTS[part], "elem_id": part, "visible": False}
    if part == "note":
        return gradio.Textbox(interactive=False, **looks)
    if part == "classes":
        return gradio.Label(num_top_classes=top_k, **looks)
    if part == "timeline":
        return gradio.HTML(show_label=True, container=True, padding=True, apply_default_css=False, **looks)
    return gradio.Image(format="png", buttons=["fullscreen", "download"], **looks)


def _update(gradio: Any, part: str, value: Any) -> Any:
    """Shows a part that is answered, hides one that is not; a doubtful answer is called so."""
    doubtful = doubt(max(value.values())) if part == "classes" and value else None
    looks: dict[str, Any] = {}
    if part == "classes":
        looks = {"label": doubtful or PARTS[part], "elem_classes": ["doubtful"] if doubtful else []}
    return gradio.update(value=value, visible=value is not None, **looks)


def _address(file: Path) -> str:
    return f"gradio_api/file={quote(str(file))}"


def _free_port(host: str, port: int) -> int:
    """``port``, or for 0 any. Raises :class:`RequestError` where it cannot be had."""
    try:
        with socket.create_server((host, port), reuse_port=False) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{host}:{port} cannot be opened ({why}): choose another --port or --host") from error
