"""Scores to figures: top-1, top-5 and mean average precision, of a whole list and of each class."""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.cells import cells
from hiera_video.data.lists.annotations import plain
from hiera_video.data.lists.video_list import VideoList
from hiera_video.errors import RequestError
from hiera_video.tasks.classify.classifier import Scored

log = logging.getLogger("hiera_video")

#: Figures of videos with one label: name -> how many of the best classes count.
TOP = {"top1": 1, "top5": 5}


@dataclass(frozen=True)
class Scores:
    """``index`` int64 [n], ascending, of the videos that could be read, and ``scores`` float32 [n, K] of each.

    ``errors``: one sentence by index, for each video that could not be read (it is not in ``index``), or only in part.
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float32]
    errors: dict[int, str]


def put_together(scored: Iterable[Scored], num_classes: int) -> Scores:
    """The scores of many videos as one table, sorted by index; of a video that was scored twice, the later scores.

    Args:
        scored: Each video's scores, in any order, such as ``gather_object`` of accelerate gives of all processes.
        num_classes: Columns of the table where no video could be read.

    Returns:
        The table.
    """
    rows: dict[int, NDArray[np.float32]] = {}
    errors: dict[int, str] = {}
    for video in scored:
        if video.scores is not None:
            rows[video.index] = video.scores
        if video.error is not None:
            errors[video.index] = video.error
    table = np.stack([rows[index] for index in sorted(rows)]) if rows else np.empty((0, num_classes), dtype=np.float32)
    return Scores(np.array(sorted(rows), dtype=np.int64), table, dict(sorted(errors.items())))


# --- figures ----------------------------------------------------------------------------------------------------------


def metrics(scores: Scores, videos: VideoList) -> dict[str, float]:
    """The figures of a whole list.

    Args:
        scores: Of the videos that could be read.
        videos: The list, its classes numbered as the columns of the scores.

    Returns:
        ``{"top1", "top5", "macro", "macro_f1", "videos", "listed"}``, or ``{"map", ...}`` where a video may have
        several labels: shares from 0 to 1, nan where nothing counts. ``videos`` were readable and labelled, ``listed``
        is all of them. ``top5`` of fewer than five classes looks at all. ``macro``: the mean of the share that is right
        over the classes that a readable video has, and ``macro_f1`` that of F1. ``map``: the mean of the average
        precision of each of these classes.
    """
    values, labels = counted(scores, videos)
    if labels.ndim == 2:
        each = _average_precision(values, labels)
        figures = {"map": float(np.nanmean(each)) if labels.any() else float("nan")}
    else:
        right = {name: is_right(values, labels, k) for name, k in TOP.items()}
        figures = {name: float(hits.mean()) if len(hits) else float("nan") for name, hits in right.items()}
        figures |= _macro(values, labels)
    return {**figures, "videos": float(len(values)), "listed": float(len(videos))}


def _macro(values: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Means over the classes that have videos, which count alike: of the share that is right, and of F1."""
    if not len(labels):
        return {"macro": float("nan"), "macro_f1": float("nan")}
    named, classes = values.argmax(axis=1), np.unique(labels)
    hits = np.array([((named == one) & (labels == one)).sum() for one in classes])
    truths = np.array([(labels == one).sum() for one in classes])
    taken = np.array([(named == one).sum() for one in classes])
    return {"macro": float((hits / truths).mean()), "macro_f1": float((2 * hits / (truths + taken)).mean())}


def counted(scores: Scores, videos: VideoList) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scores and labels of the readable videos that have labels."""
    labels = videos.labels[scores.index]
    known = labels >= 0 if labels.ndim == 1 else np.ones(len(labels), dtype=bool)
    return scores.scores[known], labels[known]


def is_right(values: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether a video's label is among its best classes.

    Args:
        values: Scores float32 [n, K].
        labels: int64 [n].
        k: How many classes count as the best; where there are fewer, all do.

    Returns:
        bool [n].
    """
    best = torch.from_numpy(values).topk(min(k, values.shape[1])).indices.numpy()
    right: NDArray[np.bool_] = (best == labels[:, np.newaxis]).any(axis=1)
    return right


