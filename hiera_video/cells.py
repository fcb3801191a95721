"""How the figures of records read: one line, or a table."""

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


def table(rows: list[dict[str, Any]]) -> str:
    """Flat rows below a header of their names.

    Args:
        rows: Values by name; "error" is left out.

    Returns:
        Lines of columns as wide as what stands in them, numbers on the right; a dash where there is no value.
    """
    names = dict.fromkeys(name for row in rows for name in row if name != "error")
    columns = [_column(name, [row.get(name, "") for row in rows]) for name in names]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _column(name: str, values: list[Any]) -> list[str]:
    floats = [abs(value) for value in values if isinstance(value, float)]
    decimals = (4 if max(floats) <= 1 else 2) if floats else 0
    texts = [name]
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        texts.append("-" if value is None else f"{value:.{decimals}f}" if number else str(value))
    width = max(map(len, texts))
    number = all(isinstance(value, (int, float)) or value in (None, "") for value in values)
    return [text.rjust(width) if number else text.ljust(width) for text in texts]


def _cell(key: str, value: Any) -> str:
    units = {"params_m": " M", "gflop": " GFLOP"}
    if key in units:
        return f"{value:8.2f}{units[key]}"
    if isinstance(value, int):
        return f"{value} {key}".ljust(16)
    if isinstance(value, float) or value is None:
        return f"{key} {'-' if value is None else f'{value:.4g}'}".ljust(16)
    return str(value).ljust({"name": 26, "class": 40}.get(key, 10))
