"""Find the windows of an extraction that are most like a video, an image, or a stretch of a video."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.files import is_image
from hiera_video.data.windows import walk
from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.tasks.features.feature_table import read_facts, read_vectors
from hiera_video.tasks.records import FlatRecord, Results
from hiera_video.training.devices import Precision, kept_precision

log = logging.getLogger("hiera_video")

BATCH_SIZE = 8
#: Queries and vectors that numpy compares at once: 16 MiB of similarities.
QUERY_CHUNK, CHUNK = 256, 16384
#: Candidates looked at first for each hit that is wanted, as some are windows that overlap with better ones.
CANDIDATES = 16
#: Similarities in float32 that are closer than this may come in any order.
NOISE, DECIMALS = 1e-5, 6


@dataclass(frozen=True)
class Hit(FlatRecord):
    """A window of the index; the best has rank 1. ``start``, ``end``: seconds after the input's first frame.

    ``similarity`` is the cosine between its embedding and the query's, rounded to six places.
    """

    rank: int
    input: str
    window: int
    start: float
    end: float
    similarity: float

    def text(self) -> str:
        """One line: similarity, place and input."""
        return f"{self.similarity:7.4f}  {self.start:8.2f} to {self.end:8.2f} s  {self.input}"


def search(
    query: str,
    *,
    index: Path,
    top_k: int = 10,
    per_video: int | None = None,
    start: float | None = None,
    end: float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Results[Hit]:
    """Find what is most like a video or image among extracted windows, the nearest first.

    The query is cut into windows and embedded as the index was; its windows' embeddings are averaged. Where hits of one
    input overlap in time, the nearest alone is shown, so that there may be fewer than ``top_k``.

    Args:
        query: A video file, image file or http(s) address.
        index: The output folder of hiera-video extract that is searched.
        top_k: How many hits to show.
        per_video: How many of them from one input at most, such as 1: which videos rather than which moments.
            Default: any number.
        start: Second of the query from which on it is looked at. Default: its beginning.
        end: Second up to which it is looked at. Default: its end.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto is bf16 where GPU or CPU has it and the model is wide enough to gain, else fp32.

    Returns:
        The hits, the best first.

    Raises:
        RequestError: For a value that is not possible, and a folder without features or made by other weights.
        UnreadableVideo: Where nothing of the query can be read.
    """
    index = Path(index)
    for name, value in (("top_k", top_k), ("per_video", per_video)):
        if value is not None and value < 1:
            raise RequestError(f"{name} is {value}, but is at least 1")
    first, last = 0.0 if start is None else start, math.inf if end is None else end
    if not 0 <= first < last:
        raise RequestError(
            f"from {first:g} to {last:g} s is no part of a video: start must be at least 0, and below end"
        )
    if is_image(query) and (start, end) != (None, None):
        raise RequestError(f"{query} is an image, which lasts no time: leave start and end out")
    facts = read_facts(index)
    precision = kept_precision(precision, facts.get("precision"))
    extractor = FeatureExtractor.from_pretrained(facts["model"], device=device, precision=precision)
    if extractor.weights != facts["weights"]:
        raise RequestError(f"{facts['model']} has other weights than when {index} was made: extract it again")
    hits = best_hits(*read_vectors(index), embed(query, extractor, facts, first, last), top_k, per_video)
    return Results(len(hits), iter(hits))


def embed(
    query: str, extractor: FeatureExtractor, facts: dict[str, Any], first: float, last: float
) -> NDArray[np.float32]:
    """The mean embedding of the windows whose middle lies in a part of a query.

    Where the part is too short for that, of the window whose middle is nearest to its own.

    Args:
        query: A video file, image file or http(s) address.
        extractor: The model that the index was made with.
        facts: How the index was made.
        first: Second at which the part begins.
        last: Second at which it ends; it is no longer part.

    Returns:
        float32 [C].

    Raises:
        RequestError: Where the query ends before ``first``.
        UnreadableVideo: Where nothing of it can be read.
    """
    how = extractor.walk(crop=facts["crop"], batch_size=BATCH_SIZE)
    how = dataclasses.replace(how, spec=ClipSpec.from_dict(facts["clip"]), hop=facts["hop"])
    num_before = math.floor(max(0.0, (first - how.spec.span) / how.hop))  # windows that end before the stretch
    decoded = takewhile(lambda windows: windows.starts[0] < last, walk(query, how, first=num_before))
    rows = extractor.stream(decoded, ["embedding"], BATCH_SIZE)
    touching = [row for row in rows if row.start < last and (row.end > first or first == 0)]  # an image ends at 0
    if not touching:
        raise RequestError(f"{query} ends before {first:g} s: name a stretch that lies in it")
    for error in dict.fromkeys(row.error for row in touching if row.error):
        log.warning("%s", error)
    starts, ends = np.array([(row.start, row.end) for row in touching]).T
    middles = (starts + ends) / 2
    chosen = (first <= middles) & (middles < last)
    if not chosen.any():
        distances = np.abs(middles - (max(first, starts.min()) + min(last, ends.max())) / 2)
        chosen = distances == distances.min()
    mean: NDArray[np.float32] = np.array([row.embedding for row in touching])[chosen].mean(axis=0)
    return mean


def best_hits(
    table: Any,
    embeddings: NDArray[np.float32],
    vector: NDArray[np.float32],
    top_k: int,
    per_video: int | None = None,
) -> list[Hit]:
    """The windows whose embeddings are nearest to a vector, by cosine.

    Args:
        table: A pyarrow table with a row for each window.
        embeddings: float32 [N, C], of these rows; they are normalised in place.
        vector: float32 [C].
        top_k: How many hits at most.
        per_video: How many of one input at most; None: any number.

    Returns:
        The hits, the best first; none of them overlaps with a better one of the same input.
    """
    base, query = unit(embeddings), unit(vector[np.newaxis].astype(np.float32))
    count = CANDIDATES * top_k
    while True:
        count = min(count, len(base))
        rows = np.sort(nearest(base, query, count)[1][0])
        similarities = np.round(base[rows].astype(np.float64) @ query[0].astype(np.float64), DECIMALS)
        hits = list(_merged(table, rows, similarities, top_k, per_video))
        # What is no candidate is at most as near as the last of them: the hits above it are the right ones.
        above = len(hits) == top_k and hits[-1].similarity > similarities.min() + NOISE
        if above or count == len(base):
            return hits
        count *= 4


def _merged(
    table: Any, rows: NDArray[np.int64], similarities: NDArray[np.float64], top_k: int, per_video: int | None
) -> Iterator[Hit]:
    """The best rows in their order, without those that overlap with a better one, or come after enough, of an input."""
    import pyarrow as pa

    order = np.argsort(-similarities, kind="stable")
    columns = table.select(["input", "window", "start", "end"]).take(pa.array(rows[order]))
    kept: dict[str, list[Hit]] = {}
    rank = 1
    for row, similarity in zip(columns.to_pylist(), similarities[order].tolist(), strict=True):
        hit = Hit(rank, similarity=similarity, **row)
        better = kept.setdefault(hit.input, [])
        if len(better) == per_video:
            continue
        if any(other.window == hit.window or (other.start < hit.end and hit.start < other.end) for other in better):
            continue
        better.append(hit)
        yield hit
        rank += 1
        if rank > top_k:
            return


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divides each vector by its length, in place: an index may fill half of the memory.

    Args:
        vectors: float32 [N, C].

    Returns:
        The same array.
    """
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def nearest(
    base: NDArray[np.float32], queries: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows with the largest inner products, by faiss where it is installed.

    Args:
        base: float32 [N, C].
        queries: float32 [Q, C].
        count: Rows for each query, at most N.

    Returns:
        Products float32 [Q, count], descending, and the numbers of the rows in ``base``, int64 [Q, count].
    """
    try:
        import faiss
    except ImportError:
        return nearest_by_numpy(base, queries, count)
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    products, rows = flat.search(queries, count)
    return products, rows


def nearest_by_numpy(
    base: NDArray[np.float32], queries: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What :func:`nearest` gives, in little memory: the best so far against the next chunk.

    Args:
        base: float32 [N, C].
        queries: float32 [Q, C].
        count: Rows for each query, at most N.

    Returns:
        As :func:`nearest`.
    """
    parts = [queries[begin : begin + QUERY_CHUNK] for begin in range(0, len(queries), QUERY_CHUNK)]
    answers = [_nearest_of_part(base, part, count) for part in parts]
    return np.concatenate([products for products, _ in answers]), np.concatenate([rows for _, rows in answers])


def _nearest_of_part(
    base: NDArray[np.float32], queries: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    products = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for begin in range(0, len(base), CHUNK):
        chunk = base[begin : begin + CHUNK]
        numbers = np.broadcast_to(np.arange(begin, begin + len(chunk)), (len(queries), len(chunk)))
        products = np.concatenate([products, queries @ chunk.T], axis=1)
        rows = np.concatenate([rows, numbers], axis=1)
        if products.shape[1] > count:
            keep = np.argpartition(-products, count - 1, axis=1)[:, :count]
            products, rows = np.take_along_axis(products, keep, axis=1), np.take_along_axis(rows, keep, axis=1)
    order = np.lexsort((rows, -products), axis=1)
    return np.take_along_axis(products, order, axis=1), np.take_along_axis(rows, order, axis=1)