def _average_precision(values: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each class, float64 [K]; nan where no video has it, which torchmetrics would count as 0."""
    from torchmetrics.functional.classification import binary_average_precision

    each = np.full(labels.shape[1], np.nan)
    for number in np.flatnonzero(labels.any(axis=0)):
        truth = torch.from_numpy(labels[:, number]).long()
        each[number] = float(binary_average_precision(torch.from_numpy(values[:, number]), truth))
    return each


@dataclass(frozen=True)
class ClassScore:
    """The figures of a class, of "all", or of videos with "(no label)", which are scored and not counted.

    ``videos`` of the ``listed`` ones were readable and counted. ``values``: ``top1``, ``top5`` and, of
    "all", ``macro`` and ``macro_f1``; or ``map`` (of a class: its average precision); None where nothing counts.
    """

    name: str
    listed: int
    videos: int
    values: dict[str, float | None]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """``{"class", "listed", "videos", "top1", "top5", "error"}``, or ``map`` instead of the two."""
        values = {name: None if value is None else round(value, 6) for name, value in self.values.items()}
        return {"class": self.name, "listed": self.listed, "videos": self.videos, **values, "error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]

    def text(self) -> str:
        """One line."""
        return cells(self.to_dict())


def class_scores(scores: Scores, videos: VideoList) -> list[ClassScore]:
    """The total first, then each class that is listed, then the videos without label if there are some."""
    total = metrics(scores, videos)
    num_listed, num_videos = int(total.pop("listed")), int(total.pop("videos"))
    known = {name: None if np.isnan(value) else value for name, value in total.items()}
    found = [ClassScore("all", num_listed, num_videos, known, _error(scores, videos))]
    values, labels = counted(scores, videos)
    num_classes = len(videos.classes)
    if labels.ndim == 2:
        listed, counts = videos.labels.sum(axis=0), labels.sum(axis=0)
        each = {"map": _average_precision(values, labels)}
    else:
        listed = np.bincount(videos.labels[videos.labels >= 0], minlength=num_classes)
        counts = np.bincount(labels, minlength=num_classes)
        right = {name: labels[is_right(values, labels, k)] for name, k in TOP.items()}
        each = {name: np.bincount(hits, minlength=num_classes) / np.maximum(counts, 1) for name, hits in right.items()}
    for number in np.flatnonzero(listed).tolist():
        figures = {name: float(value[number]) if counts[number] else None for name, value in each.items()}
        found.append(ClassScore(videos.classes[number], int(listed[number]), int(counts[number]), figures))
    if num_unlabelled := int((videos.labels < 0).sum()):
        found.append(ClassScore("(no label)", num_unlabelled, 0, dict.fromkeys(each)))
    return found


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


def match_classes(videos: VideoList, labels: Sequence[str] | None, num_classes: int) -> VideoList:
    """``videos`` with classes and labels numbered as the outputs of a model with these ``labels``, if it has names.

    By name where they are known to the model, in any order; else by number, where either side has only numbers (or
    ImageNet's n01440764) and the counts agree. Says in one log line what differs. Raises :class:`RequestError`.
    """
    names, known = videos.classes, list(labels or ())
    if not names:
        raise RequestError(f"{videos.path(0)} and all others have no label to count by: name class folders, or a list")
    if names == known:
        return videos
    used = set(np.flatnonzero(videos.labels.any(axis=0)) if videos.labels.ndim == 2 else videos.labels)
    likeness = Counter(map(plain, known))
    numbers = {plain(name): number for number, name in enumerate(known) if likeness[plain(name)] == 1}
    numbers |= {name: number for number, name in enumerate(known)}
    places = np.array([numbers.get(name, numbers.get(plain(name), -1)) for name in names])
    unknown = [name for number, name in enumerate(names) if number in used and places[number] < 0]
    if unknown and known and not _numbers_only(names) and not _numbers_only(known):
        nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)[0]
        raise RequestError(
            f"the videos to evaluate have the class {unknown[0]!r}, which the model lacks; its nearest is {nearest!r}"
        )
    if unknown or not known:
        if len(names) > num_classes or (len(names) < num_classes and not all(map(str.isdecimal, names))):
            raise RequestError(
                f"the list has {len(names)} classes and the model {num_classes} of other names or none, so that "
                "which is which cannot be told: name the classes as the model does, or list all of them"
            )
        unnamed = "list" if known and not _numbers_only(known) else "model"
        log.info("classes are matched by number: the %s has no names for them", unnamed)
        places = np.arange(len(names))
        if not known or _numbers_only(known):
            known = [*names, *map(str, range(len(names), num_classes))]
    elif sorted(places.tolist()) != list(range(num_classes)):
        log.info("%d of the model's %d classes are listed: matched by name", (places >= 0).sum(), num_classes)
    elif places.tolist() != list(range(num_classes)):
        log.info("the list has the model's %d classes in another order: matched by name", num_classes)
    if videos.labels.ndim == 1:
        return replace(videos, classes=known, labels=np.where(videos.labels < 0, -1, places[videos.labels]))
    table = np.zeros((len(videos), num_classes), dtype=np.float32)
    table[:, places[places >= 0]] = videos.labels[:, places >= 0]
    return replace(videos, classes=known, labels=table)


def _numbers_only(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\d+|n\d{8}", name) for name in names)
