"""A camera or a stream, classified while it comes: always the newest window; what is late is dropped, not queued.

A thread reads and decodes, and keeps the frames of the newest window alone, at the size that the model takes. Whenever
the model is free it takes that window, so an answer is never older than one run of the model.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from hiera_video.data.reading.damage import reason
from hiera_video.data.reading.decoders import converter, rgb, upright_size
from hiera_video.data.reading.orientation import Matrix, Orientation, is_quarter
from hiera_video.data.sampling import test_clips
from hiera_video.data.transforms import plan_crops
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec
from hiera_video.tasks.classify.classifier import Prediction, VideoClassifier, best_classes, score_clips
from hiera_video.tasks.records import Results

#: Seconds from one answer to the next at least.
HOP_S = 0.5
#: Seconds without data after which a stream counts as gone.
TIMEOUT_S = 10.0
#: Seconds that a closed stream's next packet is waited for.
LAST_PACKET_S = 2.0
#: Between two frames more seconds than this, or fewer than none, are a clock that was set: arrivals count then.
CLOCK_JUMP_S = 10.0
#: How often the reader asks itself whether it keeps up, in seconds; it does if it waits this share of the time.
PERIOD_S, LEAST_WAIT = 1.0, 0.1
#: Of frames nearer to each other than this share of the step between a clip's frames, one is enough.
LEAST_STEP = 0.2


@dataclass(frozen=True)
class LiveAnswer(Prediction):
    """The answer for one window; ``start``, ``end`` and ``latency`` stand where a file's ``duration`` does.

    Its frames are shown from ``start`` to ``end``, in seconds after the stream's first frame. ``latency``: seconds from
    the arrival of the window's last frame to the answer.
    """

    start: float | None = None
    end: float | None = None
    latency: float | None = None

    def text(self) -> str:
        """One line: the end of the window, how late the answer is, and the classes; or the error."""
        if not self.predictions or self.latency is None:
            return super().text()
        return f"{self.end:8.2f} s  {1000 * self.latency:5.0f} ms late" + "".join(self._scored())

    def _when(self) -> dict[str, float | None]:
        return {"start": self.start, "end": self.end, "latency": self.latency}


def live_answers(
    classifier: VideoClassifier, name: str, *, hop: float | None = None, top_k: int = 5
) -> Results[Prediction]:
    """Classify a camera or a stream until it ends.

    Args:
        classifier: The model.
        name: A camera's number, or a stream's address.
        hop: Seconds from one answer to the next at least; default: half a second.
        top_k: How many classes to name.

    Returns:
        The answers; a stream that cannot be opened, or breaks off, gives one with an ``error``.

    Raises:
        RequestError: For options that mean nothing.
    """
    hop = HOP_S if hop is None else hop
    if not 0 < hop < float("inf"):
        raise RequestError(f"hop is {hop:g}, but is a number of seconds above 0")
    if top_k < 1:
        raise RequestError(f"top_k is {top_k}, but is at least 1")
    return Results(None, _answers(classifier, name, hop, top_k))


def _answers(classifier: VideoClassifier, name: str, hop: float, top_k: int) -> Iterator[Prediction]:
    feed = Feed(name, classifier.model.spec)
    try:
        after = 0.0
        while (window := feed.window(after)) is not None:
            (scores,) = score_clips(classifier.scorer, window.clip.unsqueeze(0))
            best = best_classes(scores, classifier.labels, top_k)
            start, end = round(window.start, 6), round(window.end, 6)
            latency = round(time.monotonic() - window.arrival, 6)
            yield LiveAnswer(name, None, best, start=start, end=end, latency=latency)
            after = window.end + hop
    except UnreadableVideo as error:
        yield LiveAnswer(name, None, [], str(error))
    finally:
        feed.close()


class Window(NamedTuple):
    """``clip`` uint8 [C, T, H, W] of the frames from ``start`` to ``end``, in seconds after the first frame;
    ``arrival`` of its last frame by ``time.monotonic``.
    """

    clip: Tensor
    start: float
    end: float
    arrival: float


class _Frame(NamedTuple):
    seconds: float  # after the first frame
    arrival: float
    picture: Tensor  # uint8 [C, H, W]


class Feed:
    """The newest window of a camera or stream, read by a thread of its own."""

    def __init__(self, name: str, spec: ClipSpec) -> None:
        self._name, self._spec = name, spec
        self._changed = threading.Condition()  # guards what both threads see
        self._frames: deque[_Frame] = deque()
        self._full = self._ended = self._closed = False
        self._failure: Exception | None = None
        self._seconds, self._last_arrival = 0.0, -1.0
        self._last_time: float | None = None
        self._reader = threading.Thread(target=self._run, name="hiera_video live", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Have the reader stop at its next packet, and wait for that, though not long: there may be none for long.

        A thread that still decodes while the interpreter ends crashes the process.
        """
        self._closed = True
        self._reader.join(LAST_PACKET_S)

    def window(self, after: float) -> Window | None:
        """The newest window, as soon as it is whole and ends ``after`` seconds or later; None when the stream is over.

        At the end of the stream one more, which may end earlier; of a stream shorter than a clip that is the only one.
        Raises :class:`UnreadableVideo` where the stream cannot be opened or breaks off.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or (self._full and self._frames[-1].seconds >= after))
            if self._failure is not None:
                raise self._failure
            frames = list(self._frames)
            if self._ended:
                self._frames.clear()
        if not frames:
            return None
        (row,) = test_clips([one.seconds for one in frames], self._spec, 1)
        clip = torch.stack([frames[number].picture for number in row], dim=1)
        return Window(clip, max(0.0, frames[-1].seconds - self._spec.span), frames[-1].seconds, frames[-1].arrival)

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            self._read()
        except av.FFmpegError as error:
            why = f"no data for {TIMEOUT_S:g} s" if isinstance(error, av.error.ExitError) else reason(error)
            failure = UnreadableVideo(f"{self._name} broke off ({why}): check the camera or the network.")
        except Exception as error:  # the other thread must hear of it
            failure = error
        with self._changed:
            self._ended, self._failure = True, failure
            self._changed.notify()

    def _read(self) -> None:
        with _open(self._name) as container:
            convert, orientation, pace, lost = converter(), Orientation(), _Pace(), False
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableVideo(f"{self._name} has no video: check the address.")
            stream.thread_type = "SLICE"  # threads for whole frames would each hold one back
            stored = Fraction(stream.sample_aspect_ratio or 1)
            packets = container.demux(stream)
            while not self._closed:
                before = time.monotonic()
                packet = next(packets, None)
                arrival = time.monotonic()
                if packet is None:
                    return
                pace.count(arrival - before, arrival)
                lost = (lost or pace.behind > 1) and not packet.is_keyframe
                if lost and packet.size:
                    continue
                try:
                    frames = packet.decode()
                except av.InvalidDataError:  # a packet was lost on the way
                    continue
                for frame in frames:
                    matrix, wanted = orientation.of(frame), pace.behind == 0 and not frame.is_corrupt
                    aspect = 1 / stored if is_quarter(matrix) else stored
                    self._add(frame, matrix, aspect, arrival, convert, wanted=wanted)

    def _add(
        self, frame: Any, matrix: Matrix | None, aspect: Fraction, arrival: float, convert: Any, *, wanted: bool
    ) -> None:
        seconds = self._clock(frame.time, arrival)
        spec = self._spec
        least = LEAST_STEP * spec.span / spec.num_frames
        if not wanted or (self._frames and seconds - self._frames[-1].seconds < least):
            return
        image = np.ascontiguousarray(rgb(frame, matrix, upright_size(frame, matrix), convert))
        plan = plan_crops(image.shape[:2], spec, 1, aspect)
        picture = plan.apply(image[np.newaxis], spec)[0].clone()  # a view would keep the whole frame in memory
        with self._changed:
            self._frames.append(_Frame(seconds, arrival, picture))
            while self._frames[0].seconds <= seconds - spec.span + 1e-3:
                self._frames.popleft()
                self._full = True
            self._changed.notify()

    def _clock(self, stamp: float | None, arrival: float) -> float:
        """Seconds after the first frame, ascending: by the stream's clock, or by ours where that jumps or is none."""
        if self._last_arrival >= 0:
            moved = -1.0 if stamp is None or self._last_time is None else stamp - self._last_time
            self._seconds += moved if 0 < moved < CLOCK_JUMP_S else max(arrival - self._last_arrival, 1e-3)
        self._last_time, self._last_arrival = stamp, arrival
        return self._seconds


