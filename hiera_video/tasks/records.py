"""What a job gives back: records, one after another, and their text form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Generic, Protocol, TypeVar

from hiera_video.cells import cells

T = TypeVar("T")


class Record(Protocol):
    """What every job yields."""

    @property
    def error(self) -> str | None:
        """One sentence where an input was missing or bad."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""

    def rows(self) -> list[dict[str, Any]]:
        """The CSV form: one or more flat rows, which all have the same columns."""

    def text(self) -> str:
        """The form that people read: one line, or several."""


class FlatRecord:
    """A dataclass whose fields are one flat row; where more can be said, a record says it itself.

    One that cannot fail declares no ``error``, and its JSON form has none. Several are printed as a table.
    """

    tabular = True

    @property
    def error(self) -> str | None:
        """Nothing is wrong."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """All fields, and ``error``."""
        fields = asdict(self)  # type: ignore[call-overload]  # records are dataclasses
        return fields if type(self).error is FlatRecord.error else {**fields, "error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]

    def text(self) -> str:
        """One line."""
        return cells(self.rows()[0])


class Results(Iterator[T], Generic[T]):
    """``len`` results, each computed when it is asked for, so that a progress bar can tell the time left.

    Args:
        length: How many there are; None where they come until they are stopped (then they are ``endless``).
        items: The results.
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
