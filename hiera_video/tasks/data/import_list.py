"""Turn exports of annotation tools into a list to train on, and show what was made of them."""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hiera_video.data.lists.exports import TOOLS, WHOLE, Export, Segment, read_export
from hiera_video.data.reading.files import is_address
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.files import check_output, write_csv
from hiera_video.tasks.records import FlatRecord

log = logging.getLogger("hiera_video")


@dataclass(frozen=True)
class Imported(FlatRecord):
    """How many segments have a label; or were left out, and why.

    ``seconds``: of all of them, None where some are whole videos. ``left_out``: empty for what is in the list. A record
    of no segment says in ``left_out`` what is wrong with the export that ``label`` names, or with its videos.
    """

    label: str
    segments: int
    videos: int
    seconds: float | None
    left_out: str

    @property
    def error(self) -> str | None:
        """One sentence where an export cannot be read, or a video is not there."""
        return None if self.segments else self.left_out

    def text(self) -> str:
        """One line."""
        return self.error or (f"left out: {super().text()}" if self.left_out else super().text())


def import_list(
    exports: list[str],
    *,
    output: Path,
    root: Path | None = None,
    fps: float | None = None,
    background: int = 0,
    seed: int = 0,
) -> Iterator[Imported]:
    """Write what annotators labelled as one list, which --train and --val take.

    Args:
        exports: Files of Label Studio (JSON), CVAT (annotations.xml) and VIA 3, and COCO-style JSON of videos.
        output: The list: path,start,end,label; or labels, where a segment has several.
        root: The folder of the videos. Default: that of each export.
        fps: Frames a second, where an export counts frames and does not say it. Default: those of the video.
        background: How many segments are added in which nobody labelled anything, as long as labelled ones.
        seed: Another one gives other background segments.

    Yields:
        A count for each label, for each reason to leave segments out, and for all; and what is wrong, with the export.

    Raises:
        RequestError: An option has no legal value.
        OutputError: The list cannot be written.
    """
    if fps is not None and fps <= 0:
        raise RequestError(f"fps is {fps:g}, but must be above 0")
    if min(background, seed) < 0:
        name, value = ("background", background) if background < 0 else ("seed", seed)
        raise RequestError(f"{name} is {value}, but must be at least 0")
    check_output(output)
    if os.path.abspath(output) in map(os.path.abspath, exports):
        raise RequestError(f"output {output} is an export that would be lost: name another file")
    together = Export(os.fspath(output), "")
    for file in exports:
        try:
            export = read_export(file, os.fspath(root or os.path.dirname(file)), fps=fps)
            if export is None or not export.segments:
                raise RequestError(f"{file} {'is something else' if export is None else 'is empty'}: expected {TOOLS}")
            together.seen += export.seen
            for segment in export.segments:
                together.add(*segment)
        except RequestError as error:
            yield Imported(file, 0, 0, None, str(error))
    for segment in _background(together, background, seed):
        together.add(*segment)
    yield from _written(together)


def _written(together: Export) -> Iterator[Imported]:
    """Writes the list, and counts what is in it and what is not."""
    kept, labelled, left_out = together.kept(), defaultdict(list), defaultdict(list)
    for segment in kept:
        for label in segment.labels:
            labelled[label, ""].append(segment)
    for segment in together.segments:
        if segment.left_out is not None:
            left_out[", ".join(segment.labels) or "no label", segment.left_out].append(segment)
    if kept:
        _write(Path(together.file), kept)
    for (label, reason), some in [*labelled.items(), *([(("all", ""), kept)] if kept else []), *left_out.items()]:
        seconds = round(sum(segment.span[1] - segment.span[0] for segment in some), 3)
        videos = len({segment.path for segment in some})
        yield Imported(label, len(some), videos, seconds if math.isfinite(seconds) else None, reason)
    if together.segments and not kept:
        yield Imported(together.file, 0, 0, None, f"{together.file} is not written: there is no label")
    missing = sorted({path for path, *_ in kept if not (is_address(path) or os.path.isfile(path))})
    if missing:
        reason = f"{len(missing)} videos are not there, such as {missing[0]}: name their folder as --root"
        yield Imported(together.file, 0, len(missing), None, reason)


def _write(output: Path, segments: list[Segment]) -> None:
    several = any(len(segment.labels) > 1 for segment in segments)
    rows = [("path", "start", "end", "labels" if several else "label")]
    for path, labels, span, _ in segments:
        if several and (divided := [label for label in labels if ";" in label]):
            raise RequestError(f"label {divided[0]!r} has a semicolon, which stands between labels: rename it")
        start, end = (f"{time:.6f}".rstrip("0").rstrip(".") if time < math.inf else "" for time in span)
        rows.append((path if "://" in path else os.path.abspath(path), start, end, ";".join(labels)))
    write_csv(output, rows)
    log.info("%s: %d segments", output, len(segments))


def _background(export: Export, count: int, seed: int) -> Iterator[Segment]:
    """Segments of videos with a label, where no annotation is, not even one that is left out."""
    kept, gaps = export.kept() if count else [], []
    for path in dict.fromkeys(segment.path for segment in kept):
        try:
            with open_video(path) as video:
                seen = [segment.span for segment in export.seen if segment.path == path] or [(0.0, video.duration)]
        except UnreadableVideo as error:
            log.warning("%s No background is cut out of it.", error)
            continue
        own = [segment for segment in export.segments if segment.path == path]
        taken = sorted(segment.span for segment in own if segment.span != WHOLE or not segment.left_out)
        begin = 0.0
        for first, end in sorted(seen):
            begin = max(begin, first)
            for start, stop in [*(span for span in taken if span[0] < end), (end, end)]:
                gaps.append((path, begin, start))
                begin = max(begin, stop)
    lengths = [end - start for _, _, (start, end), _ in kept if end < math.inf]
    rng = np.random.default_rng(seed)
    for made in range(count):
        longest = max((end - begin for _, begin, end in gaps), default=0.0)
        fitting = [length for length in lengths if length < longest]
        if not fitting:
            log.warning("background: there is room for %d of %d segments where nobody labelled anything", made, count)
            return
        length = rng.choice(fitting)
        room = np.array([max(0.0, end - begin - length) for _, begin, end in gaps])
        path, begin, end = gaps.pop(int(rng.choice(len(gaps), p=room / room.sum())))
        start = float(rng.uniform(begin, end - length))
        gaps += [(path, begin, start), (path, start + length, end)]
        yield Segment(path, ("background",), (start, start + length))
