"""Batches from worker processes, in an order that a position of two numbers tells: resuming is arithmetic, not replay.

torch's ``DataLoader`` runs the workers; what they read is told by keys (epoch, index), so that the number of workers,
and of processes, changes nothing in any sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hiera_video.data.dataset import ClipDataset, Problem, Sampler, Views, load_views
from hiera_video.data.isolated import IsolatedReader
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import keyed_rng
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec

Batch = dict[str, Any]


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
        self.dataset, self.batch_size, self.num_workers, self.shuffle = dataset, batch_size, num_workers, shuffle
        self.rank, self.num_processes = rank, num_processes
        self.epoch, self.videos = 0, 0
        self.problems: list[Problem] = []
        self._batches: Iterator[Batch] | None = None
        if not len(self):
            raise RequestError(
                f"{len(dataset)} videos do not fill one step of {num_processes} x {batch_size}: lower the batch size."
            )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.dataset) // self._videos_per_step

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        while self.epoch == epoch:
            if self._batches is None:
                self._batches = iter(self._load())
            batch = next(self._batches)
            if "failure" in batch:
                self.close()
                raise UnreadableVideo(batch["failure"])
            known = {problem.path for problem in self.problems}
            self.problems += [problem for problem in batch["problems"] if problem.path not in known]
            self.epoch, self.videos = self._after(self.epoch, self.videos)
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
        self.epoch, self.videos = state["epoch"], state["videos"]
        if self.videos + self._videos_per_step > len(self.dataset):  # an epoch's rest too small for this many processes
            self.epoch, self.videos = self.epoch + 1, 0
        self.problems = [Problem(**problem) for problem in state["problems"]]

    def close(self) -> None:
        """End the workers; iterating starts them anew."""
        self._batches = None

    @property
    def _videos_per_step(self) -> int:
        return self.batch_size * self.num_processes

    def _after(self, epoch: int, videos: int) -> tuple[int, int]:
        videos += self._videos_per_step
        return (epoch, videos) if videos + self._videos_per_step <= len(self.dataset) else (epoch + 1, 0)

    def _keys(self) -> Iterator[list[tuple[int, int]]]:
        """This process's part of each step from the position on, for ever."""
        epoch, videos = self.epoch, self.videos
        order = self._order(epoch)
        while True:
            first = videos + self.rank * self.batch_size
            yield [(epoch, index) for index in order[first : first + self.batch_size].tolist()]
            before = epoch
            epoch, videos = self._after(epoch, videos)
            if epoch != before:
                order = self._order(epoch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return keyed_rng(self.dataset.seed, epoch).permutation(len(self.dataset))

    def _load(self) -> DataLoader[Batch]:
        return _data_loader(_BatchDataset(self.dataset), self._keys(), self.num_workers)


def test_views(
    videos: VideoList,
    spec: ClipSpec,
    num_clips: int,
    num_crops: int,
    *,
    sample: Sampler | None = None,
    num_workers: int = 2,
    device: torch.device | str = "cpu",
    isolate: bool = True,
    time_limit: float = 60,
    indices: list[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """The test views of each video, in the list's order (or of ``indices``); nothing is replaced.

    ``clips`` uint8 [V, C, T, h, w] on ``device``, or None where nothing could be read; ``error``: None, or one
    sentence; ``label``, ``path``, ``index``. Workers send each resized frame once; views are cut on the device.
    """
    reader = IsolatedReader(time_limit=time_limit) if isolate else None
    dataset = _ViewDataset(videos, spec, num_clips, num_crops, sample, reader)
    todo = iter(range(len(videos)) if indices is None else indices)
    for index, views in _data_loader(dataset, todo, num_workers):
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
            name: torch.cat([sample[name] for sample in samples])
            for name in ("clip", "flip", "erase", "noise_seed", "repeat")
        }
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
        num_clips: int,
        num_crops: int,
        sample: Sampler | None,
        reader: IsolatedReader | None,
    ) -> None:
        self._videos, self._spec, self._views = videos, spec, (num_clips, num_crops)
        self._sample, self._reader = sample, reader

    def __getitem__(self, index: int) -> tuple[int, Views | str]:
        try:
            return index, load_views(
                self._videos.path(index),
                self._spec,
                *self._views,
                start=float(self._videos.starts[index]),
                end=float(self._videos.ends[index]),
                sample=self._sample,
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
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch
