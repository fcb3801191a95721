"""Outputs that appear whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hiera_video.errors import HieraVideoError, OutputError, RequestError

#: Locks that this process holds: the system would give it them twice.
_HELD: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well.

    Raises :class:`OutputError` where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except HieraVideoError:  # another trouble, though it may be an OSError too
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, label: str) -> Iterator[None]:
    """Refuses a second run that would write ``label`` into the same folder at the same time.

    Raises :class:`RequestError`, :class:`OutputError`.
    """
    import fcntl  # not on Windows

    place = (folder / f".{label}.lock").absolute()
    taken = RequestError(f"another run is writing {label} into {folder}: wait for it, or end it")
    if place in _HELD:
        raise taken
    try:
        file = open(place, "w")  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    with file:
        try:
            # Of this process alone: the workers of a run that was killed outlive it by seconds, and would keep a flock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise taken from None
        except OSError:  # a file system without locks
            pass
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.discard(place)


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """A table, its header first. Raises :class:`OutputError`."""
    # Names of files, and labels, may hold bytes that are no UTF-8.
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def check_output(path: Path) -> None:
    """Raises :class:`OutputError` now, before any work, where ``path`` cannot be written."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}")
