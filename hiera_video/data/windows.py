"""A walk through a video of any length: windows one after the other, each frame decoded and resized once.

:func:`walk` reads one input in constant memory; :func:`read_ahead` many, in worker processes, each input whole by
whichever worker is free.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from hiera_video.data.dataset import Views, open_input
from hiera_video.data.loader import start_workers
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_image, read_image
from hiera_video.data.sampling import ROUNDING_S, window_clips, window_starts
from hiera_video.data.transforms import CropPlan, plan_crops, plan_whole
from hiera_video.errors import UnreadableVideo
from hiera_video.spec import ClipSpec

Crop: TypeAlias = Literal["center", "three", "none"]
#: Names of the crops of a window, in their order.
CROPS: dict[Crop, tuple[str, ...]] = {"center": ("center",), "three": ("first", "center", "last"), "none": ("none",)}


@dataclass(frozen=True)
class Walk:
    """How inputs are walked through.

    A window is a clip of ``spec``, one every ``hop`` seconds. ``crop``: the centre, three along the long side, or the
    whole picture with its sides rounded to multiples of ``multiple`` pixels. ``at_once`` windows come together.
    """

    spec: ClipSpec
    hop: float
    crop: Crop = "center"
    multiple: int = 32
    at_once: int = 8
    decode: Literal["exact", "fast"] = "exact"

    def plan(self, picture: tuple[int, int], pixel_aspect: float | Fraction = 1) -> CropPlan:
        """The crops of pictures of this (height, width), whose pixels are shown so many times as wide as high."""
        if self.crop == "none":
            return plan_whole(picture, self.spec, self.multiple, pixel_aspect)
        return plan_crops(picture, self.spec, len(CROPS[self.crop]), pixel_aspect)


@dataclass(frozen=True)
class Stretch:
    """Consecutive windows of one input, ``views.rows`` for each of them.

    ``first`` is the number of the first, ``total`` the windows of the whole input. ``starts``, ``ends`` float64 [n]
    and ``times`` float64 [n, T], of each frame, are seconds after the input's first frame (0 for an image). ``plan``
    says where the crops lie in the upright picture, ``crops`` what they are called. ``padded``: the input is shorter
    than a window, and its last frame is repeated.
    """

    views: Views
    first: int
    total: int
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    times: NDArray[np.float64]
    plan: CropPlan
    crops: tuple[str, ...]
    padded: bool

    def __len__(self) -> int:
        return len(self.starts)

    def to(self, device: torch.device | str) -> Stretch:
        """The same with its pictures on ``device``."""
        return replace(self, views=self.views.to(device))


def walk(path: str, how: Walk, *, first: int = 0, reader: IsolatedReader | None = None) -> Iterator[Stretch]:
    """The windows of a video file, image file or http(s) address from number ``first`` on, in constant memory.

    An image is one window, a still. ``reader`` decodes in its child process. Raises :class:`UnreadableVideo` when
    nothing can be read, or nothing more.
    """
    if is_image(path):
        yield _still(read_image(path)[np.newaxis], how)
        return
    with open_input(path, reader, decode=how.decode) as video:
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

        number = first
        for frames in video.stream(rows(), prepare):
            shown, plan = waiting.popleft(), plans[0]
            begins = starts[number : number + len(shown)]
            times = frames.times[shown] - begin
            yield Stretch(
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
            )
            number += len(shown)


def _still(picture: NDArray[np.uint8], how: Walk) -> Stretch:
    plan, none = how.plan((picture.shape[1], picture.shape[2])), np.zeros(1)
    rows = torch.zeros(1, how.spec.num_frames, dtype=torch.int64)
    frames = plan.apply(picture, how.spec).transpose(0, 1).contiguous()
    times = np.zeros((len(plan.corners), how.spec.num_frames))
    views = Views(frames, rows, plan.corners, plan.size, times, 0.0)
    return Stretch(views, 0, 1, none, none, times[:1], plan, CROPS[how.crop], padded=False)


def read_ahead(
    todo: Iterable[tuple[str, int]], how: Walk, *, num_workers: int = 2, isolate: bool = True, time_limit: float = 60
) -> Iterator[tuple[str, Stretch | str]]:
    """The windows of inputs, each named with its first window to read; decoded ahead by ``num_workers`` processes.

    The stretches of one input come in their order, those of several mixed. What cannot be read gives one sentence in
    place of a stretch, and nothing of that input comes after it. ``todo`` may be a long way to walk, such as the lines
    of a file: it is iterated once in each worker, and must say the same each time.
    """
    dataset = _Inputs(todo, how, IsolatedReader(time_limit=time_limit) if isolate else None)
    yield from start_workers(dataset, None, num_workers)


class _Inputs(IterableDataset[tuple[str, "Stretch | str"]]):
    """Each worker takes the next input that no other has taken: a long one holds nobody up."""

    def __init__(self, todo: Iterable[tuple[str, int]], how: Walk, reader: IsolatedReader | None) -> None:
        self._todo, self._how, self._reader = todo, how, reader
        self._next: Any = multiprocessing.Value("q", 0)

    def __iter__(self) -> Iterator[tuple[str, Stretch | str]]:
        mine = self._take()
        for position, (name, first) in enumerate(self._todo):
            if position == mine:
                try:
                    for stretch in walk(name, self._how, first=first, reader=self._reader):
                        yield name, stretch
                except UnreadableVideo as error:
                    yield name, str(error)
                mine = self._take()

    def _take(self) -> int:
        with self._next.get_lock():
            self._next.value += 1
            return int(self._next.value) - 1
