"""The packets of one video stream, read once from the file's first to its last."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

from hiera_video.data.reading import bitstream, damage
from hiera_video.data.reading.cut_off import is_part, packets_with_holes

#: Packets of a file up to this are kept from the reading of the index, so that decoding reads and seeks no more.
MAX_KEPT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Media:
    """What a decoder opens: a path or an open binary file, and ``name``, what messages call it."""

    name: str
    place: str | BinaryIO

    def open(self) -> Any:
        """A new ``av.container.InputContainer`` at its beginning."""
        import av

        damage.listen()
        if not isinstance(self.place, str):
            self.place.seek(0)
        # Titles may be in any encoding, which PyAV lets pass by itself from 19 on.
        lenient = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
        return av.open(self.place, **lenient)


@dataclass
class Packets:
    """The packets of a stream that may show something, in the order in which they are stored."""

    positions: list[int] = field(default_factory=list)
    offsets: list[int | None] = field(default_factory=list)  # bytes from the file's beginning
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)  # how many begin in each
    broken: set[int] = field(default_factory=set)  # positions before which something is lost
    kept: list[Any] | None = field(default_factory=list)
    smallest: int = 1 << 40
    delay: int = 0  # pictures that the decoder holds back
    cut: bool = False  # the last packet is there in part
    error: str | None = None


def leave_out_others(container: Any, stream: Any) -> None:
    """Spare reading the packets of sound and of other pictures, where this PyAV can."""
    import av

    if hasattr(av.stream, "Discard"):  # not yet in PyAV 16
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all


@dataclass
class _Gaps:
    """Where the decode times of H.264 leave a gap in which a picture is lost that others refer to."""

    headers: bitstream.H264Headers
    last: Any = None
    usual: int = 0

    def before(self, packet: Any) -> bool:
        """Whether there is one between a packet and that of the call before."""
        last, self.last = self.last, packet
        if last is None or last.dts is None or packet.dts is None:
            return False
        passed, self.usual = self.usual, packet.dts - last.dts
        return 0 < 1.5 * passed < self.usual and self.headers.loses_reference(last, packet)


def read_packets(media: Media, container: Any, stream: Any) -> Packets:
    """Read the packets of a stream to the file's end.

    Args:
        media: the file.
        container: what was opened of it, at its beginning.
        stream: the stream of it.

    Returns:
        The packets, with what they say of pictures, times, keyframes and damage.
    """
    import av

    name, codec = container.format.name, stream.codec_context.name
    headers = bitstream.H264Headers(bytes(stream.codec_context.extradata or b"")) if codec == "h264" else None
    count = bitstream.picture_counter(codec, headers)
    gaps = None if headers is None else _Gaps(headers)
    can_start = partial(bitstream.is_intra, codec) if headers is None else headers.can_start
    result, holes = Packets(), set()
    kept: list[Any] | None = []
    rows: list[tuple[Any, ...]] = []
    position = num_bytes = 0
    with damage.caught() as messages:
        try:
            for packet in container.demux(stream):
                if not (size := packet.size):
                    continue
                if packet.is_corrupt:
                    if is_part(packet, name):
                        result.cut = True
                        continue
                    holes.add(position)
                if kept is not None:
                    kept.append(packet)
                    num_bytes += size
                    kept = kept if num_bytes <= MAX_KEPT_BYTES else None
                if messages:  # what the codec's parser says, the decoder says again, and knows of which picture
                    if text := damage.worst(messages, codec):
                        result.broken.add(position)
                        result.error = f"the file is damaged ({text})."
                    messages.clear()
                if gaps is not None and gaps.before(packet):
                    result.broken.add(position)
                if not packet.is_discard:  # an edit list may hide packets
                    is_key = packet.is_keyframe and can_start(packet)
                    begun = 1 if count is None else count(packet)
                    rows.append(
                        (position, packet.pos, packet.pts, packet.dts, packet.duration or 0, is_key, begun, size)
                    )
                position += 1
        except (av.FFmpegError, IndexError) as failure:  # IndexError: PyAV, when a stream begins within a file
            result.error = f"the file cannot be read to its end ({damage.reason(failure)})."
        if result.error is None and (text := damage.worst(messages, codec)):
            result.error = f"the file is damaged ({text})."
    result.kept = kept
    _fill(result, rows)
    _judge(media, name, codec, result, holes)
    return result


def _fill(result: Packets, rows: list[tuple[Any, ...]]) -> None:
    """Put rows of position, offset, pts, dts, duration, keyframe, pictures and size in columns."""
    if rows:
        names = ("positions", "offsets", "pts", "dts", "durations", "keyframes", "pictures")
        for column, values in zip(names, zip(*rows, strict=True), strict=False):
            setattr(result, column, list(values))
        result.smallest = min(row[-1] for row in rows)


def _judge(media: Media, name: str, codec: str, result: Packets, holes: set[int]) -> None:
    """Tell false keyframes, and which packets the ``holes`` of the container spoil."""
    if codec in bitstream.UNSURE_KEYS and all(result.keyframes):
        result.keyframes[1:] = [False] * len(result.keyframes[1:])
    keys = {position for position, is_key in zip(result.positions, result.keyframes, strict=True) if is_key}
    result.broken -= keys  # what is lost before a keyframe does not spoil it
    if name == "mpegts":
        marked = [i for i, position in enumerate(result.positions) if position in holes]
        spoiled = packets_with_holes(media.place, marked, result.offsets, result.keyframes)
        result.broken |= {result.positions[i] for i in spoiled}
    else:
        result.broken |= {position + 1 for position in holes if position + 1 not in keys}
