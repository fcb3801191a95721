"""How the figures of a record read: one line of a table."""

from __future__ import annotations

from typing import Any


def cells(row: dict[str, Any]) -> str:
    """A flat row on one line, for the columns of a table.

    Args:
        row: Values by name; "error" is left out.

    Returns:
        Texts as they are, numbers beside their names or units.
    """
    return "  ".join(_cell(key, value) for key, value in row.items() if key != "error").rstrip()


def _cell(key: str, value: Any) -> str:
    units = {"params_m": " M", "gflop": " GFLOP"}
    if key in units:
        return f"{value:8.2f}{units[key]}"
    if isinstance(value, int):
        return f"{value} {key}".ljust(16)
    if isinstance(value, float) or value is None:
        return f"{key} {'-' if value is None else f'{value:.4g}'}".ljust(16)
    return str(value).ljust({"name": 26, "class": 40}.get(key, 10))
