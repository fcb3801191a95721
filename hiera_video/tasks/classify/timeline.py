"""Scores over time: each input walked through window by window, to a CSV file and a picture."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.child_process import IsolatedReader, isolated_reader
from hiera_video.data.reading.files import find_inputs
from hiera_video.data.windows import Walk, Windows, walk
from hiera_video.errors import OutputError, RequestError, UnreadableVideo
from hiera_video.files import write_csv
from hiera_video.tasks.classify.classifier import Prediction, VideoClassifier, best_classes, score_clips
from hiera_video.tasks.classify.cut import cut_clip
from hiera_video.tasks.classify.segments import CutBy, FoundSegment, SegmentRule, SegmentTable, find_segments
from hiera_video.tasks.records import Results
from hiera_video.visual.timelines import draw_timeline

log = logging.getLogger("hiera_video")

#: Seconds between two windows of an image model, which looks at single pictures.
IMAGE_HOP_S = 1.0
#: Thumbnails under a timeline at most.
NUM_THUMBNAILS = 6


def timelines(
    classifier: VideoClassifier,
    inputs: list[str],
    folder: Path,
    *,
    hop: float | None,
    top_k: int,
    batch_size: int,
    rule: SegmentRule | None = None,
    cut: Path | None = None,
    cut_by: CutBy = "exact",
) -> Results[Prediction]:
    """Classify inputs window by window, in constant memory, with a CSV file and a PNG of each in ``folder``.

    Args:
        classifier: The model.
        inputs: Files, folders, globs and http(s) addresses.
        folder: Where the files go; it is made. A CSV has ``start`` and ``end`` in seconds, and a column for each class.
        hop: Seconds from one window to the next; default: half a clip.
        top_k: How many classes to name.
        batch_size: Windows that go through the model at once.
        rule: How segments are made; None: there are none. ``segments.csv`` and ``segments.json`` have those
            of all inputs.
        cut: Where each segment is written as a file of its own; None: nowhere.
        cut_by: How, as in :func:`hiera_video.tasks.classify.cut.cut_clip`.

    Returns:
        The mean over each input's windows, in the order of the inputs, each computed when it is asked for.

    Raises:
        RequestError: For a hop that means nothing.
        OutputError: Where the folder cannot be written.
    """
    spec = classifier.model.spec
    if hop is not None and not 0 < hop < float("inf"):
        raise RequestError(f"hop is {hop:g}, but is a number of seconds above 0")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    how = Walk(
        spec,
        hop or (IMAGE_HOP_S if spec.num_frames == 1 else spec.span / 2),
        at_once=batch_size,
        num_pictures=NUM_THUMBNAILS,
    )
    files = find_inputs(inputs)

    table = None if rule is None else SegmentTable(folder)

    def answer(name: str, base: str, reader: IsolatedReader | None) -> Prediction:
        sizes = {"top_k": top_k, "batch_size": batch_size}
        made, segments = timeline(classifier, name, walk(name, how, reader=reader), folder / base, rule=rule, **sizes)
        if table is not None:
            table.add(name, segments)
        return made if cut is None else _cut_out(made, segments, cut / base, cut_by, reader)

    return Results(len(files), _answers(files, answer, folder, table))


def _answers(
    files: list[tuple[str, str | None]],
    answer: Callable[[str, str, IsolatedReader | None], Prediction],
    folder: Path,
    table: SegmentTable | None,
) -> Iterator[Prediction]:
    """Each file's answer, or what is wrong with it; files of one name get a number."""
    times_used: Counter[str] = Counter()
    with isolated_reader(time_limit=60) or nullcontext() as reader, table or nullcontext():
        for name, error in files:
            base = Path(name).name
            times_used[base] += 1
            if error is None:
                try:
                    yield answer(name, base if times_used[base] == 1 else f"{base}.{times_used[base]}", reader)
                    continue
                except UnreadableVideo as problem:
                    error = str(problem)
            yield Prediction(name, None, [], error)
    log.info("scores over time are in %s: a CSV file and a picture of each input", folder)
    if table is not None:
        log.info("segments are in %s and .json", table.path)


