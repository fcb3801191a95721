"""What a job gives back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

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
