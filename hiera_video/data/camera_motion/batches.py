"""Training batches of camera motion: clips rendered on the fly, clips read back from coded files, augmentation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from hiera_video.data.camera_motion.coded import Sample, kept_clips
from hiera_video.data.camera_motion.generator import (
    FASTEST,
    LABELS,
    MIN_TEXTURE,
    SLOWEST,
    draw_motion,
    fitting_texels,
    flow,
    noise,
    render,
    screen,
    texture,
)
from hiera_video.data.camera_motion.objects import draw_scene
from hiera_video.data.camera_motion.textures import Pool, make_pool
from hiera_video.data.dataset import Problem
from hiera_video.data.loader import Batch, Made, Order, Stream
from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

log = logging.getLogger("hiera_video")


def rendered_clip(
    rng: np.random.Generator, pool: Pool, spec: ClipSpec, num_frames: int, size: int, ease: float
) -> Sample:
    """A clip as if sampled by ``spec`` from a video of some frame rate. ``ease`` from 0 (the task, its range of speeds
    widened by a quarter) to 1 (no slow motions, no shake, few things in view), where a model from scratch finds a hold.
    """
    label = int(rng.integers(len(LABELS)))
    fps = float(rng.choice([10, 12, 15, 20, 24, 25, 30, 30, 50, 60]))
    times = np.floor(np.linspace(0, spec.span * fps - 1, spec.num_frames)) / fps
    times = times[:: spec.num_frames // num_frames]
    if rng.random() < 0.08:  # a video shorter than a clip repeats its last frame
        times = np.minimum(times, times[-1] * rng.uniform(0.4, 1))
    shake = (1 - ease) * (rng.uniform(1, 3) if rng.random() < 0.1 else 1)
    motion = draw_motion(rng, label, times, slowest=SLOWEST / 1.25 * 4**ease, fastest=FASTEST * 1.25, shake=shake)
    patches, others = draw_scene(rng, motion, times, pool.pictures, pool.cutouts, ease=ease)
    # Rendered at 1.5 times the size and shrunk: a clean picture for half the pixels of twice the size.
    large = (size * 3 // 2,) * 2
    shutter = float(rng.uniform(0, 0.25)) if rng.random() < 0.1 * (1 - ease) else 0.0
    # A cut, between the pairs of frames that the flow is of: the camera goes on the same way elsewhere.
    cut = 2 * int(rng.integers(1, num_frames // 2)) if rng.random() < 0.05 * (1 - ease) else 0
    parts = []
    for frames in (np.arange(cut), np.arange(cut, num_frames)):
        if len(frames):
            picture = pool.pictures[rng.integers(len(pool.pictures))].float()
            texels = min(size * float(rng.uniform(1.0, 2.6)), fitting_texels(motion, picture, large))
            moved = [patch.at(frames) for patch in patches]
            parts.append(render(picture, others, motion.at(frames), moved, large, texels, shutter=shutter))
    shown = torch.cat(parts, dim=1).transpose(0, 1)
    shown = F.interpolate(shown, size=(size, size), mode="bilinear", antialias=True)
    return shown.transpose(0, 1), flow(motion, patches, size // 4, others), label


def photometric(rng: np.random.Generator, clip: Tensor) -> Tensor:
    """Contrast, brightness, flicker, colour cast, grey, vignette, blur and noise of a float clip ``[3, T, S, S]``."""
    frames, size = clip.shape[1], clip.shape[2]
    if rng.random() < 0.2:
        clip = clip.mean(0, keepdim=True).expand(3, -1, -1, -1)
    if rng.random() < 0.25:
        sigma = rng.uniform(0.3, 1.0)
        taps = torch.exp(-(torch.arange(-2, 3).float() ** 2) / (2 * sigma**2))
        kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
        clip = F.conv2d(clip.reshape(-1, 1, size, size), kernel, padding=2).view(clip.shape)
    gain = torch.from_numpy(rng.uniform(0.6, 1.3, (3 if rng.random() < 0.5 else 1, 1, 1, 1))).float()
    drift = np.linspace(0, 1, frames) * rng.normal(0, 0.1) + rng.normal(0, 0.02, frames) * (rng.random() < 0.3)
    light = gain * torch.from_numpy(1 + drift).float()[:, None, None]
    if rng.random() < 0.3:
        light = light * (1 - rng.uniform(0, 0.9) * screen(size, size).square().sum(-1))
    clip = clip * light + rng.uniform(-25, 25)
    if rng.random() < 0.6:
        clip = clip + noise(rng, clip.shape) * float(rng.exponential(4))
    return clip.clamp(0, 255)


#: Probability that a clip is turned upside down, and that it is transposed: what a model knows of the look of things is
#: mostly of upright ones.
TURNED = 0.25


def symmetric(rng: np.random.Generator, clip: Tensor, seen: Tensor, label: int) -> Sample:
    """The clip mirrored, played backwards, and sometimes turned upside down or transposed, with the flow and label that
    then hold.
    """
    opposite = [0, 2, 1, 4, 3, 6, 5, 8, 7]
    if rng.random() < 0.5:
        clip, seen = clip.flip(3), seen.flip(3) * torch.tensor([-1.0, 1, -1, 1]).view(4, 1, 1, 1)
        label = opposite[label] if label in (1, 2, 7, 8) else label
    if rng.random() < TURNED:
        clip, seen = clip.flip(2), seen.flip(2) * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1, 1)
        label = opposite[label] if label in (3, 4, 7, 8) else label
    if rng.random() < 0.5:
        clip, seen, label = clip.flip(1), -seen.flip(1), opposite[label]
    if rng.random() < TURNED:  # x and y change places: a picture that moved right now moves down
        clip, seen = clip.transpose(2, 3), seen[[1, 0, 3, 2]].transpose(2, 3)
        label = [0, 3, 4, 1, 2, 5, 6, 8, 7][label]
    return clip, seen, label


@dataclass
class MotionBatches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches without end: clips uint8 ``[B, 3, T, S, S]``, flow ``[B, 4, T / 2, S / 4, S / 4]``, labels int64 ``[B]``.

    Batch ``number`` is a function of (seed, number), in whatever process it is made; ``batches_per_step`` of them make
    a step, in all processes together. Pictures are drawn from ``pool``, the share ``coded_share`` of the clips from
    ``coded``; the task grows from easy to itself over the first two thirds of ``steps`` if ``growing``.
    """

    seed: int
    steps: int
    batch_size: int
    num_frames: int
    size: int
    spec: ClipSpec
    pool: Pool
    coded: list[Sample]
    coded_share: float
    growing: bool
    batches_per_step: int = 1

    def __len__(self) -> int:
        return self.steps * self.batches_per_step

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        step = number // self.batches_per_step
        ease = max(0.0, 1 - 1.5 * step / self.steps) if self.growing else 0.0
        samples: list[Sample] = []
        while len(samples) < self.batch_size:
            if len(samples) < self.coded_share * self.batch_size:
                clip, seen, label = self.coded[rng.integers(len(self.coded))]
                clip, seen = clip.float(), seen.float()
            else:
                clip, seen, label = rendered_clip(rng, self.pool, self.spec, self.num_frames, self.size, ease)
            if texture(clip[:, 0]) > MIN_TEXTURE * (0.5 + 2 * ease):
                clip, seen, label = symmetric(rng, clip, seen, label)
                clip = photometric(rng, clip) if rng.random() >= ease else clip.clamp(0, 255)
                samples.append((clip.byte(), seen, label))
        clips, flows, labels = zip(*samples, strict=True)
        return torch.stack(clips), torch.stack(flows), torch.tensor(labels)


