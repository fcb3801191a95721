"""Counts the files of the package that run on three ways through it, as a newcomer who follows them would open them.

    python scripts/trace_walks.py            # the three counts
    python scripts/trace_walks.py --files    # and the files, in the order in which they are entered

The ways: a path to logits (``VideoClassifier(path)``); ``finetune(recipe)`` for two steps from files, which reads the
list and opens the run; of that alone the way from the first batch that leaves the loader to the return of the first
optimizer step; a video to a row of parquet (``extract``). Counted are files in which a function runs in the process
that the user started, in any of its threads; loading the model is left out, and so is what the decoder's child process
runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import hiera_video

PACKAGE = Path(hiera_video.__file__).parent
CLIP = PACKAGE.parent / "docs" / "zoom_in.mp4"
MODEL = "hiera_nano_16x64.camera_motion"
#: Functions that load the model: what runs below them is another walk.
LOADING = {"from_pretrained", "mae_from_pretrained", "create_model"}


def files_of(walk: Callable[[], Any]) -> list[str]:
    """The package's files in which a function runs while ``walk`` does, in the order in which they are entered."""
    found: dict[str, None] = {}
    loading: dict[int, int] = {}  # of a thread, how many loading functions are under way

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        thread = threading.get_ident()
        if code.co_name in LOADING:
            loading[thread] = loading.get(thread, 0) + (1 if event == "call" else -1)
        elif event == "call" and not loading.get(thread) and not _is_import(frame):
            found.setdefault(str(Path(code.co_filename).relative_to(PACKAGE)))

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(found)


def files_of_a_step(train: Callable[[], Any]) -> list[str]:
    """Those from the first batch that leaves the loader to the return of the first optimizer step."""
    from torch.optim import AdamW

    from hiera_video.data.loader import ClipLoader

    entered: list[str] = []
    iterate, make = ClipLoader.__iter__, AdamW.step

    def batches(loader: Any) -> Any:
        for batch in iterate(loader):
            if not entered:
                entered.append("data/loader.py")
                sys.setprofile(watch)
            yield batch

    def watch(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(PACKAGE)) and not _is_import(frame):
            name = str(Path(file).relative_to(PACKAGE))
            if name not in entered:
                entered.append(name)

    def last(optimizer: Any, *arguments: Any, **options: Any) -> Any:
        result = make(optimizer, *arguments, **options)
        sys.setprofile(None)
        return result

    ClipLoader.__iter__, AdamW.step = batches, last  # type: ignore[method-assign, assignment]
    try:
        train()
    finally:
        sys.setprofile(None)
        ClipLoader.__iter__, AdamW.step = iterate, make  # type: ignore[method-assign]
    return entered


def _is_import(frame: FrameType) -> bool:
    """Whether a module's or a class's body runs, not a function."""
    names = frame.f_code.co_names
    return frame.f_code.co_name in ("<module>", "<lambda>") or {"__module__", "__qualname__"} <= set(names)


def main() -> None:
    """Walks the three ways and prints what they passed through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="name the files too")
    show = parser.parse_args().files
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label in ("zoom", "still"):
            (folder / "train" / label).mkdir(parents=True)
            for number in range(2):
                shutil.copy(CLIP, folder / "train" / label / f"{number}.mp4")
        changes = {"data.train": str(folder / "train"), "run.duration": "2st", "run.device": "cpu"}
        os.chdir(folder)  # runs without an output are written to runs/ there
        changes |= {"model.fit_head": "false", "run.videos_per_step": "2", "run.batch_size": "2"}
        classifier = hiera_video.VideoClassifier.from_pretrained(MODEL, device="cpu")

        def extract() -> None:
            list(hiera_video.extract([str(CLIP)], output=folder / "features", model=MODEL, device="cpu"))

        def train() -> None:
            list(hiera_video.finetune(recipe))

        recipe = hiera_video.own_recipe(changes)
        walks = {
            "a path to logits": lambda: classifier(CLIP),
            "finetune(recipe), two steps": train,
            "a video to a row of parquet": extract,
        }
        for title, walk in walks.items():
            _print(title, files_of(walk), show)
        steps = hiera_video.own_recipe(changes)
        _print("a batch to an optimizer step", files_of_a_step(lambda: list(hiera_video.finetune(steps))), show)


def _print(title: str, files: list[str], show: bool) -> None:
    print(f"{title}: {len(files)} files")
    for file in files if show else []:
        print(f"    {file}")


if __name__ == "__main__":
    main()
