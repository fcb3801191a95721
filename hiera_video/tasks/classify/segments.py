"""From scores over time to segments: where in a video each class is seen, and the clips cut out of it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import RequestError
from hiera_video.files import replacing, write_csv

#: Seconds between two writings of the tables while inputs are answered.
SECONDS_BETWEEN = 5.0
#: How clips are cut out, as in :func:`hiera_video.tasks.classify.cut.cut_clip`.
CutBy = Literal["exact", "copy"]


@dataclass(frozen=True)
class SegmentRule:
    """How segments are made of a class's scores.

    Args:
        smooth: Scores are averaged over so many seconds first.
        high: The score that a segment must reach somewhere.
        low: Where the score falls below it, or below half of its peak, a segment ends.
        gap: Segments of a class that are no further apart, in seconds, are one.
        least: Segments that are shorter, in seconds, are dropped.

    Raises:
        RequestError: A value means nothing.
    """

    smooth: float = 1.0
    high: float = 0.5
    low: float = 0.3
    gap: float = 1.0
    least: float = 1.0

    def __post_init__(self) -> None:
        for name in ("smooth", "gap", "least"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RequestError(f"{name} is {getattr(self, name):g}, but is a number of seconds, 0 or more")
        if not 0 < self.low <= self.high <= 1:
            raise RequestError(f"low is {self.low:g} and high {self.high:g}, but 0 < low <= high <= 1")


@dataclass(frozen=True)
class FoundSegment:
    """A class, where it is seen: ``start`` and ``end`` in seconds, ``mean`` and ``peak`` of its scores there."""

    label: str
    start: float
    end: float
    mean: float
    peak: float


def find_segments(
    times: NDArray[np.float64], scores: NDArray[np.float32], labels: list[str], rule: SegmentRule
) -> list[FoundSegment]:
    """Finds the segments of all classes; those of different classes may overlap.

    A window that is half filled by an action has about half of its score: a segment begins and ends there. A window's
    score is that of its middle; between two middles scores are joined by a line, before the first and behind the last
    they stay what they are.

    Args:
        times: Start and end of each window in seconds, ascending, float64 [n, 2].
        scores: float32 [n, K], from 0 to 1.
        labels: The K classes.
        rule: How segments are made.

    Returns:
        The segments by their start.
    """
    middles = times.mean(axis=1)
    begin, end = float(times[:, 0].min()), float(times[:, 1].max())
    # A moving average by sums up to each window: as long as the video, not its square.
    first_near = np.searchsorted(middles, middles - rule.smooth / 2 - 1e-9)
    behind = np.searchsorted(middles, middles + rule.smooth / 2 + 1e-9)
    sums = np.concatenate([np.zeros((1, scores.shape[1])), scores.cumsum(axis=0, dtype=np.float64)])
    smooth = ((sums[behind] - sums[first_near]) / (behind - first_near)[:, None]).round(9)  # of sums' own rounding
    at = np.concatenate([[begin], middles, [end]])
    found = []
    for number in np.flatnonzero(smooth.max(axis=0) >= rule.high).tolist():
        curve = np.concatenate([smooth[:1, number], smooth[:, number], smooth[-1:, number]])
        parts: list[list[float]] = []
        for first, last in _above(at, curve, rule.low):
            if parts and first - parts[-1][1] <= rule.gap:
                parts[-1][1] = last
            else:
                parts.append([first, last])
        for first, last in parts:
            peak = float(curve[(at >= first) & (at <= last)].max())
            half = [span for span in _above(at, curve, max(rule.low, peak / 2)) if first <= span[0] <= last]
            first, last = half[0][0], half[-1][1]
            if peak >= rule.high and last - first >= rule.least:
                inside = curve[1:-1][(middles >= first) & (middles <= last)]
                mean = float(inside.mean()) if inside.size else peak
                rounded = (round(first, 3), round(last, 3), round(mean, 4), round(peak, 4))
                found.append(FoundSegment(labels[number], *rounded))
    return sorted(found, key=lambda one: (one.start, one.end, one.label))


def _above(at: NDArray[np.float64], curve: NDArray[np.float64], low: float) -> list[tuple[float, float]]:
    """Where a line through points lies at ``low`` or above: starts and ends in seconds."""
    up = curve >= low
    spans: list[tuple[float, float]] = []
    first = float(at[0])
    for left in range(len(at) - 1):
        if up[left] == up[left + 1]:
            continue
        share = (low - curve[left]) / (curve[left + 1] - curve[left])
        crossing = float(at[left] + share * (at[left + 1] - at[left]))
        if up[left]:
            spans.append((first, crossing))
        first = crossing
    return [*spans, (first, float(at[-1]))] if up[-1] else spans


class SegmentTable:
    """``segments.csv`` and ``segments.json`` of a folder: each input with its segments.

    Both are written at the beginning and the end, and every few seconds between; used by ``with``.

    Args:
        folder: Where to; ``path`` is then that of the CSV file.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._written = folder / "segments.csv", time.monotonic()
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> SegmentTable:
        self._write()  # what an earlier run left is not this one's
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def add(self, name: str, segments: list[FoundSegment]) -> None:
        """Adds the segments of an input.

        Args:
            name: The input.
            segments: Its segments.

        Raises:
            OutputError: A file cannot be written.
        """
        self._rows += [{"input": name, **asdict(segment)} for segment in segments]
        if time.monotonic() - self._written > SECONDS_BETWEEN:
            self._write()

    def _write(self) -> None:
        columns = ["input", *(field.name for field in fields(FoundSegment))]
        write_csv(self.path, [columns, *([row[name] for name in columns] for row in self._rows)])
        text = json.dumps(self._rows, indent=2, ensure_ascii=False) + "\n"
        with replacing(self.path.with_suffix(".json")) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        self._written = time.monotonic()
