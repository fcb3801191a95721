"""Video in: a file becomes uint8 RGB frames with their times in seconds.

:func:`open_video` is the only place that opens a video. The file's packets are read once without decoding, which gives
every frame's time; then PyAV decodes, or decord or torchcodec if asked for: all count frames by those times.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiera_video.data.reading.damage import reason
from hiera_video.data.reading.decoders import (
    CudaDecoder,
    DecordDecoder,
    Image,
    TorchcodecDecoder,
    check_cuda,
)
from hiera_video.data.reading.files import Source, local_file, name_of, pictures_in
from hiera_video.data.reading.frame_index import FrameIndex, read_index
from hiera_video.data.reading.packets import Media
from hiera_video.data.reading.pictures import AnimationDecoder, PictureDecoder, begins, is_animated
from hiera_video.data.reading.pyav_decoder import PyAVDecoder
from hiera_video.errors import RequestError, UnreadableVideo

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11

#: One picture for each frame: a list, or one array uint8 [n, H, W, 3].
Images: TypeAlias = "list[Image] | Image"
#: uint8 [n, H, W, 3] -> n pictures of another size.
Prepare: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
#: Numbers of frames int64 [n], and the frames uint8 [n, H, W, 3], which are valid during the call.
Watch: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]
#: Whole pictures that :meth:`Video.stream` holds at once before they are prepared.
MAX_BLOCK_BYTES = 64 * 2**20
BACKENDS = ("auto", "cuda", "decord", "pyav", "torchcodec")


class Decoder(Protocol):
    """What :mod:`hiera_video.data.reading.decoders` holds, and :mod:`hiera_video.data.reading.child_process`."""

    @property
    def backend(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def time_error(self) -> float: ...
    @property
    def turned(self) -> bool | None: ...
    def read(self, wanted: NDArray[np.int64], short_side: int | None) -> tuple[NDArray[np.int64], Images]: ...
    def close(self) -> None: ...


#: The decoders that PyAV checks, by backend.
CHECKED: dict[str, Callable[[Media, FrameIndex, int], Decoder]] = {
    "cuda": CudaDecoder,
    "decord": DecordDecoder,
    "torchcodec": TorchcodecDecoder,
}


@dataclass(frozen=True)
class Frames:
    """``pixels`` uint8 [T, H, W, 3], RGB, upright; ``times`` float64 [T], the seconds at which each is shown."""

    pixels: NDArray[np.uint8]
    times: NDArray[np.float64]


class Video:
    """One open video stream; made by :func:`open_video`, closed by ``with`` or :meth:`close`.

    ``times`` float64 [N]: seconds at which each frame begins to be shown, ascending, as the file has them: a stream
    that starts at 8.3 s has ``times[0] == 8.3``. Frame i is shown in the half-open interval [times[i], times[i + 1]).
    ``duration``: seconds from the first frame's begin to the last one's end. ``fps``: frames by duration.
    ``backend``: which decodes; ``fallback_reason``: why it is not the one that was asked for, or None.
    ``error``: None, or one sentence about the part that cannot be read. It can appear while frames are read.
    ``warning``: None, or one sentence about a healthy file whose times are not its own.
    ``time_error``: seconds, the farthest that a frame shown in place of one asked for was away (``decode="fast"``).
    ``stored_size``: (height, width) in pixels as the file says, before rotation; unlike ``height`` known at once.
    """

    def __init__(
        self,
        media: Media,
        index: FrameIndex,
        decoder: Decoder,
        *,
        strict: bool = False,
        fallback_reason: str | None = None,
        checker: PyAVDecoder | None = None,
    ) -> None:
        self.path = media.name
        self.index = index
        self._media, self._decoder, self._strict, self._checker = media, decoder, strict, checker
        self._cleanup = ExitStack()
        self._size: tuple[int, int] | None = None
        self.times = index.times
        self.duration = index.end - float(self.times[0])
        self.fps = len(self.times) / self.duration
        self.stored_size = index.stored_size
        self.warning = index.warning
        self.fallback_reason = fallback_reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.times)

    def close(self) -> None:
        """Let go of the file."""
        self._decoder.close()
        if self._checker is not None:
            self._checker.close()
        self._cleanup.close()

    @property
    def backend(self) -> str:
        return self._decoder.backend

    @property
    def error(self) -> str | None:
        return self._decoder.error or self.index.error

    @property
    def time_error(self) -> float:
        return self._decoder.time_error

    @property
    def turned(self) -> bool | None:
        """Whether height and width change places in upright frames; None: no frame has been read yet."""
        return self._decoder.turned

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height at which a player shows a pixel of the upright frames: 1, or that of an anamorphic video.

        Frames come as they are stored; ``ClipSpec.pixel_aspect`` says whether clips are corrected. Where it is not 1,
        the first question decodes one frame, unless frames have been read.
        """
        stored = self.index.pixel_aspect
        if stored == 1:
            return stored
        if self._decoder.turned is None:
            self.read(np.zeros(1, dtype=np.int64))
        return 1 / stored if self._decoder.turned else stored

    @property
    def height(self) -> int:
        """Pixels, after rotation. The first question decodes one frame, unless frames have been read."""
        return self._upright_size()[0]

    @property
    def width(self) -> int:
        """Pixels, after rotation."""
        return self._upright_size()[1]

    def at(self, time: float) -> int:
        """The frame shown at ``time`` seconds: the last that has begun by then (the first, before the beginning)."""
        return max(0, int(np.searchsorted(self.times, time, side="right")) - 1)

    def frames(self, indices: ArrayLike, *, short_side: int | None = None) -> Frames:
        """Read frames by their numbers; each is decoded once, in one pass.

        Args:
            indices: int [T], repeated and in any order.
            short_side: pixels that suffice: frames may come with a short side as small as that (PyAV and pictures),
                scaled while they are decoded, never larger than the video's own.

        Returns:
            The frames and their times. A frame that cannot be decoded is replaced by the nearest earlier one that can,
            or the first later one; ``error`` then says so, and ``times`` is that of the frame shown.

        Raises:
            UnreadableVideo: nothing can be decoded.
            IndexError: a number is out of range.
        """
        distinct, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        shown, images = self.read(distinct, short_side)
        inverse = inverse.reshape(-1)
        return Frames(np.stack([images[i] for i in inverse]), self.times[shown[inverse]])

    def stream(
        self, rows: Iterable[ArrayLike], prepare: Prepare | None = None, watch: Watch | None = None
    ) -> Iterator[Frames]:
        """Read rows of frames in one ascending pass, so that a long video costs as much memory as a short one.

        Args:
            rows: ascending frame numbers each; rows may overlap, their first numbers ascend.
            prepare: makes other pictures of uint8 [n, H, W, 3], n of them, once for each frame: smaller ones, for
                instance, to be kept in their place.
            watch: is shown each frame once, as it is before ``prepare``.

        Yields:
            The frames of each row. A frame is decoded once, and dropped after the last row that has it.

        Raises:
            UnreadableVideo: nothing can be decoded.
            IndexError: a number is out of range.
        """
        coming = (np.asarray(row, dtype=np.int64) for row in rows)
        waiting: deque[NDArray[np.int64]] = deque()
        images: dict[int, tuple[int, Image]] = {}  # frame asked for -> number of the frame shown, its picture
        while True:
            # Rows that begin before this one ends need frames from the same stretch: know them before passing it.
            while not waiting or waiting[-1][0] <= waiting[0][-1]:
                row = next(coming, None)
                if row is None:
                    break
                waiting.append(row)
            if not waiting:
                return
            needed = np.unique(np.concatenate(list(waiting)))
            images = {number: images[number] for number in needed.tolist() if number in images}
            new = [i for i in needed.tolist() if i <= waiting[0][-1] and i not in images]
            at_once = max(1, MAX_BLOCK_BYTES // (3 * max(1, self.stored_size[0] * self.stored_size[1])))
            for first in range(0, len(new), at_once):
                part = new[first : first + at_once]
                shown, pictures = self.read(np.array(part, dtype=np.int64))
                # A decoder in another process reuses its memory: what is kept is a copy, or what is made of it.
                whole = isinstance(pictures, np.ndarray) and prepare is not None
                block = np.asarray(pictures) if whole else np.stack(list(pictures))
                made = block if prepare is None else prepare(block)
                if watch is not None:
                    watch(np.array(part, dtype=np.int64), block)
                images.update(zip(part, zip(shown.tolist(), made, strict=True), strict=True))
            row = waiting.popleft().tolist()
            yield Frames(np.stack([images[i][1] for i in row]), self.times[[images[i][0] for i in row]])

    def read(self, distinct: NDArray[np.int64], short_side: int | None = None) -> tuple[NDArray[np.int64], Images]:
        """Frames of ascending distinct numbers as the decoder gives them: the numbers of those shown, and pictures."""
        if not len(distinct):
            return distinct, []
        if distinct[0] < 0 or distinct[-1] >= len(self):
            raise IndexError(f"{self.path} has frames 0 to {len(self) - 1}; {distinct[0]} to {distinct[-1]} were asked")
        try:
            shown, images = self._decoder.read(distinct, short_side)
        except UnreadableVideo:
            raise
        except Exception as error:  # decord's and torchcodec's own
            if self._checker is None:
                raise
            raise UnreadableVideo(_cannot(self.path, self.backend, reason(error))) from error
        checker = None if isinstance(self._decoder, CudaDecoder) else self._checker
        damaged = checker.check(distinct) if checker is not None else None
        if damaged:  # they show what was patched together, and say nothing
            raise UnreadableVideo(_cannot(self.path, self.backend, damaged.rstrip(".")))
        if short_side is None:
            self._size = images[0].shape[:2]
        return shown, images

    def _upright_size(self) -> tuple[int, int]:
        if self._size is None:
            self.read(np.zeros(1, dtype=np.int64))
        assert self._size is not None
        return self._size


def open_video(
    source: Source,
    *,
    backend: str = "auto",
    num_threads: int = 0,
    decode: Literal["exact", "fast"] = "exact",
    fps: float | None = None,
) -> Video:
    """Open a video file, an http(s) address, the bytes of a file, a binary file object, or a folder of pictures.

    Args:
        source: one of these. Of several video streams in a file, the one that FFmpeg calls best is read.
        backend: "auto" and "pyav" take PyAV; "decord" and "torchcodec" are refused where they would show other frames,
            which PyAV checks; "cuda" is torchcodec on an NVIDIA GPU, where that is checked by times alone
            (:class:`hiera_video.data.reading.decoders.CudaDecoder`).
        num_threads: threads that decode: 0 is as many as there are processors, right for one video at a time; a worker
            process among many takes 1.
        decode: "exact", or "fast": of H.264 and HEVC only pictures that others refer to are decoded, without the loop
            filter, and the nearest one is shown, at most half the step between the frames asked for away;
            ``time_error`` says how far.
        fps: frames a second of a folder of pictures, which has no times of its own.

    Returns:
        The open video: close it, or use ``with``.

    Raises:
        UnreadableVideo: one sentence saying what the file is instead of a video.
        RequestError: an argument has no such value, or there is no GPU to decode on.
    """
    if backend not in BACKENDS:
        raise RequestError(f"backend is {backend!r}, but can be one of {', '.join(BACKENDS)}.")
    if decode not in ("exact", "fast"):
        raise RequestError(f"decode is {decode!r}, but can be exact or fast.")
    if backend == "cuda":
        check_cuda()
    name = name_of(source)
    with ExitStack() as cleanup:
        if not isinstance(source, (str, os.PathLike)):
            place: BinaryIO = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
            video = _open_media(Media(name, place), backend, num_threads, decode == "fast")
        elif os.path.isdir(source) and fps is not None:
            video = _open_pictures(name, fps)
        else:
            file = cleanup.enter_context(local_file(name))
            video = _open_media(Media(name, file), backend, num_threads, decode == "fast")
        video._cleanup = cleanup.pop_all()
    return video


def _open_media(media: Media, backend: str, num_threads: int, fast: bool) -> Video:
    if is_animated(begins(media.place)):
        pictures = AnimationDecoder(media.name, media.place)
        return Video(media, pictures.index(), pictures)
    index, container, packets = read_index(media)
    ours = PyAVDecoder(media, index, container, packets, num_threads, fast)
    if backend in ("auto", "pyav"):
        return Video(media, index, ours)
    try:
        decoder = CHECKED[backend](media, index, num_threads)
        if isinstance(decoder, CudaDecoder):
            decoder.check_first(ours.read(np.zeros(1, dtype=np.int64), None)[1][0])
    except Exception as error:  # their own errors, ctypes', ImportError and AssertionError
        ours.close()
        raise UnreadableVideo(_cannot(media.name, backend, reason(error))) from error
    return Video(media, index, decoder, strict=True, checker=ours)


def _open_pictures(folder: str, fps: float) -> Video:
    if not fps > 0:
        raise RequestError(f"fps is {fps}, but is a rate above 0.")
    paths = pictures_in(folder)
    step = 1 / Fraction(fps).limit_denominator(1_000_000)
    numbers = np.arange(len(paths))
    end = float(len(paths) * step)
    index = FrameIndex(numbers, numbers, step, end, 0, "pictures", "", (0, 0), ids=numbers, stored=numbers)
    return Video(Media(folder, folder), index, PictureDecoder(paths))


def _cannot(name: str, backend: str, why: str) -> str:
    return f"{name} cannot be decoded by {backend} ({why}): use backend='auto' or 'pyav'."
