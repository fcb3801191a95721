"""What a reader of videos promises, on files whose truth is known."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from assets import (
    AVI,
    FRONT_INDEX,
    H264,
    LATE_START,
    LONG_MKV,
    READABLE,
    ROTATED,
    VARIABLE,
    Asset,
    cut_off,
    damage_packet,
    numbers_in,
    write_audio,
)

from hiera_video.data import decoders, reader
from hiera_video.data.reader import open_video
from hiera_video.errors import RequestError, UnreadableVideo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def h264(folder: Path) -> Path:
    return H264.write(folder)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("asset", READABLE, ids=lambda asset: asset.name)
def test_every_frame_comes_upright_with_its_time(asset: Asset, backend: str, tmp_path: Path) -> None:
    with open_video(asset.write(tmp_path), backend=backend) as video:
        frames = video.frames(range(len(video)))
        assert numbers_in(frames.pixels) == list(range(asset.num_frames))
        assert (video.height, video.width) == frames.pixels.shape[1:3] == asset.upright
        red = frames.pixels[0, 2, asset.upright[1] // 2].astype(int)
        assert red[0] > 150
        assert red[2] < 100
        if asset.name not in ("b_frames.avi", "transport.ts"):  # those count from elsewhere
            np.testing.assert_allclose(frames.times, asset.times, atol=0.6e-3)
        assert video.error is None


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("asset", READABLE, ids=lambda asset: asset.name)
def test_any_frame_is_found_from_anywhere(asset: Asset, backend: str, tmp_path: Path) -> None:
    path = asset.write(tmp_path)
    wanted = np.random.default_rng(0).permutation(asset.num_frames)[:12].tolist()
    with open_video(path, backend=backend) as video:
        assert [numbers_in(video.frames([number]).pixels)[0] for number in wanted] == wanted
    for step in (7, 11):
        with open_video(path, backend=backend) as video:
            some = list(range(asset.num_frames // 3, asset.num_frames, step))
            assert numbers_in(video.frames(some).pixels) == some


def test_decord_answers_first_and_the_reason_for_another_is_readable(h264: Path, tmp_path: Path) -> None:
    with open_video(h264) as video:
        assert (video.backend, video.fallback_reason) == ("decord", None)
    with open_video(AVI.write(tmp_path)) as video:
        assert (video.backend, video.fallback_reason) == (
            "pyav",
            "decord does not find frames reliably in avi files",
        )


def test_without_decord_pyav_answers(h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'decord'")

    monkeypatch.setattr(decoders, "import_decord", missing)
    with open_video(h264) as video:
        assert (video.backend, video.fallback_reason) == ("pyav", "No module named 'decord'")
    with pytest.raises(UnreadableVideo, match=r"cannot be decoded by decord .*: use backend='auto' or 'pyav'"):
        open_video(h264, backend="decord")


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_frames_come_in_the_order_asked_and_repeat(h264: Path, backend: str) -> None:
    with open_video(h264, backend=backend) as video:
        assert numbers_in(video.frames([70, 3, 3, 31, 0]).pixels) == [70, 3, 3, 31, 0]
        assert numbers_in(video.frames([5]).pixels) == [5]
        with pytest.raises(IndexError, match="has frames 0 to 89"):
            video.frames([90])


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_stream_decodes_each_frame_once_and_holds_one_window(
    h264: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[0, 4, 8, 12], [6, 10, 14, 18], [12, 16, 20, 24], [60, 60, 64, 68]]
    with open_video(h264, backend=backend) as video:
        asked: list[int] = []
        read = video._decoder.read
        monkeypatch.setattr(video._decoder, "read", lambda wanted: asked.extend(wanted.tolist()) or read(wanted))
        assert [numbers_in(frames.pixels) for frames in video.stream(rows)] == rows
    assert asked == sorted({number for row in rows for number in row})


def test_duration_rate_and_the_frame_at_a_time(h264: Path, tmp_path: Path) -> None:
    with open_video(h264) as video:
        assert (len(video), video.duration, video.fps) == (90, pytest.approx(3), pytest.approx(30))
        assert [video.at(time) for time in (-1, 0, 0.033, 1 / 30 + 1e-9, 99)] == [0, 0, 0, 1, 89]
    with open_video(VARIABLE.write(tmp_path)) as video:
        assert [video.at(time) for time in (0.999, 1.0, 1.199, 1.2)] == [19, 20, 20, 21]


def test_a_stream_that_starts_late_keeps_its_times(tmp_path: Path) -> None:
    with open_video(LATE_START.write(tmp_path)) as video:
        assert video.times[0] == pytest.approx(250 / 30, abs=1e-3)
        assert video.duration == pytest.approx(1)


def test_decoders_turn_a_picture_alike(tmp_path: Path) -> None:
    path = ROTATED.write(tmp_path)
    with open_video(path, backend="decord") as one, open_video(path, backend="pyav") as other:
        np.testing.assert_array_equal(one.frames([0, 9]).pixels, other.frames([0, 9]).pixels)


@pytest.mark.parametrize("asset", [FRONT_INDEX, LONG_MKV], ids=lambda asset: asset.name)
def test_a_file_that_is_cut_off_gives_what_it_has_and_says_so(asset: Asset, tmp_path: Path) -> None:
    with open_video(cut_off(asset.write(tmp_path), 0.8)) as video:
        assert video.error is not None and video.error.startswith("the file is cut off after")
        assert 10 < len(video) < 90
        shown = numbers_in(video.frames(range(len(video))).pixels)
        assert shown == np.rint(video.times * 30).astype(int).tolist()


def test_frames_behind_damage_are_the_last_good_one_until_the_next_keyframe(h264: Path) -> None:
    with open_video(damage_packet(h264, 40)) as video:
        numbers = numbers_in(video.frames(range(90)).pixels)
        assert video.backend == "pyav"
        assert video.error is not None and "cannot be decoded" in video.error
    assert numbers[:30] == list(range(30)) and numbers[60:] == list(range(60, 90))
    assert numbers[30:60] == sorted(numbers[30:60])
    assert len(set(numbers)) < 90


def test_a_title_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    path = Asset("title.mkv", num_frames=3).write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"caf\xe9"))
    with open_video(path) as video:
        assert numbers_in(video.frames(range(3)).pixels) == [0, 1, 2]


def _broken(name: str, folder: Path) -> Path:
    path = folder / name
    if name == "folder":
        path.mkdir(exist_ok=True)
    elif name == "empty.mp4":
        path.touch()
    elif name == "text.mp4":
        path.write_text("this is not a video\n" * 50)
    elif name == "sound.m4a":
        write_audio(path)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mp4", "cannot be read (No such file or directory): check the path."),
        ("folder", "is a folder, not a file: name the files in it."),
        ("empty.mp4", "is empty (0 bytes): copy or download it again."),
        (
            "text.mp4",
            (
                "is not a video that FFmpeg can open (Invalid data found when processing input): "
                "check the file, or convert it to mp4."
            ),
        ),
        ("sound.m4a", "has no video stream (it holds audio only): give a file with pictures."),
    ],
)
def test_what_is_not_a_video_is_called_by_its_name(name: str, message: str, tmp_path: Path) -> None:
    path = _broken(name, tmp_path)
    with pytest.raises(UnreadableVideo) as caught:
        open_video(path)
    assert str(caught.value) == f"{path} {message}"


def test_an_unknown_backend_is_a_wrong_request(h264: Path) -> None:
    with pytest.raises(RequestError, match="backend is 'gpu', but can be one of auto, decord, pyav"):
        open_video(h264, backend="gpu")


def test_nothing_is_printed(h264: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_video(damage_packet(h264, 40)) as video:
        video.frames(range(90))
    assert capfd.readouterr() == ("", "")


def test_two_packages_named_decord_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders.metadata, "distribution", lambda name: name)
    decoders.import_decord.cache_clear()
    with pytest.warns(UserWarning, match="both installed .* pip install decord2"):
        decoders.import_decord()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoders.import_decord()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_an_address_is_read_like_a_file_and_nothing_stays_behind(h264: Path, server: str) -> None:
    with open_video(f"{server}/h264.mp4?key=1") as video:
        assert video.path == f"{server}/h264.mp4?key=1"
        assert numbers_in(video.frames([4, 44]).pixels) == [4, 44]
        local = video._local_path
        assert os.path.exists(local)
    assert not os.path.exists(local)


def test_an_address_that_fails_or_is_too_large_says_so(
    h264: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreadableVideo, match=r"/none.mp4 cannot be fetched \(HTTP Error 404: File not found\)"):
        open_video(f"{server}/none.mp4")
    monkeypatch.setattr(reader, "MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(UnreadableVideo, match=r"is larger than .*: download it yourself"):
        open_video(f"{server}/h264.mp4")


def test_importing_the_reader_loads_no_decoder() -> None:
    code = "import sys, hiera_video.data.reader; print([m for m in ('av', 'decord', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
