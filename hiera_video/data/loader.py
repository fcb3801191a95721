"""Batches from worker processes, in an order that a position of two numbers tells: resuming is arithmetic, not replay.

torch's ``DataLoader`` runs the workers; what they read is told by keys (epoch, index), so that the number of workers,
and of processes, changes nothing in any sample.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from hiera_video.data.dataset import ClipDataset, Problem, Sampler, Views, load_views
from hiera_video.data.isolated import IsolatedReader, keep_freed_memory
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import keyed_rng
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec

Batch = dict[str, Any]


@dataclass(frozen=True)
class _Order:
    """Which videos are in which step, for one process of several: a position is (epoch, videos taken in it).

    It knows nothing of the loader: workers that are ended by the garbage collector take seconds over it.
    """

    seed: int
    num_videos: int
    batch_size: int
    shuffle: bool
    rank: int
    num_processes: int

    @property
    def videos_per_step(self) -> int:
        return self.batch_size * self.num_processes

    def after(self, epoch: int, videos: int) -> tuple[int, int]:
        """The position one step later."""
        return self.valid(epoch, videos + self.videos_per_step)

    def valid(self, epoch: int, videos: int) -> tuple[int, int]:
        """This position, or the next epoch's first where the rest of the list fills no step."""
        return (epoch, videos) if videos + self.videos_per_step <= self.num_videos else (epoch + 1, 0)

    def keys(self, epoch: int, videos: int) -> Iterator[list[tuple[int, int]]]:
        """This process's part of each step from a position on, for ever."""
        shuffled, indices = -1, np.arange(self.num_videos)
        while True:
            if self.shuffle and shuffled != epoch:
                shuffled, indices = epoch, keyed_rng(self.seed, epoch).permutation(self.num_videos)
            first = videos + self.rank * self.batch_size
            yield [(epoch, index) for index in indices[first : first + self.batch_size].tolist()]
            epoch, videos = self.after(epoch, videos)


