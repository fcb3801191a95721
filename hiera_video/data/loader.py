"""Batches from worker processes, in an order that a position of two numbers tells: resuming is arithmetic, not replay.

torch's ``DataLoader`` runs the workers; what they read is told by keys (epoch, index), so that the number of workers,
and of processes, changes nothing in any sample.
"""

from __future__ import annotations

import gc
import signal
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from hiera_video.data.dataset import ClipDataset, Problem, Sampler, Views, load_views
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.child_process import IsolatedReader, keep_freed_memory
from hiera_video.data.sampling import keyed_rng
from hiera_video.data.shared_memory import share, shared_empty
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec

Batch = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """Which videos are in which step, for one process of several: a position is (epoch, videos taken in it).

    A step takes ``accumulate`` batches in each process and lies in one epoch. It knows nothing of the loader: workers
    that are ended by the garbage collector take seconds over it. Raises :class:`RequestError` for numbers that do not
    make a step.
    """

    seed: int
    num_videos: int
    batch_size: int
    shuffle: bool
    rank: int
    num_processes: int
    accumulate: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulate < 1 or not 0 <= self.rank < self.num_processes:
            raise RequestError(
                f"batch_size {self.batch_size}, accumulate {self.accumulate}, rank {self.rank} of "
                f"{self.num_processes}: at least one video a batch, one batch a step, and a rank below the number of "
                "processes."
            )
        if self.videos_per_step > self.num_videos:
            raise RequestError(
                f"{self.num_videos} videos do not fill one step of {self.videos_per_step} (batch_size "
                f"{self.batch_size} x num_processes {self.num_processes} x accumulate {self.accumulate}): lower one of "
                "the three."
            )

    @property
    def videos_per_step(self) -> int:
        return self.batch_size * self.num_processes * self.accumulate

    def after(self, epoch: int, videos: int) -> tuple[int, int]:
        """The position one step later."""
        return self.valid(epoch, videos + self.videos_per_step)

    def valid(self, epoch: int, videos: int) -> tuple[int, int]:
        """This position, or the next epoch's first where the rest of the list fills no step."""
        return (epoch, videos) if videos + self.videos_per_step <= self.num_videos else (epoch + 1, 0)

    def keys(self, epoch: int, videos: int) -> Iterator[list[tuple[int, int]]]:
        """This process's batches from a position on, for ever: (epoch, index) of each of their videos."""
        shuffled, indices = -1, np.arange(self.num_videos)
        while True:
            if self.shuffle and shuffled != epoch:
                shuffled, indices = epoch, keyed_rng(self.seed, epoch).permutation(self.num_videos)
            for batch in range(self.accumulate):
                first = videos + (batch * self.num_processes + self.rank) * self.batch_size
                yield [(epoch, index) for index in indices[first : first + self.batch_size].tolist()]
            epoch, videos = self.after(epoch, videos)


class Stream:
    """The batches of an order, which worker processes make, and the position behind the last whole step.

    ``dataset`` gives the batch of a list of keys; a batch ``{"failure": sentence}`` ends the run.
    """

    def __init__(self, dataset: Dataset[Batch], order: Order, num_workers: int) -> None:
        if num_workers < 0:
            raise RequestError(f"num_workers is {num_workers}, but is at least 0.")
        self.dataset, self.order, self.num_workers = dataset, order, num_workers
        self.epoch, self.videos = 0, 0
        self._given = 0  # batches of the step that is under way
        self._batches: Iterator[Batch] | None = None

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches up to the next epoch's first step."""
        epoch = self.epoch
        while self.epoch == epoch:
            if self._batches is None:
                keys = islice(self.order.keys(self.epoch, self.videos), self._given, None)
                self._batches = start_workers(self.dataset, keys, self.num_workers)
            batch = next(self._batches)
            if "failure" in batch:
                self.close()
                raise UnreadableVideo(batch["failure"])
            self._given += 1
            if self._given == self.order.accumulate:
                self._given = 0
                self.epoch, self.videos = self.order.after(self.epoch, self.videos)
            yield batch

    def go_to(self, state: dict[str, Any], **mine: int) -> None:
        """Go to ``state``'s epoch and videos. Raises :class:`RequestError` where it differs from ``mine``."""
        for name, here in mine.items():
            if state.get(name) != here:
                raise RequestError(
                    f"the position to go on from has {name} {state.get(name)}, the data {here}: it is another run's."
                )
        self.close()
        self.epoch, self.videos = self.order.valid(state["epoch"], state["videos"])
        self._given = 0

    def close(self) -> None:
        """End the workers; iterating starts them anew."""
        self._batches = None


