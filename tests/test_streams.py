"""Streams with oddities show what FFmpeg shows, when it shows it; what is damaged is said and replaced."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from assets import numbers_in
from streams import Stream, check, sequential, streams

from hiera_video import open_video
from hiera_video.data.reading import damage, timeline
from hiera_video.data.reading.files import is_image
from hiera_video.errors import UnreadableVideo

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize("stream", streams(), ids=lambda stream: stream.name)
def test_a_stream_shows_what_ffmpeg_shows(stream: Stream, tmp_path: Path) -> None:
    assert check(stream, stream.write(tmp_path)).wrong is None


def block_numbers(pixels: np.ndarray) -> list[int]:
    """The numbers in 12 vertical blocks, bright is 1, the lowest bit left."""
    width = pixels.shape[2]
    columns = [(2 * bit + 1) * width // 24 for bit in range(12)]
    bits = pixels[:, pixels.shape[1] // 2, columns].mean(axis=-1) > 127
    return [int(number) for number in bits @ (1 << np.arange(12))]


@pytest.mark.parametrize("name", ["field_in_a_packet.ts", "two_fields_in_a_packet.ts", "fields_copied.mp4"])
def test_two_fields_are_one_picture(name: str) -> None:
    with open_video(CASES / name) as video:
        assert (len(video), video.duration, video.fps) == (20, pytest.approx(0.8), pytest.approx(25))
        times = [video.times[0] + seconds for seconds in (0.61, 0.21, 0.41)]
        shown = block_numbers(video.frames([video.at(time) for time in times]).pixels)
        assert shown == [15, 5, 10]
        assert block_numbers(video.frames(range(20)).pixels) == list(range(20))
        assert video.error is None


def test_one_stamp_that_comes_twice_costs_only_itself() -> None:
    expected = [0, 33, 66, 100, None, 2000, 2033, 2066, 5000, 5033, 5066, 5100]
    with open_video(CASES / "one_stamp_twice.mkv") as video:
        stamps = np.round(video.times * 1000).astype(int).tolist()
        assert [a for a, b in zip(stamps, expected, strict=True) if b is not None] == [
            b for b in expected if b is not None
        ]
        assert 100 < stamps[4] < 2000
        assert video.duration == pytest.approx(5.14)
        assert video.at(3.0) == 7
        assert np.abs(video.frames(range(12)).pixels.mean((1, 2, 3)) - np.arange(12) * 20).max() < 3
    with open_video(CASES / "slow_one_stamp_twice.mkv") as video:
        np.testing.assert_allclose(video.times, np.arange(120) / 10, atol=1e-3)


def test_an_edit_list_is_no_damage() -> None:
    with open_video(CASES / "trimmed_by_edit_list.mp4") as video:
        assert (len(video), video.duration, video.error) == (50, pytest.approx(2.0), None)


def test_joined_recordings_go_on() -> None:
    with open_video(CASES / "clock_goes_back.ts") as video:
        assert (len(video), video.duration, video.fps) == (240, pytest.approx(8, abs=0.01), pytest.approx(30, abs=0.1))
        np.testing.assert_allclose(np.diff(video.times), 1 / 30, atol=1e-3)
        assert video.error is None
    with open_video(CASES / "clocks_overlap.ts") as video:
        greens = video.frames(range(60)).pixels[..., 1].mean((1, 2))
        assert np.abs(greens - [*range(40, 70), *range(180, 210)]).max() < 3
        assert video.error is None


def test_a_lost_packet_is_said_and_nothing_smeared_is_shown() -> None:
    with open_video(CASES / "lost_packet_clean.ts") as video:
        clean = video.frames(range(75)).pixels.astype(int)
        assert video.error is None
    with open_video(CASES / "lost_packet.ts") as video:
        frames = video.frames(range(75))
        assert video.error is not None and "frames between 2.60 s and 4.40 s cannot be decoded" in video.error
    shown = np.searchsorted(video.times, frames.times)
    assert np.abs(frames.pixels - clean[shown]).max() <= 3
    assert shown[:30].tolist() == list(range(30))


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.iterdir() if not is_image(path)))
@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_another_backend_shows_the_cases_alike_or_refuses(name: str, backend: str) -> None:
    with open_video(CASES / name) as video:
        expected = video.frames(range(len(video)))
    try:
        with open_video(CASES / name, backend=backend) as video:
            frames = video.frames(range(len(video)))
    except UnreadableVideo as error:
        assert f"cannot be decoded by {backend}" in str(error)
    else:
        assert np.abs(frames.pixels.astype(int) - expected.pixels).mean() < 2
        np.testing.assert_array_equal(frames.times, expected.times)


@pytest.mark.parametrize(
    ("stamps", "mended"),
    [
        ([0, 10, 20, 30], [0, 10, 20, 30]),
        ([0, 10, None, 30], [0, 10, 20, 30]),
        ([0, 10, 10, 30], [0, 10, 20, 30]),
        ([0, 20, 20, 30], [0, 10, 20, 30]),
        ([0, 10, 90, 30, 40], [0, 10, 20, 30, 40]),
        ([0, 10, 5, 30, 40], [0, 10, 20, 30, 40]),
        ([None, 10, 20], [0, 10, 20]),
        ([0, 10, None, None], [0, 10, 20, 30]),
        ([0, 10, 500, None, 510], [0, 10, 500, 505, 510]),
    ],
)
def test_a_stamp_is_mended_from_its_neighbours(stamps: list[int | None], mended: list[int]) -> None:
    assert timeline.mend(stamps, 10) == mended


@pytest.mark.parametrize(
    ("dts", "joined", "begins"),
    [
        ([0, 10, 20, 1000], [0, 10, 20, 1000], [0]),
        ([5000, 5010, 5020, 0, 10, 20], [5000, 5010, 5020, 5030, 5040, 5050], [0, 3]),
        ([0, 10, 20, 90_000, 90_010, 90_020], [0, 10, 20, 30, 40, 50], [0, 3]),
        ([500, 510, 0, 530, 540], [500, 510, None, 530, 540], [0]),
        ([0, 10, 20, 800, 40, 50], [0, 10, 20, None, 40, 50], [0]),
    ],
)
def test_a_clock_that_restarts_goes_on_and_one_stamp_is_no_clock(
    dts: list[int], joined: list[int | None], begins: list[int]
) -> None:
    assert timeline.join_clocks(dts, dts, 10, 1000, leaps=True) == (joined, joined, begins)


def test_lost_seconds_are_named_stretch_by_stretch() -> None:
    times = np.arange(100) / 10
    assert damage.name_seconds({3, 4, 9}, times, 10.0) == "between 0.30 s and 0.50 s and between 0.90 s and 1.00 s"
    many = damage.name_seconds(set(range(0, 100, 5)), times, 10.0)
    assert many.endswith("in places between 3.50 s and 9.60 s")


def test_a_raw_stream_is_healthy_and_its_times_are_said_to_be_counted(tmp_path: Path) -> None:
    stream = next(stream for stream in streams() if stream.suffix == "h264")
    with open_video(stream.write(tmp_path)) as video:
        assert video.error is None
        assert video.warning == (
            "the file has no times: they are counted from its average rate, 25.000 frames a second."
        )


def test_messages_of_ffmpeg_are_counted_and_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoiled = [stream for stream in streams() if stream.oddity == "spoiled"]
    for path in [stream.write(tmp_path) for stream in spoiled[:3]]:
        for backend in ("auto", "decord", "torchcodec"):
            try:
                with open_video(path, backend=backend) as video:
                    numbers_in(video.frames(range(len(video))).pixels)
            except UnreadableVideo as error:
                assert "cannot be decoded by" in str(error)
    assert capfd.readouterr() == ("", "")
    assert av.logging.get_level() is not None


def test_a_transport_packet_lost_anywhere_in_a_keyframe_is_said_and_nothing_smeared_is_shown(
    tmp_path: Path,
) -> None:
    path = Stream("plain", "libx265", "ts", {"crf": "1"}, ticks=range(30)).write(tmp_path)
    whole = np.stack(sequential(path)[1])
    data = path.read_bytes()
    starts = [at for at in range(0, len(data), 188) if data[at + 1] & 31 == 1 and data[at + 2] == 0]
    begins = [i for i, at in enumerate(starts) if data[at + 1] & 0x40]
    with av.open(str(path)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe][:2]
    for key in keys:
        inside = starts[begins[key] + 1 : begins[key + 1] - 1]
        assert len(inside) >= 2
        for at in inside[:: max(1, len(inside) // 2)]:
            with open_video(data[:at] + data[at + 188 :]) as video:
                pixels, error = video.frames(range(len(video))).pixels, video.error
            assert error is not None, (key, at)
            nearest = [np.abs(whole.astype(int) - shown).mean((1, 2, 3)).min() for shown in pixels]
            assert max(nearest) < 3, (key, at)


def test_a_colour_matrix_that_swscale_refuses_is_read_as_none(tmp_path: Path) -> None:
    stream = Stream("colour matrix", "libx264", "mp4", {"x264-params": "colormatrix=YCgCo"}, ticks=range(8))
    with open_video(stream.write(tmp_path)) as video:
        assert numbers_in(video.frames(range(8)).pixels) == list(range(8))


def test_frames_have_the_size_of_the_first_from_wherever_reading_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream("plain", "libx264", "ts", ticks=range(20))
    first = stream.write(tmp_path).read_bytes()
    monkeypatch.setattr("streams.WIDTH", 128)
    monkeypatch.setattr("streams.HEIGHT", 96)
    joined = first + stream.write(tmp_path).read_bytes()
    with open_video(joined) as video:
        assert [video.frames([i]).pixels.shape[1:3] for i in (30, 3, 31)] == [(48, 64)] * 3
        assert (len(video), video.width, video.error) == (40, 64, None)
