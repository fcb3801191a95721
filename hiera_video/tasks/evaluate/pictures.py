"""The pictures of an evaluation: confusions, reliability, and frames of the videos that are surest and wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.ahead import map_ahead
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_image, read_image
from hiera_video.data.sampling import keyed_rng
from hiera_video.data.views import Segment, open_input, rows_within, segments_of
from hiera_video.errors import UnreadableVideo
from hiera_video.tasks.classify.classifier import best_classes
from hiera_video.tasks.evaluate.calibration import calibration
from hiera_video.tasks.evaluate.metrics import Scores, confusions, counted, counted_rows

log = logging.getLogger("hiera_video")

#: Videos in the picture of the worst, frames and classes of each, and pixels that suffice for a frame's short side.
NUM_WORST, NUM_FRAMES, NUM_CLASSES, SHORT_SIDE = 8, 3, 3, 288


def draw_pictures(output: Path, videos: VideoList, scores: Scores, **reading: Any) -> None:
    """Draws confusion.png, reliability.png and worst_videos.png, as far as there is something to show.

    A picture that cannot be drawn is told in a warning; one of an earlier run is removed first.

    Args:
        output: The folder.
        videos: The list.
        scores: Of the videos that could be read.
        reading: ``num_workers``, ``time_limit`` and ``fps`` for reading frames of the worst videos.
    """
    pictures: dict[str, Callable[[Path], None]] = {
        "confusion.png": lambda path: _confusion(path, videos, scores),
        "reliability.png": lambda path: _reliability(path, videos, scores),
        "worst_videos.png": lambda path: draw_worst(path, videos, scores, **reading),
    }
    for name, draw in pictures.items():
        try:
            (output / name).unlink(missing_ok=True)
            draw(output / name)
        except Exception as error:  # whatever is wrong with a picture, the figures are worth more
            log.warning("%s could not be drawn: %s", output / name, error or type(error).__name__)


def _confusion(path: Path, videos: VideoList, scores: Scores) -> None:
    values, labels = counted(scores, videos)
    if labels.ndim == 1 and len(labels):
        from hiera_video.visual.confusion import draw_confusion

        shown, matrix = confusions(values, labels)
        draw_confusion(matrix, [videos.classes[number] for number in shown], path)


def _reliability(path: Path, videos: VideoList, scores: Scores) -> None:
    bins = calibration(*counted(scores, videos))
    if bins.counts.any():
        from hiera_video.visual.reliability import draw_reliability

        title = f"expected calibration error {bins.error:.1%}: {bins.of}, {bins.counts.sum():,} answers"
        draw_reliability(bins.counts, bins.confidence, bins.accuracy, path, title=title)


# --- the worst videos -------------------------------------------------------------------------------------------------


def worst(scores: Scores, videos: VideoList) -> NDArray[np.int64]:
    """The videos whose best class is wrong, the surest first.

    Args:
        scores: Of the videos that could be read.
        videos: The list.

    Returns:
        Rows of the scores, int64.
    """
    rows = counted_rows(scores, videos)
    values, labels = counted(scores, videos)
    if not len(rows):
        return rows
    named = values.argmax(axis=1)
    right = named == labels if labels.ndim == 1 else labels[np.arange(len(rows)), named] > 0
    wrong = np.flatnonzero(~right)
    return rows[wrong[np.argsort(-values[wrong].max(axis=1), kind="stable")]]


def draw_worst(
    path: Path, videos: VideoList, scores: Scores, *, num_workers: int, time_limit: float, fps: float | None
) -> None:
    """Draws frames of the videos that :func:`worst` gives, read from their files; nothing where there are none.

    Args:
        path: The PNG.
        videos: The list.
        scores: Of the videos that could be read.
        num_workers: Threads that read.
        time_limit: Seconds after which a decoder counts as hanging.
        fps: Frames a second of folders of pictures.

    Raises:
        OutputError: The picture cannot be written.
    """
    chosen = worst(scores, videos)[:NUM_WORST]
    segments = list(segments_of(videos, scores.index[chosen].tolist()))
    strips = map_ahead(partial(_frames, fps=fps), segments, num_workers=min(num_workers, 2), time_limit=time_limit)
    rows = []
    for segment, values, frames in zip(segments, scores.scores[chosen], strips, strict=True):
        name = os.fsencode(os.path.basename(videos.path(segment.index))).decode("utf-8", "replace")
        if segment.start > 0 or np.isfinite(segment.end):
            name += f", {segment.start:.1f} to {segment.end:.1f} s"
        true, best = " and ".join(videos.class_names(segment.index)), best_classes(values, videos.classes, NUM_CLASSES)
        if frames is not None:
            rows.append((f"{name}: is {true or 'of no class'}, taken for {best[0].label}", frames, best))
    if rows:
        from hiera_video.visual.strips import draw_strips

        draw_strips(rows, path, num_frames=NUM_FRAMES)


def _frames(segment: Segment, reader: IsolatedReader | None, *, fps: float | None) -> NDArray[np.uint8] | None:
    """uint8 [T, h, w, 3], evenly spread frames of the file itself as a player shows them; None: no longer readable."""
    from PIL import Image

    assert isinstance(segment.source, str)  # of a list
    try:
        if is_image(segment.source):
            return read_image(segment.source)[np.newaxis]
        with open_input(segment.source, reader, fps=fps) as video:
            rows = rows_within(video.times, segment.start, segment.end, _spread, keyed_rng(0))
            pixels, aspect = video.frames(np.unique(rows), short_side=SHORT_SIDE).pixels, float(video.pixel_aspect)
    except UnreadableVideo:
        return None
    height, width = pixels.shape[1:3]
    size = (round(width * aspect), height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in pixels])


def _spread(times: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The middles of equal parts: the first frames of many videos are black."""
    return (len(times) * (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES).astype(np.int64)
