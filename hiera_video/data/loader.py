"""Batches from worker processes, in an order that a position of two numbers tells: resuming is arithmetic, not replay.

torch's ``DataLoader`` runs the workers; what they read is told by keys (epoch, index), so that the number of workers,
and of processes, changes nothing in any sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from hiera_video.data.dataset import ClipDataset, Problem, Sample
from hiera_video.data.on_device import DrawnClips
from hiera_video.data.sampling import keyed_rng
from hiera_video.data.shared_memory import shared_empty
from hiera_video.data.workers import start_workers
from hiera_video.errors import RequestError, UnreadableVideo


class _BatchOfVideos(DrawnClips):
    label: Tensor
    """int64 [B], -1 where a video has no label; float32 [B, num_classes] where videos may have several."""
    path: list[str]
    """The file of each clip."""
    epoch: Tensor
    """int64 [B]: the epoch that the clip belongs to."""
    index: Tensor
    """int64 [B]: the place of the clip's video in the list."""
    repeat: Tensor
    """int64 [B]: which of its video's clips it is."""
    problems: list[Problem]
    """Files of this batch that could not be read, or only in part."""


class Batch(_BatchOfVideos, total=False):
    """The clips of ``batch_size`` videos, all along the first axis: B = batch_size * R. The repeats of a video follow
    one another.
    """

    flow: Tensor
    """Only of generated clips: the optical flow, float32 [B, 4, T / 2, h / 4, w / 4], see
    :func:`hiera_video.data.camera_motion.generator.flow`."""


@dataclass(frozen=True)
class Made:
    """What a worker made: a batch or, where it can make none, one sentence that says why."""

    batch: Batch | None
    error: str | None = None

    def pin_memory(self) -> Made:
        """torch's loader calls it on a machine with a GPU: from pinned memory a copy runs beside the computation."""
        if self.batch is None:
            return self
        parts: Any = {
            name: part.pin_memory() if isinstance(part, Tensor) else part for name, part in self.batch.items()
        }
        return Made(parts)


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

    Args:
        dataset: Makes the batch of a list of keys (epoch, index).
        order: Says which keys make the batches.
        num_workers: Processes that make them; 0: this one.

    Raises:
        RequestError: ``num_workers`` is below 0.
    """

    def __init__(self, dataset: Dataset[Made], order: Order, num_workers: int) -> None:
        if num_workers < 0:
            raise RequestError(f"num_workers is {num_workers}, but is at least 0.")
        self.dataset, self.order, self.num_workers = dataset, order, num_workers
        self.epoch, self.videos = 0, 0
        self._given = 0  # batches of the step that is under way
        self._batches: Iterator[Made] | None = None

    def rest_of_epoch(self) -> Iterator[Batch]:
        """Iterates over what is left of the epoch.

        Yields:
            The batches up to the next epoch's first step.

        Raises:
            UnreadableVideo: A worker can make no batch.
        """
        epoch = self.epoch
        while self.epoch == epoch:
            batch = self._next()
            self._given += 1
            if self._given == self.order.accumulate:
                self._given = 0
                self.epoch, self.videos = self.order.after(self.epoch, self.videos)
            yield batch

    def _next(self) -> Batch:
        if self._batches is None:
            keys = islice(self.order.keys(self.epoch, self.videos), self._given, None)
            self._batches = start_workers(self.dataset, keys, self.num_workers)
        try:
            made = next(self._batches)
        except BaseException:  # Ctrl-C in a notebook too: the next iteration goes on with the batch that did not come
            self.close()
            raise
        if made.batch is None:
            self.close()
            raise UnreadableVideo(made.error)
        return made.batch

    def go_to(self, state: Mapping[str, Any], **mine: int) -> None:
        """Goes to a position.

        Args:
            state: Its ``epoch`` and ``videos``, and the numbers that ``mine`` names.
            mine: What those numbers are here.

        Raises:
            RequestError: A number differs: the position is another run's.
        """
        for name, here in mine.items():
            if state.get(name) != here:
                raise RequestError(
                    f"the position to go on from has {name} {state.get(name)}, the data {here}: it is another run's."
                )
        self.close()
        self.epoch, self.videos = self.order.valid(state["epoch"], state["videos"])
        self._given = 0

    def close(self) -> None:
        """Ends the workers. Iterating starts them anew."""
        self._batches = None


class ClipLoader:
    """Batches of a :class:`ClipDataset` for training; each iteration yields the rest of the current epoch.

    A step takes ``accumulate`` batches of ``batch_size`` videos in each of ``num_processes`` processes: the same
    ``videos_per_step`` videos for any three numbers of that product. The remainder of the list that fills no step is
    left out, another one in each epoch. ``problems`` has every file that could not be read, or only in part, once.

    The position (:meth:`state_dict`) is that behind the last whole step, in the middle of an epoch too. Workers end
    with the program; :meth:`close` ends them before.

    Args:
        dataset: Gives the clips of each video.
        batch_size: Videos of a batch.
        num_workers: Processes that read ahead; 0: this one reads. They change nothing in any batch.
        shuffle: Every epoch has an order of its own; else the list's.
        rank: The number of this process among ``num_processes``.
        num_processes: Processes that share the list.
        accumulate: Batches that a step takes in each process.

    Raises:
        RequestError: The numbers make no step of the list.
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
        """The rest of the epoch. Raises :class:`UnreadableVideo` where the dataset does."""
        for batch in self._stream.rest_of_epoch():
            for problem in batch["problems"]:
                if problem.path not in self._known:
                    self._known.add(problem.path)
                    self.problems.append(problem)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and the problems so far.

        Returns:
            Plain numbers and strings by name, as JSON takes them.
        """
        return {
            "seed": self.dataset.seed,
            "num_videos": len(self.dataset),
            "epoch": self._stream.epoch,
            "videos": self._stream.videos,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Args:
            state: What :meth:`state_dict` gave, here or in a loader with other processes and workers.

        Raises:
            RequestError: It belongs to another list of videos or seed.
        """
        self._stream.go_to(state, seed=self.dataset.seed, num_videos=len(self.dataset))
        self.problems = [Problem(**problem) for problem in state["problems"]]
        self._known = {problem.path for problem in self.problems}

    def close(self) -> None:
        """Ends the workers. Iterating starts them anew."""
        self._stream.close()


