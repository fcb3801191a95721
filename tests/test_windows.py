"""A walk through a video: every window once, in order, each frame decoded once, the crops where they say they are."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from assets import H264, numbers_in
from PIL import Image

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.pyav_decoder import PyAVDecoder
from hiera_video.data.sampling import window_clips, window_starts
from hiera_video.data.transforms import plan_crops, plan_whole
from hiera_video.data.windows import Decoded, Walk, Windows, read_ahead, walk
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec

SPEC = ClipSpec(num_frames=4, frame_stride=2, size=(64, 64), resize=64)  # spans 8 / 30 s
HOW = Walk(SPEC, hop=4 / 30, at_once=3)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames at 30 fps, each with its number on it."""
    return replace(H264, name="long.mp4", num_frames=60).write(tmp_path_factory.mktemp("windows"))


def joined(windows: list[Windows]) -> np.ndarray:
    return np.concatenate([one.views.clips.numpy() for one in windows])


def test_windows_show_the_frames_that_sampling_names(long: Path) -> None:
    whole = Walk(SPEC.replace(size=(H264.height, H264.width), resize=min(H264.height, H264.width)), HOW.hop, at_once=3)
    windows = list(walk(str(long), whole))
    times = np.arange(60) / 30
    starts = window_starts(times, SPEC, HOW.hop)
    rows = np.stack(list(window_clips(times, SPEC, starts)))
    clips = joined(windows)
    assert [numbers_in(clip.transpose(1, 2, 3, 0)) for clip in clips] == rows.tolist()
    assert np.concatenate([one.starts for one in windows]) == pytest.approx(starts)
    assert np.concatenate([one.ends for one in windows]) == pytest.approx(starts + SPEC.span)
    assert np.concatenate([one.times for one in windows]) == pytest.approx(times[rows])
    assert [(one.first, len(one)) for one in windows[:2]] == [(0, 3), (3, 3)]
    assert {one.total for one in windows} == {len(rows)} and not any(one.padded for one in windows)


