"""Which frames a clip is made of: arithmetic on frame times, with SlowFast's rules (what published numbers mean).

A clip of 16 frames, stride 4, at a target of 30 fps spans 64 / 30 s whatever the video's own rate. In a 30 fps video:

    frame   0   4   8  12  16  21  25  29  33  37  42  46  50  54  58  63    (not 0, 4, ..., 60: the ends are included)

Source: slowfast/datasets/decoder.py of facebookresearch/SlowFast, with ``USE_OFFSET_SAMPLING``; its ssv2.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

#: A time may be this much off its place and still be a rounded one: mkv, webm and flv keep whole milliseconds.
ROUNDING_S = 1.001e-3


def keyed_rng(*key: int) -> np.random.Generator:
    """The generator of a key of integers from 0 on, such as (seed, epoch, index, repeat)."""
    # The length goes first: SeedSequence fills short keys up with zeros, so (1, 2) and (1, 2, 0) would be one.
    return np.random.default_rng((len(key), *key))


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


def segment_clips(
    times: ArrayLike, spec: ClipSpec, rng: np.random.Generator | None = None, *, num_clips: int = 1
) -> NDArray[np.int64]:
    """Frame numbers int64 [num_clips, num_frames], one of each of num_frames segments of the whole video (SSv2).

    With ``rng``: a random frame of each segment. Without: the middle one; of several clips, clip k shows the frame k /
    num_clips into each segment. A short video repeats frames. ``times`` are those of the frames in seconds, ascending.
    Source: SlowFast ``slowfast/datasets/ssv2.py``; for several clips VideoMAE ``ssv2.py``.
    """
    seconds, rate = _grid(times)
    num_segments, shape = spec.num_frames, (_at_least_one(num_clips), spec.num_frames)
    edges = np.round((len(seconds) - 1) / num_segments * np.arange(num_segments + 1)).astype(np.int64)
    positions: NDArray[np.int64] | NDArray[np.float64]
    if rng is not None:
        positions = rng.integers(edges[:-1], edges[1:], size=shape, endpoint=True)
    elif num_clips == 1:
        positions = (edges[np.newaxis, :-1] + edges[np.newaxis, 1:]) // 2
    else:
        length = len(seconds) / num_segments
        offsets = length * (np.arange(num_clips) / num_clips)
        positions = np.floor(offsets[:, np.newaxis] + length * np.arange(num_segments))
    return _shown(seconds, rate, positions, is_uniform(seconds, rate))


def sampler_of(
    rule: str, spec: ClipSpec, num_clips: int = 1, *, random: bool = False
) -> Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.int64]] | None:
    """How frames are chosen where a dataset's convention is not the dense one.

    Args:
        rule: "segments" (Something-Something) or "dense".
        spec: How a clip is cut.
        num_clips: Clips of each video.
        random: A random frame of each segment (for training); else the ones of the test.

    Returns:
        A sampler of segments; None for dense clips.
    """
    return partial(_segments, spec, num_clips, random) if rule == "segments" else None


def _segments(
    spec: ClipSpec, num_clips: int, random: bool, times: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    return segment_clips(times, spec, rng if random else None, num_clips=num_clips)


def window_starts(times: ArrayLike, spec: ClipSpec, hop: float) -> NDArray[np.float64]:
    """When clips that come every ``hop`` seconds begin, float64 [N], in seconds after the first frame.

    The last clip ends with the video, and so begins less than a hop after the one before it: with a hop up to the span
    of a clip, each frame lies within one. A video shorter than a clip gives one, which repeats its last frame.
    ``times`` are the frames' times in seconds, ascending.
    """
    seconds, rate = _grid(times)
    if not 0 < hop < math.inf:
        raise RequestError(f"hop is {hop:g} s, but is a number of seconds above 0.")
    room = max(0.0, len(seconds) - spec.span * rate)
    num_before = math.ceil(room / (hop * rate) - 1e-6)
    return np.append(hop * np.arange(num_before), room / rate)


def window_clips(times: ArrayLike, spec: ClipSpec, starts: ArrayLike) -> Iterator[NDArray[np.int64]]:
    """Frame numbers int64 [num_frames] of the clip that begins at each of ``starts`` (:func:`window_starts`)."""
    seconds, rate = _grid(times)
    uniform = is_uniform(seconds, rate)
    for start in np.asarray(starts, dtype=np.float64):
        # An epsilon against float error: truncation of 20.99999 would show frame 20, and lose the last frame.
        positions = _positions(seconds, rate, spec, np.array([start * rate + 1e-6]))
        yield _shown(seconds, rate, positions, uniform)[0]


def _clips(times: NDArray[np.float64], rate: float, spec: ClipSpec, starts: NDArray[np.float64]) -> NDArray[np.int64]:
    return _shown(times, rate, _positions(times, rate, spec, starts), is_uniform(times, rate))


def _positions(
    times: NDArray[np.float64], rate: float, spec: ClipSpec, starts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """linspace(start, start + clip_size - 1), in frames of the mean rate."""
    return np.linspace(starts, starts + spec.span * rate - 1, spec.num_frames, axis=1).clip(0, len(times) - 1)


def _shown(
    times: NDArray[np.float64], rate: float, positions: NDArray[np.float64] | NDArray[np.int64], uniform: bool
) -> NDArray[np.int64]:
    """The frames shown at positions in frames of the mean rate."""
    if uniform:
        return positions.astype(np.int64)
    # Variable rate: a position is a time. An epsilon against float error keeps a frame that begins at that time.
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
    # Frames that come at no such rate must keep the mean: at another the last one might lie beyond the end.
    return seconds, nearest if nearest and is_uniform(seconds, nearest) else measured


def _at_least_one(num_clips: int) -> int:
    if num_clips < 1:
        raise RequestError(f"the number of clips is {num_clips}, but is at least 1.")
    return num_clips
