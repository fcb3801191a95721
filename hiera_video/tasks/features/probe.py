"""How much extracted features know of labels: nearest neighbours and linear classifiers on top of them."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.errors import RequestError
from hiera_video.tasks.features.labels import Labelled, labelled, labels_of, read_labels, refuse_other_settings
from hiera_video.tasks.features.linear_layer import solve
from hiera_video.tasks.features.search import nearest, unit
from hiera_video.tasks.records import FlatRecord, Results

log = logging.getLogger("hiera_video")

#: Steps of the linear probe's solver.
MAX_STEPS = 1000

#: (vectors to learn from float32 [N, C], their classes int64 [N], vectors to judge [M, C]) -> classes [M]
Method: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]], NDArray[np.int64]]
#: Rows to learn from, rows to judge.
Split: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class ProbeScore(FlatRecord):
    """How often a method names the right class: ``top1``, a share.

    ``method``: "knn", "linear", "lda", or "chance", which is the share of the commonest class among the judged inputs.
    In cross-validation ``top1`` is the mean over ``folds`` and has a ``standard_error``, and each of ``inputs`` is
    judged once; else ``inputs`` are learned from and ``test_inputs`` judged. ``left_out``: inputs without a label, and
    in cross-validation those that are alone in their class.
    """

    method: str
    top1: float
    standard_error: float | None
    folds: int | None
    inputs: int
    test_inputs: int | None
    classes: int
    left_out: int


def probe(
    folder: str,
    *,
    labels: str = "folder",
    k: int = 5,
    test: Path | None = None,
    folds: int = 5,
    groups: Path | None = None,
    features: Literal["embedding", "statistics"] | None = None,
) -> Results[ProbeScore]:
    """Measure how well extracted features tell labels apart: neighbours, linear probes, and chance.

    One vector for each input: the mean over its windows and crops. Neighbours by cosine have one vote each, a tie
    goes to the nearer ones; the linear probe is a logistic regression on standardised vectors, lda a discriminant
    analysis with shrinkage, which also learns from each window alone. Without ``test``
    there is a cross-validation in which every class has its share of each fold; neighbours in the alphabet, often cut
    from the same film, stay in one fold. Nothing is drawn: a second run gives the same.

    Args:
        folder: The output folder of hiera-video extract.
        labels: folder (the name of the folder that an input lies in), or a CSV file with columns input,label.
        k: How many neighbours vote.
        test: Another output folder, made with the same model and settings, whose inputs are judged.
        folds: Of the cross-validation; at most as many as the smallest class has inputs. Unused with test or groups.
        groups: A CSV file with columns input,group: one group is judged at a time, by what all others teach.
        features: embedding or statistics. Default: embedding, or what there is.

    Returns:
        Four scores: knn, linear, lda and chance.

    Raises:
        RequestError: For a value that is not possible, labels that cannot be used, and folders that do not go together.
    """
    for name, value, least in (("k", k, 1), ("folds", folds, 2)):
        if value < least:
            raise RequestError(f"{name} is {value}, but is at least {least}")
    if test is not None and groups is not None:
        raise RequestError("test and groups both say what is judged: leave one of them out")
    given = labels if labels == "folder" else read_labels(Path(labels))
    if test is not None:
        refuse_other_settings(Path(folder), Path(test))
    known = labelled(Path(folder), given, features)
    judged = labelled(Path(test), given, features) if test is not None else None
    if judged is not None:
        task = held_out(known, judged)
    else:
        task = cross_validation(known, folds, None if groups is None else read_labels(groups, "group"))
    fewest = min(len(rows) for rows, _ in task.splits)
    if k > fewest:
        raise RequestError(f"k is {k}, but only {fewest} inputs can be neighbours: choose a smaller k")
    return Results(4, _scores(task, k))


# --- what is learned from and what is judged --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Task:
    vectors: NDArray[np.float32]
    windows: list[NDArray[np.float32]]
    classes: NDArray[np.int64]  # of each, by number
    splits: list[Split]
    num_classes: int
    num_test: int | None
    num_left_out: int


def cross_validation(known: Labelled, folds: int, group_of: dict[str, str] | None = None) -> _Task:
    """Folds in which every class has its share, or one group each. Classes of one input are left out.

    Args:
        known: Inputs with their labels.
        folds: How many; fewer where the smallest class has fewer inputs.
        group_of: The group of each input, by its name or that of its file; None: folds are drawn by class.

    Returns:
        What is learned from and what is judged.

    Raises:
        RequestError: Where there are fewer than two classes, or fewer than two groups, or an input without a group.
    """
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold

    sizes = Counter(known.labels)
    keep = [number for number, label in enumerate(known.labels) if sizes[label] > 1]
    num_alone = len(known.labels) - len(keep)
    if num_alone:
        log.warning("%d inputs are alone in their class and are left out", num_alone)
    names, classes = np.unique([known.labels[number] for number in keep], return_inverse=True)
    if len(names) < 2:
        classes_there = ", ".join(sorted(sizes)[:5])
        raise RequestError(f"{known.folder} has too few classes ({classes_there}): two with two inputs each are needed")
    smallest = int(np.bincount(classes).min())
    if group_of is not None:
        inputs = [known.inputs[number] for number in keep]
        groups = labels_of(inputs, group_of)
        if "" in groups:
            raise RequestError(f"{inputs[groups.index('')]} has no group: name one for each input")
        if len(set(groups)) < 2:
            raise RequestError(f"all inputs are of the group {groups[0]!r}: two are needed, to leave one out")
        splits = list(LeaveOneGroupOut().split(np.zeros(len(keep)), classes, groups))
    else:
        if smallest < folds:
            log.warning("%d folds instead of %d: the smallest class has %d inputs", smallest, folds, smallest)
        splits = list(StratifiedKFold(min(folds, smallest)).split(np.zeros(len(keep)), classes))
    left_out = num_alone + known.num_unlabelled
    windows = [known.windows[number] for number in keep]
    return _Task(known.vectors[keep], windows, classes.astype(np.int64), splits, len(names), None, left_out)


def held_out(known: Labelled, judged: Labelled) -> _Task:
    """All of one extraction to learn from, all of another to judge.

    Args:
        known: Inputs to learn from.
        judged: Inputs to judge.

    Returns:
        What is learned from and what is judged.

    Raises:
        RequestError: Where a class has nothing to learn from.
    """
    names, classes = np.unique(known.labels, return_inverse=True)
    if len(names) < 2:
        raise RequestError(f"{known.folder} has the class {names[0]} alone: two are needed")
    new = sorted(set(judged.labels) - set(known.labels))
    if new:
        raise RequestError(f"{judged.folder} has inputs of class {new[0]!r}, but {known.folder} has none to learn from")
    both = set(known.inputs) & set(judged.inputs)
    if both:
        log.warning("%d inputs are in %s and in %s: the scores flatter", len(both), known.folder, judged.folder)
    vectors = np.concatenate([known.vectors, judged.vectors])
    classes = np.concatenate([classes, np.searchsorted(names, judged.labels)]).astype(np.int64)
    rows = np.arange(len(classes))
    splits = [(rows[: len(known.inputs)], rows[len(known.inputs) :])]
    left_out = known.num_unlabelled + judged.num_unlabelled
    windows = [*known.windows, *judged.windows]
    return _Task(vectors, windows, classes, splits, len(names), len(judged.inputs), left_out)


# --- methods ----------------------------------------------------------------------------------------------------------


def _scores(task: _Task, k: int) -> Iterator[ProbeScore]:
    crossed = task.num_test is None
    shared: dict[str, Any] = {
        "folds": len(task.splits) if crossed else None,
        "inputs": len(task.classes) - (task.num_test or 0),
        "test_inputs": task.num_test,
        "classes": task.num_classes,
        "left_out": task.num_left_out,
    }
    methods: dict[str, Method] = {"knn": lambda *parts: by_neighbours(*parts, k=k), "linear": by_line, "lda": by_lda}
    for name, method in methods.items():
        shares = []
        for known, judged in task.splits:
            learned, classes = task.vectors[known], task.classes[known]
            if name == "lda":
                windows = [task.windows[number] for number in known]
                learned, classes = np.concatenate(windows), np.repeat(classes, [len(rows) for rows in windows])
            answers = method(learned, classes, task.vectors[judged])
            shares.append(float((answers == task.classes[judged]).mean()))
        spread = float(np.std(shares, ddof=1) / np.sqrt(len(shares))) if crossed else None
        yield ProbeScore(name, float(np.mean(shares)), spread, **shared)
    every = np.concatenate([rows for _, rows in task.splits])
    commonest = float(np.bincount(task.classes[every]).max() / len(every))
    yield ProbeScore("chance", commonest, None, **shared)


def by_neighbours(
    known: NDArray[np.float32], classes: NDArray[np.int64], judged: NDArray[np.float32], *, k: int
) -> NDArray[np.int64]:
    """The class of most of the nearest neighbours by cosine.

    Args:
        known: Vectors to learn from, float32 [N, C]; normalised in place.
        classes: Theirs, int64 [N].
        judged: Vectors to judge, float32 [M, C]; normalised in place.
        k: How many neighbours vote.

    Returns:
        Classes int64 [M].
    """
    cosines, rows = nearest(unit(known), unit(judged), k)
    votes = np.zeros((len(judged), int(classes.max()) + 1))
    # All cosines together weigh less than half a vote: they decide ties and nothing else.
    np.add.at(votes, (np.arange(len(judged))[:, np.newaxis], classes[rows]), 1 + cosines / (2 * k + 1))
    return votes.argmax(axis=1)


def by_line(known: NDArray[np.float32], classes: NDArray[np.int64], judged: NDArray[np.float32]) -> NDArray[np.int64]:
    """What a logistic regression says of vectors that are standardised by those it learns from.

    Args:
        known: Vectors to learn from, float32 [N, C].
        classes: Theirs, int64 [N].
        judged: Vectors to judge, float32 [M, C].

    Returns:
        Classes int64 [M].
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        line.fit(known, classes)
    if max(line[-1].n_iter_) >= MAX_STEPS:
        log.warning("the linear probe has not settled after %d steps: its score is a little off", MAX_STEPS)
    answers: NDArray[np.int64] = line.predict(judged)
    return answers


def by_lda(known: NDArray[np.float32], classes: NDArray[np.int64], judged: NDArray[np.float32]) -> NDArray[np.int64]:
    """What a linear discriminant analysis with shrinkage says, as :func:`solve` fits it.

    Args:
        known: Vectors to learn from, float32 [N, C].
        classes: Theirs, int64 [N].
        judged: Vectors to judge, float32 [M, C].

    Returns:
        Classes int64 [M].
    """
    weight, bias = solve(torch.from_numpy(known), classes, int(classes.max()) + 1)
    answers: NDArray[np.int64] = (judged @ weight.numpy().T + bias.numpy()).argmax(axis=1)
    return answers
