"""What the first bytes of a packet say: how many pictures it begins, and whether one before it is lost.

A packet need not be a picture. Camcorders and broadcasters write H.264 a field to a packet; VP8 and VP9 write pictures
that are never shown. Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: H.264 profiles whose sequence header describes the colour format (ITU-T H.264, 7.3.2.1.1).
_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
#: Bytes of a NAL unit that hold all that is read of it.
_HEADER_BYTES = 400
#: Codecs of which FFmpeg may call every packet a keyframe.
UNSURE_KEYS = frozenset({"h261", "h263", "h263p", "svq1", "svq3"})


class _Bits:
    """Reads the numbers of an H.264 header, bit by bit."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # bytes that keep start codes out of the data
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the header ends too early")
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        value = self.golomb()
        return (value + 1) // 2 if value % 2 else -(value // 2)


@dataclass(frozen=True)
class _Sequence:
    """What slices of a sequence need to be read."""

    frame_num_bits: int
    separate_planes: bool
    interlaced: bool  # pictures may be coded as two fields
    gaps_allowed: bool


@dataclass(frozen=True)
class _Slice:
    frame_num: int
    is_reference: bool
    is_idr: bool
    field: int  # 0: a whole picture, 1: its top field, 2: its bottom field


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    for number in range(count):
        if bits.take(1):
            last = following = 8
            for _ in range(16 if number < 6 else 64):
                if following:
                    following = (last + bits.signed_golomb()) % 256
                last = following or last


