"""Counts the files of the package that run on some ways through it, as a newcomer who follows them would open them.

    python scripts/trace_walks.py            # the counts
    python scripts/trace_walks.py --files    # and the files, in the order in which they are entered

The ways: a path to logits (``VideoClassifier(path)``); ``finetune(recipe)`` for two steps from files, which reads the
list and opens the run; of that alone the way from the first batch that leaves the loader to the return of the first
optimizer step; a video to a row of parquet (``extract``, with its folder and its inputs); of that alone the way from
the opening of the video for decoding to the file that has its row. Counted are files in which a function runs in the
process that the user started, in any of its threads; loading the model is left out, and so is what the decoder's
child process runs.
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


def files_of(walk: Callable[[], Any], *, whole: bool = True) -> list[str]:
    """The package's files in which a function runs while ``walk`` does, in the order in which they are entered.

    Of less than the whole walk, from the first call of :func:`_begin` to that of :func:`_end`.
    """
    entered: dict[str, None] = {}
    loading: dict[int, int] = {}  # of a thread, how many loading functions are under way
    counts = [whole]

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code is _begin.__code__ or code is _end.__code__:
            counts[0] = code is _begin.__code__ or not entered
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        thread = threading.get_ident()
        if code.co_name in LOADING:
            loading[thread] = loading.get(thread, 0) + (1 if event == "call" else -1)
        elif event == "call" and counts[0] and not loading.get(thread) and not _is_import(frame):
            entered.setdefault(str(Path(code.co_filename).relative_to(PACKAGE)))

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(entered)


def _begin() -> None:
    """What is counted begins."""


def _end() -> None:
    """What is counted ends."""


def files_of_a_step(train: Callable[[], Any]) -> list[str]:
    """Those from the first batch that leaves the loader to the return of the first optimizer step."""
    from torch.optim import AdamW

    from hiera_video.data.loader import ClipLoader

    iterate, make = ClipLoader.__iter__, AdamW.step
    steps: list[int] = []

    def batches(loader: Any) -> Any:
        for batch in iterate(loader):
            if not steps:
                _begin()
            yield batch

    def last(optimizer: Any, *arguments: Any, **options: Any) -> Any:
        result = make(optimizer, *arguments, **options)
        steps.append(result)
        _end()
        return result

    ClipLoader.__iter__, AdamW.step = batches, last  # type: ignore[method-assign, assignment]
    try:
        return ["data/loader.py", *files_of(train, whole=False)]
    finally:
        ClipLoader.__iter__, AdamW.step = iterate, make  # type: ignore[method-assign]


def files_of_a_row(extract: Callable[[], Any]) -> list[str]:
    """Those from the moment when the first input is opened for decoding to that when its rows are in a parquet file."""
    import pyarrow.parquet as pq

    from hiera_video.data.reading.child_process import IsolatedReader

    start, write = IsolatedReader.open, pq.write_table

    def opened(*arguments: Any, **options: Any) -> Any:
        _begin()
        return start(*arguments, **options)

    def written(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        _end()

    IsolatedReader.open, pq.write_table = opened, written  # type: ignore[method-assign]
    try:
        return files_of(extract, whole=False)
    finally:
        IsolatedReader.open, pq.write_table = start, write  # type: ignore[method-assign]


def _is_import(frame: FrameType) -> bool:
    """Whether a module's or a class's body runs, not a function."""
    names = frame.f_code.co_names
    return frame.f_code.co_name in ("<module>", "<lambda>") or {"__module__", "__qualname__"} <= set(names)


def main() -> None:
    """Walks these ways and prints what they passed through."""
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

        def extract(name: str) -> None:
            list(hiera_video.extract([str(CLIP)], output=folder / name, model=MODEL, device="cpu"))

        def train() -> None:
            list(hiera_video.finetune(recipe))

        recipe = hiera_video.own_recipe(changes)
        walks = {
            "a path to logits": lambda: classifier(CLIP),
            "finetune(recipe), two steps": train,
            "a video to a row of parquet (extract)": lambda: extract("features"),
        }
        for title, walk in walks.items():
            _print(title, files_of(walk), show)
        steps = hiera_video.own_recipe(changes)
        _print("a batch to an optimizer step", files_of_a_step(lambda: list(hiera_video.finetune(steps))), show)
        _print("an opened video to its row in a file", files_of_a_row(lambda: extract("row")), show)


def _print(title: str, files: list[str], show: bool) -> None:
    print(f"{title}: {len(files)} files")
    for file in files if show else []:
        print(f"    {file}")


if __name__ == "__main__":
    main()
