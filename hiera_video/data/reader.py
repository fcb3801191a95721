"""Video in: a file becomes uint8 RGB frames with their times in seconds.

:func:`open_video` is the only place that opens a video. The file's packets are read once without decoding, which gives
every frame's time; decord decodes, and PyAV does where decord cannot.
"""

from __future__ import annotations

import os
import tempfile
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiera_video.data.decoders import DecordDecoder, Image, PyAVDecoder, read_index, reason
from hiera_video.errors import RequestError, UnreadableVideo

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11

BACKENDS = ("auto", "decord", "pyav")
MAX_DOWNLOAD_BYTES = 4 * 2**30
DOWNLOAD_TIMEOUT_S = 30


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
    ``backend``: "decord" or "pyav", which decodes; ``fallback_reason``: why decord does not, or None.
    ``error``: None, or one sentence about the part that cannot be read. It can appear while frames are read.
    """

    def __init__(self, path: str, local_path: str, backend: str, num_threads: int) -> None:
        self.path = path
        self._local_path = local_path
        self._cleanup = ExitStack()
        self._index = read_index(local_path, path)
        self._size: tuple[int, int] | None = None
        self.times = self._index.times
        self.duration = self._index.end - float(self.times[0])
        self.fps = len(self.times) / self.duration
        self.fallback_reason: str | None = None
        self._strict = backend == "decord"
        self._decoder: DecordDecoder | PyAVDecoder
        if backend == "pyav":
            self._decoder = PyAVDecoder(local_path, self._index)
            return
        try:
            self._decoder = DecordDecoder(local_path, self._index, num_threads)
        except Exception as error:  # decord's own errors, ctypes' and AssertionError
            self._fall_back(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.times)

    def close(self) -> None:
        """Let go of the file."""
        self._decoder.close()
        self._cleanup.close()

    @property
    def backend(self) -> str:
        return self._decoder.backend

    @property
    def error(self) -> str | None:
        return self._decoder.error or self._index.error

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

    def frames(self, indices: ArrayLike) -> Frames:
        """The frames of these numbers, int [T], repeated and in any order; each is decoded once, in one pass.

        A frame that cannot be decoded is replaced by the nearest earlier one that can, or the first later one, and
        ``error`` says so. Raises :class:`UnreadableVideo` when nothing can be decoded, IndexError out of range.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        images = self._read(distinct)
        return Frames(np.stack([images[i] for i in inverse.reshape(-1)]), self.times[numbers])

    def stream(self, rows: Iterable[ArrayLike]) -> Iterator[Frames]:
        """One :class:`Frames` per row of ascending frame numbers; rows may overlap, their first numbers ascend.

        One ascending pass: each frame is decoded once and dropped after the last row that has it, so that a long
        video costs as much memory as a short one.
        """
        coming = (np.asarray(row, dtype=np.int64) for row in rows)
        waiting: deque[NDArray[np.int64]] = deque()
        images: dict[int, Image] = {}
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
            images.update(zip(new, self._read(np.array(new, dtype=np.int64)), strict=True))
            row = waiting.popleft()
            yield Frames(np.stack([images[i] for i in row.tolist()]), self.times[row])

    def _read(self, distinct: NDArray[np.int64]) -> list[Image]:
        if not len(distinct):
            return []
        if distinct[0] < 0 or distinct[-1] >= len(self):
            raise IndexError(f"{self.path} has frames 0 to {len(self) - 1}; {distinct[0]} to {distinct[-1]} were asked")
        try:
            images = self._decoder.read(distinct)
        except UnreadableVideo:
            raise
        except Exception as error:
            if self.backend == "pyav":
                raise
            self._decoder.close()
            self._fall_back(error)
            images = self._decoder.read(distinct)
        self._size = images[0].shape[:2]
        return images

    def _fall_back(self, error: Exception) -> None:
        self.fallback_reason = reason(error)
        if self._strict:
            raise UnreadableVideo(
                f"{self.path} cannot be decoded by decord ({self.fallback_reason}): use backend='auto' or 'pyav'."
            ) from error
        self._decoder = PyAVDecoder(self._local_path, self._index)

    def _upright_size(self) -> tuple[int, int]:
        if self._size is None:
            self._read(np.zeros(1, dtype=np.int64))
        assert self._size is not None
        return self._size


def open_video(path: str | os.PathLike[str], *, backend: str = "auto", num_threads: int = 0) -> Video:
    """Open a video file or http(s) address.

    ``backend``: "auto" (decord, then PyAV), "decord" or "pyav". ``num_threads`` of decord: 0 lets FFmpeg choose; a
    worker process among many takes 1. Several video streams: the one that FFmpeg calls best.
    Raises :class:`UnreadableVideo`, one sentence saying what the file is instead of a video.
    """
    if backend not in BACKENDS:
        raise RequestError(f"backend is {backend!r}, but can be one of {', '.join(BACKENDS)}.")
    with ExitStack() as cleanup:
        local_path = cleanup.enter_context(local_file(os.fspath(path)))
        video = Video(os.fspath(path), local_path, backend, num_threads)
        video._cleanup = cleanup.pop_all()
    return video


def is_address(path: str) -> bool:
    """Whether this is an http(s) address."""
    return urlsplit(path).scheme in ("http", "https")


@contextmanager
def local_file(path: str) -> Iterator[str]:
    """The absolute path of a file that is there and not empty; an http(s) address is downloaded for as long.

    Downloaded, not handed to FFmpeg: times, frames and a second decoder each read the file, and the network once.
    Raises :class:`UnreadableVideo`, one sentence.
    """
    if is_address(path):
        with tempfile.TemporaryDirectory(prefix="hiera_video_") as folder:
            target = os.path.join(folder, os.path.basename(urlsplit(path).path) or "download")
            _download(path, target)
            yield target
        return
    if os.path.isdir(path):
        raise UnreadableVideo(f"{path} is a folder, not a file: name the files in it.")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        remedy = "check the path" if isinstance(error, FileNotFoundError) else "check its permissions"
        raise UnreadableVideo(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
    if empty:
        raise UnreadableVideo(f"{path} is empty (0 bytes): copy or download it again.")
    yield os.path.abspath(path)  # absolute, or FFmpeg takes "a:b.mp4" for a protocol


def _download(address: str, target: str) -> None:
    limit = f"{MAX_DOWNLOAD_BYTES / 2**30:g} GiB"
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_S) as answer, open(target, "wb") as file:
            while block := answer.read(2**20):
                file.write(block)
                if file.tell() > MAX_DOWNLOAD_BYTES:
                    raise UnreadableVideo(f"{address} is larger than {limit}: download it yourself and name the file.")
            size = file.tell()
    except UnreadableVideo:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise UnreadableVideo(f"{address} cannot be fetched ({error}): check the address and the network.") from error
    if size == 0:
        raise UnreadableVideo(f"{address} gives an empty file: check the address.")