class _Pace:
    """Whether a reader keeps up: it does if it has to wait for data.

    ``behind`` is 0 if so, else 1 (frames need not be shown), or 2 if that is not enough (only keyframes are decoded).
    Independent of the stream's clock, which may run slower or faster than ours.
    """

    def __init__(self) -> None:
        self.behind = 0
        self._since, self._waited = time.monotonic(), 0.0

    def count(self, waited: float, now: float) -> None:
        self._waited += waited
        if now - self._since >= PERIOD_S:
            keeps_up = self._waited >= LEAST_WAIT * (now - self._since)
            self.behind = 0 if keeps_up else min(self.behind + 1, 2)
            self._since, self._waited = now, 0.0


def _open(name: str) -> Any:
    """An ``av`` container; raises :class:`UnreadableVideo`, one sentence."""
    place, form, options = name, None, {"analyzeduration": "1000000", "rtsp_flags": "prefer_tcp"}
    if name.isdecimal():
        mac = sys.platform == "darwin"
        place, form = (name, "avfoundation") if mac else (f"/dev/video{name}", "v4l2")
        options = {"framerate": "30"} if mac else {}
    elif name.startswith("/dev/video"):
        form, options = "v4l2", {}
    try:
        return av.open(place, format=form, options=options, timeout=TIMEOUT_S)
    except (av.FFmpegError, ValueError) as error:
        if form is not None:
            raise UnreadableVideo(
                f"camera {name} cannot be opened ({reason(error)}): check that it is connected and free."
            ) from error
        why = f"no answer within {TIMEOUT_S:g} s" if isinstance(error, av.error.ExitError) else reason(error)
        raise UnreadableVideo(f"{name} cannot be opened ({why}): check the address and the network.") from error
