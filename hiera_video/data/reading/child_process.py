"""Reading videos in a child process: a decoder that hangs or crashes takes down the child at most.

    parent                                    child (one for each :class:`IsolatedReader`)
    reader.open(path)    -- path, options -->  open_video(path)
                         <-- index, facts ---
    video.frames(...)    -- numbers --------> decodes into memory that both share
                         <-- shape ----------

The child is started with ``subprocess``, since loader workers are daemonic and may not have ``multiprocessing``
children, and ends by itself when its parent is gone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.decoders import Image
from hiera_video.data.reading.packets import Media
from hiera_video.data.reading.reader import Video, open_video
from hiera_video.data.shared_memory import reserve, shared_file
from hiera_video.errors import HieraVideoError, RequestError, UnreadableVideo

if TYPE_CHECKING:
    from typing_extensions import Self

#: A damaged header may promise pictures of any size: past this the child gives up, not the machine.
MAX_CHILD_BYTES = 16 * 2**30
#: The child is replaced after so many videos, so that what decoders leak does not add up.
MAX_OPENS = 2000
START_LIMIT_S = 300


class ChildDied(Exception):
    """The child is gone; says how it ended."""


@dataclass
class _Child:
    """A process that decodes, started by the process ``owner``; ``memory`` is the file that both map."""

    process: subprocess.Popen[bytes]
    connection: Connection
    memory: IO[bytes]
    owner: int
    ready: bool = False


#: Children that were started before a reader needed them.
_SPARE: list[_Child] = []


def start_early(count: int = 1) -> None:
    """Starts children for readers to come: they import what they need while this process does the same.

    Args:
        count: How many are to wait.
    """
    if os.name == "posix":
        _SPARE[:] = [child for child in _SPARE if child.owner == os.getpid()]  # others belong to this one's parent
        _SPARE.extend(_launch() for _ in range(count - len(_SPARE)))


def end_spare() -> None:
    """Ends the children that nobody needed."""
    while _SPARE:
        child = _SPARE.pop()
        if child.owner == os.getpid():
            child.process.kill()
            child.process.wait()
            child.connection.close()
            child.memory.close()


def _launch() -> _Child:
    """Starts a child, and does not wait for it."""
    ours, theirs = socketpair()
    memory = shared_file()
    package = str(Path(__file__).parents[3])
    search = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"from {__name__} import serve; serve({theirs.fileno()}, {memory.fileno()})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # decoders write there what is said better in answers
        pass_fds=(theirs.fileno(), memory.fileno()),
        env=os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()
    return _Child(process, Connection(ours.detach()), memory, os.getpid())


class IsolatedReader:
    """Opens videos one after the other in a child process of its own; use one for each thread or worker.

    A request that takes longer than ``time_limit`` seconds ends the child. A file on which the child crashes is tried
    once more in a new one: it may have been killed for another's sake. POSIX systems only.
    """

    def __init__(self, *, time_limit: float = 60) -> None:
        if os.name != "posix":
            raise RequestError("a decoder in a child process needs Linux or macOS: use isolate=False.")
        if not time_limit > 0:
            raise RequestError(f"time_limit is {time_limit}, but is a number of seconds above 0.")
        self.time_limit = time_limit
        self._child: _Child | None = None
        self._map: mmap.mmap | None = None
        self._opens = 0
        self._stopped = False

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(IsolatedReader, time_limit=self.time_limit), ()  # a copy elsewhere has a child of its own

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be half gone
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self, path: str | os.PathLike[str], **options: Any) -> Video:
        """:func:`hiera_video.open_video` of a file or address, with its options, in the child.

        Opening another video closes this one. Raises :class:`UnreadableVideo` also when the child crashes on the file
        or takes too long; so does reading its frames.
        """
        name = os.fspath(path)
        if self._child is not None and (self._opens >= MAX_OPENS or self._child.owner != os.getpid()):
            self.close()
        if self._child is not None and self._child.process.poll() is not None:
            self.close()  # it ended while it had nothing to do: that is no fault of this file
        index, facts, fallback_reason = self.ask(name, [("open", name, options)])
        self._opens += 1
        decoder = RemoteDecoder(self, name, options, facts)
        return Video(Media(name, name), index, decoder, strict=True, fallback_reason=fallback_reason)

    def stop(self) -> None:
        """End the child from another thread, for good: whoever waits for it gets an :class:`UnreadableVideo`."""
        self._stopped = True
        child = self._child
        if child is not None and child.owner == os.getpid():
            child.process.kill()

    def close(self) -> None:
        """End the child."""
        child = self._child
        if child is None:
            return
        if child.owner == os.getpid():  # else this is a copy in a forked process: the child is its parent's
            child.process.kill()
            child.process.wait()
        child.connection.close()
        if self._map is not None:
            with suppress(BufferError):  # somebody looks at frames: they keep the memory
                self._map.close()
            self._map = None
        child.memory.close()
        self._child = None
        self._opens = 0

    def ask(self, name: str, requests: list[tuple[Any, ...]]) -> Any:
        """The child's answer to the last of ``requests``; all are asked again of a new child if it dies."""
        for last_try in (False, True):
            try:
                asked = requests if self._child is None else requests[-1:]
                return self._ask(self._child or self._start(), name, asked)
            except ChildDied as death:
                self.close()
                if last_try or self._stopped:
                    raise UnreadableVideo(
                        f"{name} makes the decoder crash ({death}): convert it, or leave it out."
                    ) from death

    def pixels(self, shape: tuple[int, ...]) -> Image:
        """uint8 of ``shape`` in the shared memory: valid until the next request."""
        assert self._child is not None
        size = int(np.prod(shape))
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self._child.memory.fileno(), 0)
        return np.frombuffer(self._map, dtype=np.uint8, count=size).reshape(shape)

    def _ask(self, child: _Child, name: str, requests: list[tuple[Any, ...]]) -> Any:
        answer = None
        self._wait_for(child)
        for request in requests:
            try:
                child.connection.send((self.time_limit, *request))
                if not child.connection.poll(self.time_limit):
                    self.close()
                    raise UnreadableVideo(
                        f"{name} takes longer than {self.time_limit:g} s to decode: leave it out, or raise time_limit."
                    )
                kind, answer = child.connection.recv()
            except (EOFError, ConnectionError) as error:
                raise ChildDied(_how_it_ended(child)) from error
            if kind == "unreadable":
                raise UnreadableVideo(answer)
            if kind == "request":
                raise RequestError(answer)
        return answer

    def _start(self) -> _Child:
        try:
            child = _SPARE.pop()
        except IndexError:
            child = _launch()
        self._child = child = child if child.owner == os.getpid() else _launch()
        if self._stopped:
            child.process.kill()
        return child

    def _wait_for(self, child: _Child) -> None:
        """Starting takes what it takes on a busy machine: the time limit is for videos."""
        try:
            if not child.ready and (not child.connection.poll(START_LIMIT_S) or child.connection.recv() != "ready"):
                self.close()
                raise RequestError(
                    f"a process that decodes did not start within {START_LIMIT_S} s: run fewer jobs at once here."
                )
            child.ready = True
        except (EOFError, ConnectionError) as error:
            raise ChildDied(_how_it_ended(child)) from error


