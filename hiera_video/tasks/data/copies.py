"""Videos that are one film, re-encoded, cropped or cut: within an extraction, and between training and validation.

Windows' embeddings say which pairs are worth a look (the nearest of each video), pixels decide
(:func:`hiera_video.tasks.features.recordings.compare`).
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hiera_video.data.lists.video_list import list_videos
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.tasks.features.feature_table import read_failures, read_vectors
from hiera_video.tasks.features.job import extract
from hiera_video.tasks.features.labels import refuse_other_settings
from hiera_video.tasks.features.recordings import SAME, SECONDS, Film, compare, film_of
from hiera_video.tasks.records import FlatRecord

log = logging.getLogger("hiera_video")

#: Seconds from one window to the next; videos whose windows are nearest are compared by their pixels: so many.
HOP_S, NEAREST = 0.5, 20
#: Films that are kept in memory, 18 MB each.
KEPT = 32


@dataclass(frozen=True)
class Copy(FlatRecord):
    """``input`` from ``start`` to ``end`` s shows what ``other`` shows from ``other_start`` to ``other_end`` s.

    The times follow from the seconds that were compared, as if nothing were cut out between. ``similarity``: the lesser
    correlation of pictures and of what moves in them. ``error``: None, or why ``input`` could not be compared.
    """

    input: str
    start: float | None = None
    end: float | None = None
    other: str | None = None
    other_start: float | None = None
    other_end: float | None = None
    similarity: float | None = None
    error: str | None = None

    def text(self) -> str:
        """One line: similarity, and both with their times."""
        if self.error is not None:
            return f"   -    {self.error}"
        mine = f"{self.input} {self.start:.2f} to {self.end:.2f} s"
        return f"{self.similarity:7.4f}  {mine}  =  {self.other} {self.other_start:.2f} to {self.other_end:.2f} s"


def duplicates(folder: str, *, similarity: float = SAME, time_limit: float = 60) -> Iterator[Copy]:
    """Name the videos of an extraction that are one film: re-encoded, cropped by up to a third of each side, or cut.

    What stands still all the time is not found, nor what is turned, mirrored, or shown at another speed.

    Args:
        folder: The output folder of hiera-video extract; its videos must be where they were.
        similarity: From which correlation two videos are one film.
        time_limit: Seconds that one request to a decoder may take.

    Returns:
        The pairs, as they are found, and what could not be read.

    Raises:
        RequestError: The folder holds no embeddings, or the similarity is not possible.
    """
    _check(similarity)
    table, vectors = read_vectors(Path(folder))
    return _copies(table, vectors, None, similarity, time_limit, read_failures(Path(folder)))


def leaks(
    *,
    train: str,
    val: str,
    similarity: float = SAME,
    num_workers: int = 2,
    time_limit: float = 60,
    device: str = "auto",
) -> Iterator[Copy]:
    """Name the videos of a validation set that are films of the training set: what duplicates finds, between the two.

    Args:
        train: A folder or list of videos, as finetune takes it, or an output folder of hiera-video extract.
        val: Another.
        similarity: From which correlation two videos are one film.
        num_workers: Processes that decode ahead of the model.
        time_limit: Seconds that one request to a decoder may take.
        device: auto, cpu, cuda, cuda:1, mps, ...

    Yields:
        The pairs, validation first, as they are found, and what could not be read.

    Raises:
        RequestError: A source is none, two extractions were made differently, or the similarity is not possible.
    """
    _check(similarity)
    with tempfile.TemporaryDirectory(prefix="hiera_video_") as folder:
        places = []
        for split, source in (("train", train), ("val", val)):
            place = Path(source)
            if not (place / "extraction.json").exists():
                videos, place = list_videos(source, split=split), Path(folder) / split
                names = sorted({videos.path(number) for number in range(len(videos))})
                options: dict[str, Any] = {"num_workers": num_workers, "time_limit": time_limit, "device": device}
                list(extract(names, output=place, hop=HOP_S, **options))
            places.append(place)
        refuse_other_settings(*places)
        (table, vectors), (mine, of_mine) = (read_vectors(place) for place in places)
        failures = [row for place in places for row in read_failures(place)]
    import pyarrow as pa

    both = pa.concat_tables([part.select(["input", "start", "end"]) for part in (table, mine)])
    judged = set(mine["input"].to_pylist())
    known = set(table["input"].to_pylist())
    yield from _copies(both, np.concatenate([vectors, of_mine]), (known, judged), similarity, time_limit, failures)


def _check(similarity: float) -> None:
    if not 0 < similarity <= 1:
        raise RequestError(f"similarity is {similarity:g}, but is above 0 and at most 1")


def _copies(
    table: Any,
    vectors: NDArray[np.float32],
    sides: tuple[set[str], set[str]] | None,
    least: float,
    time_limit: float,
    failures: list[dict[str, Any]],
) -> Iterator[Copy]:
    """Pairs of inputs that are the same file or one film: of any two, or of the second of ``sides`` and the first."""
    inputs, index = np.unique(np.array(table["input"].to_pylist()), return_inverse=True)
    names: list[str] = inputs.tolist()
    middles = (table["start"].to_numpy() + table["end"].to_numpy()) / 2
    lengths = np.zeros(len(names))
    np.maximum.at(lengths, index, table["end"].to_numpy())
    middles = np.where(lengths[index] <= SECONDS, lengths[index] / 2, middles)
    rows = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6
    num_copies = 0
    known = np.array([(sides is None or name in sides[0]) for name in names]) & (lengths > 0)  # an image lasts no time
    errors: dict[str, str] = {row["input"]: row["error"] for row in failures}
    with IsolatedReader(time_limit=time_limit) as reader:

        @lru_cache(KEPT)
        def film(name: str, middle: float) -> Film | None:
            try:
                return film_of(name, middle, reader)
            except UnreadableVideo as error:
                errors[name] = str(error)
                return None

        for here, name in enumerate(tqdm(names, unit="video", disable=None, file=sys.stderr)):
            length = float(lengths[here])
            if length == 0 or (sides is not None and name not in sides[1]):
                continue
            if sides is not None and name in sides[0]:
                num_copies += 1
                yield Copy(name, 0.0, length, name, 0.0, length, 1.0)
                continue
            others = known if sides is not None else known & (np.arange(len(names)) < here)
            for there, own, of_there in _nearest(rows, index, here, others):
                one, other = film(name, middles[own]), film(names[there], middles[of_there])
                alike, later = compare(one, other) if one is not None and other is not None else (0.0, 0.0)
                if alike >= least:
                    begin, end = max(0.0, later), min(length, float(lengths[there]) + later)
                    mine, theirs = ((round(begin - off, 3), round(end - off, 3)) for off in (0.0, later))
                    num_copies += 1
                    yield Copy(name, *mine, names[there], *theirs, similarity=round(alike, 4))
    log.info("%d videos were compared, %d copies found", len(names), num_copies)
    for name, error in errors.items():
        yield Copy(name, error=error if name in error else f"{name}: {error}")


def _nearest(
    rows: NDArray[np.float32], index: NDArray[np.int64], here: int, others: NDArray[np.bool_]
) -> Iterator[tuple[int, int, int]]:
    """The other inputs with the nearest windows, and which windows of both are nearest: input, row, row."""
    own = np.flatnonzero(index == here)
    likeness = rows[own] @ rows.T
    best = np.full(len(others), -2.0)
    np.maximum.at(best, index, likeness.max(axis=0))
    best[~others] = -2.0
    for there in np.argsort(-best, kind="stable")[:NEAREST].tolist():
        if best[there] > -2.0:
            theirs = np.flatnonzero(index == there)
            row, column = divmod(int(likeness[:, theirs].argmax()), len(theirs))
            yield there, int(own[row]), int(theirs[column])
