"""Scores over time: the best classes of a video as curves, thumbnails underneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

DPI = 120


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
    """A PNG of the ``top_k`` classes with the highest peaks: what is seen for a moment counts, too.

    ``times`` float64 [n, 2]: start and end of each window in seconds; ``scores`` float32 [n, K] of the classes
    ``labels``; ``thumbnails``: seconds, and a picture uint8 [h, w, 3] that is placed there; ``segments``: label,
    start and end of what is marked above the curves. Written whole or not at all; raises :class:`OutputError`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    centres = times.mean(axis=1)
    begin, end = float(times[:, 0].min()), max(float(times[:, 1].max()), float(times[:, 0].min()) + 0.1)
    figure = Figure(figsize=(11, 4.4), dpi=DPI)
    curves = figure.add_axes((0.06, 0.40, 0.75, 0.50))
    for row, number in enumerate(np.argsort(-scores.max(axis=0), kind="stable")[:top_k].tolist()):
        (line,) = curves.plot(
            centres, scores[:, number], label=labels[number], linewidth=1.6, marker="o" if len(times) <= 40 else None,
            markersize=3.5,
        )  # fmt: skip
        for _, start, stop in (one for one in segments if one[0] == labels[number]):
            curves.plot(
                [start, stop], [1.05 + 0.04 * row] * 2, color=line.get_color(), linewidth=4, solid_capstyle="butt"
            )
    above = 1.05 + 0.04 * top_k if segments else 1.03
    curves.set(xlim=(begin, end), ylim=(0, above), ylabel="score", yticks=np.arange(6) / 5)
    curves.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds, end)))
    curves.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 3, 6, 10] if end > 100 else [1, 2, 5, 10]))
    curves.grid(alpha=0.3)
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
    figure.text(0.06, 0.94, title, fontsize=10, parse_math=False)
    wide = min(0.75 / max(len(thumbnails), 1), 0.1)
    for seconds, picture in thumbnails:
        place = 0.06 + 0.75 * (seconds - begin) / (end - begin) - wide / 2
        panel = figure.add_axes((place, 0.02, 0.96 * wide, 0.29), anchor="N")
        panel.imshow(picture)
        panel.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def clock(seconds: float, end: float) -> str:
    """A time on an axis that ends at ``end`` seconds.

    >>> clock(7.5, 20), clock(75, 300), clock(3675, 7200)
    ('7.5 s', '1:15', '1:01:15')
    """
    if end <= 100:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if end >= 3600 else f"{minutes}:{rest:02d}"
