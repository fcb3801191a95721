"""PyTorchVideo's clip samplers and lists of labelled paths, in the place of ours.

``ClipDataset(videos, spec, sample=from_clip_sampler(make_clip_sampler("random", 2.0), spec))`` takes the frames that
PyTorchVideo's own dataset would take, but is a function of its key, and decodes a video once for all of its clips.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hiera_video.data.lists.video_list import VideoList
from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

#: Files have times as fractions of at most this denominator (90 kHz; 30000 / 1001), rounded to floats in ours.
MAX_DENOMINATOR = 10**6
ROUNDING_S = 1e-9


def from_clip_sampler(sampler: Any, spec: ClipSpec) -> Callable[[ArrayLike, np.random.Generator], NDArray[np.int64]]:
    """A function (times, rng) -> frame numbers int64 [num_clips, num_frames]: all clips ``sampler`` gives for a video.

    ``sampler`` is one of ``pytorchvideo.data.clip_sampling``. A clip is ``spec.num_frames`` frames out of those that
    begin in [clip_start, clip_end) seconds after the first frame, as PyTorchVideo's PyAV decoder and its
    ``UniformTemporalSubsample`` choose them; where none begins (PyTorchVideo drops the video), the one shown then.
    ``times`` are the frames' times in seconds, ascending; the video ends one mean frame after the last.
    """
    return partial(_rows, sampler, spec)  # not a closure: it travels to worker processes


def _rows(sampler: Any, spec: ClipSpec, times: ArrayLike, rng: np.random.Generator) -> NDArray[np.int64]:
    seconds = np.asarray(times, dtype=np.float64)
    seconds = seconds - seconds[0]
    count = len(seconds)
    # A fraction, as PyTorchVideo has it from the file: the float 9.999999 would lose the last of five clips.
    duration = _fraction(float(seconds[-1]) * count / (count - 1) if count > 1 else 1 / 30)
    # The samplers draw from Python's global generator, and count clips in themselves.
    state = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        clips = _clips(copy.copy(sampler), duration)
    finally:
        random.setstate(state)
    return np.stack([_frames(seconds, start, end, spec.num_frames) for start, end in clips])


def _fraction(seconds: float) -> Fraction:
    return Fraction(seconds).limit_denominator(MAX_DENOMINATOR)


def _clips(sampler: Any, duration: Fraction) -> list[tuple[Fraction, Fraction]]:
    """(start, end) of each clip in seconds, until the sampler calls one the last."""
    sampler.reset()
    clips: list[tuple[Fraction, Fraction]] = []
    end: Any = 0.0
    last = False
    while not last:
        start, end, _, _, last = sampler(end, duration, {})
        if isinstance(start, list):  # several at once
            clips += zip(start, end, strict=True)
            last = last[-1]
        else:
            clips.append((start, end))
    return clips


def _frames(seconds: NDArray[np.float64], start: Fraction, end: Fraction, num_frames: int) -> NDArray[np.int64]:
    first, behind = _first_from(seconds, start), _first_from(seconds, end)
    if first >= behind:
        first, behind = max(first - 1, 0), max(first, 1)
    # torch's float32 arithmetic, not numpy's: truncation would now and then give another frame.
    chosen = torch.linspace(0, behind - first - 1, num_frames).clamp(0, behind - first - 1).long()
    return first + chosen.numpy()


def _first_from(seconds: NDArray[np.float64], edge: Fraction) -> int:
    """The number of frames that begin before ``edge``, exactly: the float 0.8 as an edge is a hair behind 0.8 s."""
    number = int(np.searchsorted(seconds, float(edge) - ROUNDING_S))
    while number < len(seconds) and _fraction(float(seconds[number])) < edge:
        number += 1
    return number


def from_labeled_paths(
    paths: Sequence[tuple[str, Mapping[str, Any]]], classes: Sequence[str] | None = None
) -> VideoList:
    """A ``LabeledVideoPaths``, or any sequence of (path, {"label": number}), as a list of ours.

    ``classes``: their names by number, which PyTorchVideo does not keep; by default the numbers themselves. A label of
    -1 is none. Raises :class:`RequestError` for an entry without a number.
    """
    names, labels = [], []
    for place, (path, info) in enumerate(paths):
        label = info.get("label")
        if not isinstance(label, (int, np.integer)):
            raise RequestError(f"entry {place} ({path}) has the label {label!r}, but needs a class's number.")
        names.append(path)
        labels.append(int(label))
    known = classes if classes is not None else [str(number) for number in range(max(labels, default=-1) + 1)]
    return VideoList.make(names, np.array(labels, dtype=np.int64), known)
