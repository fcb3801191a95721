"""The figures of a list and of each of its classes, with intervals: the records of ``evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.lists.video_list import VideoList
from hiera_video.tasks.evaluate.calibration import calibration
from hiera_video.tasks.evaluate.intervals import LEVEL, SEED, bootstrap, num_resamples, wilson
from hiera_video.tasks.evaluate.metrics import TOP, Floats, Scores, counted, counted_rows, weighted


@dataclass(frozen=True)
class ClassScore:
    """The figures of a class, of "all", or of videos with "(no label)", which are scored and not counted.

    ``videos`` of the ``listed`` ones were readable and counted. ``values``: ``top1``, ``top5`` and, of
    "all", ``macro`` and ``macro_f1``; or ``map`` (of a class: its average precision); None where nothing counts. "all"
    has ``ece`` too, the expected calibration error. ``intervals`` at 95 %, (low, high), of those that have one.
    """

    name: str
    listed: int
    videos: int
    values: dict[str, float | None]
    error: str | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """``{"class", "listed", "videos", "top1", "top5", "top1_low", "top1_high", ..., "error"}``, or with ``map``."""
        values = {name: None if value is None else round(value, 6) for name, value in self.values.items()}
        for name in [name for name in values if name != "ece"]:
            low, high = self.intervals.get(name, (None, None))
            values |= {f"{name}_low": low, f"{name}_high": high}
        return {"class": self.name, "listed": self.listed, "videos": self.videos, **values, "error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]

    def text(self) -> str:
        """A line for a class, one more for each figure of the total."""
        figures = [f"{name:8} {self._share(name, value)}" for name, value in self.values.items()]
        if "ece" in self.values:
            return "\n  ".join([f"all: {self.videos} of {self.listed} videos, intervals at {LEVEL:.0%}", *figures])
        count = f"{self.videos} of {self.listed}"
        return "  ".join([self.name.ljust(28), count.ljust(8), *(f"{words:29}" for words in figures)]).rstrip()

    def _share(self, name: str, value: float | None) -> str:
        """88.9% (79.6-94.3)."""
        if value is None:
            return "-"
        bounds = self.intervals.get(name)
        return f"{value:6.1%}" + (f" ({100 * bounds[0]:.1f}-{100 * bounds[1]:.1f})" if bounds else "")


def class_scores(scores: Scores, videos: VideoList) -> list[ClassScore]:
    """The figures of a list.

    Args:
        scores: Of the videos that could be read.
        videos: The list, its classes numbered as the columns of the scores.

    Returns:
        The total first, then each class that is listed, then the videos without label if there are some.
    """
    values, labels = counted(scores, videos)
    figures, num_classes = weighted(values, labels), len(videos.classes)
    whole = figures(np.ones(len(values)))
    if labels.ndim == 2:
        listed, counts = videos.labels.sum(axis=0), labels.sum(axis=0)
    else:
        listed = np.bincount(videos.labels[videos.labels >= 0], minlength=num_classes)
        counts = np.bincount(labels, minlength=num_classes)
    files = _files(scores, videos)
    bounds = bootstrap(lambda weights: figures(weights).flat(), files, num_resamples(labels.size))
    of_all = dict(zip(whole.total, bounds, strict=False))
    of_classes = dict(zip(whole.classes, bounds[len(of_all) :].reshape(-1, num_classes, 2), strict=True))
    if labels.ndim == 1 and _independent(files):
        for name in TOP:
            of_all[name] = wilson(round(np.nan_to_num(whole.total[name]) * len(labels)), len(labels))
            of_classes[name] = wilson(np.nan_to_num(whole.classes[name]) * counts, counts)
    error = calibration(values, labels).error
    total = {name: _finite(value) for name, value in {**whole.total, "ece": error}.items()}
    found = [ClassScore("all", len(videos), len(values), total, _error(scores, videos), _pairs(of_all))]
    for number in np.flatnonzero(listed).tolist():
        own = {name: _finite(float(each[number])) for name, each in whole.classes.items()}
        sure = _pairs({name: each[number] for name, each in of_classes.items()})
        found.append(ClassScore(videos.classes[number], int(listed[number]), int(counts[number]), own, None, sure))
    if num_unlabelled := int((videos.labels < 0).sum()):
        found.append(ClassScore("(no label)", num_unlabelled, 0, dict.fromkeys(whole.classes)))
    return found


def interval_method(scores: Scores, videos: VideoList) -> str:
    """How the intervals of :func:`class_scores` were found, in words."""
    (_, labels), files = counted(scores, videos), _files(scores, videos)
    share = f"{LEVEL:.0%}"
    num_files, drawn = len(np.unique(files)), f"bootstrap, {num_resamples(labels.size)} resamples (seed {SEED})"
    if not _independent(files):
        return f"{share}, {drawn} of the {num_files} files whose segments the {len(files)} videos are"
    if labels.ndim == 2:
        return f"{share}, {drawn} of the videos"
    return f"{share}, Wilson for top1 and top5; {drawn} of the videos for macro and macro_f1"


def missing_classes(videos: VideoList) -> list[str]:
    """The classes of the model that no video of a list has."""
    present = np.nonzero(videos.labels)[1] if videos.labels.ndim == 2 else videos.labels
    return [videos.classes[number] for number in np.setdiff1d(np.arange(len(videos.classes)), present)]


def _files(scores: Scores, videos: VideoList) -> NDArray[np.int64]:
    """The number of the file, int64 [n], that each counted video lies in."""
    numbers: dict[str, int] = {}
    paths = map(videos.path, scores.index[counted_rows(scores, videos)].tolist())
    return np.array([numbers.setdefault(path, len(numbers)) for path in paths], dtype=np.int64)


def _independent(files: NDArray[np.int64]) -> bool:
    """Whether no two videos are segments of one file."""
    return len(np.unique(files)) == len(files)


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value


def _pairs(bounds: dict[str, Floats]) -> dict[str, tuple[float, float]]:
    rounded = {name: (round(float(low), 6), round(float(high), 6)) for name, (low, high) in bounds.items()}
    return {name: pair for name, pair in rounded.items() if np.isfinite(pair).all()}


def _error(scores: Scores, videos: VideoList) -> str | None:
    """One sentence where videos could not be read, or only in part."""
    read = set(scores.index.tolist())
    missing = sum(index not in read for index in scores.errors)
    damaged = len(scores.errors) - missing
    if missing == len(videos):
        return f"none of {missing} videos could be read; the first: {next(iter(scores.errors.values()))}"
    texts = [f"{missing} of {len(videos)} videos could not be read"] if missing else []
    texts += [f"{damaged} of {len(videos)} videos could be read only in part"] if damaged else []
    return " and ".join(texts) or None
