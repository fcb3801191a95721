"""Which frames make a clip: worked examples with literal numbers, and properties that hold for every video."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hiera_video.data.sampling import keyed_rng, segment_clips, train_clips, window_clips, window_starts
from hiera_video.data.sampling import test_clips as clips_for_test
from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

SPEC = ClipSpec()  # 16 frames, stride 4, at 30 fps
FOUR = ClipSpec(num_frames=4, frame_stride=2)  # spans 8 / 30 s


def constant(num_frames: int, fps: float, start: float = 0.0) -> NDArray[np.float64]:
    return start + np.arange(num_frames) / fps


def in_milliseconds(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """As mkv and webm store them."""
    return np.round(times, 3)


EXAMPLES = {
    "one clip of 64 frames: the last frame is included": (
        constant(64, 30),
        SPEC,
        1,
        [[0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]],
    ),
    "a late start changes nothing": (
        constant(64, 30, start=8.333),
        SPEC,
        1,
        [[0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]],
    ),
    "one clip stands in the centre, rounded down": (constant(13, 30), FOUR, 1, [[2, 4, 6, 9]]),
    "three clips step by floor(room / 2), so the end may be missed by one frame": (
        constant(13, 30),
        FOUR,
        3,
        [[0, 2, 4, 7], [2, 4, 6, 9], [4, 6, 8, 11]],
    ),
    "at 60 fps a clip spans twice the frames": (constant(32, 60), FOUR, 2, [[0, 5, 10, 15], [16, 21, 26, 31]]),
    "at 25 fps a clip spans 6.67 frames": (constant(10, 25), FOUR, 2, [[0, 1, 3, 5], [3, 4, 6, 8]]),
    "at 15 fps frames repeat": (constant(8, 15), ClipSpec(num_frames=4, frame_stride=1), 1, [[3, 3, 3, 4]]),
    "a short video repeats its last frame": (constant(5, 30), FOUR, 2, [[0, 2, 4, 4], [0, 2, 4, 4]]),
    "one frame is a clip": (constant(1, 30), FOUR, 2, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    "times rounded to milliseconds are still 30 fps": (
        in_milliseconds(constant(128, 30)),
        SPEC,
        2,
        [
            [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63],
            [64, 68, 72, 76, 80, 85, 89, 93, 97, 101, 106, 110, 114, 118, 122, 127],
        ],
    ),
    # Mean rate 29 / 2.8 s; a clip spans 0.8 s = 8.29 mean frames: 0, 0.23, 0.47, 0.70 s after 0 s and 2.03 s.
    "a variable rate goes by time": (
        np.array([*np.arange(20) * 0.05, *(1 + np.arange(10) * 0.2)]),
        ClipSpec(num_frames=4, frame_stride=6),
        2,
        [[0, 4, 9, 14], [25, 26, 27, 28]],
    ),
}


@pytest.mark.parametrize(("times", "spec", "num_clips", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_worked_example(times: NDArray[np.float64], spec: ClipSpec, num_clips: int, expected: list[list[int]]) -> None:
    rows = clips_for_test(times, spec, num_clips)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


def slowfast(num_frames: int, fps: float, spec: ClipSpec, clip: int, num_clips: int) -> list[int]:
    """The published rule, written down a second time, for one clip of a constant frame rate."""
    clip_size = spec.frame_stride * spec.num_frames / spec.target_fps * fps
    room = max(num_frames - clip_size, 0)
    start = math.floor(room / 2) if num_clips == 1 else clip * math.floor(room / (num_clips - 1))
    return [int(p) for p in np.clip(np.linspace(start, start + clip_size - 1, spec.num_frames), 0, num_frames - 1)]


RATES = st.sampled_from([10.0, 12.0, 15.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001, 60.0])


@given(num_frames=st.integers(2, 900), fps=RATES, num_clips=st.integers(1, 10), start=st.sampled_from([0.0, 8.333]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_constant_rate_equals_the_published_rule(num_frames: int, fps: float, num_clips: int, start: float) -> None:
    rows = clips_for_test(constant(num_frames, fps, start), SPEC, num_clips)
    assert rows.tolist() == [slowfast(num_frames, fps, SPEC, clip, num_clips) for clip in range(num_clips)]


# From 60 frames on a clock of milliseconds tells 29.97 from 30.
@given(num_frames=st.integers(60, 900), fps=RATES, num_clips=st.integers(1, 10))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_rounding_to_milliseconds_changes_no_frame(num_frames: int, fps: float, num_clips: int) -> None:
    times = constant(num_frames, fps)
    np.testing.assert_array_equal(
        clips_for_test(in_milliseconds(times), SPEC, num_clips), clips_for_test(times, SPEC, num_clips)
    )


GAPS = st.lists(st.floats(0.001, 0.5), min_size=1, max_size=200)


@given(gaps=GAPS, num_clips=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_video_gives_frames_in_range_and_in_order(gaps: list[float], num_clips: int, seed: int) -> None:
    times = np.cumsum([3.0, *gaps])
    rng = np.random.default_rng(seed)
    for rows in (clips_for_test(times, SPEC, num_clips), train_clips(times, SPEC, rng, num_clips=num_clips)):
        assert rows.shape == (num_clips, SPEC.num_frames)
        assert rows.min() >= 0 and rows.max() < len(times)
        assert (np.diff(rows, axis=1) >= 0).all()


def test_training_starts_are_uniform_over_the_room_and_repeat_with_their_generator() -> None:
    times = constant(300, 30)
    rows = train_clips(times, SPEC, np.random.default_rng(7), num_clips=2000)
    np.testing.assert_array_equal(rows, train_clips(times, SPEC, np.random.default_rng(7), num_clips=2000))
    assert rows[:, 0].min() == 0 and rows[:, -1].max() == 298  # start < 236 = 300 - 64, the last frame start + 63
    assert abs(rows[:, 0].mean() - 117.5) < 5


def test_no_clips_and_no_frames_are_wrong_requests() -> None:
    with pytest.raises(RequestError, match="the number of clips is 0, but is at least 1"):
        clips_for_test(constant(9, 30), SPEC, 0)
    with pytest.raises(RequestError, match=r"times has shape \(0,\), but is one row of at least one frame's time"):
        clips_for_test([], SPEC, 1)
    with pytest.raises(RequestError, match="the number of clips is 0, but is at least 1"):
        segment_clips(constant(9, 30), SPEC, num_clips=0)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_equal_keys_draw_alike_and_other_keys_otherwise() -> None:
    keys = [(1,), (1, 0), (1, 0, 0), (0, 1), (2, 0), (1, 2, 3), (3, 2, 1)]
    draws = [keyed_rng(*key).integers(2**62) for key in keys]
    assert draws == [keyed_rng(*key).integers(2**62) for key in keys]
    assert len(set(draws)) == len(keys)


# --- segments ---------------------------------------------------------------------------------------------------------

SEGMENTS = {
    # (33 - 1) / 4 = 8: frames 0 to 8, 8 to 16, ...
    "one clip shows the middle of each segment": (33, 1, [[4, 12, 20, 28]]),
    # (10 - 1) / 4 = 2.25: edges 0, 2.25, 4.5, 6.75, 9 are rounded to 0, 2, 4, 7, 9.
    "edges are rounded to frames, halves to even ones": (10, 1, [[1, 3, 5, 8]]),
    "two clips show the first and the middle of each segment": (32, 2, [[0, 8, 16, 24], [4, 12, 20, 28]]),
    # 10 / 4 = 2.5
    "places between frames are rounded down": (10, 2, [[0, 2, 5, 7], [1, 3, 6, 8]]),
    "a short video repeats frames": (3, 1, [[0, 0, 1, 2]]),
    "a short video repeats frames in each of two clips": (3, 2, [[0, 0, 1, 2], [0, 1, 1, 2]]),
    "one frame is a clip": (1, 2, [[0, 0, 0, 0], [0, 0, 0, 0]]),
}


@pytest.mark.parametrize(("num_frames", "num_clips", "expected"), SEGMENTS.values(), ids=SEGMENTS)
def test_worked_example_of_segments(num_frames: int, num_clips: int, expected: list[list[int]]) -> None:
    rows = segment_clips(constant(num_frames, 12), FOUR, num_clips=num_clips)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


def test_segments_of_a_variable_rate_go_by_time() -> None:
    # 20 frames in the first second, 10 in the next two; quarters of the 2.8 s between first and last frame.
    times = np.array([*np.arange(20) * 0.05, *(1 + np.arange(10) * 0.2)])
    rows = segment_clips(times, FOUR)
    assert rows.tolist() == [[5, 19, 23, 27]]  # shown at 0.29, 0.97, 1.64, 2.41 s: mean frames 3, 10, 17, 25


@given(num_frames=st.integers(1, 500), num_clips=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_random_frames_stay_in_their_segments(num_frames: int, num_clips: int, seed: int) -> None:
    rows = segment_clips(constant(num_frames, 12), SPEC, np.random.default_rng(seed), num_clips=num_clips)
    edges = [round((num_frames - 1) / 16 * i) for i in range(17)]
    assert rows.shape == (num_clips, 16)
    assert (rows >= edges[:-1]).all() and (rows <= edges[1:]).all()
    assert (np.diff(rows, axis=1) >= 0).all()


def test_random_frames_reach_both_ends_of_their_segment() -> None:
    rows = segment_clips(constant(33, 12), FOUR, np.random.default_rng(0), num_clips=500)
    assert [sorted(set(column)) for column in rows.T.tolist()] == [list(range(8 * i, 8 * i + 9)) for i in range(4)]


# --- windows ----------------------------------------------------------------------------------------------------------


def windows(times: NDArray[np.float64], spec: ClipSpec, hop: float) -> Iterator[NDArray[np.int64]]:
    return window_clips(times, spec, window_starts(times, spec, hop))


WINDOWS = {
    "windows side by side": (constant(16, 30), 8 / 30, [[0, 2, 4, 7], [8, 10, 12, 15]]),
    "the last one ends with the video": (constant(18, 30), 8 / 30, [[0, 2, 4, 7], [8, 10, 12, 15], [10, 12, 14, 17]]),
    "overlapping by half": (constant(16, 30), 4 / 30, [[0, 2, 4, 7], [4, 6, 8, 11], [8, 10, 12, 15]]),
    "a hop longer than a clip leaves frames out": (
        constant(40, 30),
        1.0,
        [[0, 2, 4, 7], [30, 32, 34, 37], [32, 34, 36, 39]],
    ),
    "a late start changes nothing": (constant(16, 30, start=8.333), 8 / 30, [[0, 2, 4, 7], [8, 10, 12, 15]]),
    "a short video gives one": (constant(5, 30), 0.1, [[0, 2, 4, 4]]),
    "a video of just one clip gives one": (constant(8, 30), 0.01, [[0, 2, 4, 7]]),
    "one frame is a window": (constant(1, 30), 1.0, [[0, 0, 0, 0]]),
}


@pytest.mark.parametrize(("times", "hop", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_worked_example_of_windows(times: NDArray[np.float64], hop: float, expected: list[list[int]]) -> None:
    rows = list(windows(times, FOUR, hop))
    assert all(row.dtype == np.int64 for row in rows)
    assert [row.tolist() for row in rows] == expected


@given(num_frames=st.integers(1, 600), fps=RATES, hop=st.floats(0.05, SPEC.span), milliseconds=st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_windows_ascend_and_leave_no_frame_out(num_frames: int, fps: float, hop: float, milliseconds: bool) -> None:
    times = constant(num_frames, fps)
    rows = np.stack(list(windows(in_milliseconds(times) if milliseconds else times, SPEC, hop)))
    assert rows[0, 0] == 0 and rows[-1, -1] == num_frames - 1
    assert (np.diff(rows[:, 0]) >= 0).all()
    assert (rows[1:, 0] <= rows[:-1, -1] + 1).all()


@given(gaps=GAPS, hop=st.floats(0.05, SPEC.span))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_windows_of_any_video_begin_and_end_with_it_and_leave_less_than_a_mean_frame_out(
    gaps: list[float], hop: float
) -> None:
    times = np.cumsum([3.0, *gaps])
    rows = np.stack(list(windows(times, SPEC, hop)))
    assert rows[0, 0] == 0 and rows[-1, -1] == len(times) - 1
    assert (np.diff(rows[:, 0]) >= 0).all()
    between = times[np.maximum(rows[1:, 0] - 1, 0)] - times[rows[:-1, -1]]
    assert (between <= (times[-1] - times[0]) / len(gaps) + 1e-3).all()


def test_windows_come_one_by_one_and_from_any_on() -> None:
    day = constant(24 * 3600 * 30, 30)
    starts = window_starts(day, SPEC, 1 / 30)
    rows = window_clips(day, SPEC, starts[5:])
    assert [next(rows)[0] for _ in range(3)] == [5, 6, 7]


def test_windows_begin_every_hop_but_for_the_last_which_ends_with_the_video() -> None:
    assert window_starts(constant(300, 30, start=8.3), SPEC, 2.0).tolist() == pytest.approx(
        [0, 2, 4, 6, 10 - SPEC.span]
    )
    assert window_starts(constant(30, 30), SPEC, 2.0).tolist() == [0.0]


def test_a_hop_of_nothing_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="hop is 0 s, but is a number of seconds above 0"):
        windows(constant(9, 30), SPEC, 0)