def _cut_out(
    answer: Prediction, segments: list[FoundSegment], stem: Path, by: CutBy, reader: IsolatedReader | None
) -> Prediction:
    """Writes the clips of an input, and says so; what cannot be cut, or read in it, stands in the answer's error."""
    errors = [answer.error] if answer.error else []
    for number, segment in enumerate(segments, start=1):
        try:
            place = stem.with_name(f"{stem.name}_{number:03d}")
            file, error = cut_clip(answer.input, segment, place, by=by, reader=reader)
        except UnreadableVideo as problem:
            errors.append(str(problem))
            break
        log.info("%s: %s, %.2f to %.2f s", file, segment.label, segment.start, segment.end)
        errors += [error] if error and error not in errors else []
    return replace(answer, error="; ".join(errors) or None)


def timeline(
    classifier: VideoClassifier,
    name: str,
    windows: Iterable[Windows],
    target: Path,
    *,
    top_k: int,
    batch_size: int,
    rule: SegmentRule | None = None,
) -> tuple[Prediction, list[FoundSegment]]:
    """Classify one input window by window; writes ``target`` with ``.csv`` and ``.png`` after it.

    Args:
        classifier: The model.
        name: What the answer and the picture call the input.
        windows: Its windows.
        target: Path of the files, without ``.csv`` and ``.png``.
        top_k: How many classes to name.
        batch_size: Windows that go through the model at once.
        rule: How segments are made; None: there are none.

    Returns:
        The mean over the windows, and the segments, which the picture shows too.

    Raises:
        UnreadableVideo: Where nothing can be read, or nothing more.
        OutputError: Where a file cannot be written.
    """
    curves = score_windows(classifier, windows, batch_size)
    spans, values, labels = curves.times, curves.scores, classifier.labels
    table = target.with_name(f"{target.name}.csv")
    rows = np.concatenate([spans, values.astype(float).round(6)], axis=1).tolist()
    write_csv(table, [["start", "end", *labels], *rows])
    segments = [] if rule is None else find_segments(spans, values, labels, rule)
    drawn = [(segment.label, segment.start, segment.end) for segment in segments]
    picture = target.with_name(f"{target.name}.png")
    title = Path(name).name
    draw_timeline(title, spans, values, labels, curves.thumbnails, picture, top_k=top_k, segments=drawn)
    best = best_classes(values.mean(axis=0), labels, top_k)
    return Prediction(name, round(curves.duration, 6), best, curves.error), segments


@dataclass(frozen=True)
class Curves:
    """The scores of one input over time.

    ``times`` float64 [n, 2]: start and end of each window in seconds; ``scores`` float32 [n, K]; ``thumbnails``:
    seconds, and a picture uint8 [h, w, 3]; ``duration`` in seconds; ``error``: None, or what could not be read.
    """

    times: NDArray[np.float64]
    scores: NDArray[np.float32]
    thumbnails: list[tuple[float, NDArray[np.uint8]]]
    duration: float
    error: str | None


def score_windows(classifier: VideoClassifier, windows: Iterable[Windows], batch_size: int) -> Curves:
    """Scores each window of one input.

    Args:
        classifier: The model.
        windows: The windows, with the pictures that become thumbnails.
        batch_size: Windows that go through the model at once.

    Returns:
        The scores with their times.

    Raises:
        UnreadableVideo: Where nothing can be read, or nothing more.
    """
    scores, times, thumbnails = [], [], []
    for part in windows:
        thumbnails += part.pictures
        scores.append(score_clips(classifier.scorer, part.views.clips, batch_size))
        times.append(np.stack([part.starts, part.ends], axis=1))
    return Curves(np.concatenate(times), np.concatenate(scores), thumbnails, part.views.duration, part.views.error)
