"""A reliability diagram: whether answers with a score of 0.8 are right in 80 % of cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

Floats = NDArray[np.float64]

RIGHT, GAP, GREY = "#1f77b4", "#d9480f", "#8a8a8a"


def draw_reliability(
    counts: NDArray[np.int64], confidence: Floats, accuracy: Floats, path: Path, *, title: str
) -> None:
    """A PNG: above, the share that is right against the score; below, how many answers each bin has.

    ``counts`` int64 [M] of M bins of equal width from 0 to 1; ``confidence`` and ``accuracy`` float64 [M], nan in empty
    bins. Written whole or not at all; raises :class:`OutputError`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 7.2), dpi=120)
    above, below = figure.add_axes((0.12, 0.38, 0.84, 0.52)), figure.add_axes((0.12, 0.08, 0.84, 0.22))
    edges = np.linspace(0, 1, len(counts) + 1)
    width, filled = edges[1], np.flatnonzero(counts)
    above.bar(edges[filled], accuracy[filled], width, align="edge", color=RIGHT, alpha=0.35, label="right answers")
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as the scores say")
    gap = np.sort(np.stack([accuracy, confidence])[:, filled], axis=0)
    above.vlines(confidence[filled], *gap, color=GAP, linewidth=2.5, label="difference")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    bars = below.bar(edges[:-1], counts, width, align="edge", color=GREY, edgecolor="white")
    below.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=7)
    below.set(xlim=(0, 1), ylim=(0, 1.18 * counts.max(initial=1)), xlabel="score", ylabel="answers")
    for panel in (above, below):
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    above.yaxis.set_major_formatter(PercentFormatter(1))
    figure.text(0.12, 0.97, title, fontsize=10, va="center")
    above.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncol=3, frameon=False, fontsize=8, columnspacing=1.2)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
