"""Whether a file ends before its own structure does: a broken download or copy.

The number of frames or seconds in a header proves nothing: edit lists hide samples, and recorders guess. A box that is
larger than the rest of the file does.
"""

from __future__ import annotations

import os
from typing import BinaryIO


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
