"""Which frames a video has and when each is shown: read from the packets alone, nothing is decoded.

Every decoder counts frames by this one index, so all agree on which frame a time means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import UnreadableVideo

#: Packets of a file up to this are kept from the reading of the index, so that decoding reads and seeks no more.
MAX_KEPT_BYTES = 16 * 2**20
MAX_PIXEL_ASPECT = Fraction(16)


@dataclass(frozen=True)
class Media:
    """What a decoder opens: a path or an open binary file, and ``name``, what messages call it."""

    name: str
    place: str | BinaryIO

    def open(self) -> Any:
        """A new ``av.container.InputContainer`` at its beginning."""
        import av

        if not isinstance(self.place, str):
            self.place.seek(0)
        # Titles may be in any encoding, which PyAV lets pass by itself from 19 on.
        lenient = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
        return av.open(self.place, **lenient)


@dataclass(frozen=True)
class FrameIndex:
    """Every frame of one video stream in display order, as the packets tell it.

    ``pts`` is int64 [N], ascending, in units of ``time_base`` seconds; ``keys`` are the frame numbers at which decoding
    can start; ``end`` is where the last frame ends, in seconds; ``stream`` is the stream's number in the file,
    ``container`` and ``codec`` are FFmpeg's names. ``in_order``: the container has no presentation times that could be
    trusted (AVI, raw streams), so frames are counted as they leave the decoder. ``pixel_aspect``: width over height
    of a stored pixel, as the container says, or else the codec.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    time_base: Fraction
    end: float
    stream: int
    container: str
    codec: str
    stored_size: tuple[int, int]
    in_order: bool
    error: str | None
    pixel_aspect: Fraction = Fraction(1)

    @property
    def times(self) -> NDArray[np.float64]:
        """Float64 [N], seconds at which each frame begins to be shown."""
        return self.pts * self.time_base.numerator / self.time_base.denominator


def read_index(media: Media) -> tuple[FrameIndex, Any, list[Any] | None]:
    """The index of the stream that FFmpeg calls best, the container that was read to its end for it, and the stream's
    packets in the order of decoding, unless they are too many to keep or the file breaks off.

    Raises :class:`UnreadableVideo` when there is no such stream, or no frame in it.
    """
    import av

    try:
        container = media.open()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideo(
            f"{media.name} is not a video that FFmpeg can open ({reason(error)}): check the file, or convert it to mp4."
        ) from error
    try:
        stream = container.streams.best("video")
        # The cover picture of a music file is a video stream to FFmpeg, but not to anybody else.
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            found = ", ".join(sorted({one.type for one in container.streams})) or "nothing"
            raise UnreadableVideo(
                f"{media.name} has no video stream (it holds {found} only): give a file with pictures."
            )
        if stream.codec_context is None:
            raise UnreadableVideo(f"{media.name} is coded in a way that FFmpeg cannot decode: convert it to mp4.")
        leave_out_others(container, stream)
        index, packets = _index_packets(media, container, stream)
        return index, container, packets
    except BaseException:
        container.close()
        raise


def leave_out_others(container: Any, stream: Any) -> None:
    """Spare reading the packets of sound and of other pictures, where this PyAV can."""
    import av

    if hasattr(av.stream, "Discard"):  # not yet in PyAV 16
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all


def _index_packets(media: Media, container: Any, stream: Any) -> tuple[FrameIndex, list[Any] | None]:
    import av

    pts: list[int | None] = []
    dts: list[int | None] = []
    durations: list[int] = []
    keyframes: list[bool] = []
    packets: list[Any] = []
    hidden, num_bytes, error = 0, 0, None
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            num_bytes += packet.size
            if num_bytes > MAX_KEPT_BYTES:
                packets.clear()
            elif not packet.is_corrupt:
                packets.append(packet)
            # An edit list may hide frames; a file that is cut off ends in half a packet.
            if packet.is_discard or packet.is_corrupt:
                hidden += packet.is_discard
                continue
            pts.append(packet.pts)
            dts.append(packet.dts)
            durations.append(packet.duration or 0)
            keyframes.append(packet.is_keyframe)
    except (av.FFmpegError, IndexError) as failure:  # IndexError: PyAV, when a stream begins in the middle of a file
        error = f"the file cannot be read to its end ({reason(failure)})."
    if not pts:
        raise UnreadableVideo(f"{media.name} holds no complete frame of its video: copy or download it again.")

    rate = stream.average_rate or stream.guessed_rate or Fraction(30)
    time_base = stream.time_base
    in_order = container.format.name == "avi" or not _is_clock(pts)
    shown: list[Any] = dts if in_order else pts
    if not _is_clock(shown):  # a raw stream: there is no time but the rate
        shown = [round(number / (rate * time_base)) for number in range(len(shown))]
    unsorted = np.array(shown, dtype=np.int64)
    order = np.argsort(unsorted, kind="stable")
    ascending = unsorted[order]
    last = durations[order[-1]] or (ascending[-1] - ascending[-2] if len(order) > 1 else 1 / (rate * time_base))
    end = float((int(ascending[-1]) + Fraction(last)) * time_base)
    index = FrameIndex(
        pts=ascending,
        keys=np.flatnonzero(np.array(keyframes)[order]),
        time_base=time_base,
        end=end,
        stream=stream.index,
        container=container.format.name,
        codec=stream.codec_context.name,
        stored_size=(stream.codec_context.height, stream.codec_context.width),
        in_order=in_order,
        error=error or _cut_off(media, container, stream, len(order) + hidden, end),
        pixel_aspect=_pixel_aspect(stream),
    )
    return index, packets if packets and num_bytes <= MAX_KEPT_BYTES and index.error is None else None


def _pixel_aspect(stream: Any) -> Fraction:
    aspect = Fraction(stream.sample_aspect_ratio or 1)  # FFmpeg's guess, in which the container goes before the codec
    # Pixels that are more than so long come from broken headers, and would make pictures of any size.
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else Fraction(1)


def _is_clock(stamps: list[int | None]) -> bool:
    """Whether every frame has a time of its own."""
    return None not in stamps and len(set(stamps)) == len(stamps)


def _cut_off(media: Media, container: Any, stream: Any, num_packets: int, end: float) -> str | None:
    """One sentence when the header promises more than the file holds: a broken download or copy."""
    if stream.frames > num_packets:
        return f"the file is cut off after {end:.1f} s: {num_packets} of {stream.frames} frames are there."
    if container.format.name.startswith("matroska") and container.duration:
        promised = container.duration / 1e6 + max(0, container.start_time or 0) / 1e6
        # Rounded headers and the last packet's unknown length differ by some frames; half a second is not that.
        enough = promised - max(0.5, 0.02 * promised)
        if end < enough and _end_of_all(media) < enough:  # the sound may be longer than the pictures
            return f"the file is cut off after {end:.1f} s of {promised:.1f} s."
    return None


def _end_of_all(media: Media) -> float:
    """Seconds at which the last packet of any stream ends."""
    import av

    end = 0.0
    try:
        with media.open() as container:
            for packet in container.demux():
                if packet.dts is not None:
                    end = max(end, float((packet.dts + (packet.duration or 0)) * packet.time_base))
    except (av.FFmpegError, IndexError):
        pass
    return end


def reason(error: BaseException) -> str:
    """The part of a decoder's message that a person can use: no stack, no source lines, no numbers of errors."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", lines[0] if lines else type(error).__name__)
    return re.sub(r"^\[Errno -?\d+\] |: '.*'(; last error log: .*)?$", "", text).strip()
