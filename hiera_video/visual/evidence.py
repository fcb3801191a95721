"""Where the evidence for a class lies, drawn over the frames: a picture with a row for each input, or a film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.files import replacing

#: Colours from no evidence to the most, by matplotlib's name, and how much of a frame the most of it hides.
COLOURS, OPAQUE = "inferno", 0.75
#: Where the brightest colour begins: the share of the pixels that have less.
BRIGHTEST = 0.99
#: Pixels of a frame's short side in a film: smaller frames are enlarged.
LEAST_SIDE = 192


@dataclass(frozen=True)
class EvidenceRow:
    """One input: its ``frames`` uint8 [T, h, w, 3], the ``values`` float32 [T, h, w] of their pixels, the ``times`` in
    seconds [T] at which they are shown.
    """

    title: str
    frames: NDArray[np.uint8]
    values: NDArray[np.float32]
    times: NDArray[np.float64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """float64 [T]: how much of all evidence for the class lies in each frame; 0 where there is none."""
        positive = self.values.clip(min=0).astype(np.float64).sum(axis=(1, 2))
        total = positive.sum()
        return positive / total if total > 0 else positive


def overlaid(row: EvidenceRow) -> NDArray[np.uint8]:
    """The frames with the evidence over them, the brighter and warmer the more; what speaks against it is left out.

    Args:
        row: The frames and their values.

    Returns:
        uint8 [T, h, w, 3].
    """
    from matplotlib import colormaps

    # A few patches with very much would leave all others dark.
    level = (row.values / max(float(np.quantile(row.values, BRIGHTEST)), 1e-12)).clip(0, 1)
    colours = colormaps[COLOURS](level)[..., :3] * 255
    share = OPAQUE * level[..., np.newaxis]
    pixels: NDArray[np.uint8] = (row.frames * (1 - share) + colours * share).round().astype(np.uint8)
    return pixels


def draw_evidence(rows: Sequence[EvidenceRow], path: Path, method: str, *, num_frames: int = 6) -> None:
    """Writes a PNG: of each input some frames, with the evidence over the same frames below.

    Args:
        rows: The inputs, at least one.
        path: The file, written whole or not at all.
        method: What the values are, in one sentence.
        num_frames: Frames of a row, evenly spread over its clip.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = min(num_frames, max(len(row.frames) for row in rows))
    figure = Figure(figsize=(1.83 * max(shown, 3), 4.1 * len(rows) + 0.4), dpi=120, layout="constrained")
    figure.suptitle(f"{method} (bright: much)", fontsize=9, parse_math=False)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        part.suptitle(row.title, fontsize=10, x=0.01, ha="left", parse_math=False)
        chosen = np.linspace(0, len(row.frames) - 1, min(num_frames, len(row.frames))).round().astype(int)
        panels = part.subplots(2, len(chosen), squeeze=False)
        films = row.frames, overlaid(row)
        for column, index in enumerate(chosen):
            for panel, film in zip(panels[:, column], films, strict=True):
                panel.imshow(film[index])
                panel.set_axis_off()
            panels[0, column].set_title(f"{row.times[index]:.2f} s", fontsize=8)
            panels[1, column].set_title(f"{row.shares[index] * len(row.frames):.1f} x the mean", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def write_evidence(row: EvidenceRow, path: Path) -> None:
    """Writes an mp4: the clip on the left, the evidence over it on the right, as fast as it was.

    Args:
        row: The input.
        path: The file, written whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    zoom = -(-LEAST_SIDE // min(row.frames.shape[1:3]))
    both = np.concatenate([row.frames, overlaid(row)], axis=2)
    film = both.repeat(zoom, axis=1).repeat(zoom, axis=2)
    step = float(np.median(np.diff(row.times))) if len(row.times) > 1 else 0.0
    write_mp4(path, film, 1 / step if step > 0 else 1.0)
