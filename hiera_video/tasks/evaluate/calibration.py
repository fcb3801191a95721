"""Whether scores mean what they say: of answers with a score of 0.8, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bins of equal width (Guo et al. 2017, "On calibration of modern neural networks", section 2).
NUM_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Bin m holds scores in (m / 15, (m + 1) / 15]: ``counts`` int64 [15], the mean score ``confidence`` and the share
    that is right ``accuracy`` float64 [15], nan in empty bins. ``of``: what was counted, in words.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    of: str

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over what was counted, nan of nothing."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(self.counts @ gaps / self.counts.sum()) if self.counts.any() else float("nan")


def calibration(values: NDArray[np.float32], labels: NDArray[Any]) -> Calibration:
    """Compares scores with what is right.

    Args:
        values: Scores float32 [n, K], from 0 to 1; those that are not finite do not count.
        labels: int64 [n]: the best class of each video counts, with its score. Or float32 [n, K] of zeros and ones,
            where a video has any number of labels: every class of every video counts, and most are rightly near 0.

    Returns:
        The bins.
    """
    if labels.ndim == 1:
        scores, right = values.max(axis=1, initial=0), values.argmax(axis=1) == labels
        of = "the best class of each video"
    else:
        scores, right, of = values.ravel(), labels.ravel() > 0, "each class of each video"
    finite = np.isfinite(scores)
    scores, right = scores[finite].astype(np.float64), right[finite]
    bins = np.clip(np.ceil(scores * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(bins, part, NUM_BINS) / counts for part in (scores, right))
    return Calibration(counts, confidence, accuracy, of)
