"""Scores to figures: top-1, top-5, means of classes and mean average precision."""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.data.lists.annotations import plain
from hiera_video.data.lists.video_list import VideoList
from hiera_video.errors import RequestError
from hiera_video.tasks.classify.classifier import Scored

log = logging.getLogger("hiera_video")

Floats = NDArray[np.float64]

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


@dataclass(frozen=True)
class Figures:
    """``total``: the figures of a list by name; ``classes``: those of its classes, float64 [K]; nan: nothing counts."""

    total: dict[str, float]
    classes: dict[str, Floats]

    def flat(self) -> Floats:
        """float64 [F], the total first."""
        return np.concatenate([list(self.total.values()), *self.classes.values()])


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
    figures = weighted(values, labels)(np.ones(len(values)))
    return {**figures.total, "videos": float(len(values)), "listed": float(len(videos))}


def weighted(values: NDArray[np.float32], labels: NDArray[Any]) -> Callable[[Floats], Figures]:
    """Figures that follow from how often each video counts.

    Args:
        values: Scores float32 [n, K].
        labels: int64 [n], or float32 [n, K] of zeros and ones.

    Returns:
        A function of weights float64 [n], all 1 for the list itself.
    """
    return _several_labels(values, labels) if labels.ndim == 2 else _one_label(values, labels)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _one_label(values: NDArray[np.float32], labels: NDArray[np.int64]) -> Callable[[Floats], Figures]:
    named, num_classes = values.argmax(axis=1), values.shape[1]
    right = {name: is_right(values, labels, k).astype(np.float64) for name, k in TOP.items()}
    same = named == labels

    def figures(weights: Floats) -> Figures:
        videos, taken = (np.bincount(one, weights, num_classes) for one in (labels, named))
        listed = videos > 0
        with np.errstate(invalid="ignore"):
            classes = {name: np.bincount(labels, weights * hits, num_classes) / videos for name, hits in right.items()}
            total = {name: float(weights @ hits / weights.sum()) for name, hits in right.items()}
        hits = np.bincount(labels, weights * same, num_classes)[listed]
        total["macro"] = _mean(hits / videos[listed])
        total["macro_f1"] = _mean(2 * hits / (videos + taken)[listed])
        return Figures(total, classes)

    return figures


def _several_labels(values: NDArray[np.float32], labels: NDArray[np.float32]) -> Callable[[Floats], Figures]:
    """Average precision as torchmetrics and scikit-learn have it, which take too long for a thousand resamples."""
    order = np.argsort(-values.T, axis=1, kind="stable")
    ranked, truth = np.take_along_axis(values.T, order, axis=1), np.take_along_axis(labels.T, order, axis=1) > 0
    # Of equal scores each is judged by the precision at the last of them.
    is_last = np.ones(ranked.shape, dtype=bool)
    is_last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    ends = np.where(is_last, np.arange(len(values)), len(values))
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    # What is right, class by class: where it is ranked, and which of them are as high or higher.
    number, place = np.nonzero(truth)
    last, first = ends[truth], np.searchsorted(number, number)
    higher = np.searchsorted(number * len(values) + place, number * len(values) + last, side="right")

    def figures(weights: Floats) -> Figures:
        weight = weights.astype(np.float32)[order]  # whole numbers below 2**24, and half the memory
        own, seen = weight[number, place].astype(np.float64), weight.cumsum(axis=1)[number, last]
        summed = np.concatenate([[0], own.cumsum()])
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num((summed[higher] - summed[first]) / seen)
            each = np.bincount(number, precision * own, len(order)) / np.bincount(number, own, len(order))
        return Figures({"map": _mean(each[np.isfinite(each)])}, {"map": each})

    return figures


def cross_entropy(scores: Scores, videos: VideoList) -> float:
    """The loss of a list: of its labels alone, without smoothing or weights, under scores averaged over the views.

    Args:
        scores: Of the videos that could be read.
        videos: The list.

    Returns:
        The mean over videos, or over all classes of videos with several labels; nan where nothing counts.
    """
    values, labels = counted(scores, videos)
    if labels.ndim == 1:
        taken = values[np.arange(len(labels)), labels].astype(np.float64)
    else:
        taken = np.where(labels > 0, values, 1 - values).ravel().astype(np.float64)
    return -_mean(np.log(taken.clip(1e-12)))


def counted(scores: Scores, videos: VideoList) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scores and labels of the readable videos that have labels."""
    rows = counted_rows(scores, videos)
    return scores.scores[rows], videos.labels[scores.index[rows]]


def counted_rows(scores: Scores, videos: VideoList) -> NDArray[np.int64]:
    """Which rows of the scores, int64 [n], are of videos that have labels."""
    labels = videos.labels[scores.index]
    return np.flatnonzero(labels >= 0) if labels.ndim == 1 else np.arange(len(labels))


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


def confusions(values: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which classes are taken for which.

    Args:
        values: Scores float32 [n, K].
        labels: int64 [n].

    Returns:
        The numbers of the C classes that a video has or is taken for, int64 [C] ascending, and counts int64 [C, C],
        rows the truth, columns the answer.
    """
    named = values.argmax(axis=1)
    shown = np.union1d(labels, named)
    matrix = np.zeros((len(shown), len(shown)), dtype=np.int64)
    np.add.at(matrix, (np.searchsorted(shown, labels), np.searchsorted(shown, named)), 1)
    return shown, matrix


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
