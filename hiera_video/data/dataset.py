"""Files to training clips: every clip of a video from one decode, each a function of its key alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hiera_video.data.augment import (
    CropDraw,
    crop_box,
    crop_resize,
    draw_crop,
    draw_erase,
    in_proportion,
    rand_augment,
    short_side_needed,
)
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.on_device import DrawnClips
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.decoders import Image
from hiera_video.data.reading.files import is_image, read_image
from hiera_video.data.reading.reader import Video
from hiera_video.data.sampling import keyed_rng, train_clips
from hiera_video.data.views import Sampler, open_input, rows_within
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import Augment, ClipSpec

#: Replacements tried for one bad file before the whole list is taken for bad.
MAX_REPLACEMENTS = 20


@dataclass(frozen=True)
class Problem:
    """A file of a list that could not be read, or only in part; ``replaced``: another stood in its place."""

    path: str
    reason: str
    replaced: bool


class Sample(DrawnClips):
    """The R clips of one video: what :class:`ClipDataset` gives for a key. B of :class:`DrawnClips` is R here."""

    label: Any
    """The video's class, an int, -1 where it has none; or float32 [num_classes], where it may have several."""
    path: str
    """The file that was read."""
    epoch: int
    """The epoch of the key."""
    index: int
    """The video's place in the list; that of the replacement, where the video could not be read."""
    repeat: Tensor
    """int64 [R]: 0, 1, ..."""
    problems: list[Problem]
    """The files that could not be read on the way, and the one that could be read only in part."""


