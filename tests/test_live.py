"""A camera or stream classified while it comes: streams that the tests serve on loopback, in real time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from socket import create_server, socket
from threading import Event, Thread
from typing import Any

import av
import numpy as np
import pytest
import torch
from assets import numbers_in, picture
from test_cli import run

from hiera_video.data.sampling import test_clips as centre_clip
from hiera_video.spec import ClipSpec
from hiera_video.tasks.classify import live
from hiera_video.tasks.classify.job import is_live
from hiera_video.tasks.classify.live import Feed, _Pace

FPS = 30
#: The whole picture of 48 x 64 pixels, so that its number can be read; a window is 16 frames long.
SPEC = ClipSpec(num_frames=4, frame_stride=4, target_fps=FPS, size=(48, 64), resize=48)


class Station:
    """Sends an MPEG-TS of numbered frames to the one client that connects, ``seconds`` long by the clock."""

    def __init__(self, seconds: float, *, http: bool = False, hang: bool = False) -> None:
        self.sent = -1  # the frame that was sent last
        self._seconds, self._http, self._hang = seconds, http, hang
        self._stop, self._server = Event(), create_server(("127.0.0.1", 0))
        self._server.settimeout(60)
        scheme = "http" if http else "tcp"
        self.address = f"{scheme}://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        try:
            client, _ = self._server.accept()
            with client:
                client.settimeout(20)
                if self._http:
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nTransfer-Encoding: chunked\r\n\r\n")
                self._send(client)
                if self._hang:
                    self._stop.wait(30)
        except OSError:  # the client has gone, or never came
            pass

    def _send(self, client: socket) -> None:
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "15"}
        wire = _Chunks(client) if self._http else _Plain(client)
        container = av.open(wire, "w", format="mpegts", options={"flush_packets": "1"})
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        began = time.monotonic()
        for number in range(round(self._seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(picture(number % 256, 48, 64), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            if self._stop.wait(max(0.0, began + number / FPS - time.monotonic())):
                return
            container.mux(stream.encode(frame))
            self.sent = number
        if not self._hang:
            container.mux(stream.encode(None))
            container.close()
            wire.end()


class _Plain:
    def __init__(self, client: socket) -> None:
        self.client = client

    def write(self, data: bytes) -> int:
        self.client.sendall(data)
        return len(data)

    def end(self) -> None:
        pass


class _Chunks(_Plain):
    def write(self, data: bytes) -> int:
        self.client.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        return len(data)

    def end(self) -> None:
        self.client.sendall(b"0\r\n\r\n")


@pytest.fixture
def station() -> Iterator[Callable[..., Station]]:
    there: list[Station] = []

    def start(seconds: float, **options: Any) -> Station:
        there.append(Station(seconds, **options))
        return there[-1]

    yield start
    for one in there:
        one.close()


@contextmanager
def feed(address: str) -> Iterator[Feed]:
    one = Feed(address, SPEC)
    try:
        yield one
    finally:
        one.close()


def numbers(clip: torch.Tensor) -> list[int]:
    return numbers_in(clip.permute(1, 2, 3, 0).numpy())


@pytest.mark.parametrize("http", [False, True])
def test_a_stream_is_answered_while_it_comes_and_its_end_is_exit_0(
    http: bool, capsys: pytest.CaptureFixture[str], tiny_model: Path, station: Callable[..., Station]
) -> None:
    address = station(2, http=http).address
    words = ["--live"] if http else []
    argv = ("classify", address, *words, "--model", tiny_model, "--hop", 0.2, "--top-k", 2, "--format", "jsonl")
    code, out, err = run(capsys, *argv)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and "Traceback" not in err
    assert list(answers[0]) == ["input", "start", "end", "latency", "predictions", "error"]
    assert 3 <= len(answers) <= 9 and all(len(one["predictions"]) == 2 for one in answers)
    ends = np.array([one["end"] for one in answers])
    assert (np.diff(ends[:-1]) >= 0.2 - 1e-6).all() and ends[-1] >= ends[-2]
    assert ends[-1] == pytest.approx(2 - 1 / FPS, abs=0.1) and all(0 < one["latency"] < 1 for one in answers)


def test_every_format_has_a_line_an_answer(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, station: Callable[..., Station]
) -> None:
    code, out, _ = run(capsys, "classify", station(0.8).address, "--model", tiny_model, "--top-k", 2)
    last = out.splitlines()[-1].split()
    assert code == 0 and last[1::2][:2] == ["s", "ms"] and last[4] == "late" and last[5].endswith("%")
    code, out, _ = run(capsys, "classify", station(0.8).address, "--model", tiny_model, "--format", "csv")
    assert code == 0 and out.splitlines()[0] == "input,start,end,latency,rank,label,index,score,error"


def test_a_window_has_the_frames_that_a_file_would_show(station: Callable[..., Station]) -> None:
    with feed(station(1).address) as one:
        last = None
        while (window := one.window(0.0 if last is None else last.end + 0.01)) is not None:
            shown = numbers(window.clip)
            newest = round(window.end * FPS)
            if newest >= 15:
                first = newest - 15
                row = centre_clip(np.arange(16) / FPS, SPEC, 1)[0]
                assert shown == [first + number for number in row] and shown[-1] == newest
            last = window
        assert last is not None and numbers(last.clip)[-1] == 29


def test_a_slow_model_gets_the_newest_window_and_none_waits(station: Callable[..., Station]) -> None:
    there = station(2)
    late, windows = [], 0
    with feed(there.address) as one:
        after = 0.0
        while (window := one.window(after)) is not None:
            late.append(there.sent - numbers(window.clip)[-1])
            windows += 1
            assert len(one._frames) <= 17
            after = window.end + 0.01
            time.sleep(0.5)
    assert 2 <= windows <= 5 and max(late) <= FPS  # frames: one second, on a busy machine


def test_a_reader_that_is_too_slow_drops_frames(
    station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture takes as long as three frames: without dropping, the last would be 6 s late."""
    quick = live.rgb

    def slow(*args: Any) -> Any:
        time.sleep(3 / FPS)
        return quick(*args)

    monkeypatch.setattr(live, "rgb", slow)
    monkeypatch.setattr(live, "PERIOD_S", 0.3)
    there = station(3)
    late = []
    with feed(there.address) as one:
        after = 0.0
        while (window := one.window(after)) is not None:
            late.append(there.sent - numbers(window.clip)[-1])
            after = window.end + 0.01
    assert len(late) > 3 and max(late[2:]) <= 1.5 * FPS


