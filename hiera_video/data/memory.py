"""Videos that are no files: the bytes of a file, an open binary file, frames in memory, a list of PIL pictures."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.files import Source, name_of
from hiera_video.data.reading.frame_index import FrameIndex
from hiera_video.data.reading.packets import Media
from hiera_video.data.reading.pictures import begins, is_animated, to_rgb
from hiera_video.data.reading.reader import Video, open_video
from hiera_video.errors import RequestError, UnreadableVideo

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

#: What can be read: a path, an http(s) address, bytes, an open binary file, frames uint8 [T, H, W, 3] (a tensor may be
#: [T, 3, H, W] too), or a list of PIL pictures.
Input: TypeAlias = "Source | NDArray[np.uint8] | Tensor | Sequence[Image.Image]"

#: Formats that PIL recognises and that are single pictures by their file names too.
PICTURE_FORMATS = ("AVIF", "BMP", "JPEG", "PNG", "TIFF", "WEBP")


def input_name(source: Input) -> str:
    """What messages and answers call an input.

    Args:
        source: Anything that :func:`video_of` takes.

    Returns:
        The path or address, ``<123 bytes>``, an open file's name, or ``<16 frames>``.
    """
    if is_frames(source):
        return f"<{len(source)} frames>"  # type: ignore[arg-type]
    return name_of(source)  # type: ignore[arg-type]


def is_frames(source: Any) -> bool:
    """Whether an input is decoded frames: an array, a tensor, or a list or tuple of pictures."""
    return isinstance(source, (list, tuple)) or hasattr(source, "ndim")


def video_of(source: Input, fps: float | None = None) -> Video:
    """Open any input as a video.

    Args:
        source: A path, an http(s) address, the bytes of a file, an open binary file, frames uint8 [T, H, W, 3]
            (a tensor may be [T, 3, H, W] too), or a list of PIL pictures of one size.
        fps: Frames a second; needed for frames, pictures, and a folder of pictures, which have no times of their own.

    Returns:
        The open video, as :func:`hiera_video.open_video` gives it; a picture in bytes is a video of one frame.

    Raises:
        RequestError: For what is none of these, and for frames without ``fps``.
        UnreadableVideo: Where nothing can be read.
    """
    if is_frames(source):
        return _video_of_frames(source, fps, input_name(source))
    _check(source)
    if isinstance(source, (str, os.PathLike)):
        return open_video(source, fps=fps)
    file = _file_of(source)
    if picture_suffix(file) and not is_animated(begins(file)):
        from PIL import Image

        with Image.open(file) as picture:
            return _video_of_frames([picture], fps or 30, input_name(source))
    return open_video(source if isinstance(source, (bytes, bytearray, memoryview)) else file)


@contextmanager
def on_disk(source: Input) -> Iterator[str]:
    """The path of an input that is a file, an address, bytes or an open binary file, for as long as it is read.

    Bytes and open files are copied into a temporary file, so that a child process can read them.

    Args:
        source: A path, an http(s) address, the bytes of a file, or an open binary file.

    Yields:
        The path; errors that name it are raised again with the name that :func:`input_name` gives.

    Raises:
        RequestError: For anything else.
    """
    _check(source)
    if isinstance(source, (str, os.PathLike)):
        yield os.fspath(source)
        return
    file = _file_of(source)
    with tempfile.NamedTemporaryFile(prefix="hiera_video_", suffix=picture_suffix(file)) as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        try:
            yield copy.name
        except UnreadableVideo as error:
            raise UnreadableVideo(str(error).replace(copy.name, name_of(source))) from error  # type: ignore[arg-type]


def _check(source: Any) -> None:
    """Raises :class:`RequestError` for what is neither a path nor bytes nor an open binary file."""
    if isinstance(source, io.TextIOBase):
        raise RequestError(f"{name_of(source)} is open as text: open it with mode 'rb'.")  # type: ignore[arg-type]
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read"):
        return
    raise RequestError(
        f"a video cannot be read from the type {type(source).__name__}: give a path, an address, "
        "bytes, an open binary file, frames as uint8 [T, H, W, 3], or a list of PIL pictures."
    )


def _file_of(source: Any) -> Any:
    """A binary file at its beginning that can seek."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not (hasattr(source, "seekable") and source.seekable()):
        return io.BytesIO(source.read())
    source.seek(0)
    return source


def picture_suffix(file: Any) -> str:
    """What the name of a file with this content ends in, such as ".png", where it is a picture; else nothing."""
    from PIL import Image

    try:
        with Image.open(file, formats=PICTURE_FORMATS) as picture:
            return f".{str(picture.format).lower()}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    finally:
        file.seek(0)


def _video_of_frames(source: Any, fps: float | None, name: str) -> Video:
    frames = _frames_of(source)
    if fps is None or not 0 < fps < float("inf"):
        raise RequestError(
            f"frames need their rate: pass fps=, such as fps=25{'' if fps is None else f' (it is {fps:g})'}."
        )
    step = 1 / Fraction(fps).limit_denominator(1_000_000)
    numbers = np.arange(len(frames))
    size = (frames.shape[1], frames.shape[2])
    index = FrameIndex(
        numbers, numbers, step, float(len(frames) * step), 0, "memory", "", size, ids=numbers, stored=numbers
    )
    return Video(Media(name, name), index, _FrameDecoder(frames))


def _frames_of(source: Any) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3] with at least one frame. Raises :class:`RequestError`."""
    if isinstance(source, (list, tuple)):
        return _stacked(source)
    is_tensor = hasattr(source, "detach")
    frames = source.detach().cpu().numpy() if is_tensor else source
    if is_tensor and frames.ndim == 4 and frames.shape[3] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        shape = ", ".join(map(str, source.shape))
        raise RequestError(
            f"frames are {source.dtype} [{shape}], but must be uint8 [T, H, W, 3] with values from 0 to 255, RGB"
            f"{' (or [T, 3, H, W])' if is_tensor else ''}, and at least one frame."
        )
    return np.asarray(frames)


def _stacked(pictures: Sequence[Any]) -> NDArray[np.uint8]:
    """PIL pictures, upright, on white where they are transparent. Raises :class:`RequestError`."""
    from PIL import Image

    arrays = []
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise RequestError(f"a list of frames must hold PIL pictures, but holds a {type(picture).__name__}.")
        arrays.append(to_rgb(picture))
    if not arrays:
        raise RequestError("the list of frames is empty: give at least one PIL picture.")
    if len({array.shape for array in arrays}) > 1:
        sizes = sorted({f"{array.shape[1]} x {array.shape[0]}" for array in arrays})
        raise RequestError(f"the frames of a video have one size, but these are {' and '.join(sizes[:2])} pixels.")
    return np.stack(arrays)


class _FrameDecoder:
    """Frames in memory, as a decoder of :class:`Video`."""

    backend = "memory"
    error = None
    time_error = 0.0
    turned = False

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self._frames = frames

    def close(self) -> None:
        pass

    def read(self, wanted: NDArray[np.int64], short_side: int | None) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The frames of these numbers, at their full size."""
        return wanted, self._frames[wanted]
