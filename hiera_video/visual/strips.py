"""Frames of a clip with its best classes as bars; a doubtful answer is called so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

DPI = 120
#: Rows of a picture: more would not be looked at.
MAX_ROWS = 40
#: Frames beside each other; the width of a frame, of the bars and of a margin, and a title's height, in pixels.
COLUMNS, FRAME, BARS, MARGIN, TITLE = 3, 288, 400, 12, 34
#: Below this score the best class is more often wrong than right: 13 of 20 on generated clips made dark, noisy or slow
#: for the built-in model, against 127 of the other 574.
DOUBTFUL = 0.5
SURE_COLOUR, DOUBTFUL_COLOUR, OTHER_COLOUR = "#7fb2dd", "#f0b45a", "#d9e4ee"


class Scored(Protocol):
    """A class and its score."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...


def doubt(score: float) -> str | None:
    """How a doubtful answer is called.

    Args:
        score: Of the best class, from 0 to 1.

    Returns:
        Such as "doubtful: 41 %"; None for an answer that is none.
    """
    return f"doubtful: {score:.0%}".replace("%", " %") if score < DOUBTFUL else None


def draw_strips(
    rows: Sequence[tuple[str, NDArray[np.uint8], Sequence[Scored]]], path: Path, *, num_frames: int = 6
) -> None:
    """Draws frames of clips, and bars beside them where there are classes.

    Args:
        rows: For each clip a title (empty: none), its frames uint8 [T, H, W, 3], and its best classes, the best first.
        path: The PNG. It is written whole or not at all.
        num_frames: How many of the frames are shown, evenly spread.

    Raises:
        OutputError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    sheets = [_sheet(frames, num_frames) for _, frames, _ in rows]
    heads = [TITLE if title else 0 for title, _, _ in rows]
    bars = BARS if any(len(scores) for *_, scores in rows) else 0
    width = max((sheet.shape[1] for sheet in sheets), default=FRAME) + 2 * MARGIN + bars
    height = sum(head + sheet.shape[0] + MARGIN for head, sheet in zip(heads, sheets, strict=True))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    top = height
    for (title, _, scores), sheet, head in zip(rows, sheets, heads, strict=True):
        high, wide = sheet.shape[:2]
        figure.text(MARGIN / width, (top - 0.6 * TITLE) / height, title, fontsize=10, va="center", parse_math=False)
        top -= head + high + MARGIN
        place = (MARGIN / width, (top + MARGIN) / height, wide / width, high / height)
        panel = figure.add_axes(place)
        panel.imshow(sheet, aspect="auto", interpolation="nearest")
        panel.set_axis_off()
        if len(scores):
            beside = (1 - (bars - MARGIN) / width, place[1], (bars - 2 * MARGIN) / width, place[3])
            _draw_bars(figure.add_axes(beside), scores, high)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _sheet(frames: NDArray[np.uint8], num_frames: int) -> NDArray[np.uint8]:
    """The chosen frames on white, ``COLUMNS`` beside each other, each ``FRAME`` pixels wide; one alone twice that."""
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int))
    wide = FRAME * (2 if len(chosen) == 1 else 1)
    high = max(round(wide * frames.shape[1] / frames.shape[2]), 1)
    columns = min(COLUMNS, len(chosen))
    lines, gap = -(-len(chosen) // columns), MARGIN // 2
    sheet = np.full((lines * (high + gap) - gap, columns * (wide + gap) - gap, 3), 255, dtype=np.uint8)
    for place, index in enumerate(chosen.tolist()):
        top, left = place // columns * (high + gap), place % columns * (wide + gap)
        picture = Image.fromarray(frames[index]).resize((wide, high), Image.Resampling.LANCZOS)
        sheet[top : top + high, left : left + wide] = picture
    return sheet


def _draw_bars(panel: Any, scores: Sequence[Scored], high: int) -> None:
    """A bar for each class, as wide as its score, beside frames that are ``high`` pixels high."""
    doubtful = doubt(scores[0].score)
    colours = [DOUBTFUL_COLOUR if doubtful else SURE_COLOUR] + [OTHER_COLOUR] * (len(scores) - 1)
    panel.barh(range(len(scores)), [score.score for score in scores], color=colours, height=0.8)
    for place, score in enumerate(scores):
        says = doubtful if doubtful and place == 0 else f"{score.score:.0%}".replace("%", " %")
        panel.text(0.02, place, f"{score.label}   {says}", va="center", fontsize=10, parse_math=False)
    panel.set(xlim=(0, 1), ylim=(max(high / 48, len(scores)) - 0.6, -0.6), xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
