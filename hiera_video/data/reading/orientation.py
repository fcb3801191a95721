"""Which way up a video is shown: FFmpeg's display matrix, which it makes of a file's track header, of H.264 and HEVC
messages and of EXIF, and what a player does with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.frame_index import FrameIndex
from hiera_video.data.reading.packets import Media, leave_out_others

#: Nine numbers in fixed point, row by row; the upper left four turn and mirror (FFmpeg's ``libavutil/display.h``).
Matrix: TypeAlias = tuple[int, ...]


def matrix_of(frame: Any) -> Matrix | None:
    """The display matrix that comes with an ``av.VideoFrame``, or None."""
    try:
        sides = frame.side_data
        if not len(sides):
            return None
        from av.sidedata.sidedata import Type
    except ValueError:
        from av.sidedata.sidedata import Type

        # PyAV 18 raises over kinds of data that it does not know but its FFmpeg does, such as EXIF: give them any name.
        Type._missing_ = classmethod(lambda kind, value: kind.PANSCAN)  # type: ignore[method-assign, assignment]
        sides = frame.side_data
    for side in sides:
        if side.type is Type.DISPLAYMATRIX:
            return struct.unpack("=9i", bytes(side))
    return None


class Orientation:
    """The matrix in force, frame after frame.

    A message in an H.264 stream comes with the keyframe and holds until the next one, where FFmpeg turns the keyframe
    alone; so do players.
    """

    def __init__(self) -> None:
        self._matrix: Matrix | None = None
        self._degrees = 0
        self._after_key = False

    def of(self, frame: Any) -> Matrix | None:
        """The matrix of the next ``av.VideoFrame`` that leaves the decoder."""
        # To look at a frame's side data costs, since PyAV's objects then hold each other and keep the picture in memory
        # until they are collected: only keyframes are looked at, and of those that follow each other the first.
        degrees, is_key = frame.rotation, frame.key_frame
        if (is_key and not self._after_key) or degrees not in (0, self._degrees):
            stated = matrix_of(frame)
            if stated is not None or is_key:
                self._matrix, self._degrees = stated, degrees
        elif is_key and not degrees and self._degrees:
            self._matrix, self._degrees = None, 0
        self._after_key = is_key
        return self._matrix


def with_matrix(frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, tuple[Any, Matrix | None]]]:
    """(frame number, ``av.VideoFrame``) from a keyframe on -> (frame number, (frame, matrix in force))."""
    orientation = Orientation()
    for number, frame in frames:
        yield number, (frame, orientation.of(frame))


@cache  # a file has one matrix, or a few
def angle(matrix: Matrix) -> float:
    """Degrees in [0, 360) by which the picture is turned clockwise; 0 for a matrix without extent."""
    wide, high = np.hypot(matrix[0], matrix[3]), np.hypot(matrix[1], matrix[4])
    if wide == 0 or high == 0:
        return 0.0
    return float(round(np.degrees(np.arctan2(matrix[1] / high, matrix[0] / wide))) % 360)


def is_quarter(matrix: Matrix | None) -> bool:
    """Whether height and width change places."""
    return matrix is not None and angle(matrix) in (90, 270)


def is_mirrored(matrix: Matrix) -> bool:
    """Whether the picture is also mirrored."""
    return matrix[0] * matrix[4] - matrix[1] * matrix[3] < 0


def upright(image: NDArray[np.uint8], matrix: Matrix | None) -> NDArray[np.uint8]:
    """The picture as it is shown, as ``ffmpeg`` with ``-autorotate`` does it.

    Args:
        image: uint8 [H, W, 3], as it is stored.
        matrix: Its display matrix.

    Returns:
        uint8 [H, W, 3], or [W, H, 3] after a quarter turn: a view, not a copy. An angle that is no multiple of 90
        degrees gives a copy of the same size, its corners cut off and black.
    """
    if matrix is None:
        return image
    degrees = angle(matrix)
    if degrees in (90, 270):
        if is_mirrored(matrix):
            return image.transpose(1, 0, 2) if matrix[3] > 0 else image[::-1, ::-1].transpose(1, 0, 2)
        return np.rot90(image, -1 if degrees == 90 else 1)
    if degrees in (0, 180):
        columns, rows = (slice(None, None, -1 if scale < 0 else 1) for scale in (matrix[0], matrix[4]))
        return image[rows, columns]
    from PIL import Image

    return np.array(Image.fromarray(image).rotate(-degrees, Image.Resampling.BILINEAR))


def check_first_picture(media: Media, index: FrameIndex, backend: str) -> bool:
    """For decoders that turn pictures by right angles on their own, but neither mirror nor read messages.

    Args:
        media: The file.
        index: Its frames.
        backend: The decoder's name.

    Returns:
        Whether height and width change places.

    Raises:
        ValueError: The decoder would show the file's pictures in another way than FFmpeg.
    """
    import av

    with media.open() as container:
        stream = container.streams[index.stream]
        leave_out_others(container, stream)
        packets, frames = [], []
        for packet in container.demux(stream):
            packets.append(packet)
            frames = packet.decode()
            if frames:
                break
        if not frames:
            return False
        if has_alpha(frames[0].format.name):
            raise ValueError(f"{backend} leaves out the transparency of these pictures")
        matrix = matrix_of(frames[0])
        if matrix is None:
            return False
        if is_mirrored(matrix) or angle(matrix) % 90:
            raise ValueError(f"{backend} does not mirror pictures, or turn them by other than right angles")
        bare = av.CodecContext.create(index.codec, "r")  # it knows nothing of the container's matrix
        bare.extradata = stream.codec_context.extradata
        coded = [frame for packet in packets for frame in bare.decode(packet)]
        if any(matrix_of(frame) is not None for frame in coded):
            raise ValueError(f"{backend} does not read the orientation that is coded with the pictures")
    return is_quarter(matrix)


@cache
def has_alpha(name: str) -> bool:
    """Whether pictures in one of FFmpeg's pixel formats have transparency; a palette may."""
    from av import VideoFormat

    form = VideoFormat(name)
    return bool(form.has_palette or any(part.is_alpha for part in form.components))
