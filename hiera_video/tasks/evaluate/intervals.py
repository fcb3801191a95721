"""How sure a figure is: intervals at 95 %, by Wilson's formula for shares, by resampling for everything else."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
#: Resamples of a list, unless its table of scores is so large that they would take minutes; then at least so many.
RESAMPLES, FEWEST_RESAMPLES = 1000, 200
#: Cells of the table of scores times resamples that are computed at most.
MOST_CELLS = 2_000_000_000
SEED = 0


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
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = hits / counts
        centre = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
        half = z / (1 + z**2 / counts) * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return np.stack([centre - half, centre + half], axis=-1).clip(0, 1)


def num_resamples(num_cells: int) -> int:
    """How often a list is resampled.

    Args:
        num_cells: Numbers that are looked at for each resample.

    Returns:
        1000, fewer where that would take minutes, at least 200.
    """
    return int(np.clip(MOST_CELLS // max(num_cells, 1), FEWEST_RESAMPLES, RESAMPLES))


def bootstrap(figures: Callable[[Floats], Floats], files: NDArray[np.int64], resamples: int) -> Floats:
    """Intervals of any figures: percentiles over lists of as many files, drawn from the list with replacement.

    The draws are the same in every run.

    Args:
        figures: Of weights float64 [n], how often each video counts, to figures float64 [F], nan where nothing counts.
        files: int64 [n], the number of the file that each video lies in: segments of one file are drawn together, since
            they are not independent.
        resamples: How many lists are drawn.

    Returns:
        float64 [F, 2], low and high; nan where resampling cannot tell: of one file, or where each resample has the
        same figure.
    """
    num_files = int(files.max(initial=-1)) + 1
    bounds = np.full((len(figures(np.ones(len(files)))), 2), np.nan)
    if num_files < 2:
        return bounds
    rng = np.random.default_rng(SEED)
    draws = (rng.integers(num_files, size=num_files) for _ in range(resamples))
    values = np.stack([figures(np.bincount(draw, minlength=num_files)[files].astype(np.float64)) for draw in draws])
    counted = np.isfinite(values).any(axis=0)
    outside = (1 - LEVEL) / 2
    bounds[counted] = np.nanquantile(values[:, counted], [outside, 1 - outside], axis=0).T
    bounds[bounds[:, 0] == bounds[:, 1]] = np.nan
    return bounds