class _BatchDataset(Dataset[Made]):
    """Whole batches: a worker puts one together, so that it travels as a few large tensors."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, keys: list[tuple[int, int]]) -> Made:
        try:
            return Made(_batch([self._dataset[key] for key in keys]))
        except UnreadableVideo as error:  # a worker's exception would arrive with its traceback in its message
            return Made(None, str(error))


def _batch(samples: list[Sample]) -> Batch:
    counts = torch.tensor([len(sample["clip"]) for sample in samples])
    clips = [sample["clip"].permute(0, 2, 3, 4, 1) for sample in samples]  # as they lie in memory
    # Straight into the memory that is shared with the main process.
    total = shared_empty((int(counts.sum()), *clips[0].shape[1:]), torch.uint8) if get_worker_info() else None
    clip = torch.cat(clips, out=total).permute(0, 4, 1, 2, 3)
    labels = torch.as_tensor(np.stack([sample["label"] for sample in samples]))
    return {
        "clip": clip,
        "flip": torch.cat([sample["flip"] for sample in samples]),
        "erase": torch.cat([sample["erase"] for sample in samples]),
        "noise_seed": torch.cat([sample["noise_seed"] for sample in samples]),
        "repeat": torch.cat([sample["repeat"] for sample in samples]),
        "label": labels.repeat_interleave(counts, dim=0),
        "epoch": torch.tensor([sample["epoch"] for sample in samples]).repeat_interleave(counts),
        "index": torch.tensor([sample["index"] for sample in samples]).repeat_interleave(counts),
        "path": [sample["path"] for sample in samples for _ in sample["clip"]],
        "problems": [problem for sample in samples for problem in sample["problems"]],
    }
