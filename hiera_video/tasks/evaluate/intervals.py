"""How sure a figure is: intervals at 95 %, by Wilson's formula for shares, by resampling for everything else."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
#: Resamples of a list, unless its table of scores is so large that they would take minutes; then at least so many.
RESAMPLES, FEWEST_RESAMPLES = 1000, 100
#: Cells of the table of scores times resamples that are computed at most.
MOST_CELLS = 1_000_000_000
SEED = 0
#: Standard deviations of a normal distribution to either side that hold this level.
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(hits: ArrayLike, counts: ArrayLike) -> Floats:
    """The interval of a share, which is right for few videos and for shares of 0 and 1 too.

    Args:
        hits: Videos that are right, any shape.
        counts: Videos, independent of each other, of the same shape.

    Returns:
        float64 [..., 2], low and high; nan where there is no video. (Wilson 1927, "Probable inference, the law of
        succession, and statistical inference".)
    """
    hits, counts = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = hits / counts
        centre = (share + Z**2 / (2 * counts)) / (1 + Z**2 / counts)
        half = Z / (1 + Z**2 / counts) * np.sqrt(share * (1 - share) / counts + Z**2 / (4 * counts**2))
    return np.stack([centre - half, centre + half], axis=-1).clip(0, 1)


def num_resamples(num_cells: int) -> int:
    """How often a list is resampled.

    Args:
        num_cells: Numbers that are looked at for each resample.

    Returns:
        1000, fewer where that would take minutes, at least 100.
    """
    return int(np.clip(MOST_CELLS // max(num_cells, 1), FEWEST_RESAMPLES, RESAMPLES))


def bootstrap(figures: Callable[[Floats], Floats], files: NDArray[np.int64], resamples: int) -> Floats:
    """Intervals of any figures: to either side 1.96 standard deviations over lists of as many files, drawn from the
    list with replacement. Percentiles would not do: a video drawn twice is found twice, which lifts average precision.

    The draws are the same in every run.

    Args:
        figures: Of weights float64 [n], how often each video counts, to figures float64 [F] from 0 to 1, nan where
            nothing counts.
        files: int64 [n], the number of the file that each video lies in: segments of one file are drawn together, since
            they are not independent.
        resamples: How many lists are drawn.

    Returns:
        float64 [F, 2], low and high; nan where resampling cannot tell: of one file, or where each resample has the
        same figure. (Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3.)
    """
    figure = figures(np.ones(len(files)))
    num_files = int(files.max(initial=-1)) + 1
    if num_files < 2:
        return np.full((len(figure), 2), np.nan)
    rng = np.random.default_rng(SEED)
    count, mean, squares = np.zeros_like(figure), np.zeros_like(figure), np.zeros_like(figure)
    for _ in range(resamples):
        draw = np.bincount(rng.integers(num_files, size=num_files), minlength=num_files)
        change = figures(draw[files].astype(np.float64)) - figure
        counted = np.isfinite(change)
        count += counted
        mean += np.where(counted, change, 0)
        squares += np.where(counted, change, 0) ** 2
    count = np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / count - (mean / count) ** 2, 0))
    spread[spread < 1e-9] = np.nan  # no figure differs by so little but for rounding
    return np.stack([figure - Z * spread, figure + Z * spread], axis=-1).clip(0, 1)
