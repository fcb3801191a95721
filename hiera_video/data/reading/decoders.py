"""Decoders behind :mod:`hiera_video.data.reading.reader`: decord and torchcodec, the latter on a GPU too, and what they
share with PyAV's.

PyAV's is :mod:`hiera_video.data.reading.pyav_decoder`; that of pictures :mod:`hiera_video.data.reading.pictures`.

Each has ``read(wanted, short_side)``: ascending distinct frame numbers -> the frame numbers that are shown and one
upright image for each; ``error``: what it could not decode; and ``turned``: whether the file's height and width change
places in upright pictures (None before the first one). ``short_side`` is what the caller can do with, in pixels: a
decoder that can shrink on its way does so, the others give the full size.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cache, partial
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.damage import reason, silence_other_ffmpegs
from hiera_video.data.reading.frame_index import FrameIndex
from hiera_video.data.reading.orientation import Matrix, check_first_picture, has_alpha, is_quarter, upright
from hiera_video.data.reading.packets import Media
from hiera_video.data.reading.pictures import on_white
from hiera_video.errors import RequestError

Image = NDArray[np.uint8]
Numbers = NDArray[np.int64]

#: Containers in which decord and torchcodec return the frame that was asked for. In AVI with B-frames and in transport
#: streams, decord 0.6, decord2 3.4 and torchcodec 0.17 return other frames without an error.
RELIABLE_CONTAINERS = ("mov", "matroska")


#: Grey levels, on average, by which the first picture of a GPU may differ from PyAV's, which rounds colours otherwise.
MOST_APART = 4.0


def upright_size(frame: Any, matrix: Matrix | None) -> tuple[int, int]:
    """(width, height) of an ``av.VideoFrame`` when it is turned."""
    return (frame.height, frame.width) if is_quarter(matrix) else (frame.width, frame.height)


#: Colour matrices that swscale has refused since FFmpeg 8, and what it took them for before: BT.2020, or none stated.
NOT_CONVERTED = {8: 2, 10: 9, 11: 2, 12: 2, 13: 2, 14: 2, 15: 2}


def rgb(frame: Any, matrix: Matrix | None, size: tuple[int, int], convert: Any) -> Image:
    """An ``av.VideoFrame`` as it is shown: upright, and what is transparent on white, as that of stills.

    Args:
        frame: The picture as it is stored.
        matrix: The display matrix in force.
        size: (width, height) that it is to have upright.
        convert: What :func:`converter` gives.

    Returns:
        uint8 [H, W, 3], a view of the converted frame's own memory: rows may be padded, nothing is copied.
    """
    width, height = size[::-1] if is_quarter(matrix) else size
    if frame.colorspace in NOT_CONVERTED:
        frame.colorspace = NOT_CONVERTED[frame.colorspace]
    form, channels = ("rgba", 4) if has_alpha(frame.format.name) else ("rgb24", 3)
    plane: Any = convert(frame, width=width, height=height, format=form).planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(height, plane.line_size)
    image: Image = rows[:, : channels * width].reshape(height, width, channels)
    if channels == 4:
        image = on_white(np.ascontiguousarray(image))
    return upright(image, matrix)


def converter() -> Any:
    """One for all frames of a video, and in this thread: to set one up, or its threads, takes longer than a picture."""
    from av.video.reformatter import VideoReformatter

    reformat = VideoReformatter().reformat
    # PyAV 18 takes as many threads as there are processors unless told otherwise; PyAV 16 cannot be told, and takes 1.
    return partial(reformat, threads=1) if "threads" in (VideoReformatter.reformat.__doc__ or "") else reformat


def _check_container(index: FrameIndex, backend: str) -> None:
    if not index.container.startswith(RELIABLE_CONTAINERS) or index.by_position:
        raise ValueError(f"{backend} does not find frames reliably in {index.container} files")


class DecordDecoder:
    """decord, from the PyPI package decord2 or the abandoned decord; raises what decord raises."""

    backend = "decord"
    error = None
    time_error = 0.0

    def __init__(self, media: Media, index: FrameIndex, num_threads: int) -> None:
        if not isinstance(media.place, str):
            raise ValueError("decord reads files only")
        _check_container(index, self.backend)
        if index.error is not None:
            raise ValueError("decord may hang in a file that is damaged")
        decord = import_decord()
        # A tolerance of 0 would mean "any": decord then passes a neighbour off as the frame that it cannot decode.
        self._reader: Any = decord.VideoReader(media.place, ctx=decord.cpu(0), num_threads=num_threads, fault_tol=1e-9)
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
        self.turned = check_first_picture(media, index, self.backend)

    def close(self) -> None:
        self._reader = None

    def read(self, wanted: Numbers, short_side: int | None) -> tuple[Numbers, list[Image]]:
        """One upright image for each of ``wanted`` (ascending), in full size, from one pass."""
        batch = self._reader.get_batch(wanted)
        # Somebody may have told decord to give torch tensors (``decord.bridge``).
        return wanted, list(batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch))


class TorchcodecDecoder:
    """torchcodec, where it is installed with an FFmpeg that it finds; raises what torchcodec raises."""

    backend = "torchcodec"
    device = "cpu"
    error = None
    time_error = 0.0

    def __init__(self, media: Media, index: FrameIndex, num_threads: int) -> None:
        decoders = import_torchcodec()
        _check_container(index, self.backend)
        if "av1" in index.codec or "dav1d" in index.codec:
            # Both bring a dav1d of their own: torchcodec 0.17 with FFmpeg 5 beside PyAV 18 ends the process here.
            raise ValueError("torchcodec may crash on AV1 where PyAV is loaded too")
        if not isinstance(media.place, str):
            media.place.seek(0)
        self._decoder: Any = decoders.VideoDecoder(
            media.place,
            stream_index=index.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=num_threads,
            device=self.device,
        )
        if len(self._decoder) != len(index.pts):
            raise ValueError(f"torchcodec counts {len(self._decoder)} frames, the file has {len(index.pts)}")
        self._times = index.times
        self.turned = check_first_picture(media, index, self.backend)

    def close(self) -> None:
        self._decoder = None

    def read(self, wanted: Numbers, short_side: int | None) -> tuple[Numbers, list[Image]]:
        """One upright image for each of ``wanted`` (ascending), in full size, from one pass, in the processor's memory.

        Raises ValueError where one has another time than its packet.
        """
        batch = self._decoder.get_frames_at(wanted.tolist())
        apart = np.abs(batch.pts_seconds.cpu().numpy() - self._times[wanted])
        if not (apart < 1e-4).all():
            raise ValueError(f"the picture at {self._times[wanted[apart.argmax()]]:.2f} s came with another time")
        return wanted, list(batch.data.cpu().numpy())


class CudaDecoder(TorchcodecDecoder):
    """torchcodec with the decoding unit of an NVIDIA GPU; raises what torchcodec raises.

    PyAV does not decode everything once more, which would take the time that the GPU saves. It decodes the first
    picture, which must look alike, and reads the packets: each picture must have the time that its packet has. What is
    broken inside a later picture, and conceals itself, is not seen.
    """

    backend = "cuda"
    device = "cuda"

    def __init__(self, media: Media, index: FrameIndex, num_threads: int) -> None:
        if index.error is not None:
            raise ValueError("the file is damaged")
        super().__init__(media, index, num_threads)

    def check_first(self, expected: Image) -> None:
        """Raises ValueError where the first picture does not look like PyAV's, uint8 [H, W, 3]."""
        (shown,) = self.read(np.zeros(1, dtype=np.int64), None)[1]
        if shown.shape != expected.shape or np.abs(shown.astype(np.int16) - expected).mean() > MOST_APART:
            raise ValueError("it shows another first picture than PyAV: turned, or in other colours")


