"""Measuring on this machine: files that are opened, things drawn from a stream for some seconds, memory, FLOPs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_address, is_image
from hiera_video.data.reading.shards import parse_member
from hiera_video.data.sampling import keyed_rng, window_starts
from hiera_video.data.windows import Walk
from hiera_video.errors import UnreadableVideo

T = TypeVar("T")
Shape: TypeAlias = Sequence[int]
clock = time.perf_counter

#: Seconds in which files are opened to see how long they are and whether they can be read; of the others, the mean.
LOOK_S = 3.0
#: Files whose sizes are asked for.
MOST_FILES = 20_000
#: The share of a measurement that is left out: queues are filled then.
WARM = 0.3


@dataclass(frozen=True)
class Part:
    """What a job does ``count`` times.

    ``each``: seconds of one, decoding and model together as the job runs them, 0 where the model was not run;
    ``decoding``: core seconds of reading and decoding for it; ``model``: seconds of the model alone; ``flops``;
    ``once``: seconds that come once beside them: readers that start, checkpoints, pictures.
    """

    what: str
    count: int
    each: float
    decoding: float
    model: float
    flops: float
    once: float = 0.0


@dataclass
class Looked:
    """Files: all their ``bytes`` and ``windows`` (of those opened, scaled to all where time was short: then ``exact``
    is off), numbers of ``good`` ones, and why each of the ``bad`` cannot be read.
    """

    bytes: float = 0.0
    windows: float = 0.0
    exact: bool = True
    good: list[int] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


# --- files ------------------------------------------------------------------------------------------------------------


def look(paths: Sequence[str], walk: Walk | None = None, fps: float | None = None) -> Looked:
    """Sizes of files, and of those that can be opened in a few seconds whether they can, and their windows.

    Args:
        paths: Files.
        walk: How they become windows; None: they do not.
        fps: Frames a second of folders of pictures.

    Returns:
        What was seen.

    Raises:
        UnreadableVideo: None can be read.
    """
    looked, sizes, windows, until = Looked(), list[int](), list[int](), time.monotonic() + LOOK_S
    with IsolatedReader(time_limit=60) as reader:
        for number in keyed_rng(0).permutation(len(paths)).tolist()[:MOST_FILES]:
            path = paths[number]
            try:
                sizes.append(_size(path))
                if looked.good and time.monotonic() > until:
                    continue
                if is_image(path):
                    windows.append(1)
                else:
                    times = reader.open(path, fps=fps).times
                    windows.append(0 if walk is None else len(window_starts(times, walk.spec, walk.hop)))
                looked.good.append(number)
            except UnreadableVideo as error:
                looked.bad[path] = str(error)
            except OSError as error:
                looked.bad[path] = f"{path} cannot be read: {error.strerror or error}"
    if not looked.good:
        raise UnreadableVideo(f"none of {len(paths)} files can be read: {next(iter(looked.bad.values()), 'no file')}")
    looked.exact = len(windows) + len(looked.bad) == len(paths)
    looked.bytes = sum(sizes) * max(1, len(paths) / MOST_FILES)
    looked.windows = sum(windows) * (1 if looked.exact else len(paths) / (len(windows) + len(looked.bad)))
    return looked


def _size(path: str) -> int:
    """Bytes of a file, of a file in a shard, or of a folder's; 0 of an address."""
    if member := parse_member(path):
        return member.size
    if is_address(path):
        return 0
    return sum(file.stat().st_size for file in os.scandir(path)) if os.path.isdir(path) else os.stat(path).st_size


# --- time and memory --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Seconds and core seconds of each of a row of things, seconds until they began to come, and in all."""

    each: float
    cores: float
    start: float
    total: float


def pace(counts: Iterable[int], seconds: float) -> Pace:
    """Draws from what goes on for ever, for some seconds.

    Args:
        counts: How many things are done with each item that comes; they may come several at once.
        seconds: How long, from the first that comes.

    Returns:
        The pace, without the first items.
    """
    began = clock()
    stamps: list[tuple[float, int]] = []
    warm, cores = 0, 0.0
    for count in counts:
        now = clock() - began
        stamps.append((now, count + (stamps[-1][1] if stamps else 0)))
        since = now - stamps[0][0]
        if not warm and len(stamps) > 1 and since >= WARM * seconds:
            warm, cores = len(stamps) - 1, core_seconds()
        elif warm and since >= seconds:
            break
    before, (last, done) = stamps[warm][1], stamps[-1]
    each, offset = np.polyfit([number for _, number in stamps[warm:]], [at for at, _ in stamps[warm:]], 1)
    return Pace(float(each), (core_seconds() - cores) / (done - before), max(0.0, float(offset)), last)


def since_start() -> float:
    """Seconds since this process began."""
    return time.time() - psutil.Process().create_time()


def core_seconds() -> float:
    """Of this process and those below it."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [here, *here.children(recursive=True)])


def others_memory() -> int:
    """Bytes that the processes below this one hold for themselves."""
    return sum(process.memory_full_info().uss for process in psutil.Process().children(recursive=True))


def own_memory() -> int:
    """The most bytes that this process has held."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Waiting(Iterator[T]):
    """The same items, and the ``seconds`` for which they were waited."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self.seconds = items, 0.0

    def __next__(self) -> T:
        began = clock()
        try:
            return next(self._items)
        finally:
            self.seconds += clock() - began


def counting() -> FlopCounterMode:
    """torch's counter, which does not know the attention of CPUs by itself; what is computed again is not counted."""
    aten = torch.ops.aten

    def forward(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: object, **___: object) -> int:
        return 2 * forward(query, key, value)

    mapping = {aten._scaled_dot_product_flash_attention_for_cpu: forward}
    mapping[aten._scaled_dot_product_flash_attention_for_cpu_backward] = backward
    return FlopCounterMode(display=False, custom_mapping=mapping)


@dataclass(frozen=True)
class Meter:
    """How the parts of a job without training are measured."""

    device: torch.device
    seconds: float
    run_model: bool
    memory: list[int] = field(default_factory=list)

    def part(
        self,
        what: str,
        count: int,
        load: Callable[[], Iterator[T]],
        units: Callable[[T], int],
        compute: Callable[[Iterator[T]], Iterator[object]],
        one: Callable[[T], tuple[Callable[[], object], float]],
    ) -> Part:
        """Reading alone, then with the model. ``one``: from an item a call of the model, and the units in it."""
        with closing(load()) as loaded:  # type: ignore[type-var]
            first = next(item for item in loaded if units(item))
            alone = pace(map(units, loaded), 0.3 * self.seconds)
            self.memory.append(others_memory())
        call, in_call = one(first)
        with counting() as counter:
            call()
        flops = counter.get_total_flops() / in_call
        if not self.run_model:
            return Part(what, count, 0.0, alone.cores, 0.0, flops)
        with closing(load()) as loaded:  # type: ignore[type-var]
            waiting = Waiting(loaded)
            both = pace((1 for _ in compute(waiting)), 0.7 * self.seconds)
            self.memory.append(others_memory())
        model = model_seconds(self.device, both, alone.cores, waiting.seconds / both.total)
        return Part(what, count, both.each, alone.cores, model, flops, both.start)


def model_seconds(device: torch.device, both: Pace, decoding: float, waited: float) -> float:
    """Of the model alone: on a CPU it shares the cores with the decoders."""
    if device.type == "cpu":
        return max(0.0, both.cores - decoding) / (os.cpu_count() or 1)
    return both.each * (1 - waited)
