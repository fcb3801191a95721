"""What reads a video file's bytes: its index of frames, and the two decoders behind :mod:`hiera_video.data.reader`.

The index comes from the packets alone (nothing is decoded), so both decoders count frames by the same times. A decoder
has ``read(wanted)``: ascending distinct frame numbers -> one image each, and ``error``: what it could not decode.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import UnreadableVideo

Image = NDArray[np.uint8]

#: Containers in which decord returns the frame that was asked for. In AVI and MPEG program streams with B-frames, and
#: in transport streams, decord 0.6 and decord2 3.4 return other frames without an error.
DECORD_CONTAINERS = ("mov", "matroska")


@dataclass(frozen=True)
class FrameIndex:
    """Every frame of one video stream in display order, as the packets tell it.

    ``name`` is what messages call the file. ``pts`` is int64 [N], ascending, in units of ``time_base`` seconds;
    ``keys`` are the frame numbers at which decoding can start; ``end`` is where the last frame ends, in seconds;
    ``stream`` is the stream's number in the file, ``container`` FFmpeg's name of the format. ``in_order``: the
    container has no presentation times that could be trusted (AVI, raw streams), so frames are counted as they
    leave the decoder.
    """

    name: str
    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    time_base: Fraction
    end: float
    stream: int
    container: str
    in_order: bool
    error: str | None

    @property
    def times(self) -> NDArray[np.float64]:
        """Float64 [N], seconds at which each frame begins to be shown."""
        return self.pts * self.time_base.numerator / self.time_base.denominator


def read_index(path: str, name: str) -> FrameIndex:
    """The index of the stream that FFmpeg calls best. Raises :class:`UnreadableVideo`, with ``name``, without one."""
    import av

    try:
        container = av.open(path, metadata_errors="ignore")  # titles may be in any encoding
    except (av.FFmpegError, OSError) as error:
        raise UnreadableVideo(
            f"{name} is not a video that FFmpeg can open ({reason(error)}): check the file, or convert it to mp4."
        ) from error
    with container:
        stream = container.streams.best("video")
        # The cover picture of a music file is a video stream to FFmpeg, but not to anybody else.
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            found = ", ".join(sorted({one.type for one in container.streams})) or "nothing"
            raise UnreadableVideo(f"{name} has no video stream (it holds {found} only): give a file with pictures.")
        return _index_packets(name, container, stream)


def _index_packets(name: str, container: Any, stream: Any) -> FrameIndex:
    import av

    packets: list[tuple[int | None, int | None, int, bool]] = []  # pts, dts, duration, keyframe
    end_of_all, unusable, error = 0.0, 0, None
    try:
        for packet in container.demux():
            if not packet.size:
                continue
            if packet.dts is not None:
                end_of_all = max(end_of_all, float((packet.dts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            # An edit list may hide frames; a file that is cut off ends in half a packet.
            if packet.is_discard or packet.is_corrupt:
                unusable += packet.is_discard
                continue
            packets.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
    except av.FFmpegError as failure:
        error = f"the file cannot be read to its end ({reason(failure)})."
    if not packets:
        raise UnreadableVideo(f"{name} holds no complete frame of its video: copy or download it again.")

    rate = stream.average_rate or stream.guessed_rate or Fraction(30)
    time_base = stream.time_base
    pts = [packet[0] for packet in packets]
    in_order = container.format.name == "avi" or None in pts or len(set(pts)) < len(pts)
    if in_order:
        pts = [packet[1] for packet in packets]
    if None in pts or len(set(pts)) < len(pts):  # a raw stream: there is no time but the rate
        pts = [round(number / (rate * time_base)) for number in range(len(packets))]
    order = np.argsort(np.array(pts, dtype=np.int64), kind="stable")
    ascending = np.array(pts, dtype=np.int64)[order]
    keys = np.flatnonzero([packets[number][3] for number in order])
    last = packets[order[-1]][2] or (ascending[-1] - ascending[-2] if len(packets) > 1 else 1 / (rate * time_base))
    end = float((int(ascending[-1]) + Fraction(last)) * time_base)
    if error is None:
        error = _cut_off(container, stream, len(packets) + unusable, end, end_of_all)
    return FrameIndex(name, ascending, keys, time_base, end, stream.index, container.format.name, in_order, error)


def _cut_off(container: Any, stream: Any, num_packets: int, end: float, end_of_all: float) -> str | None:
    """One sentence when the header promises more than the file holds: a broken download or copy."""
    if stream.frames > num_packets:
        return f"the file is cut off after {end:.1f} s: {num_packets} of {stream.frames} frames are there."
    if container.format.name.startswith("matroska") and container.duration:
        promised = container.duration / 1e6 + max(0, container.start_time or 0) / 1e6
        # Rounded headers and the last packet's unknown length differ by some frames; half a second is not that.
        if end_of_all < promised - max(0.5, 0.02 * promised):
            return f"the file is cut off after {end:.1f} s of {promised:.1f} s."
    return None


def reason(error: BaseException) -> str:
    """The part of a decoder's message that a person can use: no stack, no source lines, no numbers of errors."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", lines[0] if lines else type(error).__name__)
    return re.sub(r"^\[Errno -?\d+\] |: '.*'(; last error log: .*)?$", "", text).strip()


