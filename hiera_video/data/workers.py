"""Worker processes that read ahead: torch's ``DataLoader`` runs them, this file starts and ends them.

Workers that wait must end with the program: a script that is done, an exception, Ctrl-C, a notebook that is shut down.
But a signal to a whole group of processes must not end them, while the main process finishes its step.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import warnings
from collections.abc import Iterator
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hiera_video.data.reading.child_process import keep_freed_memory
from hiera_video.data.shared_memory import share


def start_workers(dataset: Dataset[Any], keys: Iterator[Any], num_workers: int) -> Iterator[Any]:
    """What a dataset has for each key, as it is, read ahead by worker processes.

    The workers end when the iterator is closed or collected, and when the interpreter ends, in whatever way.

    Args:
        dataset: Gives an item for a key.
        keys: Taken in order, and their items come in this order.
        num_workers: Processes to start, by the start method of :mod:`torch.multiprocessing`; 0: read in this process.

    Yields:
        The dataset's items.
    """
    ends = RawValue(ctypes.c_bool, False)  # shared with the workers
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:  # a fork of this process may end while the workers have work to do
            ends.value = True

    def at_exit() -> None:
        # Now multiprocessing sends SIGTERM to the workers that are left, and waits for them: this function was
        # registered after its own, so it is called before. torch's handler of SIGCHLD would call a worker that ends
        # while it is still starting a failure.
        end()
        if os.getpid() == owner:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    atexit.register(at_exit)
    batches = _started(dataset, keys, num_workers, ends)
    try:
        yield from batches
    finally:
        end()
        atexit.unregister(at_exit)


def _started(dataset: Dataset[Any], keys: Iterator[Any], num_workers: int, ends: Any) -> Iterator[Any]:
    # Workers are forked: freeze the collector, so that they neither copy garbage pages nor wait for a foreign decoder's
    # threads.
    gc.collect()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more than processors, if asked for
            loader: DataLoader[Any] = DataLoader(
                dataset,
                batch_size=None,
                sampler=keys,
                num_workers=num_workers,
                collate_fn=share if num_workers else _as_it_is,
                worker_init_fn=partial(_init_worker, ends),
                pin_memory=torch.cuda.is_available(),
            )
            return iter(loader)
    finally:
        gc.unfreeze()


def _init_worker(ends: Any, number: int) -> None:
    """Signals to a group of processes (torchrun's, Slurm's, Ctrl-C) are for the main one: it finishes its step, and
    still needs batches. SIGTERM ends a worker only once the main process has marked that it ends its workers.
    """

    def terminate(signal_number: int, frame: object) -> None:
        if ends.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()


def _as_it_is(batch: Any) -> Any:
    return batch
