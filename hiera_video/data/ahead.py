"""Reading ahead: threads read the next inputs while the caller works on this one, each with a child that decodes.

    map_ahead(read, items)    thread 1:  read(item, reader)  -- child process that decodes
                              thread 2:  read(item, reader)  -- child process that decodes
                              ...        results come in the order of the items

Threads, not forked workers: they cost no copy of this process, and they end with it, however it ends.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, nullcontext
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import torch

from hiera_video.data.reading.child_process import IsolatedReader, isolated_reader
from hiera_video.errors import RequestError

T = TypeVar("T")
R = TypeVar("R")

#: What a thread is asked: where the result goes, and the item; None ends the thread.
_Tasks: TypeAlias = "SimpleQueue[tuple[Future[Any], Any] | None]"


def map_ahead(
    read: Callable[[T, IsolatedReader | None], R],
    items: Iterable[T],
    *,
    num_workers: int,
    time_limit: float = 60,
    isolate: bool = True,
) -> Iterator[R]:
    """``read(item, reader)`` of each item, in the order of the items, computed ahead by threads.

    The threads and their children end when the iterator is exhausted, closed or deleted, on an exception or Ctrl-C,
    and at the end of the program.

    Args:
        read: Called in a thread of its own; ``reader`` decodes in that thread's child process.
        items: What to read; at most ``2 * num_workers + 1`` are taken ahead.
        num_workers: Threads; 0 reads in the calling thread, when it is asked for.
        time_limit: Seconds after which a decoder counts as hanging.
        isolate: Whether to decode in child processes; else ``reader`` is None.

    Yields:
        The results.

    Raises:
        RequestError: For a negative number of workers.
        Exception: Whatever ``read`` raises, in the place of its result.
    """
    if num_workers < 0:
        raise RequestError(f"num_workers is {num_workers}, but is at least 0.")
    return _map_ahead(read, items, num_workers, time_limit if isolate else None)


def _map_ahead(
    read: Callable[[T, IsolatedReader | None], R], items: Iterable[T], num_workers: int, time_limit: float | None
) -> Iterator[R]:
    if num_workers == 0:
        with (None if time_limit is None else isolated_reader(time_limit)) or nullcontext() as reader:
            for item in items:
                yield read(item, reader)
        return
    waiting: deque[Future[R]] = deque()
    with closing(_Threads(read, num_workers, time_limit)) as threads:
        for item in items:
            waiting.append(threads.submit(item))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Threads:
    """Threads that read; ``close`` ends them at once, and is called by itself when this is deleted or Python ends."""

    def __init__(self, read: Callable[..., Any], num_threads: int, time_limit: float | None) -> None:
        self._read, self._num_threads, self._time_limit = read, num_threads, time_limit
        self._tasks: _Tasks = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._readers: list[IsolatedReader] = []
        self._stopped = threading.Event()
        # Not ``__del__``: threads that are still inside torch when Python ends would bring the process down.
        self.close = weakref.finalize(self, _stop, self._tasks, self._readers, self._threads, self._stopped)

    def submit(self, item: Any) -> Future[Any]:
        if len(self._threads) < self._num_threads:
            self._start()
        future: Future[Any] = Future()
        self._tasks.put((future, item))
        return future

    def _start(self) -> None:
        reader = None if self._time_limit is None else isolated_reader(self._time_limit)
        started, torch_threads = threading.Event(), torch.get_num_threads()
        details = (self._read, reader, self._tasks, self._stopped, started)
        thread = threading.Thread(target=_work, args=details, name="hiera_video reader", daemon=True)
        self._readers += [] if reader is None else [reader]
        self._threads.append(thread)
        thread.start()
        started.wait()
        torch.set_num_threads(torch_threads)  # else the new thread's number would be the one of all later threads


def _work(
    read: Callable[..., Any],
    reader: IsolatedReader | None,
    tasks: _Tasks,
    stopped: threading.Event,
    started: threading.Event,
) -> None:
    torch.set_num_threads(1)  # as many threads as there are cores, in each of these, would wait for each other
    started.set()
    with reader or nullcontext():
        while (task := tasks.get()) is not None and not stopped.is_set():
            future, item = task
            try:
                future.set_result(read(item, reader))
            except BaseException as error:  # raised again where the result is asked for
                future.set_exception(error)
            del future, item, task  # results are large


def _stop(
    tasks: _Tasks, readers: list[IsolatedReader], threads: list[threading.Thread], stopped: threading.Event
) -> None:
    stopped.set()
    for reader in readers:
        reader.stop()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        thread.join()