class PyAVDecoder:
    """Decodes forwards from where it stands; it seeks to go back, or when a keyframe lies between."""

    backend = "pyav"

    def __init__(self, path: str, index: FrameIndex) -> None:
        self.error: str | None = None
        self._path, self._index = path, index
        self._numbers = {int(pts): number for number, pts in enumerate(index.pts)}
        self._container: Any = None
        self._frames: Iterator[tuple[int, Any]]  # (frame number, av.VideoFrame) from where decoding stands
        self._shown: tuple[int, Any] | None = None
        self._ahead: tuple[int, Any] | None = None
        self._started_at = 0
        self._size: tuple[int, int] | None = None
        self._reason = "no frame comes out of the decoder"
        self._start(0)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def read(self, wanted: NDArray[np.int64]) -> list[Image]:
        """One upright image for each of ``wanted`` (ascending), from one pass.

        In place of a frame that cannot be decoded stands the nearest earlier one that can, or the first later one.
        """
        images: list[Image] = []
        for number in wanted.tolist():
            self._seek(number)
            self._advance(number)
            if self._shown is None and self._started_at > 0:
                # The keyframe is broken, or the seek went past it: an earlier frame exists only from the beginning.
                self._start(0)
                self._advance(number)
            shown = self._shown or self._ahead
            if shown is None:
                raise UnreadableVideo(
                    f"no frame of {self._index.name} can be decoded ({self._reason}): convert it to mp4."
                )
            if shown[0] != number:
                self._note_gap()
            images.append(self._image(shown[1]))
        return images

    def _seek(self, number: int) -> None:
        """Jump to the last keyframe before ``number`` if it is nearer than where decoding stands."""
        position = max(self._shown[0] if self._shown else -1, self._ahead[0] if self._ahead else -1)
        behind = self._shown is not None and number < self._shown[0]
        keys = self._index.keys
        key = 0 if self._index.in_order else int(keys[keys <= number].max(initial=0))
        if behind or key > position + 1:
            self._start(key)

    def _advance(self, number: int) -> None:
        """Make ``_shown`` the last decodable frame up to ``number``; ``_ahead`` is one that was decoded too early."""
        while self._shown is None or self._shown[0] < number:
            following = self._ahead or next(self._frames, None)
            self._ahead = None
            if following is None:
                return
            if following[0] > number:
                self._ahead = following
                return
            self._shown = following

    def _start(self, key: int) -> None:
        import av

        self._shown = self._ahead = None
        self._started_at = key
        if key > 0:
            try:
                self._container.seek(int(self._index.pts[key]), stream=self._container.streams[self._index.stream])
            except av.FFmpegError:
                self._started_at = key = 0
        if key == 0:
            # Opening again is the one way back to the beginning that every format knows.
            self.close()
            self._container = av.open(self._path, metadata_errors="ignore")
        self._frames = self._decode(waiting=key > 0)

    def _decode(self, waiting: bool) -> Iterator[tuple[int, Any]]:
        """(frame number, frame) in display order; after a packet that does not decode, on from the next keyframe.

        What decoders return between the two is patched together from pictures that are not there.
        """
        import av

        count = 0
        try:
            for packet in self._container.demux(self._container.streams[self._index.stream]):
                if packet.size and (packet.is_corrupt or (waiting and not packet.is_keyframe)):
                    continue
                try:
                    frames = packet.decode()
                    waiting = waiting and not packet.is_keyframe
                except av.FFmpegError as error:
                    self._reason, waiting = reason(error), True
                    continue
                for frame in frames:
                    number = count if self._index.in_order else self._numbers.get(frame.pts)
                    count += 1
                    if number is not None and number < len(self._index.pts):
                        yield number, frame
        except av.FFmpegError as error:  # the file, not a packet: a disk or a network that failed
            self._reason = reason(error)

    def _note_gap(self) -> None:
        """Say in ``error`` which frames are missing: those between the last that came and the next."""
        begin = f"{self._index.times[self._shown[0]]:.2f} s" if self._shown else ""
        end = f"{self._index.times[self._ahead[0]]:.2f} s" if self._ahead else ""
        where = f"between {begin} and {end}" if begin and end else f"after {begin}" if begin else f"before {end}"
        self.error = f"frames {where} cannot be decoded ({self._reason})."

    def _image(self, frame: Any) -> Image:
        # A stream may change its size on the way; all frames of a video come in the size of the first.
        self._size = self._size or (frame.width, frame.height)
        width, height = self._size
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