class ClipLoader:
    """Batches of a :class:`ClipDataset` for training; each iteration yields the rest of the current epoch.

    A step takes ``batch_size`` videos in each of ``num_processes`` processes, of which this is number ``rank``; the
    remainder of the list that fills no step is left out, another one in each epoch. A batch: ``clip`` uint8
    [B * R, C, T, h, w] and, along the same first axis, ``flip``, ``erase``, ``noise_seed``, ``label``, ``index``,
    ``repeat`` and the list ``path``; see :class:`ClipDataset`.

    :meth:`state_dict` is the position behind the batch that was given last, in the middle of an epoch too; a loader
    with that position, of any number of workers, goes on with the next batch. ``problems``: every file that could not
    be read or only in part, once, in the order in which they came up.
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
    ) -> None:
        if batch_size < 1 or num_workers < 0 or not 0 <= rank < num_processes:
            raise RequestError(
                f"batch_size {batch_size}, num_workers {num_workers}, rank {rank} of {num_processes}: "
                "at least one video a batch, no fewer than 0 workers, and a rank below the number of processes."
            )
        self.dataset, self.num_workers = dataset, num_workers
        self._order = _Order(dataset.seed, len(dataset), batch_size, shuffle, rank, num_processes)
        self.epoch, self.videos = 0, 0
        self.problems: list[Problem] = []
        self._batches: Iterator[Batch] | None = None
        if not len(self):
            raise RequestError(
                f"{len(dataset)} videos do not fill one step of {num_processes} x {batch_size}: lower the batch size."
            )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.dataset) // self._order.videos_per_step

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        while self.epoch == epoch:
            if self._batches is None:
                keys = self._order.keys(self.epoch, self.videos)
                self._batches = _start(_data_loader(_BatchDataset(self.dataset), keys, self.num_workers))
            batch = next(self._batches)
            if "failure" in batch:
                self.close()
                raise UnreadableVideo(batch["failure"])
            known = {problem.path for problem in self.problems}
            self.problems += [problem for problem in batch["problems"] if problem.path not in known]
            self.epoch, self.videos = self._order.after(self.epoch, self.videos)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and the problems so far: plain numbers and strings."""
        return {
            "seed": self.dataset.seed,
            "num_videos": len(self.dataset),
            "epoch": self.epoch,
            "videos": self.videos,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises :class:`RequestError` where it belongs to another list of videos or seed."""
        for name, here in (("seed", self.dataset.seed), ("num_videos", len(self.dataset))):
            if state[name] != here:
                raise RequestError(
                    f"the position to go on from has {name} {state[name]}, the data {here}: it is another run's."
                )
        self.close()
        self.epoch, self.videos = self._order.valid(state["epoch"], state["videos"])
        self.problems = [Problem(**problem) for problem in state["problems"]]

    def close(self) -> None:
        """End the workers; iterating starts them anew."""
        self._batches = None


def test_views(
    videos: VideoList,
    spec: ClipSpec,
    num_clips: int,
    num_crops: int,
    *,
    sample: Sampler | None = None,
    fps: float | None = None,
    num_workers: int = 2,
    device: torch.device | str = "cpu",
    isolate: bool = True,
    time_limit: float = 60,
    indices: list[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """The test views of each video, in the list's order (or of ``indices``); nothing is replaced.

    ``clips`` uint8 [V, C, T, h, w] on ``device``, or None where nothing could be read; ``error``: None, or one
    sentence; ``label``, ``path``, ``index``. ``sample`` and ``fps`` are those of :func:`load_views`. Workers send each
    resized frame once; views are cut on the device.
    """
    reader = IsolatedReader(time_limit=time_limit) if isolate else None
    dataset = _ViewDataset(videos, spec, (num_clips, num_crops), sample, fps, reader)
    todo = iter(range(len(videos)) if indices is None else indices)
    for index, views in _start(_data_loader(dataset, todo, num_workers)):
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
        if len(set(counts.tolist())) == 1:  # straight into the memory that is shared with the main process
            batch["clip"] = default_collate(clips).flatten(0, 1).permute(0, 4, 1, 2, 3)
        else:
            batch["clip"] = torch.cat(clips).permute(0, 4, 1, 2, 3)
        labels = torch.as_tensor(np.stack([sample["label"] for sample in samples]))
        batch["label"] = labels.repeat_interleave(counts, dim=0)
        batch["index"] = torch.tensor([sample["index"] for sample in samples]).repeat_interleave(counts)
        batch["path"] = [sample["path"] for sample in samples for _ in sample["clip"]]
        batch["problems"] = [problem for sample in samples for problem in sample["problems"]]
        return batch


class _ViewDataset(Dataset[tuple[int, "Views | str"]]):
    def __init__(
        self,
        videos: VideoList,
        spec: ClipSpec,
        views: tuple[int, int],
        sample: Sampler | None,
        fps: float | None,
        reader: IsolatedReader | None,
    ) -> None:
        self._videos, self._spec, self._views = videos, spec, views
        self._sample, self._fps, self._reader = sample, fps, reader

    def __getitem__(self, index: int) -> tuple[int, Views | str]:
        try:
            return index, load_views(
                self._videos.path(index),
                self._spec,
                *self._views,
                start=float(self._videos.starts[index]),
                end=float(self._videos.ends[index]),
                sample=self._sample,
                fps=self._fps,
                reader=self._reader,
            )
        except UnreadableVideo as error:
            return index, str(error)


def _data_loader(dataset: Dataset[Any], keys: Iterator[Any], num_workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,  # what a key names comes as it is
        sampler=keys,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_init_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Starts the workers, which are forks: what is garbage by now is nothing for them to collect, page by page; and
    what another library's open video left in it may hold threads that a fork does not have, and would wait for.
    """
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def _init_worker(number: int) -> None:
    keep_freed_memory()


def _as_it_is(batch: Any) -> Any:
    return batch
