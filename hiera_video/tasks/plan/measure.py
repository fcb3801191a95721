"""Measuring on this machine: files that are opened, things drawn from a stream for some seconds, memory, FLOPs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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

Shape: TypeAlias = Sequence[int]
clock = time.perf_counter

#: Seconds in which files are opened to see how long they are and whether they can be read; of the others, the mean.
LOOK_S = 3.0
#: Files whose sizes are asked for; of the others, the mean.
MOST_FILES = 20_000
#: The share of a measurement that is left out: queues are filled then. Items this close come from one batch.
WARM, BURST_S = 0.3, 0.005


@dataclass(frozen=True)
class Part:
    """What a job does ``count`` times.

    ``each``: seconds of one, decoding and model together as the job runs them, 0 where the model was not run;
    ``decoding``: core seconds of reading and decoding for it; ``model``: seconds of the model alone; ``flops``;
    ``once``: seconds that come once beside them: start-up, readers that start, a fit.
    """

    what: str
    count: int
    each: float
    decoding: float
    model: float
    flops: float
    once: float = 0.0


@dataclass
class Costs:
    """What a job costs, as far as it is measured.

    Args:
        device: Where the model computes.
        precision: In what.
        workers: Processes that decode.
        seconds: For all measurements.
        run_model: Whether the model runs here; else files are read, and FLOPs counted, alone.
        ready: Seconds from the start of this process until the job could begin.
        steps: Of the optimizer, else batches.
        parts: What the job does again and again.
        paths: Files that it reads.
        bytes: Of the files, as often as they are read.
        bad: Files that cannot be read, and why.
        others: The most bytes that the processes below this one held for themselves.
    """

    device: torch.device
    precision: torch.dtype
    workers: int
    seconds: float
    run_model: bool
    ready: float
    steps: int = 0
    parts: list[Part] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    bytes: float = 0.0
    bad: dict[str, str] = field(default_factory=dict)
    others: int = 0

    def look(self, paths: Sequence[str], times: float, walk: Walk | None = None) -> tuple[list[int], float]:
        """Asks for the sizes of files, and for some seconds opens them.

        Args:
            paths: Files.
            times: How often each is read.
            walk: How they become windows; None: they do not.

        Returns:
            The numbers of files that can be opened, in an order that is drawn, and the windows of all.

        Raises:
            UnreadableVideo: None can be read.
        """
        sizes, windows, good, until = list[int](), list[int](), list[int](), time.monotonic() + LOOK_S
        with IsolatedReader(time_limit=60) as reader:
            for number in keyed_rng(0).permutation(len(paths)).tolist()[:MOST_FILES]:
                path = paths[number]
                try:
                    sizes.append(_size(path))
                    if good and time.monotonic() > until:
                        continue
                    video = None if is_image(path) or os.path.isdir(path) else reader.open(path)
                    windows.append(1 if walk is None or video is None else len(_starts(video.times, walk)))
                    good.append(number)
                except OSError as error:
                    told = str(error) if isinstance(error, UnreadableVideo) else f"{path}: {error.strerror or error}"
                    self.bad[path] = told
                    windows.append(0)
        if not good:
            raise UnreadableVideo(f"none of {len(paths)} files can be read: {next(iter(self.bad.values()))}")
        self.paths += paths
        self.bytes += times * sum(sizes) * max(1, len(paths) / MOST_FILES)
        return good, sum(windows) * len(paths) / len(windows)

    def part(
        self,
        what: str,
        count: int,
        load: Callable[[], Any],
        units: Callable[[Any], int],
        compute: Callable[[Iterator[Any]], Iterator[object]],
        one: Callable[[Any], object],
        *,
        share: float,
        in_one: float = 1.0,
    ) -> Part:
        """Measures reading alone, then with the model.

        Args:
            what: Name of what comes again and again.
            count: How often.
            load: Starts readers, whose items come for ever.
            units: How many things are in an item; 0 of one that cannot be read.
            compute: Runs the model as the job does; something comes out for each thing.
            one: Runs the model once on an item, to count its FLOPs.
            share: Of all seconds.
            in_one: Things in ``one``.

        Returns:
            The part.
        """
        with closing(load()) as loaded:
            first = next(item for item in loaded if units(item))
            alone = pace(map(units, loaded), 0.3 * share * self.seconds)
            self.hold()
        with counting() as counter:
            one(first)
        flops = counter.get_total_flops() / in_one
        if not self.run_model:
            return Part(what, count, 0.0, alone.cores, 0.0, flops)
        waits: list[float] = []
        with closing(load()) as loaded:
            both = pace((1 for _ in compute(_waited(loaded, waits))), 0.7 * share * self.seconds)
            self.hold()
        model = self.model_seconds(both, alone.cores, sum(waits) / both.total)
        return Part(what, count, both.each, alone.cores, model, flops, both.start)

    def model_seconds(self, both: Pace, decoding: float, waited: float) -> float:
        """Seconds of the model alone: on a CPU it shares the cores with the decoders.

        Args:
            both: The pace of decoding and the model together.
            decoding: Core seconds of decoding alone.
            waited: The share of the time in which the model waited.

        Returns:
            The seconds of one thing.
        """
        if self.device.type == "cpu":
            return max(0.0, both.cores - decoding) / (os.cpu_count() or 1)
        return both.each * (1 - waited)

    def hold(self) -> None:
        """Asks what the processes below this one hold for themselves."""
        below = psutil.Process().children(recursive=True)
        self.others = max(self.others, sum(process.memory_full_info().uss for process in below))

    def memory(self) -> int:
        """The most bytes that this process has held, and those below it."""
        import resource  # not on Windows

        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return own + self.others


def _starts(times: Any, walk: Walk) -> Any:
    return window_starts(times, walk.spec, walk.hop)


def _size(path: str) -> int:
    """Bytes of a file, of a file in a shard, or of all in a folder of pictures; 0 of an address."""
    if member := parse_member(path):
        return member.size
    if os.path.isdir(path):
        return sum(file.stat().st_size for file in os.scandir(path))
    return 0 if is_address(path) else os.stat(path).st_size


@dataclass(frozen=True)
class Pace:
    """Seconds and core seconds of each of many things, seconds until they began to come, and in all."""

    each: float
    cores: float
    start: float
    total: float


def pace(counts: Iterable[int], seconds: float) -> Pace:
    """Draws from what goes on for ever, for some seconds.

    Args:
        counts: How many things each item is; those of a batch come at once.
        seconds: How long, from the first that comes; three batches come in any case.

    Returns:
        The pace, without the first of them.
    """
    began, done, warm, cores = clock(), 0, 0, 0.0
    stamps: list[tuple[float, int]] = []  # of the first item of each batch, and what was done before it
    for count in counts:
        now = clock() - began
        if not stamps or now - stamps[-1][0] > BURST_S:
            stamps.append((now, done))
            since = now - stamps[0][0]
            if warm and since >= seconds:
                break
            if not warm and len(stamps) > 1 and since >= WARM * seconds:
                warm, cores = len(stamps) - 1, core_seconds()
        done += count
    at, numbers = np.array(stamps[warm:]).T
    each = float(np.polyfit(numbers, at, 1)[0])
    used = (core_seconds() - cores) / (numbers[-1] - numbers[0])
    return Pace(each, float(used), max(0.0, stamps[0][0] - each * stamps[1][1]), float(at[-1]))


def _waited(items: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    """The same items; ``waits`` get the seconds for which each was waited."""
    while True:
        began = clock()
        if (item := next(items, None)) is None:
            return
        waits.append(clock() - began)
        yield item


def since_start() -> float:
    """Seconds since this process began."""
    return time.time() - psutil.Process().create_time()


def core_seconds() -> float:
    """Of this process and those below it."""
    here = psutil.Process()
    return float(sum(sum(process.cpu_times()[:2]) for process in [here, *here.children(recursive=True)]))


def counting() -> FlopCounterMode:
    """torch's counter, which does not know the attention of CPUs by itself; what is computed again is not counted."""
    aten = torch.ops.aten

    def forward(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: object, **___: object) -> int:
        return 2 * forward(query, key, value)

    mapping: dict[Any, Any] = {aten._scaled_dot_product_flash_attention_for_cpu: forward}
    mapping[aten._scaled_dot_product_flash_attention_for_cpu_backward] = backward
    return FlopCounterMode(display=False, custom_mapping=mapping)