class DecordDecoder:
    """decord, from the PyPI package decord2 or the abandoned decord; raises what decord raises."""

    backend = "decord"
    error = None

    def __init__(self, path: str, index: FrameIndex, num_threads: int) -> None:
        if not index.container.startswith(DECORD_CONTAINERS) or index.in_order:
            raise ValueError(f"decord does not find frames reliably in {index.container} files")
        if index.error is not None:
            raise ValueError("decord may hang in a file that is cut off")
        decord = import_decord()
        # A tolerance of 0 would mean "any": decord then passes a neighbour off as the frame that it cannot decode.
        self._reader: Any = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=num_threads, fault_tol=1e-9)
        if len(self._reader) != len(index.pts):
            raise ValueError(f"decord counts {len(self._reader)} frames, the file has {len(index.pts)}")
        starts = self._reader.get_frame_timestamp(np.arange(len(index.pts)))[:, 0]  # float32, from zero
        times = index.times - index.times[0]
        if not np.allclose(starts - starts[0], times, rtol=1e-6, atol=1e-3):
            raise ValueError("decord gives the frames other times than the file")
        # decord numbers keyframes in the order of decoding. Where that is not the order of display (open groups of
        # pictures, usual in HEVC), it seeks to the wrong place and returns neighbours of the frames that were asked.
        if not np.array_equal(self._reader.get_key_indices(), index.keys):
            raise ValueError("decord does not find frames reliably among open groups of pictures")

    def close(self) -> None:
        self._reader = None

    def read(self, wanted: NDArray[np.int64]) -> list[Image]:
        """One upright image for each of ``wanted`` (ascending), from one pass."""
        batch = self._reader.get_batch(wanted)
        # Somebody may have told decord to give torch tensors (``decord.bridge``).
        return list(batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch))


@cache
def import_decord() -> ModuleType:
    """The module ``decord``, quiet; warns once when two packages have been installed over each other."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    installed = set()
    for name in ("decord", "decord2"):
        try:
            metadata.distribution(name)
            installed.add(name)
        except metadata.PackageNotFoundError:
            pass
    if len(installed) == 2:
        warnings.warn(
            "decord and decord2 are both installed and overwrite each other's files: "
            "run `pip uninstall -y decord decord2 && pip install decord2`.",
            stacklevel=2,
        )
    return decord
