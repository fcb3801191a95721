"""Which frames a clip is made of: arithmetic on frame times, with SlowFast's rules (what published numbers mean).

A clip of 16 frames, stride 4, at a target of 30 fps spans 64 / 30 s whatever the video's own rate. In a 30 fps video:

    frame   0   4   8  12  16  21  25  29  33  37  42  46  50  54  58  63    (not 0, 4, ..., 60: the ends are included)

Source: slowfast/datasets/decoder.py of facebookresearch/SlowFast, with ``USE_OFFSET_SAMPLING``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

#: A time may be this much off its place and still be a rounded one: mkv, webm and flv keep whole milliseconds.
ROUNDING_S = 1.001e-3


def train_clips(times: ArrayLike, spec: ClipSpec, rng: np.random.Generator, *, num_clips: int = 1) -> NDArray[np.int64]:
    """Frame numbers int64 [num_clips, num_frames] of clips with starts uniform in [0, frames - clip_size].

    ``times`` are the frames' times in seconds, ascending [N]; a shorter video repeats its last frame.
    """
    seconds, rate = _grid(times)
    room = max(0.0, len(seconds) - spec.span * rate)
    return _clips(seconds, rate, spec, rng.uniform(0.0, room, size=_at_least_one(num_clips)))


def test_clips(times: ArrayLike, spec: ClipSpec, num_clips: int) -> NDArray[np.int64]:
    """Frame numbers int64 [num_clips, num_frames] of clips spread evenly from the first frame; one: the centre.

    ``times`` are the frames' times in seconds, ascending [N]; a shorter video repeats its last frame.
    """
    seconds, rate = _grid(times)
    room = max(0.0, len(seconds) - spec.span * rate)
    if _at_least_one(num_clips) == 1:
        first, step = math.floor(room / 2), 0
    else:
        first, step = 0, math.floor(room / (num_clips - 1))
    starts = first + step * np.arange(num_clips, dtype=np.float64)
    return _clips(seconds, rate, spec, starts)


test_clips.__test__ = False  # type: ignore[attr-defined]  # the name is the protocol's; pytest is not meant


def _clips(times: NDArray[np.float64], rate: float, spec: ClipSpec, starts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions linspace(start, start + clip_size - 1) in frames of the mean rate, and the frames shown there."""
    positions = np.linspace(starts, starts + spec.span * rate - 1, spec.num_frames, axis=1).clip(0, len(times) - 1)
    if is_uniform(times, rate):
        return positions.astype(np.int64)
    # Variable rate: a position is a time. The hair keeps a frame that begins at just that time.
    shown: NDArray[np.int64] = np.searchsorted(times, times[0] + positions / rate + 1e-6, side="right").astype(np.int64)
    return shown - 1


def is_uniform(times: NDArray[np.float64], rate: float) -> bool:
    """Whether frames come at a constant rate, up to the rounding of the container's clock."""
    return bool(np.all(np.abs(times - times[0] - np.arange(len(times)) / rate) <= ROUNDING_S))


def _grid(times: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """The times as an array, and their mean rate in frames a second."""
    seconds = np.asarray(times, dtype=np.float64)
    if seconds.ndim != 1 or not len(seconds):
        raise RequestError(f"times has shape {seconds.shape}, but is one row of at least one frame's time in seconds.")
    if len(seconds) == 1:
        return seconds, 30.0  # any rate: every position is frame 0
    length = float(seconds[-1] - seconds[0])
    measured = (len(seconds) - 1) / length
    # A clock of whole milliseconds measures 30 fps as 29.99, and the last frame of a clip would be missed by one.
    nearest = min(float(round(measured)), round(measured * 1.001) / 1.001, key=lambda rate: abs(rate - measured))
    return seconds, nearest if abs(nearest - measured) <= measured * ROUNDING_S / length else measured


def _at_least_one(num_clips: int) -> int:
    if num_clips < 1:
        raise RequestError(f"the number of clips is {num_clips}, but is at least 1.")
    return num_clips
