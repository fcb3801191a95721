"""What an evaluation writes: parts as it goes, which a killed run goes on from, and its results at the end."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hiera_video.data.lists.video_list import VideoList
from hiera_video.errors import OutputError, RequestError
from hiera_video.files import replacing, write_csv
from hiera_video.tasks.classify.classifier import Scored
from hiera_video.tasks.evaluate.class_scores import ClassScore, interval_method, missing_classes
from hiera_video.tasks.evaluate.metrics import Scores, confusions, counted

# --- parts ------------------------------------------------------------------------------------------------------------


def to_line(one: Scored) -> bytes:
    """One line of JSON; the scores bit by bit, as base64 of little-endian float32."""
    scores = None if one.scores is None else base64.b64encode(one.scores.astype("<f4").tobytes()).decode()
    return json.dumps({"index": one.index, "scores": scores, "error": one.error}).encode() + b"\n"


def from_line(line: bytes) -> Scored:
    """The inverse of :func:`to_line`. Raises ValueError for any other text."""
    try:
        values = json.loads(line)
        scores = values["scores"]
        row = None if scores is None else np.frombuffer(base64.b64decode(scores), dtype="<f4").astype(np.float32)
        return Scored(int(values["index"]), row, values["error"])
    except (TypeError, KeyError) as error:
        raise ValueError(line) from error


def read_parts(folder: Path, facts: dict[str, Any]) -> Iterator[Scored]:
    """What earlier runs scored, of any number of processes. A line without its end, as a killed run leaves it, does
    not count, nor does a video that could not be read: it is tried again.

    Raises :class:`RequestError` where they evaluated something else.
    """
    for path in sorted(folder.glob("rank*.jsonl")):
        with path.open("rb") as lines:
            header = next(lines, b"")
            if header.endswith(b"\n"):
                _check_header(header, facts, folder)
            for line in lines:
                with suppress(ValueError):  # after a crash of the machine; that video is scored again
                    one = from_line(line)
                    if one.scores is not None:
                        yield one


def facts_of_parts(folder: Path) -> dict[str, Any]:
    """What earlier runs evaluated.

    Args:
        folder: Their parts.

    Returns:
        The facts that the first of them begins with; none where there is none, or where its start was lost.
    """
    for path in sorted(folder.glob("rank*.jsonl")):
        with path.open("rb") as lines, suppress(ValueError, TypeError):
            return dict(json.loads(next(lines, b"")))
    return {}


def _check_header(header: bytes, facts: dict[str, Any], folder: Path) -> None:
    """Raises :class:`RequestError` unless parts with this first line belong to a run of these facts."""
    try:
        found = dict(json.loads(header))
    except (ValueError, TypeError):
        found = {}
    for name, here in facts.items():
        there = found.get(name)
        if there != here:
            raise RequestError(
                f"{folder} holds scores of another evaluation ({name} was {there}, is now {here}): name another "
                "run.output, or delete that folder"
            )


def append(part: BinaryIO, line: bytes) -> None:
    """In one write: what is in the file survives the end of this process. Raises :class:`OutputError`."""
    try:
        written = part.write(line)
    except OSError as error:
        raise OutputError(f"{part.name} cannot be written: {error.strerror or error}") from error
    if written != len(line):
        raise OutputError(f"{part.name} cannot be written: the disk is full")


def open_part(path: Path, facts: dict[str, Any]) -> BinaryIO:
    """A part to append lines to, half a line at its end cut off. Raises as :func:`read_parts`, :class:`OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115  # the caller closes it
        file.seek(0)
        content = file.read()
        length = content.rfind(b"\n") + 1
        file.truncate(length)
        if length:
            _check_header(content[: content.index(b"\n")], facts, path.parent)
        else:
            append(file, json.dumps(facts).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return file


# --- files ------------------------------------------------------------------------------------------------------------


def write_results(
    output: Path, videos: VideoList, scores: Scores, found: Sequence[ClassScore], facts: dict[str, Any]
) -> None:
    """Writes scores.parquet, classes.csv, confused.csv (where a video has one label) and result.json, each whole or
    not at all.
    """
    import pyarrow.parquet as pq

    with replacing(output / "scores.parquet") as temporary:
        pq.write_table(_table(scores, videos), temporary)
    rows = [figures.to_dict() for figures in found]
    columns = [name for name in rows[0] if name in rows[-1] or name in ("macro", "macro_f1")]
    write_csv(output / "classes.csv", [columns, *([row.get(name) for name in columns] for row in rows[1:])])
    if videos.labels.ndim == 1:
        write_csv(output / "confused.csv", [("true", "predicted", "count", "share"), *_confused(scores, videos)])
    result = {name: value for name, value in rows[0].items() if name != "class"}
    result["intervals"] = interval_method(scores, videos)
    result["missing"] = missing_classes(videos)
    result["bad"] = [{"path": videos.path(index), "error": error} for index, error in scores.errors.items()]
    result |= facts
    with replacing(output / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _confused(scores: Scores, videos: VideoList) -> Iterator[tuple[str, str, int, float]]:
    """True class, the class it is taken for, how many videos, and their share of the true class's; the most first."""
    shown, matrix = confusions(*counted(scores, videos))
    names, totals = [videos.classes[number] for number in shown], matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    for place in np.argsort(-matrix, axis=None, kind="stable")[: np.count_nonzero(matrix)].tolist():
        true, predicted = divmod(place, len(names))
        count = int(matrix[true, predicted])
        yield names[true], names[predicted], count, round(count / int(totals[true]), 6)


def _table(scores: Scores, videos: VideoList) -> Any:
    """A row for each listed video, in the list's order; null where nothing was read, and for a label that is absent."""
    import pyarrow as pa

    names = np.array(videos.classes, dtype=object)
    place = np.full(len(videos), -1)
    place[scores.index] = np.arange(len(scores.index))
    absent = place < 0
    best = np.zeros(len(videos), dtype=np.int64)
    best[scores.index] = scores.scores.argmax(axis=1)
    top = np.zeros(len(videos), dtype=np.float32)
    top[scores.index] = scores.scores.max(axis=1)
    offsets = np.concatenate([[0], np.cumsum(~absent)]).astype(np.int32) * scores.scores.shape[1]
    if videos.labels.ndim == 2:
        label: Any = [np.flatnonzero(row).tolist() for row in videos.labels]
        label_name: Any = [[videos.classes[number] for number in row] for row in label]
    else:
        label = pa.array(videos.labels, pa.int64())
        label_name = pa.array(names[videos.labels], pa.string(), mask=videos.labels < 0)
    return pa.table(
        {
            "path": [os.fsencode(videos.path(index)).decode("utf-8", "replace") for index in range(len(videos))],
            "label": label,
            "label_name": label_name,
            "prediction": pa.array(best, pa.int64(), mask=absent),
            "prediction_name": pa.array(names[best], pa.string(), mask=absent),
            "score": pa.array(top, pa.float32(), mask=absent),
            "error": pa.array([scores.errors.get(index) for index in range(len(videos))], pa.string()),
            "scores": pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(scores.scores.ravel(), pa.float32()), mask=pa.array(absent)
            ),
        },
        metadata={"classes": json.dumps(videos.classes)},
    )