class ClipDataset(Dataset[Sample]):
    """Training clips: ``dataset[epoch, index]`` is a function of (seed, epoch, index) and of nothing else.

    A video is opened and decoded once for all its clips. A picture is a still: all T frames show one crop of it, and
    its repeats are crops of their own.

    Args:
        videos: The list that ``index`` counts in.
        spec: How a clip is cut from a video, and its size.
        augment: How a clip is varied; default: as for fine-tuning on Kinetics.
        sample: Chooses the frames; default: dense clips with a random start (:func:`train_clips`).
        num_clips: Clips at different times of one video (MAE's repeats).
        num_augments: How often each of them is augmented (fine-tuning's repeats). R is the product of the two, times
            the clips that ``sample`` gives at once.
        seed: Part of every key.
        decode: As in :func:`hiera_video.open_video`.
        fps: Frames a second of videos that are folders of pictures.
        on_error: "skip" replaces a file that cannot be read by another, drawn from the same key; "raise" raises.
        isolate: Decode in a child process, so that a broken file takes down no more than that.
        time_limit: Seconds that the child may take for a request.

    Raises:
        RequestError: A number is below 1, or ``on_error`` is another word.
    """

    def __init__(
        self,
        videos: VideoList,
        spec: ClipSpec,
        *,
        augment: Augment | None = None,
        sample: Sampler | None = None,
        num_clips: int = 1,
        num_augments: int = 1,
        seed: int = 0,
        decode: Literal["exact", "fast"] = "exact",
        fps: float | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        isolate: bool = True,
        time_limit: float = 60,
    ) -> None:
        counts = {"num_clips": num_clips, "num_augments": num_augments, "the number of videos": len(videos)}
        for name, value in counts.items():
            if value < 1:
                raise RequestError(f"{name} is {value}, but is at least 1.")
        if on_error not in ("skip", "raise"):
            raise RequestError(f"on_error is {on_error!r}, but can be skip or raise.")
        self.videos, self.spec, self.augment = videos, spec, augment or Augment()
        self.sample: Sampler = sample or partial(_dense, spec)
        self.num_clips, self.num_augments, self.seed = num_clips, num_augments, seed
        self.decode, self.fps, self.on_error = decode, fps, on_error
        self._reader = IsolatedReader(time_limit=time_limit) if isolate else None
        self._bad: dict[int, str] = {}  # of this process: a file that hung is not waited for again

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        problems: list[Problem] = []
        chosen = index
        for attempt in range(MAX_REPLACEMENTS + 1):
            # Another file in this slot has draws of its own: it may stand in a slot of its own too.
            draws = (self.seed, epoch, index) if attempt == 0 else (self.seed, epoch, index, attempt)
            try:
                if chosen in self._bad:
                    raise UnreadableVideo(self._bad[chosen])
                return self._read(chosen, draws, problems)
            except UnreadableVideo as error:
                if self.on_error == "raise":
                    raise
                self._bad[chosen] = str(error)
                problems.append(Problem(self.videos.path(chosen), str(error), replaced=True))
            chosen = int(keyed_rng(self.seed, epoch, index, attempt, 0, 0).integers(len(self)))
        raise UnreadableVideo(
            f"{len(problems)} videos drawn one after the other cannot be read: check the folder and the list "
            f"(`hiera-video data check`); the last: {problems[-1].reason}"
        )

    def _read(self, index: int, draws: tuple[int, ...], problems: list[Problem]) -> Sample:
        path = self.videos.path(index)
        clips, pixels = self._picture(path, draws) if is_image(path) else self._video(index, path, draws, problems)
        return {
            "clip": pixels,
            "flip": torch.tensor([clip.flip for clip in clips]),
            "erase": torch.from_numpy(np.stack([clip.erase for clip in clips])),
            "noise_seed": torch.tensor([clip.noise_seed for clip in clips]),
            "label": self.videos.label(index),
            "path": path,
            "epoch": draws[1],
            "index": index,
            "repeat": torch.arange(len(clips)),
            "problems": problems,
        }

    def _video(
        self, index: int, path: str, draws: tuple[int, ...], problems: list[Problem]
    ) -> tuple[list[_Clip], Tensor]:
        with open_input(path, self._reader, num_threads=1, decode=self.decode, fps=self.fps) as video:
            clips = self._draw(video, index, draws)
            distinct = np.unique(np.concatenate([clip.row for clip in clips]))
            _, images = video.read(distinct, self._short_side(video, clips))
            place = {frame: i for i, frame in enumerate(distinct.tolist())}
            pixels = self._empty(len(clips))
            aspect = float(video.pixel_aspect) if self.spec.pixel_aspect == "display" else 1.0
            for clip, out in zip(clips, pixels, strict=True):
                self._cut([images[place[frame]] for frame in clip.row.tolist()], clip, out, aspect)
            if video.error is not None:
                problems.append(Problem(path, video.error, replaced=False))
        return clips, pixels

    def _picture(self, path: str, draws: tuple[int, ...]) -> tuple[list[_Clip], Tensor]:
        """As published for ImageNet (timm): RandAugment comes behind the crop, at the size of the crop.

        The flip stands between the two there; its place changes no distribution, since RandAugment's signs are even.
        """
        picture = read_image(path)[np.newaxis]
        still = np.zeros(self.spec.num_frames, dtype=np.int64)
        repeats = range(self.num_clips * self.num_augments)
        clips = [self._draw_one(still, self._rng(draws, repeat)) for repeat in repeats]
        pixels = self._empty(len(clips))
        for clip, out in zip(clips, pixels, strict=True):
            cut = crop_resize(picture, crop_box(clip.crop, *picture.shape[1:3]), self.spec, out=out[:, :1])
            if self.augment.num_ops:
                changed = rand_augment(np.ascontiguousarray(cut.permute(1, 2, 3, 0)), self.augment, clip.rng)
                cut = torch.from_numpy(changed).permute(3, 0, 1, 2)
            np.copyto(out.numpy(), cut.numpy())  # into every frame
        return clips, pixels

    def _empty(self, count: int) -> Tensor:
        """uint8 [count, C, T, h, w]. Channels last in memory, as frames are decoded: to take them apart would cost a
        fifth of the crop.
        """
        shape = (count, self.spec.num_frames, *self.spec.size, 3)
        return torch.empty(shape, dtype=torch.uint8).permute(0, 4, 1, 2, 3)

    def _draw(self, video: Video, index: int, draws: tuple[int, ...]) -> list[_Clip]:
        """What each clip is, decided by its key alone; the clip's start is its key's first draw."""
        clips: list[_Clip] = []
        start, end = float(self.videos.starts[index]), float(self.videos.ends[index])
        for _ in range(self.num_clips):
            rng = self._rng(draws, len(clips))
            for row in rows_within(video.times, start, end, self.sample, rng):
                for _ in range(self.num_augments):
                    clips.append(self._draw_one(row, rng))
                    rng = self._rng(draws, len(clips))
        return clips

    def _rng(self, draws: tuple[int, ...], repeat: int) -> np.random.Generator:
        seed, epoch, index, *attempt = draws
        return keyed_rng(seed, epoch, index, repeat, *attempt)

    def _draw_one(self, row: NDArray[np.int64], rng: np.random.Generator) -> _Clip:
        return _Clip(
            row=row,
            crop=draw_crop(rng, self.augment),
            flip=bool(rng.random() < self.augment.flip),
            erase=draw_erase(rng, self.augment, self.spec.size),
            noise_seed=int(rng.integers(2**63)),
            rng=rng,
        )

    def _short_side(self, video: Video, clips: list[_Clip]) -> int | None:
        """Pixels to decode to: RandAugment works on whole pictures of the published size, other clips on a crop."""
        if min(video.stored_size) == 0:
            return None
        height, width = video.stored_size
        aspect = float(video.index.pixel_aspect) if self.spec.pixel_aspect == "display" else 1.0
        if self.augment.num_ops:  # the short side as it is shown, whichever way the picture is turned
            short = min(height, width)
            return math.ceil(self.spec.resize * short / min(height, width * aspect, width, height / aspect))
        return max(short_side_needed(clip.crop, height, width, self.spec.size, aspect) for clip in clips)

    def _cut(self, images: list[Image], clip: _Clip, out: Tensor, aspect: float) -> None:
        if self.augment.num_ops:
            # Turns and shears mean the picture as it is shown.
            stack = np.stack(images) if aspect == 1 else in_proportion(images, aspect, self.spec)
            frames = rand_augment(stack, self.augment, clip.rng)
            top, left, height, width = crop_box(clip.crop, *frames.shape[1:3])
            crop_resize(frames, (top, left, height, width), self.spec, out=out)
            return
        top, left, height, width = crop_box(clip.crop, images[0].shape[0], images[0].shape[1], aspect)
        box = np.stack([image[top : top + height, left : left + width] for image in images])
        crop_resize(box, (0, 0, height, width), self.spec, out=out)


@dataclass
class _Clip:
    """All that is drawn for one clip; ``rng`` goes on with RandAugment's draws."""

    row: NDArray[np.int64]
    crop: CropDraw
    flip: bool
    erase: NDArray[np.int64]
    noise_seed: int
    rng: np.random.Generator


def _dense(spec: ClipSpec, times: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    return train_clips(times, spec, rng)