def _read_sequence(unit: bytes) -> _Sequence:
    bits = _Bits(unit[1:])
    profile = bits.take(24) >> 16
    bits.golomb()
    separate_planes = False
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        separate_planes = chroma == 3 and bool(bits.take(1))
        bits.golomb(), bits.golomb(), bits.take(1)
        if bits.take(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    frame_num_bits = bits.golomb() + 4
    order_type = bits.golomb()
    if order_type == 0:
        bits.golomb()
    elif order_type == 1:
        bits.take(1), bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()
    gaps_allowed = bool(bits.take(1))
    bits.golomb(), bits.golomb()
    return _Sequence(frame_num_bits, separate_planes, not bits.take(1), gaps_allowed)


def _units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The first bytes of each NAL unit; ``length_size`` 0: they are found by start codes."""
    if length_size:
        position = 0
        while position + length_size < len(data):
            size = int.from_bytes(data[position : position + length_size], "big")
            position += length_size
            yield data[position : position + min(size, _HEADER_BYTES)]
            position += size
        return
    position = data.find(b"\0\0\1")
    while position >= 0:
        following = data.find(b"\0\0\1", position + 3)
        end = len(data) if following < 0 else following
        yield data[position + 3 : min(end, position + 3 + _HEADER_BYTES)]
        position = following


@dataclass
class H264Headers:
    """Reads slice headers of one stream; ``extradata`` is the stream's, in either form."""

    extradata: bytes
    length_size: int = 0
    sequence: _Sequence | None = None
    _open_field: _Slice | None = field(default=None)

    def __post_init__(self) -> None:
        data = self.extradata
        if data[:1] == b"\1" and len(data) > 8:  # as mp4 and matroska store it
            self.length_size = (data[4] & 3) + 1
            data = b"\0\0\1" + data[8 : 8 + int.from_bytes(data[6:8], "big")]
        self._find_sequence(data, 0)

    def _find_sequence(self, data: bytes, length_size: int) -> None:
        try:
            for unit in _units(data, length_size):
                if unit and unit[0] & 31 == 7:
                    self.sequence = _read_sequence(unit)
        except ValueError:
            pass  # a damaged header: packets count as pictures

    def slices(self, packet: Any) -> list[_Slice]:
        """The first slice of each picture or field in a packet."""
        data = bytes(packet)
        if self.sequence is None:
            self._find_sequence(data, self.length_size)
        if self.sequence is None:
            return []
        begun: list[_Slice] = []
        try:
            for unit in _units(data, self.length_size):
                if unit and unit[0] & 31 in (1, 5):
                    this = self._slice(unit, self.sequence)
                    if not begun or (begun[-1].field, begun[-1].frame_num) != (this.field, this.frame_num):
                        begun.append(this)
        except ValueError:
            pass
        return begun

    def _slice(self, unit: bytes, sequence: _Sequence) -> _Slice:
        bits = _Bits(unit[1:40])
        bits.golomb(), bits.golomb(), bits.golomb()
        if sequence.separate_planes:
            bits.take(2)
        frame_num = bits.take(sequence.frame_num_bits)
        is_field = sequence.interlaced and bits.take(1)
        return _Slice(frame_num, bool(unit[0] >> 5 & 3), unit[0] & 31 == 5, 1 + bits.take(1) if is_field else 0)

    def can_start(self, packet: Any) -> bool:
        """Whether decoding can start at a packet that FFmpeg calls a keyframe: every slice of its picture is intra.

        Streams that are refreshed bit by bit have keyframes that are whole only some pictures later.
        """
        data = bytes(packet)
        slices = [unit for unit in _units(data, self.length_size) if unit and unit[0] & 31 in (1, 5)]
        try:
            first = self.slices(packet)[:1]
            for unit in slices:
                bits = _Bits(unit[1:40])
                bits.golomb()
                kind = bits.golomb() % 5
                if first and self.sequence and self._slice(unit, self.sequence).field != first[0].field:
                    return True  # the other field may be made of this one
                if kind not in (2, 4):
                    return False
        except ValueError:
            pass
        return True

    def pictures_begun(self, packet: Any) -> int:
        """How many pictures begin in the next packet: 0 where it completes the picture of the one before."""
        slices = self.slices(packet)
        if not slices:
            return 1
        begun = 0
        for this in slices:
            before = self._open_field
            completes = (
                before is not None
                and before.field + this.field == 3  # the other field
                and before.frame_num == this.frame_num
                and (before.is_reference or not this.is_reference)
                and (not this.is_idr or before.is_idr)
            )
            begun += not completes
            self._open_field = None if completes or not this.field else this
        return begun

    def loses_reference(self, before: Any, packet: Any) -> bool:
        """Whether a picture that others refer to is missing between two packets that follow each other."""
        if self.sequence is None or self.sequence.gaps_allowed:
            return False
        first, second = self.slices(before)[-1:], self.slices(packet)[:1]
        if not first or not second or second[0].is_idr:
            return False
        expected = first[0].frame_num + first[0].is_reference
        allowed = {expected % (1 << self.sequence.frame_num_bits), first[0].frame_num if first[0].field else -1}
        return second[0].frame_num not in allowed


def _vp8_shows(packet: Any) -> int:
    return memoryview(packet)[0] >> 4 & 1


def _vp9_shows(packet: Any) -> int:
    data = memoryview(packet)
    marker = data[-1]
    starts = [0]
    if marker & 0xE0 == 0xC0:  # several pictures in a packet, their sizes at its end
        width, count = (marker >> 3 & 3) + 1, (marker & 7) + 1
        table = len(data) - 2 - width * count
        if table >= 0 and data[table] == marker:
            sizes = [
                int.from_bytes(data[table + 1 + i * width : table + 1 + (i + 1) * width], "little")
                for i in range(count)
            ]
            starts = [sum(sizes[:i]) for i in range(count)]
    return sum(_vp9_picture_shows(data[start]) for start in starts if start < len(data))


def _vp9_picture_shows(first: int) -> bool:
    shift = 1 if first & 0x30 == 0x30 else 0  # profile 3 has one bit more before these
    return bool(first >> (3 - shift) & 1 or first >> (1 - shift) & 1)


def _mpeg2_fields() -> Callable[[Any], int]:
    open_field = 0

    def begun(packet: Any) -> int:
        nonlocal open_field
        data, count, position = bytes(packet), 0, 0
        while (position := data.find(b"\0\0\1\xb5", position)) >= 0:
            if len(data) > position + 6 and data[position + 4] >> 4 == 8:
                structure = data[position + 6] & 3
                completes = structure != 3 and open_field + structure == 3
                count += not completes
                open_field = 0 if completes or structure == 3 else structure
                if structure == 3:
                    break
            position += 4
        else:
            return count if open_field or b"\0\0\1\xb5" in data else 1
        return count

    return begun


def picture_counter(codec: str, headers: H264Headers | None) -> Callable[[Any], int] | None:
    """A function that tells, packet after packet, how many pictures each begins; None: every packet begins one.

    Args:
        codec: FFmpeg's name of the decoder.
        headers: those of the stream, if it is H.264.
    """
    if codec == "h264" and headers is not None and (headers.sequence is None or headers.sequence.interlaced):
        return headers.pictures_begun
    if codec in ("mpeg2video", "mpegvideo"):
        return _mpeg2_fields()
    return {"vp8": _vp8_shows, "vp9": _vp9_shows, "libvpx": _vp8_shows, "libvpx-vp9": _vp9_shows}.get(codec)


def mpeg4_kind(packet: Any) -> str | None:
    """ "I", "P", "B" or "S" for the picture in an MPEG-4 packet; None where it holds none, or two."""
    data = bytes(packet)
    position = data.find(b"\0\0\1\xb6")
    if position < 0 or len(data) < position + 5 or data.find(b"\0\0\1\xb6", position + 4) >= 0:
        return None
    return "IPBS"[data[position + 4] >> 6]


def is_reference(codec: str, packet: Any) -> bool:
    """Whether other pictures may be made of the one in this packet; True where it cannot be told."""
    if codec == "mpeg4":
        return mpeg4_kind(packet) != "B"
    data = bytes(packet)
    if codec in ("mpeg1video", "mpeg2video"):
        position = data.find(b"\0\0\1\0")
        return position < 0 or len(data) < position + 6 or data[position + 5] >> 3 & 7 != 3
    if codec not in ("h264", "hevc"):
        return True
    units = _units(data, 0 if data[:3] == b"\0\0\1" or data[:4] == b"\0\0\0\1" else 4)
    if codec == "h264":
        return all(unit[0] >> 5 & 3 for unit in units if unit and unit[0] & 31 in (1, 5))
    return all(unit[0] >> 1 & 63 not in (0, 2, 4, 6, 8) for unit in units if unit)


def is_intra(codec: str, packet: Any) -> bool:
    """Whether a packet that its container calls a keyframe is one; True where it cannot be told.

    An mp4 without a table of keyframes calls all packets so, and AVI indices name the wrong ones.
    """
    data = bytes(packet)
    if codec == "mpeg4":
        position = data.find(b"\0\0\1\xb6")
        # One of so few bytes repeats the picture before, whatever its type says.
        return position < 0 or (len(data) > position + 8 and data[position + 4] >> 6 == 0)
    if codec in ("mpeg1video", "mpeg2video"):
        position = data.find(b"\0\0\1\0")
        return position < 0 or len(data) < position + 6 or data[position + 5] >> 3 & 7 == 1
    if codec != "hevc":
        return True
    kinds = [
        unit[0] >> 1 & 63 for unit in _units(data, 0 if data[:3] == b"\0\0\1" or data[:4] == b"\0\0\0\1" else 4) if unit
    ]
    pictures = [kind for kind in kinds if kind < 32]
    return not pictures or 16 <= pictures[0] <= 23
