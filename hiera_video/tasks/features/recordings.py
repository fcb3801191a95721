"""Which videos are one recording: the same file, or pictures and motion so alike that they must be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Correlation of standardised statistics from which two videos count as one recording. Copies are above; other videos
#: of one person who does the same reach 0.95 (Weizmann), clips of one film that overlap by two thirds 0.4 to 0.96.
ALIKE = 0.98


def recordings(files: NDArray[np.int64], features: NDArray[np.float64], alike: float = ALIKE) -> NDArray[np.int64]:
    """Puts together what must not be torn apart between learning and judging.

    Args:
        files: int64 [N], the number of the file that each of N videos is or is a segment of.
        features: float64 [N, C], one row a video: statistics. Not an embedding, which may be alike for all of a class.
        alike: The correlation of two rows, each channel standardised over all videos, from which they count as one.

    Returns:
        int64 [N], the number of each video's recording, from 0 on.
    """
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    rows = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6
    near = (rows @ rows.T >= alike) | (files[:, np.newaxis] == files)
    found: NDArray[np.int64] = connected_components(coo_array(near), directed=False)[1].astype(np.int64)
    return found
