"""What a job gives back, and how it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Results(Iterator[T], Generic[T]):
    """``len`` results, each computed when it is asked for: progress bars can tell the time left.

    ``length`` is None where they come until they are stopped: ``endless``.
    """

    def __init__(self, length: int | None, items: Iterator[T]) -> None:
        self._length, self._items = length, items
        self.endless = length is None

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("results that come until they are stopped have no number")
        return self._length

    def __next__(self) -> T:
        return next(self._items)


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
    return str(value).ljust({"name": 26, "class": 40}.get(key, 10))