class MotionLoader:
    """:class:`MotionBatches` in place of a :class:`~hiera_video.data.loader.ClipLoader`: same protocol, same batches.

    A batch has ``flow`` too, float32 [B, 4, T / 2, S / 4, S / 4] of
    :func:`~hiera_video.data.camera_motion.generator.flow`; flip,
    erase, noise_seed and repeat are zeros, ``index`` counts an epoch's clips, ``path`` is a made-up name. It is a
    function of (seed, step, place among the step's batches): another ``batch_size`` has other clips. An epoch is
    ``steps_per_epoch`` steps, a unit alone.

    Clips are of ``spec``; ``num_frames`` (a divisor of the spec's, over the same seconds) and ``size`` make them
    smaller, where none is coded. ``num_pictures``, ``num_coded``: how many pictures (and half as many photographs) and
    clips read back from H.264 files there are to draw from, ``coded_share`` of a batch being such; ``photographs`` is a
    folder of more pictures (:func:`~hiera_video.data.camera_motion.textures.make_pool`). They take minutes to
    make; ``cache``, a folder, keeps coded ones for the next run, and for other processes if the first makes them alone.
    ``growing``: from easy to the task over the first two thirds of ``total_steps``. Raises :class:`RequestError`.
    """

    def __init__(
        self,
        spec: ClipSpec,
        batch_size: int,
        *,
        num_frames: int | None = None,
        size: int | None = None,
        num_pictures: int = 1500,
        photographs: Path | None = None,
        num_coded: int = 2000,
        coded_share: float = 0.5,
        growing: bool = False,
        total_steps: int | None = None,
        steps_per_epoch: int = 100,
        seed: int = 0,
        num_workers: int = 2,
        rank: int = 0,
        num_processes: int = 1,
        accumulate: int = 1,
        cache: Path | None = None,
    ) -> None:
        frames, size = num_frames or spec.num_frames, size or spec.size[0]
        _check(spec, frames, size, num_coded if coded_share else 0, coded_share, total_steps if growing else 1)
        if steps_per_epoch < 1 or num_pictures < 1:
            raise RequestError(f"steps_per_epoch {steps_per_epoch} and num_pictures {num_pictures} must be at least 1")
        videos = steps_per_epoch * batch_size * num_processes * accumulate
        order = Order(seed, videos, batch_size, False, rank, num_processes, accumulate)
        self._steps_per_epoch, self.problems = steps_per_epoch, list[Problem]()
        batches = MotionBatches(
            seed=seed,
            steps=total_steps or 1,
            batch_size=batch_size,
            num_frames=frames,
            size=size,
            spec=spec,
            pool=_pool(num_pictures, seed, size, photographs),
            coded=kept_clips(num_coded, seed, spec, photographs, num_workers, cache) if coded_share else [],
            coded_share=coded_share,
            growing=growing,
            batches_per_step=num_processes * accumulate,
        )
        self._stream = Stream(_Named(batches, videos), order, num_workers)

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return self._stream.epoch

    @property
    def videos_per_step(self) -> int:
        """Clips that a step takes in all processes together."""
        return self._stream.order.videos_per_step

    def __len__(self) -> int:
        """Steps of an epoch; each has ``accumulate`` batches."""
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.rest_of_epoch()

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last whole step: plain numbers."""
        position = {"epoch": self._stream.epoch, "videos": self._stream.videos, "problems": []}
        return {"seed": self._stream.order.seed, "steps_per_epoch": len(self), **position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises :class:`RequestError` where it belongs to another seed or length of epoch."""
        self._stream.go_to(state, seed=self._stream.order.seed, steps_per_epoch=len(self))

    def close(self) -> None:
        """End the workers; iterating starts them anew."""
        self._stream.close()