def _how_it_ended(child: _Child) -> str:
    code = child.process.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def isolated_reader(time_limit: float) -> IsolatedReader | None:
    """A child process to decode in, or None where the system has no such thing (Windows).

    Args:
        time_limit: Seconds after which a decoder counts as hanging.

    Returns:
        A reader for one thread; its child starts with the first file.
    """
    return IsolatedReader(time_limit=time_limit) if os.name == "posix" else None


class RemoteDecoder:
    """A video that is open in an :class:`IsolatedReader`'s child, as a decoder of :class:`Video`."""

    def __init__(self, reader: IsolatedReader, name: str, options: dict[str, Any], facts: dict[str, Any]) -> None:
        self._reader, self._name, self._options = reader, name, options
        self.backend: str = facts["backend"]
        self.error: str | None = facts["error"]
        self.time_error = 0.0
        self.turned: bool | None = facts["turned"]

    def close(self) -> None:
        pass  # the next open closes it

    def read(self, wanted: NDArray[np.int64], short_side: int | None) -> tuple[NDArray[np.int64], Image]:
        """Numbers of the frames shown and their images uint8 [n, H, W, 3], in shared memory: copy them before the next
        call.
        """
        opening = ("open", self._name, self._options)
        shown, shape, facts = self._reader.ask(self._name, [opening, ("frames", self._name, wanted, short_side)])
        self.backend, self.error, self.time_error = facts["backend"], facts["error"], facts["time_error"]
        self.turned = facts["turned"]
        return shown, self._reader.pixels(shape)


