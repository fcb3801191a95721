"""A confusion matrix: which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

Counts = NDArray[np.integer[Any]]

#: Up to so many classes every cell shows its count; up to so many the axes show names.
MOST_COUNTS, MOST_NAMES = 20, 60
#: The commonest confusions that are listed at most.
MOST_LISTED = 60
DPI = 110
#: Lines between cells, and the share that is the palest colour.
GRID, LEAST_SHARE = "#e2e2e2", 1e-6


def draw_confusion(matrix: Counts, classes: Sequence[str], path: Path) -> None:
    """A PNG of counts int ``[K, K]``, ``matrix[true, predicted]``, for 2 to 700 classes.

    A cell's darkness is its share of the true class's videos, by the square root, so that rare confusions show too;
    what never happens is white, the row of a class without videos grey. From 21 classes on the commonest confusions are
    listed; from 61 on they alone are named. Written whole or not at all; raises :class:`OutputError`.
    """
    from matplotlib.figure import Figure

    number = len(classes)
    if matrix.shape != (number, number):
        raise ValueError(f"a matrix of shape {matrix.shape} does not fit {number} classes")
    # All in pixels, since cells of equal size need whole ones.
    cell = min(max(900 // number, 2), 60 if number > 5 else 90)
    letters = min(9.0, 0.75 * cell * 72 / DPI) if number <= MOST_NAMES else 8.0
    longest = max(len(_short(name)) for name in classes) if number <= MOST_NAMES else 4
    side, head, scale, room = cell * number, 60, 100, 52 + round(0.62 * longest * letters * DPI / 72)
    table = 560 if number > MOST_COUNTS and np.trace(matrix) < matrix.sum() else 0
    width, height = max(room + side + scale + table + 20, 560), head + side + room
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def panel(left: int, wide: int) -> Any:
        return figure.add_axes((left / width, room / height, wide / width, side / height))

    _draw_cells(panel(room, side), matrix, classes, letters, panel(room + side + 16, 14))
    if table:
        _list_confusions(panel(room + side + scale, table), matrix, classes, rows=side // 22)
    figure.text(room / width, 1 - 30 / height, _summary(matrix), fontsize=11, va="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _short(name: str, letters: int = 34) -> str:
    name = name if len(name) <= letters else name[: letters - 1].rstrip() + "…"
    return name.replace("$", r"\$")  # between two of them matplotlib reads a formula


def _summary(matrix: Counts) -> str:
    total, empty = int(matrix.sum()), int((matrix.sum(axis=1) == 0).sum())
    words = [f"{len(matrix)} classes", f"{total:,} videos", f"{np.trace(matrix) / max(total, 1):.1%} right"]
    if empty:
        words.append(f"{empty} {'class' if empty == 1 else 'classes'} without videos")
    return "   ·   ".join(words)


def _draw_cells(panel: Any, matrix: Counts, classes: Sequence[str], letters: float, bar: Any) -> None:
    """The matrix with its axes in ``panel``, what its colours mean in ``bar``."""
    import matplotlib
    from matplotlib.colors import ListedColormap, PowerNorm
    from matplotlib.ticker import PercentFormatter

    number, videos = len(classes), matrix.sum(axis=1, keepdims=True)
    share = np.where(videos > 0, matrix / np.maximum(videos, 1), np.nan)
    tints = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.12, 1, 256)))  # the rarest is seen on white
    colours, norm = tints.with_extremes(bad="#a0a0a0", under="white"), PowerNorm(0.5, LEAST_SHARE, 1)
    image = panel.imshow(share, cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
    kind = "class" if number <= MOST_NAMES else "class, by its number in this picture"
    panel.set_ylabel(f"true {kind}", fontsize=9)
    panel.set_xlabel(f"predicted {kind}", fontsize=9)
    panel.tick_params(length=0 if number <= MOST_NAMES else 3, labelsize=letters)
    panel.spines[:].set_color(GRID)
    if number <= MOST_NAMES:
        panel.hlines(np.arange(1, number) - 0.5, -0.5, number - 0.5, color=GRID, linewidth=0.6)
        panel.vlines(np.arange(1, number) - 0.5, -0.5, number - 0.5, color=GRID, linewidth=0.6)
        names = [_short(name) for name in classes]
        panel.set_xticks(range(number), names, rotation=90)
        panel.set_yticks(range(number), names)
    if number <= MOST_COUNTS:
        for true, predicted in np.argwhere(matrix):
            dark = "white" if share[true, predicted] > 0.3 else "black"
            count = f"{matrix[true, predicted]:,}"
            panel.text(predicted, true, count, ha="center", va="center", fontsize=9, color=dark)
    bar.figure.colorbar(image, cax=bar, ticks=[0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1], format=PercentFormatter(1, 0))
    bar.tick_params(labelsize=8, length=2)
    bar.spines[:].set_visible(False)
    bar.set_ylabel("of the true class's videos", fontsize=8)


def _list_confusions(panel: Any, matrix: Counts, classes: Sequence[str], rows: int) -> None:
    """The commonest confusions as a table of ``rows`` lines with its head, of 22 pixels each."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    commonest = np.argsort(-wrong, axis=None, kind="stable")[: min(rows - 1, MOST_LISTED)]
    panel.set_axis_off()
    panel.set(xlim=(0, 1), ylim=(rows, 0))
    lines = [("videos", "true class", "taken for")]
    if len(classes) > MOST_NAMES:  # the axes have their numbers
        classes = [f"{number} {name}" for number, name in enumerate(classes)]
    for true, predicted in zip(*np.unravel_index(commonest, wrong.shape), strict=True):
        if wrong[true, predicted]:
            count = f"{wrong[true, predicted]:,} of {matrix[true].sum():,}"
            lines.append((count, _short(classes[true]), _short(classes[predicted])))
    for row, line in enumerate(lines):
        for place, words in zip((0.15, 0.18, 0.6), line, strict=True):
            side, colour = "right" if place == 0.15 else "left", "#8a8a8a" if row == 0 else "black"
            panel.text(place, row + 0.5, words, fontsize=8, va="center", ha=side, color=colour)
