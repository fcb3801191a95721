"""A strip of a clip's frames with its best classes as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing


class Scored(Protocol):
    """A class and its score."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...


def draw_strips(
    rows: Sequence[tuple[str, NDArray[np.uint8], Sequence[Scored]]], path: Path, *, num_frames: int = 6
) -> None:
    """One row per (title, frames uint8 ``[T, H, W, 3]``, best classes): ``num_frames`` of the frames, evenly spread,
    and bars. Writes a PNG whole or not at all; raises :class:`OutputError`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(1.75 * len(rows), 1)), dpi=120, layout="constrained")
    parts = figure.subfigures(max(len(rows), 1), 1, squeeze=False)[:, 0]
    for part, (title, frames, scores) in zip(parts, rows, strict=False):
        strip, bars = part.subplots(1, 2, width_ratios=[num_frames, 3.2])
        chosen = np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)
        gap = np.full((frames.shape[1], max(frames.shape[2] // 32, 1), 3), 255, dtype=np.uint8)
        strip.imshow(np.concatenate([piece for index in chosen for piece in (frames[index], gap)][:-1], axis=1))
        strip.set_title(title, fontsize=9, loc="left")
        strip.set_axis_off()
        places = np.arange(len(scores))
        values = [score.score for score in scores]
        bars.barh(places, values, color=["#1f77b4"] + ["#aec7e8"] * (len(scores) - 1), height=0.8)
        for place, score in zip(places, scores, strict=True):
            bars.text(0.02, place, f"{score.label}  {score.score:.0%}", va="center", fontsize=8)
        bars.set(xlim=(0, 1), ylim=(len(scores) - 0.4, -0.6), xticks=[], yticks=[])
        bars.spines[:].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