def check_cuda() -> None:
    """Asks whether torchcodec can decode on a GPU here.

    Raises:
        RequestError: It cannot; one sentence says what is missing.
    """
    import torch

    if not torch.cuda.is_available():
        raise RequestError("decoder cuda needs an NVIDIA GPU, and torch sees none here: leave it out")
    wheels = f"https://download.pytorch.org/whl/cu{str(torch.version.cuda).replace('.', '')}"
    remedy = f"pip install torchcodec --index-url {wheels}, or leave it out"
    try:
        import torchcodec

        import_torchcodec()
    except Exception as error:  # ImportError, or RuntimeError where it finds no FFmpeg
        raise RequestError(f"decoder cuda needs torchcodec and an FFmpeg ({reason(error)}): {remedy}") from error
    if "+cpu" in torchcodec.__version__:
        raise RequestError(f"decoder cuda needs a torchcodec built for CUDA, not {torchcodec.__version__}: {remedy}")


@cache
def import_decord() -> ModuleType:
    """The module ``decord``, quiet; warns once when two packages have been installed over each other."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    silence_other_ffmpegs()
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


@cache
def import_torchcodec() -> ModuleType:
    """The module ``torchcodec.decoders`` with its FFmpeg loaded, and quiet."""
    import torchcodec.decoders

    with suppress(Exception):  # it looks for an FFmpeg with its first video
        torchcodec.decoders.VideoDecoder(b"")
    silence_other_ffmpegs()
    return torchcodec.decoders
