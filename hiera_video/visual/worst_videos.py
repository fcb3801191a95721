"""Frames of videos that are taken for another class, large enough to see why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

DPI = 110
#: Pixels: a frame's greatest height and width, the gap beside it, the margin of the picture, the room of a row's words.
HEIGHT, WIDTH, GAP, MARGIN, WORDS = 216, 384, 6, 16, 34


def draw_worst_videos(rows: Sequence[tuple[str, str, Sequence[NDArray[np.uint8]]]], path: Path) -> None:
    """A PNG of rows, one above the other: name of a video, what is said of it, and its frames uint8 [h, w, 3].

    Written whole or not at all; raises :class:`OutputError`.
    """
    from matplotlib.figure import Figure

    strips = [_strip(frames) for _, _, frames in rows]
    width = max(700, *(strip.shape[1] for strip in strips)) + 2 * MARGIN
    height = sum(strip.shape[0] + WORDS for strip in strips) + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    top = height
    for (name, words, _), strip in zip(rows, strips, strict=True):
        place = (top - WORDS / 2) / height
        text = figure.text(MARGIN / width, place, name, fontsize=11, weight="bold", va="center", parse_math=False)
        left = text.get_window_extent().x1 / width + 0.012
        figure.text(left, place, words, fontsize=11, va="center", parse_math=False)
        top -= strip.shape[0] + WORDS
        figure.figimage(strip, MARGIN, top, origin="upper")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _strip(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The frames side by side, each enlarged or shrunk to the same box."""
    from PIL import Image

    pictures = []
    for frame in frames:
        zoom = min(HEIGHT / frame.shape[0], WIDTH / frame.shape[1])
        size = (max(1, round(zoom * frame.shape[1])), max(1, round(zoom * frame.shape[0])))
        pictures += [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))]
        pictures += [np.full((size[1], GAP, 3), 255, dtype=np.uint8)]
    return np.concatenate(pictures[:-1], axis=1)