def test_after_dropped_packets_pictures_are_whole(
    station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(pace: _Pace, waited: float, now: float) -> None:
        pace.packets = getattr(pace, "packets", 0) + 1  # type: ignore[attr-defined]
        pace.behind = 2 if 10 < pace.packets < 20 else 0  # type: ignore[attr-defined]

    monkeypatch.setattr(_Pace, "count", count)
    with feed(station(1.2).address) as one:
        time.sleep(2)
        assert not {*range(10, 30)} & {*numbers_in(np.stack([f.picture.permute(1, 2, 0) for f in one._frames]))}
        window = one.window(0.0)
        assert window is not None and numbers(window.clip)[-1] == 35


def test_a_short_stream_is_answered_once(station: Callable[..., Station]) -> None:
    with feed(station(0.2).address) as one:
        window = one.window(0.0)
        assert window is not None and window.clip.shape == (3, 4, 48, 64) and numbers(window.clip)[-1] == 5
        assert one.window(0.0) is None


def test_a_stream_that_falls_silent_is_one_sentence_and_exit_1(
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    station: Callable[..., Station],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "TIMEOUT_S", 1.5)
    code, out, _ = run(capsys, "classify", station(1.5, hang=True).address, "--model", tiny_model, "--format", "jsonl")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and answers[0]["predictions"] and not answers[-1]["predictions"]
    assert answers[-1]["error"].endswith("broke off (no data for 1.5 s): check the camera or the network.")


def test_an_interrupt_is_the_usual_end(tiny_model: Path, station: Callable[..., Station]) -> None:
    words = ["classify", station(60).address, "--model", str(tiny_model), "--format", "jsonl", "--hop", "0.1"]
    command = [sys.executable, "-m", "hiera_video.cli", *words]
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}  # it once died of a signal: then stderr tells where
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["predictions"]
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    assert child.returncode == 0 and "Traceback" not in err, err
    assert all(json.loads(line) for line in out.splitlines())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("97", "camera 97 cannot be opened (No such file or directory): check that it is connected and free."),
        ("tcp://127.0.0.1:9", "tcp://127.0.0.1:9 cannot be opened (Connection refused): check the address and the net"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence_and_exit_1(
    name: str, sentence: str, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    if sys.platform != "linux" and name == "97":
        pytest.skip("other systems say it in other words")
    code, out, err = run(capsys, "classify", name, "--model", tiny_model, "--format", "json")
    (answer,) = json.loads(out)
    assert code == 1 and answer["error"].startswith(sentence) and answer["end"] is None and "Traceback" not in err
    code, out, _ = run(capsys, "classify", name, "--model", tiny_model)
    assert code == 1 and out.splitlines()[1].startswith(f"  error: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("0", "1"), "one camera or stream at a time can be classified: name it alone"),
        (("clip.mp4", "--live"), "clip.mp4 is no camera's number and no stream's address: leave out live"),
        (
            ("0", "--views", "1x1"),
            "a live stream has neither views nor a picture, explanation or timeline: leave them out",
        ),
        (("0", "--hop", "0"), "hop is 0, but is a number of seconds above 0"),
        (("0", "--top-k", "0"), "top_k is 0, but is at least 1"),
    ],
)
def test_a_wrong_request_is_exit_2(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    code, out, err = run(capsys, "classify", *words, "--model", tiny_model)
    assert (code, out, err.splitlines()[-1]) == (2, "", f"hiera-video: {sentence}")


def test_a_number_is_a_camera_unless_a_file_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["0", "rtsp://host/one", "udp://@:1234", "http://host/clip.mp4", "clip.mp4", "C:/clip.mp4"]
    assert [is_live(name) for name in names] == [True, True, True, False, False, False]
    Path("0").mkdir()
    assert not is_live("0")


def test_times_ascend_where_the_streams_clock_jumps_or_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Feed, "_run", lambda self: None)
    one = Feed("stream", SPEC)
    stamps = [100.0, 100.5, 3.0, 3.5, 9000.0, None, 9.0, 9.25]
    found = [one._clock(stamp, arrival=50 + number) for number, stamp in enumerate(stamps)]
    assert found == [0.0, 0.5, 1.5, 2.0, 3.0, 4.0, 5.0, 5.25]


def test_a_reader_keeps_up_if_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    pace = _Pace()
    found = []
    for second, waited in enumerate([0.0, 0.0, 0.0, 0.5, 0.05, 0.9], start=1):
        pace.count(waited, float(second))
        found.append(pace.behind)
    assert found == [1, 2, 2, 0, 1, 0]
