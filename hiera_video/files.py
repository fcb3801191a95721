"""Files that ship with the package, found by name; and outputs that appear whole or not at all."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    """Lets a block write a file that appears whole or not at all.

    Args:
        path: The file.

    Yields:
        A temporary name beside it, which is renamed to ``path`` when the block ends well.

    Raises:
        OutputError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # as the user's umask has it: some writers (safetensors) make files for their owner alone
        temporary.replace(path)
    except HieraVideoError:  # an error of the block, though it may be an OSError too
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, label: str) -> Iterator[None]:
    """Holds a lock while a block writes into a folder.

    Args:
        folder: The folder.
        label: What is written, in a word for messages.

    Raises:
        RequestError: Another run holds the lock.
        OutputError: The folder cannot be written.
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


def files_below(folder: str) -> Iterator[str]:
    """The files of a folder and of those below it, hidden folders apart, in the order of their names.

    Links to folders are followed, but for those to a folder in which they lie, and each folder is searched once.

    Args:
        folder: The path of a folder, or of a link to one.

    Yields:
        Paths that begin with ``folder``; a link to a file that is not there is one too.
    """
    real_folder = os.path.realpath(folder)
    seen = {real_folder, os.path.realpath(os.path.dirname(folder))}
    for where, folders, files in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            real = os.path.realpath(os.path.join(where, name))
            if real not in seen and not f"{real_folder}/".startswith(f"{real.rstrip('/')}/"):
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for file in sorted(files):
            yield os.path.join(where, file)


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes a table.

    Args:
        path: The file.
        rows: The header, then the rows.

    Raises:
        OutputError: The file cannot be written.
    """
    # Names of files, and labels, may hold bytes that are no UTF-8.
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def check_output(path: Path) -> None:
    """Refuses an output before any work is done for it.

    Args:
        path: The file that will be written.

    Raises:
        OutputError: It is a folder, its folder is missing, or there is no permission.
    """
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}")


# --- what ships ------------------------------------------------------------------------------------------------------


def is_path(name: str | os.PathLike[str]) -> bool:
    """Whether a text is the path of a file, rather than the name of a card or recipe.

    Args:
        name: The text.

    Returns:
        True where it ends as YAML files do, or has a folder in it.
    """
    text = os.fspath(name)
    return text.endswith((".yaml", ".yml")) or os.path.basename(text) != text


def find(kind: Kind, name: str | os.PathLike[str]) -> Path:
    """The file of a card or recipe.

    Args:
        kind: The folder of what is named: "datasets" or "configs".
        name: The name of one that ships, or the path of a YAML file.

    Returns:
        The path of the file.

    Raises:
        RequestError: There is none; the message has the nearest name.
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
    """The names of the cards or recipes that ship.

    Args:
        kind: "datasets" or "configs".

    Returns:
        The names that :func:`find` takes, sorted.
    """
    return sorted({path.stem for folder in _folders(kind) for path in folder.glob("*.yaml")})


def _folders(kind: Kind) -> list[Path]:
    """A checkout's own folder comes first; beside an installed package, a folder "datasets" is somebody else's."""
    checkout = PACKAGE.parent
    return ([checkout / kind] if (checkout / "pyproject.toml").is_file() else []) + [PACKAGE / kind]


def labels_of(name: str) -> list[str]:
    """The names of classes that torchvision carries, in the order of the published heads.

    Args:
        name: "kinetics400" or "imagenet1k".

    Returns:
        400 or 1000 names.
    """
    if name == "kinetics400":
        from torchvision.models.video import R3D_18_Weights

        return list(R3D_18_Weights.DEFAULT.meta["categories"])
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.DEFAULT.meta["categories"])
