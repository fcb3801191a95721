"""What a reader of videos promises, on files whose truth is known."""

from __future__ import annotations

import functools
import http.server
import io
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
    FRONT_INDEX,
    H264,
    HEVC,
    LATE_START,
    LONG_MKV,
    OPEN_GOP,
    READABLE,
    ROTATED,
    TEN_BIT,
    TRANSPORT,
    VARIABLE,
    VP9,
    Asset,
    cut_off,
    damage_packet,
    numbers_in,
    picture,
    write_audio,
)
from PIL import Image

from hiera_video.data.reading import decoders
from hiera_video.data.reading import files as sources
from hiera_video.data.reading.reader import Frames, open_video
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


def test_pyav_answers_unless_another_is_asked_for(h264: Path, tmp_path: Path) -> None:
    path = VP9.write(tmp_path)
    for backend, answering in (("auto", "pyav"), ("pyav", "pyav"), ("decord", "decord")):
        with open_video(path, backend=backend) as video:
            assert (video.backend, video.fallback_reason) == (answering, None)


def test_a_backend_that_is_not_installed_says_so(h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'decord'")

    monkeypatch.setattr(decoders, "import_decord", missing)
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
        monkeypatch.setattr(
            video._decoder, "read", lambda wanted, side: asked.extend(wanted.tolist()) or read(wanted, side)
        )
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
    with pytest.raises(RequestError, match="backend is 'gpu', but can be one of auto, cuda, decord, pyav, torchcodec"):
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
        local = video._media.place
        assert os.path.exists(local)
    assert not os.path.exists(local)


def test_an_address_that_fails_or_is_too_large_says_so(
    h264: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreadableVideo, match=r"/none.mp4 cannot be fetched \(HTTP Error 404: File not found\)"):
        open_video(f"{server}/none.mp4")
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(UnreadableVideo, match=r"is larger than .*: download it yourself"):
        open_video(f"{server}/h264.mp4")


def test_importing_the_reader_loads_no_decoder() -> None:
    code = "import sys, hiera_video.data.reading.reader; "
    code += "print([m for m in ('av', 'decord', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def has_torchcodec() -> bool:
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(b"")
    except Exception as error:  # RuntimeError where it finds no FFmpeg: on import, or from 0.17 on with the first video
        return not isinstance(error, ImportError) and "libtorchcodec" not in str(error)
    return True


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("asset", READABLE, ids=lambda asset: asset.name)
def test_another_backend_shows_the_same_frames_or_refuses(asset: Asset, backend: str, tmp_path: Path) -> None:
    if backend == "torchcodec" and not has_torchcodec():
        pytest.skip("torchcodec, or an FFmpeg that it finds, is not here")
    path = asset.write(tmp_path)
    numbers = np.random.default_rng(0).permutation(asset.num_frames)[:10]
    with open_video(path, backend="pyav") as video:
        expected = video.frames(numbers).pixels.astype(int)
    try:
        with open_video(path, backend=backend) as video:
            shown = video.frames(numbers).pixels.astype(int)
    except UnreadableVideo as error:
        assert f"cannot be decoded by {backend}" in str(error)
        assert asset.name in ("open_gop.mp4", "b_frames.avi", "transport.ts", "rotated.mp4", "av1.mkv")
    else:
        assert numbers_in(shown) == numbers.tolist()
        assert np.abs(shown - expected).mean() <= 2


@pytest.mark.parametrize("asset", [H264, HEVC, OPEN_GOP, TEN_BIT, VARIABLE, TRANSPORT], ids=lambda asset: asset.name)
def test_leaving_out_pictures_that_nobody_needs_changes_no_other(asset: Asset, tmp_path: Path) -> None:
    path = asset.write(tmp_path)
    with open_video(path, backend="pyav") as video:
        video._decoder._skips = False
        every = video.frames(range(len(video))).pixels
    for seed in range(4):
        numbers = np.sort(np.random.default_rng(seed).integers(0, asset.num_frames, 6))
        for threads in (1, 3):
            with open_video(path, num_threads=threads) as video:
                np.testing.assert_array_equal(video.frames(numbers).pixels, every[numbers])
                np.testing.assert_array_equal(video.frames(numbers[::-1]).pixels, every[numbers[::-1]])


def test_fewer_pictures_are_decoded_than_lie_before_a_clip(h264: Path) -> None:
    counts = {}
    for skips in (False, True):
        with open_video(h264, num_threads=1) as video:
            decoder = video._decoder
            decoder._skips = skips
            decoder._start(0)
            decoder._expect(np.array([28]))
            counts[skips] = sum(1 for number, _ in decoder._frames if number <= 28)
    assert counts[False] == 29
    assert counts[True] < 20


def test_fast_decoding_shows_neighbours_and_says_how_far_they_are(h264: Path) -> None:
    wanted = np.arange(1, 65, 4)
    with open_video(h264, decode="fast") as video:
        frames = video.frames(wanted)
        shown = np.array(numbers_in(frames.pixels))
        np.testing.assert_allclose(frames.times, H264.times[shown], atol=1e-4)
        assert 1 <= np.abs(shown - wanted).max() <= 2
        assert video.time_error == pytest.approx(np.abs(shown - wanted).max() / 30, abs=1e-4)
        assert len(set(shown)) == len(wanted)


def test_fast_decoding_of_neighbouring_frames_is_exact(h264: Path) -> None:
    with open_video(h264, decode="fast") as video:
        assert numbers_in(video.frames(range(20, 30)).pixels) == list(range(20, 30))
        assert video.time_error == 0


def test_fast_decoding_of_other_codecs_is_exact(tmp_path: Path) -> None:
    with open_video(VP9.write(tmp_path), decode="fast") as video:
        assert numbers_in(video.frames([1, 9, 17]).pixels) == [1, 9, 17]


def test_frames_shrink_while_they_are_decoded_but_never_grow(h264: Path) -> None:
    with open_video(h264) as video:
        assert video.stored_size == (48, 64)
        assert video.frames([3], short_side=24).pixels.shape == (1, 24, 32, 3)
        assert video.frames([3], short_side=480).pixels.shape == (1, 48, 64, 3)
        assert (video.height, video.width) == (48, 64)


def test_a_turned_video_shrinks_to_the_same_short_side(tmp_path: Path) -> None:
    with open_video(ROTATED.write(tmp_path)) as video:
        assert video.frames([3], short_side=32).pixels.shape == (1, 48, 32, 3)


@pytest.mark.parametrize("kind", ["bytes", "BytesIO", "file"])
def test_a_video_in_memory_is_read_like_a_file(kind: str, h264: Path) -> None:
    data = h264.read_bytes()
    with open(h264, "rb") as file:
        source = {"bytes": data, "BytesIO": io.BytesIO(data), "file": file}[kind]
        with open_video(source) as video:
            assert numbers_in(video.frames([80, 4, 44]).pixels) == [80, 4, 44]
            assert numbers_in(video.frames([0]).pixels) == [0]


def test_bytes_that_are_no_video_are_named_by_their_length() -> None:
    with pytest.raises(UnreadableVideo, match=r"^<7 bytes> is not a video that FFmpeg can open"):
        open_video(b"nothing")


def test_a_folder_of_pictures_with_a_rate_is_a_video(tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(picture(number, 48, 64)).save(tmp_path / f"frame_{number}.jpg", quality=95)
    with open_video(tmp_path, fps=12) as video:
        assert (len(video), video.duration, video.fps, video.backend) == (12, 1.0, 12.0, "pictures")
        assert numbers_in(video.frames([11, 2, 10]).pixels) == [11, 2, 10]  # 10 and 11 stand behind 9
        assert video.frames([1], short_side=24).pixels.shape == (1, 24, 32, 3)
        assert video.at(0.5) == 6
    with pytest.raises(RequestError, match=r"^fps is 0, but is a rate above 0\.$"):
        open_video(tmp_path, fps=0)


def test_a_folder_without_pictures_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableVideo, match="is a folder without pictures: give one with its frames as JPEG files"):
        open_video(tmp_path, fps=12)


@pytest.mark.skipif("HIERA_VIDEO_SAMPLES" not in os.environ, reason="real clips: HIERA_VIDEO_SAMPLES=FOLDER")
def test_readers_agree_on_real_files() -> None:
    """Of each readable file, frames at 20 random times: sizes equal, at most 2 grey levels apart on average."""
    backends = ["pyav", "decord", *(["torchcodec"] if has_torchcodec() else [])]
    refused = []
    for path in sorted(Path(os.environ["HIERA_VIDEO_SAMPLES"]).iterdir()):
        shown: dict[str, Frames] = {}
        for backend in backends:
            try:
                with open_video(path, backend=backend) as video:
                    ends = video.times[0], video.times[0] + video.duration
                    times = np.random.default_rng(0).uniform(*ends, 20)
                    shown[backend] = video.frames([video.at(time) for time in times])
                    if path.name == "nasa_13013.mp4":  # it has two streams
                        assert video.stored_size == (270, 480)
            except UnreadableVideo as error:
                assert f"cannot be decoded by {backend}" in str(error)
                refused.append((path.name, backend))
        for backend, frames in shown.items():
            np.testing.assert_array_equal(frames.times, shown["pyav"].times, err_msg=f"{path.name} {backend}")
            assert frames.pixels.shape == shown["pyav"].pixels.shape, (path.name, backend)
            difference = np.abs(frames.pixels.astype(int) - shown["pyav"].pixels).mean()
            # Of ten-bit video PyAV interpolates the coarser colour planes, where the other two repeat their samples.
            limit = 3 if path.name == "h264_10bit.mp4" else 2
            assert difference <= limit, (path.name, backend, difference)
    print("refused:", *refused)
    assert set(refused) <= {
        ("av1.mkv", "torchcodec"),  # it may crash beside PyAV, see TorchcodecDecoder
        ("corrupted.mp4", "decord"),  # it cannot say which frames are missing
        ("corrupted.mp4", "torchcodec"),
        ("rotated_90.mov", "decord"),
        ("h265.mp4", "decord"),  # open groups of pictures
    }
