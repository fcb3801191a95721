"""Scores over time: the best classes of a video as curves, its segments above, thumbnails underneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

DPI = 120
#: Width and height of a picture in inches; where the axes begin and how wide they are, as shares of the width.
SIZE, LEFT, WIDTH = (13, 5.6), 0.05, 0.77
#: Letters of a class's name in the legend, at most.
LONGEST = 30


def draw_timeline(
    title: str,
    times: NDArray[np.float64],
    scores: NDArray[np.float32],
    labels: Sequence[str],
    thumbnails: Sequence[tuple[float, NDArray[np.uint8]]],
    path: Path,
    *,
    top_k: int = 5,
    segments: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Draws the classes with the highest peaks: what is seen for a moment counts, too.

    Args:
        title: What stands above.
        times: Start and end of each window in seconds, float64 [n, 2].
        scores: float32 [n, K].
        labels: The K classes.
        thumbnails: Seconds, and a picture uint8 [h, w, 3]. They stand side by side, each with its time.
        path: The PNG. It is written whole or not at all.
        top_k: How many classes are drawn.
        segments: Label, start and end of what is marked above the curves, those of a class in its colour.

    Raises:
        OutputError: The picture cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    centres = times.mean(axis=1)
    begin, end = float(times[:, 0].min()), max(float(times[:, 1].max()), float(times[:, 0].min()) + 0.1)
    figure = Figure(figsize=SIZE, dpi=DPI)
    curves = figure.add_axes((LEFT, 0.45, WIDTH, 0.47))
    for row, index in enumerate(best_curves(scores, top_k)):
        label = labels[index] if len(labels[index]) <= LONGEST else labels[index][: LONGEST - 1] + "…"
        marker = "o" if len(times) <= 40 else None
        (line,) = curves.plot(centres, scores[:, index], label=label, linewidth=1.6, marker=marker, markersize=3.5)
        for _, start, stop in (segment for segment in segments if segment[0] == labels[index]):
            place = [1.06 + 0.05 * row] * 2
            curves.plot([start, stop], place, color=line.get_color(), linewidth=5, solid_capstyle="butt")
    above = 1.06 + 0.05 * top_k if segments else 1.03
    curves.set(xlim=(begin, end), ylim=(0, above), ylabel="score", yticks=np.arange(6) / 5)
    curves.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds, end)))
    curves.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 3, 6, 10] if end > 100 else [1, 2, 5, 10]))
    curves.grid(alpha=0.3)
    curves.spines[["top", "right"]].set_visible(False)
    handles, names = curves.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="upper left", bbox_to_anchor=(LEFT + WIDTH + 0.01, 0.93), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.text(LEFT, 0.95, title, fontsize=11, parse_math=False)
    wide = WIDTH / max(len(thumbnails), 1)
    for number, (seconds, picture) in enumerate(thumbnails):
        at = LEFT + number * wide
        panel = figure.add_axes((at, 0.02, min(0.97 * wide, 0.2), 0.32), anchor="NW")
        panel.imshow(picture, interpolation="antialiased")
        panel.set_axis_off()
        figure.text(at, 0.355, clock(round(seconds, 1), end), fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def best_curves(scores: NDArray[np.float32], top_k: int) -> list[int]:
    """The classes with the highest peaks.

    Args:
        scores: float32 [n, K] of n windows.
        top_k: How many to name, at most K.

    Returns:
        Their numbers, the highest first.
    """
    order: list[int] = np.argsort(-scores.max(axis=0), kind="stable")[:top_k].tolist()
    return order


def clock(seconds: float, end: float) -> str:
    """A time on an axis that ends at ``end`` seconds.

    >>> clock(7.5, 20), clock(75, 300), clock(3675, 7200)
    ('7.5 s', '1:15', '1:01:15')
    """
    if end <= 100:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if end >= 3600 else f"{minutes}:{rest:02d}"
