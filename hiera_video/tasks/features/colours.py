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
    """Writes ``picture`` (.mp4 or .png) of the file ``path``; of several crops the first.

    Raises :class:`UnreadableVideo`, :class:`OutputError`, :class:`RequestError`.
    """
    stretches = ((path, one) for one in walk(path, how, reader=reader))
    windows = (one for one in extractor.stream(stretches, [stage], how.at_once) if one.crop in ("center", "none"))
    first = list(islice(windows, FITTED))
    colours = fit_colours(np.stack([one.maps[stage] for one in first]))
    write_colours(picture, _moments(chain(first, windows), stage, colours))


def _moments(
    windows: Iterator[WindowFeatures], stage: str, colours: Colours
) -> Iterator[tuple[float, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Every frame once, in time, with the colours of its step."""
    shown = -1.0
    for one in windows:
        assert one.views is not None
        painted, frames = colours.paint(one.maps[stage]), one.frames
        for number, seconds in enumerate(one.views.times[one.view].tolist()):
            if seconds > shown:
                yield seconds, frames[number], painted[number * len(painted) // len(frames)]
                shown = seconds
