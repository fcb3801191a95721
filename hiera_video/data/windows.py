"""A video of any length as windows, one after the other, each frame decoded and resized once.

A *window* is a stretch of time of an input, shown to the model as one clip. A *crop* is a part of its picture: a window
has one, or three along the long side. :class:`Windows` are a few that follow each other, decoded together.
(The windows of the model's attention are other things, and so are test views: clips x crops.)

:func:`walk` reads one input in constant memory; :func:`read_ahead` many, each by whichever thread is free:

    thread 1   its child process decodes -> the thread resizes --+
    thread 2   its child process decodes -> the thread resizes --+--> queue --> who iterates over read_ahead
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from queue import Empty, Queue
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_image, read_image
from hiera_video.data.reading.reader import Video
from hiera_video.data.sampling import ROUNDING_S, window_clips, window_starts
from hiera_video.data.transforms import CropPlan, plan_crops, plan_whole
from hiera_video.data.views import Views, open_input
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec

Crop: TypeAlias = Literal["center", "three", "none"]
#: Names of the crops of a window, in their order.
CROPS: dict[Crop, tuple[str, ...]] = {"center": ("center",), "three": ("first", "center", "last"), "none": ("none",)}
#: What each thread may have decoded before it is asked for: :class:`Windows`.
AHEAD = 2
#: Seconds to wait for a thread to end, once its child process is dead.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Walk:
    """How inputs become windows.

    Args:
        spec: The clip that each window shows.
        hop: Seconds from the beginning of one window to that of the next.
        crop: ``center``, ``three`` along the long side, or ``none``: the whole picture.
        multiple: Pixels; with ``crop="none"`` the sides are rounded to multiples of it.
        at_once: Windows that are decoded together.
        decode: As in :func:`hiera_video.open_video`.
        num_pictures: Windows, evenly spread, of which the frame in the middle is kept for people to look at.
    """

    spec: ClipSpec
    hop: float
    crop: Crop = "center"
    multiple: int = 32
    at_once: int = 8
    decode: Literal["exact", "fast"] = "exact"
    num_pictures: int = 0

    def plan(self, picture: tuple[int, int], pixel_aspect: float | Fraction = 1) -> CropPlan:
        """Where the crops of pictures of one size lie.

        Args:
            picture: (height, width) of the pictures.
            pixel_aspect: Width over height at which a pixel of them is shown.

        Returns:
            The plan.
        """
        if self.crop == "none":
            return plan_whole(picture, self.spec, self.multiple, pixel_aspect)
        return plan_crops(picture, self.spec, len(CROPS[self.crop]), pixel_aspect)


@dataclass(frozen=True)
class Windows:
    """Consecutive windows of one input, decoded together: numbers ``first`` to ``first + len(windows) - 1``.

    ``input``: its name. ``views`` has the pictures: a row of frames for each window. ``total``: windows of the whole
    input. ``starts``, ``ends`` float64 [n] and ``times`` float64 [n, T], of each frame, are seconds after the input's
    first frame (0 for an image). ``plan`` says where the crops lie in the upright picture, ``crops`` their names.
    ``padded``: the input is shorter than a window, and its last frame is repeated. ``pictures``, for people to look at:
    seconds after the first frame, and the middle crop there at the input's own resolution, uint8 [h, w, 3].
    """

    input: str
    views: Views
    first: int
    total: int
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    times: NDArray[np.float64]
    plan: CropPlan
    crops: tuple[str, ...]
    padded: bool
    pictures: list[tuple[float, NDArray[np.uint8]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Decoded:
    """The next windows of ``input``; or, where nothing more can be read, None and one sentence, the ``error``.

    ``reached``: the number of the first window that is not decoded yet.
    """

    input: str
    reached: int
    windows: Windows | None
    error: str | None = None


def walk(
    source: str | Video, how: Walk, *, first: int = 0, reader: IsolatedReader | None = None, name: str | None = None
) -> Iterator[Windows]:
    """The windows of one input, in constant memory.

    Args:
        source: A video file, an image file (one window, a still), an http(s) address, or an open video.
        how: What windows, and which crops of them.
        first: The number of the first window to read.
        reader: Decodes in its child process; None: in this one.
        name: What the windows call their input; None: as ``source``.

    Yields:
        Up to ``how.at_once`` windows, in their order.

    Raises:
        UnreadableVideo: When nothing can be read, or nothing more.
    """
    if isinstance(source, Video):
        yield from _walk_video(source, how, first, name or source.path)
    elif is_image(source):
        yield _still(read_image(source)[np.newaxis], how, name or source)
    else:
        with open_input(source, reader, decode=how.decode) as video:
            yield from _walk_video(video, how, first, name or source)


def _walk_video(video: Video, how: Walk, first: int, name: str) -> Iterator[Windows]:
    begin, span = float(video.times[0]), how.spec.span
    starts = window_starts(video.times, how.spec, how.hop)
    waiting: deque[NDArray[np.int64]] = deque()  # which frames of a row each of its windows shows
    plans: list[CropPlan] = []

    def rows() -> Iterator[NDArray[np.int64]]:
        clips = window_clips(video.times, how.spec, starts[first:])
        while part := list(islice(clips, how.at_once)):
            distinct, inverse = np.unique(np.stack(part), return_inverse=True)
            waiting.append(inverse.reshape(len(part), -1))
            yield distinct

    def prepare(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not plans:
            plans.append(how.plan((pictures.shape[1], pictures.shape[2]), video.pixel_aspect))
        fitted: NDArray[np.uint8] = plans[0].apply(pictures, how.spec).permute(0, 2, 3, 1).numpy()
        return fitted.copy() if np.shares_memory(fitted, pictures) else fitted

    spread = np.unique(np.linspace(0, len(starts) - 1, how.num_pictures).round().astype(int))
    looked_at = [row[len(row) // 2] for row in window_clips(video.times, how.spec, starts[spread])]
    kept: list[tuple[float, NDArray[np.uint8]]] = []

    def watch(numbers: NDArray[np.int64], pictures: NDArray[np.uint8]) -> None:
        for place in np.flatnonzero(np.isin(numbers, looked_at)):
            kept.append((float(video.times[numbers[place]]) - begin, plans[0].show(pictures[place])))

    number = first
    for frames in video.stream(rows(), prepare, watch):
        shown, plan = waiting.popleft(), plans[0]
        begins = starts[number : number + len(shown)]
        times = frames.times[shown] - begin
        yield Windows(
            input=name,
            views=Views(
                torch.from_numpy(frames.pixels).permute(3, 0, 1, 2).contiguous(),
                torch.from_numpy(shown),
                plan.corners,
                plan.size,
                np.repeat(times, len(plan.corners), axis=0),
                video.duration,
                video.error,
            ),
            first=number,
            total=len(starts),
            starts=begins,
            ends=np.minimum(begins + span, video.duration),
            times=times,
            plan=plan,
            crops=CROPS[how.crop],
            padded=video.duration < span - ROUNDING_S,
            pictures=kept.copy(),
        )
        kept.clear()
        number += len(shown)


def _still(picture: NDArray[np.uint8], how: Walk, name: str) -> Windows:
    """An image, uint8 [1, H, W, 3]: every frame shows it."""
    plan, zero = how.plan((picture.shape[1], picture.shape[2])), np.zeros(1)
    rows = torch.zeros(1, how.spec.num_frames, dtype=torch.int64)
    frames = plan.apply(picture, how.spec).transpose(0, 1).contiguous()
    times = np.zeros((len(plan.corners), how.spec.num_frames))
    views = Views(frames, rows, plan.corners, plan.size, times, 0.0)
    pictures = [(0.0, plan.show(picture[0]))] if how.num_pictures else []
    return Windows(name, views, 0, 1, zero, zero, times[:1], plan, CROPS[how.crop], padded=False, pictures=pictures)


def read_ahead(
    todo: Iterable[tuple[str, int]], how: Walk, *, num_workers: int = 2, time_limit: float = 60
) -> Generator[Decoded, None, None]:
    """The windows of many inputs, decoded ahead of whoever iterates.

    Each thread takes the next input that no other has taken: a long one holds nobody up. Close the generator, or
    exhaust it, to end the threads.

    Args:
        todo: Inputs, each with the number of the first window to read; may be as long as one likes.
        how: What windows, and which crops of them.
        num_workers: Threads, each with a child process that decodes; 0: no thread, and nothing is read ahead.
        time_limit: Seconds that one request to a decoder may take.

    Yields:
        The windows of each input in their order, those of several inputs mixed. Where an input cannot be read, or
        not to its end, its last item has the reason.

    Raises:
        RequestError: For a negative ``num_workers``, and a ``time_limit`` that is none.
    """
    if num_workers < 0:
        raise RequestError(f"num_workers is {num_workers}, but is at least 0")
    if num_workers == 0:
        with IsolatedReader(time_limit=time_limit) as reader:
            for name, first in todo:
                yield from decode_input(name, how, first, reader)
        return
    num_threads = torch.get_num_threads()
    pool = _Pool(todo, how, [IsolatedReader(time_limit=time_limit) for _ in range(num_workers)])
    try:
        yield from pool.items()
    finally:
        pool.stop()
        torch.set_num_threads(num_threads)  # threads that start later follow the last one that set it


def decode_input(
    source: str, how: Walk, first: int, reader: IsolatedReader, *, name: str | None = None
) -> Iterator[Decoded]:
    """The windows of one input, and why there are no more where it cannot be read to its end.

    Args:
        source: A video or image file, or an http(s) address.
        how: What windows, and which crops of them.
        first: The number of the first window to read.
        reader: Decodes in its child process.
        name: What the input is called; None: as ``source``.

    Yields:
        Up to ``how.at_once`` windows, in their order; at last an error, if there is one.
    """
    name, reached = name or source, first
    try:
        for windows in walk(source, how, first=first, reader=reader, name=name):
            reached = windows.first + len(windows)
            yield Decoded(name, reached, windows)
    except UnreadableVideo as error:
        yield Decoded(name, reached, None, str(error))


class _Pool:
    """Threads that decode into a queue."""

    def __init__(self, todo: Iterable[tuple[str, int]], how: Walk, readers: list[IsolatedReader]) -> None:
        self._todo, self._how, self._readers = iter(todo), how, readers
        self._lock = threading.Lock()  # of todo
        self._queue: Queue[Decoded | BaseException | None] = Queue(AHEAD * len(readers))
        self._stopped = False
        # A program may end while the generator is held: threads inside torch would bring it down.
        atexit.register(self.stop)
        self._threads = [
            threading.Thread(target=self._run, args=(reader,), daemon=True, name=f"hiera_video reader {number}")
            for number, reader in enumerate(readers)
        ]
        for thread in self._threads:
            thread.start()

    def items(self) -> Iterator[Decoded]:
        """What the threads decode, until all have ended; raises what goes wrong in one of them."""
        running = len(self._threads)
        while running:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item

    def stop(self) -> None:
        """End the threads and their children, whatever they are doing."""
        atexit.unregister(self.stop)
        self._stopped = True
        for reader in self._readers:
            reader.stop()
        deadline = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < deadline:
                self._drain()
                thread.join(0.01)

    def _drain(self) -> None:
        """Make room in the queue: a thread that waits for it goes on."""
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return

    def _next(self) -> tuple[str, int] | None:
        with self._lock:
            return None if self._stopped else next(self._todo, None)

    def _run(self, reader: IsolatedReader) -> None:
        torch.set_num_threads(1)  # of this thread: there are several of them, and the model
        try:
            with reader:
                while (entry := self._next()) is not None:
                    name, first = entry
                    for item in decode_input(name, self._how, first, reader):
                        self._queue.put(item)
                        if self._stopped:
                            return
        except BaseException as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)
