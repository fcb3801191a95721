"""What an extraction is asked for, line by line, and what of it is still to be done."""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension, find_inputs, is_address
from hiera_video.errors import RequestError
from hiera_video.tasks.features.feature_table import key_of

#: Files that list inputs rather than being one.
MANIFESTS = {".txt", ".csv"}


class Inputs:
    """What a user named, as files, in their order and the same each time; a list of millions is read line by line.

    Iterating gives each name, and None or one sentence on why it cannot be read.

    Args:
        inputs: Files, folders, globs, addresses, and lists of them (.txt, .csv).

    Raises:
        RequestError: For a list that is not there, and while iterating for one that cannot be read.
    """

    def __init__(self, inputs: list[str]) -> None:
        self._parts: list[Path | list[tuple[str, str | None]]] = []
        for name in inputs:
            path = Path(name)
            is_list = not is_address(name) and path.suffix.lower() in MANIFESTS
            if is_list and not path.is_file():
                raise RequestError(f"{name} is no file: name a list of inputs that is there")
            self._parts.append(path if is_list else find_inputs([name]))

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        for part in self._parts:
            yield from _lines(part) if isinstance(part, Path) else part


def _lines(manifest: Path) -> Iterator[tuple[str, str | None]]:
    """A path a line, relative to the list's folder; of a CSV the column input, path or video."""
    try:
        with manifest.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            column = 0
            rows: Iterator[list[str]] = ([line.strip()] for line in stream)
            if manifest.suffix.lower() == ".csv":
                rows = csv.reader(stream)
                header = next(rows, [])
                names = [name for name in ("input", "path", "video") if name in header]
                if not names:
                    raise RequestError(f"{manifest} has no column input, path or video: its first line is {header}")
                column = header.index(names[0])
            for number, row in enumerate(rows, start=2 if manifest.suffix.lower() == ".csv" else 1):
                name = row[column] if column < len(row) else ""
                if not name and len(row) < 2:
                    continue
                if extension(name) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                    yield name if is_address(name) else str(manifest.parent / name), None
                else:
                    yield name, f"{manifest}, line {number}: {name[:80]!r} is no path of a video or image."
    except OSError as error:
        raise RequestError(f"{manifest} cannot be read: {error.strerror or error}") from error


class Todo:
    """The inputs of a share that are not done, each once, with the number of the first window that is missing.

    An input is kept as a key of 64 bits, since there may be millions. ``bad``: inputs that are none, and why.
    ``inputs``: how many the share has; ``before``: how many of them are done.

    Args:
        named: All inputs.
        done: Keys of the inputs that are done, sorted.
        begun: By key, how many windows of an input are there.
        share: Its number, from 1 on, and how many there are.
    """

    def __init__(self, named: Inputs, done: NDArray[np.uint64], begun: dict[int, int], share: tuple[int, int]) -> None:
        self._named, self._begun = named, begun
        numbers = array("Q")
        self.bad: list[tuple[str, str]] = []
        bad: list[int] = []
        number, count = share
        for position, (name, error) in enumerate(named):
            key = key_of(name)
            numbers.append(key)
            if error is not None:
                bad.append(position)
                if key % count == number - 1:
                    self.bad.append((name, error))
        keys = np.array(numbers, dtype=np.uint64)
        self._done = done
        mine = np.zeros(len(keys), dtype=bool)
        mine[np.unique(keys, return_index=True)[1]] = True
        mine &= keys % np.uint64(count) == np.uint64(number - 1)
        self.inputs = int(mine.sum())
        mine[bad] = False
        self._mask = mine & ~np.isin(keys, done)
        self.before = int((mine & ~self._mask).sum())

    def __len__(self) -> int:
        return int(self._mask.sum())

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for is_missing, (name, _) in zip(self._mask, self._named, strict=True):
            if is_missing:
                yield name, self._begun.get(key_of(name), 0)

    def is_done(self, name: str) -> bool:
        """Whether all windows of an input were there before.

        Args:
            name: Of the input.

        Returns:
            Whether they were.
        """
        place = int(np.searchsorted(self._done, np.uint64(key_of(name))))
        return place < len(self._done) and int(self._done[place]) == key_of(name)


def parse_part(part: str) -> tuple[int, int]:
    """Which share of the inputs is meant.

    Args:
        part: Such as "3/16".

    Returns:
        Its number, from 1 on, and how many there are.

    Raises:
        RequestError: For anything else.
    """
    match = re.fullmatch("([0-9]+)/([0-9]+)", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise RequestError(f"part {part!r} must be a number of so many, from 1/1 on, such as 3/16")
    return int(match[1]), int(match[2])