class ClipLoader:
    """Batches of a :class:`ClipDataset` for training; each iteration yields the rest of the current epoch.

    A step takes ``accumulate`` batches of ``batch_size`` videos in each of ``num_processes`` processes, of which this
    is number ``rank``: ``videos_per_step`` videos, which are the same for any three numbers of that product. The
    remainder of the list that fills no step is left out, another one in each epoch. A batch: ``clip`` uint8
    [B * R, C, T, h, w] and, along the same first axis, ``flip``, ``erase``, ``noise_seed``, ``label``, ``index``,
    ``epoch`` (int64), ``repeat`` and the list ``path``; see :class:`ClipDataset`.

    :meth:`state_dict` is the position behind the last whole step, in the middle of an epoch too; a loader with that
    position, of any number of workers, goes on with the next step. ``problems``: every file that could not be read or
    only in part, once, in the order in which they came up.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        num_workers: int = 2,
        shuffle: bool = True,
        rank: int = 0,
        num_processes: int = 1,
        accumulate: int = 1,
    ) -> None:
        order = Order(dataset.seed, len(dataset), batch_size, shuffle, rank, num_processes, accumulate)
        self.dataset = dataset
        self.problems: list[Problem] = []
        self._known: set[str] = set()
        self._stream = Stream(_BatchDataset(dataset), order, num_workers)

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return self._stream.epoch

    @property
    def videos_per_step(self) -> int:
        """Videos that a step takes in all processes together."""
        return self._stream.order.videos_per_step

    def __len__(self) -> int:
        """Steps of an epoch; each has ``accumulate`` batches."""
        return len(self.dataset) // self.videos_per_step

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._stream.rest_of_epoch():
            for problem in batch["problems"]:
                if problem.path not in self._known:
                    self._known.add(problem.path)
                    self.problems.append(problem)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and the problems so far: plain numbers and strings."""
        return {
            "seed": self.dataset.seed,
            "num_videos": len(self.dataset),
            "epoch": self._stream.epoch,
            "videos": self._stream.videos,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises :class:`RequestError` where it belongs to another list of videos or seed."""
        self._stream.go_to(state, seed=self.dataset.seed, num_videos=len(self.dataset))
        self.problems = [Problem(**problem) for problem in state["problems"]]
        self._known = {problem.path for problem in self.problems}

    def close(self) -> None:
        """End the workers; iterating starts them anew."""
        self._stream.close()


def test_views(
    videos: VideoList,
    spec: ClipSpec,
    num_clips: int,
    num_crops: int,
    *,
    sample: Sampler | None = None,
    fps: float | None = None,
    decode: Literal["exact", "fast"] = "exact",
    num_workers: int = 2,
    device: torch.device | str = "cpu",
    isolate: bool = True,
    time_limit: float = 60,
    indices: list[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """The test views of each video, in the list's order (or of ``indices``); nothing is replaced.

    ``clips`` uint8 [V, C, T, h, w] on ``device``, or None where nothing could be read; ``error``: None, or one
    sentence; ``label``, ``path``, ``index``. ``sample``, ``decode`` and ``fps`` are those of :func:`load_views`.
    Workers send each resized frame once; views are cut on the device.
    """
    reader = IsolatedReader(time_limit=time_limit) if isolate else None
    options: dict[str, Any] = {"sample": sample, "decode": decode, "fps": fps, "reader": reader}
    dataset = _ViewDataset(videos, spec, (num_clips, num_crops), options)
    todo = iter(range(len(videos)) if indices is None else indices)
    for index, views in start_workers(dataset, todo, num_workers):
        answer: dict[str, Any] = {"index": index, "path": videos.path(index), "label": videos.label(index)}
        if isinstance(views, str):
            yield answer | {"clips": None, "error": views}
        else:
            yield answer | {"clips": views.to(device).clips, "error": views.error}


test_views.__test__ = False  # type: ignore[attr-defined]  # the name is the protocol's; pytest is not meant


class _BatchDataset(Dataset[Batch]):
    """Whole batches: a worker puts one together, so that it travels as a few large tensors."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch:
        try:
            samples = [self._dataset[key] for key in keys]
        except UnreadableVideo as error:  # a worker's exception would arrive with its traceback in its message
            return {"failure": str(error)}
        counts = torch.tensor([len(sample["clip"]) for sample in samples])
        batch: Batch = {
            name: torch.cat([sample[name] for sample in samples]) for name in ("flip", "erase", "noise_seed", "repeat")
        }
        clips = [sample["clip"].permute(0, 2, 3, 4, 1) for sample in samples]  # as they lie in memory
        # Straight into the memory that is shared with the main process.
        total = shared_empty((int(counts.sum()), *clips[0].shape[1:]), torch.uint8) if get_worker_info() else None
        batch["clip"] = torch.cat(clips, out=total).permute(0, 4, 1, 2, 3)
        labels = torch.as_tensor(np.stack([sample["label"] for sample in samples]))
        batch["label"] = labels.repeat_interleave(counts, dim=0)
        for name in ("epoch", "index"):
            batch[name] = torch.tensor([sample[name] for sample in samples]).repeat_interleave(counts)
        batch["path"] = [sample["path"] for sample in samples for _ in sample["clip"]]
        batch["problems"] = [problem for sample in samples for problem in sample["problems"]]
        return batch


class _ViewDataset(Dataset[tuple[int, "Views | str"]]):
    def __init__(
        self,
        videos: VideoList,
        spec: ClipSpec,
        views: tuple[int, int],
        options: dict[str, Any],
    ) -> None:
        self._videos, self._spec, self._views, self._options = videos, spec, views, options

    def __getitem__(self, index: int) -> tuple[int, Views | str]:
        try:
            return index, load_views(
                self._videos.path(index),
                self._spec,
                *self._views,
                start=float(self._videos.starts[index]),
                end=float(self._videos.ends[index]),
                **self._options,
            )
        except UnreadableVideo as error:
            return index, str(error)


def start_workers(dataset: Dataset[Any], keys: Iterator[Any] | None, num_workers: int) -> Iterator[Any]:
    """What ``dataset`` has for each of ``keys``, as it is, read ahead by workers, in order.

    Without keys: what iterating over it gives in each of the workers, in the order in which it comes.

    They are forks: what is garbage by now is nothing for them to collect, page by page; and what another library's open
    video left in it may hold threads that a fork does not have, and would wait for.
    """
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
                worker_init_fn=_init_worker,
                in_order=keys is not None,
                pin_memory=torch.cuda.is_available(),
            )
            return iter(loader)
    finally:
        gc.unfreeze()


def _init_worker(number: int) -> None:
    # torchrun and Slurm signal a whole group of processes: the main one finishes its step, and still needs batches.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()


def _as_it_is(batch: Any) -> Any:
    return batch