class _Named(Dataset[Made]):
    """The batches by their clips' keys (epoch, index), which follow one another, as dicts."""

    def __init__(self, batches: MotionBatches, videos_per_epoch: int) -> None:
        self._batches, self._videos_per_epoch = batches, videos_per_epoch

    def __getitem__(self, keys: list[tuple[int, int]]) -> Made:
        count = len(keys)
        first = keys[0][0] * self._videos_per_epoch + keys[0][1]
        clip, seen, label = self._batches[first // count]
        batch: Batch = {
            "clip": clip,
            "flow": seen,
            "label": label,
            "flip": torch.zeros(count, dtype=torch.bool),
            "erase": torch.zeros(count, 4, dtype=torch.int64),
            "noise_seed": torch.zeros(count, dtype=torch.int64),
            "repeat": torch.zeros(count, dtype=torch.int64),
            "epoch": torch.tensor([epoch for epoch, _ in keys]),
            "index": torch.tensor([index for _, index in keys]),
            "path": [f"generated {clip_number}" for clip_number in range(first, first + count)],
            "problems": [],
        }
        return Made(batch)


def _check(
    spec: ClipSpec, num_frames: int, size: int, num_coded: int, coded_share: float, total_steps: int | None
) -> None:
    own = (spec.num_frames, *spec.size)
    if spec.size[0] != spec.size[1] or size % 4 or num_frames % 2 or spec.num_frames % num_frames:
        raise RequestError(
            f"generated clips are square, of a size in fours and an even number of frames that divides the spec's "
            f"{spec.num_frames}, but were asked for with {num_frames} of {size} pixels (spec {spec.size})"
        )
    if not 0 <= coded_share <= 1 or (coded_share and num_coded < 1):
        raise RequestError(f"coded_share is {coded_share}, but is from 0 to 1, and 0 without coded clips ({num_coded})")
    if coded_share and (num_frames, size, size) != own:
        raise RequestError(
            f"coded clips have the spec's frames and size {own}, so num_frames {num_frames} and size {size} need "
            "coded_share 0"
        )
    if total_steps is None or total_steps < 1:
        raise RequestError(f"total_steps is {total_steps}, but a task that grows needs the number of steps of the run")


def _pool(count: int, seed: int, size: int, photographs: Path | None) -> Pool:
    """Pictures six windows wide, of 384 pixels at most: a small clip shows as much as a large one."""
    log.info("making %d pictures for generated clips", count)
    return make_pool(count, seed, min(384, 6 * size), photographs)
