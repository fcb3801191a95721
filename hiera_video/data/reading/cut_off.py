"""Whether parts of a file are missing: its end, after a broken download or copy, or packets of a transport stream.

The number of frames or seconds in a header proves nothing: edit lists hide samples, and recorders guess. A box that is
larger than the rest of the file does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

#: Bytes of a picture that are read at most to learn where it has a hole.
_MAX_PICTURE_BYTES = 16 * 2**20


#: Containers whose packets are cut out of a stream of bytes: one that is marked as corrupt is there, with a hole in it
#: or in its neighbour. Elsewhere the mark means the half of a packet at the end of a file that is cut off.
STREAMS_OF_BYTES = ("mpegts", "mpeg")


def is_part(packet: Any, container: str) -> bool:
    """Whether only the first part of a packet is there, at the end of a file that is cut off."""
    return bool(packet.is_corrupt) and not container.startswith(STREAMS_OF_BYTES)


def ends_early(place: str | BinaryIO, container: str) -> bool:
    """Whether a box of an mp4, Matroska or AVI file reaches past the file's end.

    Args:
        place: a path, or an open binary file, which keeps its position.
        container: FFmpeg's name of the format; of others than these three nothing can be said.
    """
    check = next((_CHECKS[name] for name in _CHECKS if container.startswith(name)), None)
    if check is None:
        return False
    if isinstance(place, str):
        with open(place, "rb") as file:
            return check(file, os.path.getsize(place))
    position = place.tell()
    try:
        size = place.seek(0, os.SEEK_END)
        return check(place, size)
    finally:
        place.seek(position)


def _mp4(file: BinaryIO, size: int) -> bool:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0 or not kind.isascii():  # it reaches to the end, or is no box
            return False
        if position + length > size:
            return True
        position += max(length, 8)
    return False


def _matroska(file: BinaryIO, size: int) -> bool:
    file.seek(0)
    head = file.read(200)
    position = head.find(b"\x18\x53\x80\x67")  # the segment, which holds everything
    if position < 0 or len(head) < position + 12:
        return False
    first = head[position + 4]
    width = 9 - first.bit_length()
    length = int.from_bytes(head[position + 4 : position + 4 + width], "big") - (1 << 7 * width)
    unknown = length == (1 << 7 * width) - 1
    return first > 0 and not unknown and position + 4 + width + length > size


def _avi(file: BinaryIO, size: int) -> bool:
    position = 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length == 0:
            return False
        if position + 8 + length > size:
            return True
        position += 8 + length + length % 2
    return False


_CHECKS = {"mov": _mp4, "matroska": _matroska, "avi": _avi}


def packets_with_holes(
    place: str | BinaryIO, marked: Iterable[int], offsets: Sequence[int | None], keyframes: Sequence[bool]
) -> Iterator[int]:
    """Which pictures of a transport stream have lost a part.

    FFmpeg marks the picture before the one with the hole, of the first picture none. Where the next one is a keyframe
    it may begin another recording, whose counters are others, and then nothing is lost.

    Args:
        place: a path, or an open binary file, which keeps its position.
        marked: places of pictures that FFmpeg has marked, in the order in which they are stored.
        offsets: bytes from the file's beginning to each picture.
        keyframes: which of them are keyframes.
    """
    for i in (0, *(i + 1 for i in marked)):
        is_sure = i > 0 and not any(keyframes[i + 1 : i + 2])
        begin, end = (offsets[j] if j < len(offsets) else None for j in (i, i + 1))
        if i < len(offsets) and (is_sure or (begin is not None and end is not None and _has_hole(place, begin, end))):
            yield i


def _has_hole(place: str | BinaryIO, begin: int, end: int) -> bool:
    """Whether the counters of a picture's transport packets leave out one."""
    if isinstance(place, str):
        with open(place, "rb") as file:
            return _has_hole(file, begin, end)
    position = place.tell()
    place.seek(begin)
    data = place.read(min(max(0, end - begin), _MAX_PICTURE_BYTES) + 192 * 2)
    place.seek(position)
    data = data[max(0, data.find(b"G", 0, 8)) :]
    step = next((size for size in (188, 192, 204) if data[size : size + 1] == b"G"), 188)
    own = data[1] & 31, data[2]
    before = None
    for start in range(0, min(end - begin, len(data) - 3), step):
        if (data[start + 1] & 31, data[start + 2]) == own and data[start + 3] & 16:  # it carries a part of the picture
            counter = data[start + 3] & 15
            if before is not None and (counter - before) % 16 > 1:
                return True
            before = counter
    return False
