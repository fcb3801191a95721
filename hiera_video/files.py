"""Files that ship with the package, found by name; and outputs that appear whole or not at all."""

from __future__ import annotations

import csv
import difflib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from hiera_video.errors import HieraVideoError, OutputError, RequestError

Kind = Literal["datasets", "configs"]

PACKAGE = Path(__file__).parent
WORDS = {"datasets": "dataset card", "configs": "recipe"}

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
        set_usual_mode(temporary)
        temporary.replace(path)
    except HieraVideoError:  # another trouble, though it may be an OSError too
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def set_usual_mode(path: Path) -> None:
    """Gives a file the permissions that the umask gives a new one: safetensors makes files for their owner alone.

    The umask itself is read only by setting it, for all threads: a file made for the purpose tells it.
    """
    probe = path.with_name(f"{path.name}.mode")
    with suppress(OSError):  # a file system without permissions
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.unlink(missing_ok=True)


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


# --- what ships ------------------------------------------------------------------------------------------------------


def is_path(name: str | os.PathLike[str]) -> bool:
    """Whether this names a file by its place, not a card or recipe by its name."""
    text = os.fspath(name)
    return text.endswith((".yaml", ".yml")) or os.path.basename(text) != text


def find(kind: Kind, name: str | os.PathLike[str]) -> Path:
    """The file of a card or recipe: a path is taken as it is, a name is looked up.

    Raises :class:`RequestError`, with the nearest name.
    """
    if is_path(name):
        path = Path(name)
        if not path.is_file():
            raise RequestError(f"there is no file {path}; a {WORDS[kind]} can be named too: {', '.join(names(kind))}")
        return path
    for folder in _folders(kind):
        path = folder / f"{os.fspath(name)}.yaml"
        if path.is_file():
            return path
    nearest = difflib.get_close_matches(os.fspath(name), names(kind), n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(names(kind))}"
    raise RequestError(f"there is no {WORDS[kind]} {os.fspath(name)!r}; {hint}")


def names(kind: Kind) -> list[str]:
    """The names that :func:`find` knows, sorted."""
    return sorted({path.stem for folder in _folders(kind) for path in folder.glob("*.yaml")})


def _folders(kind: Kind) -> list[Path]:
    """An editable install never reads a stale copy; beside an installed package, "datasets" is somebody else's."""
    checkout = PACKAGE.parent
    return ([checkout / kind] if (checkout / "pyproject.toml").is_file() else []) + [PACKAGE / kind]
