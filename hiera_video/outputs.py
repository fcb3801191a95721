"""Outputs: files that appear whole or not at all, and results as lines to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiera_video.errors import HieraVideoError, OutputError


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


def check_output(path: Path) -> None:
    """Raises :class:`OutputError` now, before any work, where ``path`` cannot be written."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}")


def as_text(rows: list[dict[str, Any]]) -> str:
    """One result as a block of aligned lines: its flat rows, as every record of a job has them."""
    lines = []
    for row in rows:
        if "similarity" in row:
            return f"{row['similarity']:7.4f}  {row['start']:8.2f} to {row['end']:8.2f} s  {row['input']}"
        if "label" not in row:
            return "  ".join(_cell(key, value) for key, value in row.items() if key != "error").rstrip()
        if row["rank"] is not None:
            lines.append(f"  {row['score']:6.1%}  {row['label']}")
    if lines and "latency" in row:
        return f"{row['end']:8.2f} s  {1000 * row['latency']:5.0f} ms late" + "".join(lines)
    duration = row.get("duration")
    head = row["input"] + (f"  ({duration:.2f} s)" if duration else "")
    error = [f"  error: {row['error']}"] if row["error"] else []
    return "\n".join([head, *lines, *error])


def _cell(key: str, value: Any) -> str:
    units = {"params_m": " M", "gflop": " GFLOP"}
    if key in units:
        return f"{value:8.2f}{units[key]}"
    if isinstance(value, int):
        return f"{value} {key}".ljust(16)
    if isinstance(value, float) or value is None:
        return f"{key} {'-' if value is None else f'{value:.4g}'}".ljust(16)
    return str(value).ljust({"name": 24, "class": 40}.get(key, 10))