def test_each_frame_is_decoded_once_though_windows_overlap(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[int] = Counter()
    read = PyAVDecoder.read

    def counting(self: PyAVDecoder, wanted: np.ndarray, short_side: int | None) -> object:
        asked.update(wanted.tolist())
        return read(self, wanted, short_side)

    monkeypatch.setattr(PyAVDecoder, "read", counting)
    list(walk(str(long), HOW))
    assert len(asked) > 30 and set(asked.values()) == {1}


def test_a_walk_goes_on_from_any_window(long: Path) -> None:
    every = joined(list(walk(str(long), HOW)))
    rest = list(walk(str(long), HOW, first=7))
    assert rest[0].first == 7 and np.array_equal(joined(rest), every[7:])


def test_a_child_process_gives_the_same(long: Path) -> None:
    with IsolatedReader() as reader:
        assert np.array_equal(joined(list(walk(str(long), HOW, reader=reader))), joined(list(walk(str(long), HOW))))


def test_a_short_video_is_one_padded_window_and_an_image_one_still(tmp_path: Path) -> None:
    short = replace(H264, name="short.mp4", num_frames=3).write(tmp_path)
    (only,) = walk(str(short), HOW)
    assert only.padded and (only.first, only.total, len(only)) == (0, 1, 1)
    assert only.ends.tolist() == pytest.approx([0.1])
    Image.new("RGB", (90, 60), "red").save(tmp_path / "red.png")
    (still,) = walk(str(tmp_path / "red.png"), HOW)
    assert not still.padded and still.views.clips.shape == (1, 3, 4, 64, 64)
    assert still.starts.tolist() == still.ends.tolist() == [0.0]
    assert (still.views.clips[0, 0] == 255).all() and not still.views.clips[0, 1:].any()


@pytest.mark.parametrize("crop", ["center", "three", "none"])
def test_a_crop_shows_what_lies_in_its_box(crop: str, tmp_path: Path) -> None:
    ramp = np.zeros((120, 300, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 300)
    ramp[..., 1] = np.linspace(0, 255, 120)[:, None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (still,) = walk(str(tmp_path / "ramp.png"), replace(HOW, crop=crop))  # type: ignore[arg-type]
    clips = still.views.clips.numpy()[:, :, 0].astype(float)
    for clip, (left, top, right, bottom) in zip(clips, still.plan.boxes, strict=True):
        assert clip[0].mean() == pytest.approx(255 * (left + right) / 2 / 300, abs=2)
        assert clip[1].mean() == pytest.approx(255 * (top + bottom) / 2 / 120, abs=2)
        assert np.ptp(clip[0]) == pytest.approx(255 * (right - left) / 300, abs=6)


def test_plans_of_crops() -> None:
    # 240 x 320 becomes 256 x 341 (rounded down), of which the centre begins at column ceil(117 / 2).
    centre = [59 * 320 / 341, 15.0, 283 * 320 / 341, 225.0]
    assert plan_crops((240, 320), ClipSpec(), 1).boxes.tolist() == [pytest.approx(centre)]
    three = plan_crops((224, 300), ClipSpec(), 3)
    assert three.boxes[:, 0].tolist() == [0.0, 38.0, 76.0] and three.boxes[:, 1].tolist() == [0.0] * 3
    whole = plan_whole((240, 320), ClipSpec(), 32)
    assert whole.size == (224, 288) and whole.boxes.tolist() == [[0.0, 0.0, 320.0, 240.0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_many_inputs_come_whole_and_in_their_order_and_a_bad_one_as_a_sentence(
    num_workers: int, long: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    short = replace(H264, name="short.mp4", num_frames=9).write(tmp_path)
    todo = [(str(long), 0), (str(tmp_path / "bad.mp4"), 0), (str(short), 0), (str(tmp_path / "none.mp4"), 0)]
    decoded: dict[str, list[Decoded]] = {}
    for item in read_ahead(todo, HOW, num_workers=num_workers):
        decoded.setdefault(item.input, []).append(item)
    assert sorted(decoded) == sorted(name for name, _ in todo)
    for path in (long, short):
        windows = [item.windows for item in decoded[str(path)] if item.windows is not None]
        assert [one.first for one in windows] == list(range(0, windows[0].total, 3))
        assert [item.reached for item in decoded[str(path)]] == [one.first + len(one) for one in windows]
        assert {one.input for one in windows} == {str(path)}
    for name, error in (("bad.mp4", "bad.mp4 is not a video"), ("none.mp4", "none.mp4 cannot be read")):
        (failure,) = decoded[str(tmp_path / name)]
        assert failure.windows is None and failure.reached == 0 and error in str(failure.error)
    assert readers_left() == 0


def readers_left() -> int:
    return sum(thread.name.startswith("hiera_video reader") for thread in threading.enumerate())


def test_threads_and_their_children_end_when_nobody_wants_their_windows(long: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}

    def left() -> int:
        return readers_left() + len({child.pid for child in psutil.Process().children()} - before)

    for _ in read_ahead([(str(long), 0)] * 50, HOW):
        assert left() >= 2
        break  # the generator is collected
    gc.collect()
    assert left() == 0

    def list_that_ends_badly() -> Iterator[tuple[str, int]]:
        yield str(long), 0
        raise RequestError("line 2 is no path")

    with pytest.raises(RequestError, match="line 2 is no path"):
        list(read_ahead(list_that_ends_badly(), HOW))
    assert left() == 0


@pytest.mark.parametrize(
    "how_it_ends",
    [
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("", "raise SystemExit(0)")),
        "signal.raise_signal(signal.SIGINT)",
    ],
)
def test_a_program_that_ends_in_the_middle_ends_at_once(how_it_ends: str, long: Path) -> None:
    code = f"""
import signal
from hiera_video.data.windows import Walk, read_ahead
from hiera_video.spec import ClipSpec
ahead = read_ahead([({str(long)!r}, 0)] * 10**6, Walk(ClipSpec(num_frames=4, frame_stride=2, size=(64, 64)), hop=0.1))
print(next(ahead).input, flush=True)
{how_it_ends}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == f"{long}\n"
    assert done.returncode == (-signal.SIGINT if "SIGINT" in how_it_ends else 0), done.stderr
    assert how_it_ends.endswith("SIGINT)") or not done.stderr


def test_a_wrong_number_of_workers_is_refused() -> None:
    with pytest.raises(RequestError, match="num_workers is -1, but is at least 0"):
        next(read_ahead([], HOW, num_workers=-1))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableVideo, match="cannot be read"):
        next(walk(str(tmp_path / "none.mp4"), HOW))