def keep_freed_memory(most: int = 256 * 2**20) -> None:
    """Have this process keep what it frees: for a process that handles pictures, or runs a model, all its life.

    They come and go in blocks that the C library gives back to the system at once, and asks for again page by page:
    up to half of the time of a decoder, a tenth of a model's. Only glibc has the switch.

    Args:
        most: Bytes that are kept at the end of the heap.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-4, 0), (-1, most), (-2, 16 * 2**20)):
            mallopt(option, value)  # M_MMAP_MAX: no block is mapped by itself; M_TRIM_THRESHOLD; M_TOP_PAD


def serve(connection_fd: int, memory_fd: int) -> None:
    """The child's life: answers requests until its parent is gone."""
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the parent, which ends this process
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_CHILD_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    connection = Connection(connection_fd)
    server = _Server(memory_fd)
    connection.send("ready")
    while True:
        try:
            limit, *request = connection.recv()
        except (EOFError, ConnectionError):
            return
        # SIGALRM ends an orphaned child.
        signal.setitimer(signal.ITIMER_REAL, 2 * limit)
        try:
            answer = ("ok", server.answer(*request))
        except UnreadableVideo as error:
            answer = ("unreadable", str(error))
        except MemoryError:
            answer = ("unreadable", f"{request[1]} needs more memory than {MAX_CHILD_BYTES >> 30} GiB: check the file.")
        except HieraVideoError as error:
            answer = ("request", str(error))
        except Exception as error:  # errors travel in the reply: a run of days does not end over one file
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = (
                f"{type(error).__name__}: {' '.join(str(error).split())} at {Path(where.filename).name}:{where.lineno}"
            )
            answer = ("unreadable", f"{request[1]} makes the reader fail ({fault}): please report it, with the file.")
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send(answer)
        except ConnectionError:
            return


class _Server:
    def __init__(self, memory_fd: int) -> None:
        self._memory_fd = memory_fd
        self._map: mmap.mmap | None = None
        self._video: Video | None = None

    def answer(self, kind: str, name: str, *details: Any) -> Any:
        if kind == "open":
            if self._video is not None:
                self._video.close()
                self._video = None
            self._video = video = open_video(name, **details[0])
            return video.index, self._facts(video), video.fallback_reason
        assert self._video is not None
        shown, images = self._video.read(*details)
        shape = (len(images), *images[0].shape)
        np.stack(list(images), out=self._pixels(shape))
        return shown, shape, self._facts(self._video)

    def _facts(self, video: Video) -> dict[str, Any]:
        facts = {"backend": video.backend, "error": video.error, "time_error": video.time_error}
        return facts | {"turned": video.turned}

    def _pixels(self, shape: tuple[int, ...]) -> Image:
        size = int(np.prod(shape))
        if self._map is None or len(self._map) < size:
            reserve(self._memory_fd, size)
            self._map = mmap.mmap(self._memory_fd, 0)
        return np.frombuffer(self._map, dtype=np.uint8, count=size).reshape(shape)
