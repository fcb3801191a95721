"""What a job gives back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Results(Iterator[T], Generic[T]):
    """``len`` results, each computed when it is asked for: progress bars can tell the time left."""

    def __init__(self, length: int, items: Iterator[T]) -> None:
        self._length, self._items = length, items

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> T:
        return next(self._items)
