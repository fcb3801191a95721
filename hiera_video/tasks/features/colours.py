"""A picture of one input's features: the maps of a stage as colours, beside the frames."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.windows import Walk, walk
from hiera_video.tasks.features.extractor import FeatureExtractor, WindowFeatures
from hiera_video.visual.feature_colours import Colours, fit_colours, write_colours

#: Windows that the colours are fitted to: the first ones, which are then kept, so that nothing is decoded twice.
FITTED = 16


def draw_colours(
    extractor: FeatureExtractor, path: str, how: Walk, stage: str, picture: Path, reader: IsolatedReader | None = None
) -> None:
    """Draws the features of one input; of several crops the first.

    Args:
        extractor: The model.
        path: The input.
        how: What windows, and which crops of them.
        stage: The name of the maps, such as "stage3".
        picture: The file to write, .mp4 or .png.
        reader: Decodes in its child process; None: in this one.

    Raises:
        UnreadableVideo: Where the input cannot be read.
        OutputError: Where the picture cannot be written.
        RequestError: For another kind of picture.
    """
    rows = extractor.stream(walk(path, how, reader=reader), [stage], how.at_once)
    windows = (row for row in rows if row.crop in ("center", "none"))
    first = list(islice(windows, FITTED))
    colours = fit_colours(np.stack([window.maps[stage] for window in first]))
    write_colours(picture, _moments(chain(first, windows), stage, colours))


def _moments(
    windows: Iterator[WindowFeatures], stage: str, colours: Colours
) -> Iterator[tuple[float, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Every frame once, in time, with the colours of its step."""
    shown = -1.0
    for window in windows:
        assert window.views is not None
        painted, frames = colours.paint(window.maps[stage]), window.frames
        for number, seconds in enumerate(window.views.times[window.view].tolist()):
            if seconds > shown:
                yield seconds, frames[number], painted[number * len(painted) // len(frames)]
                shown = seconds
