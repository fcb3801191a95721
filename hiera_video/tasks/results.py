"""What a job gives back: an iterator that knows its length, and outputs that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from hiera_video.errors import OutputError

T = TypeVar("T")


class Results(Iterator[T], Generic[T]):
    """``len`` results, each computed when it is asked for: progress bars can tell the time left."""

    def __init__(self, length: int, items: Iterator[T]) -> None:
        self._length, self._items = length, items

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> T:
        return next(self._items)


def checked_output(path: Path) -> None:
    """Raises :class:`OutputError` now, before any work, where ``path`` cannot be written."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}")


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``path`` under a temporary name and renames it. Raises :class:`OutputError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
