"""Generated videos as mp4 files, and the clips that our own reader takes from such files."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hiera_video.data.camera_motion.generator import (
    LABELS,
    MIN_TEXTURE,
    Motion,
    Patch,
    draw_motion,
    draw_patches,
    fitting_texels,
    flow,
    noise,
    render,
    texture,
)
from hiera_video.data.camera_motion.objects import draw_scene, nearer_planes
from hiera_video.data.camera_motion.textures import make_pool
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.reading.reader import open_video
from hiera_video.data.sampling import train_clips
from hiera_video.data.transforms import fit_crops
from hiera_video.errors import RequestError
from hiera_video.files import replacing
from hiera_video.spec import ClipSpec

Sample = tuple[Tensor, Tensor, int]
"""A clip ``[3, T, S, S]`` in [0, 255], its flow ``[4, T / 2, S / 4, S / 4]`` and its label."""


@dataclass
class Generated:
    """A generated video: what moves in it, and how it was encoded."""

    motion: Motion
    patches: list[Patch]
    others: list[Tensor]
    fps: int
    size: tuple[int, int]
    crf: int


SIZES = ((120, 160), (144, 176), (160, 160), (180, 320), (240, 240), (240, 320), (320, 180), (270, 480))


def make_video(
    path: Path | io.BytesIO,
    rng: np.random.Generator,
    label: int,
    pool: list[Tensor],
    seconds: float,
    cutouts: list[Tensor] | None = None,
    *,
    parallax: bool = False,
) -> Generated:
    """Writes one mp4 (H.264, crf 18 to 36; two in three at 28 or worse) of a motion of class ``label``.

    Pictures uint8 ``[3, h, w]`` for the scene and the patches are drawn from ``pool``; one with too little texture
    (:func:`texture` of the first frame) is drawn again, ten times at most. With ``cutouts`` the scene has all that
    training clips have; with ``parallax`` there are planes nearer than the background, and nothing else.
    """
    fps = int(rng.choice([12, 15, 24, 25, 30, 50, 60], p=[0.15, 0.15, 0.2, 0.2, 0.24, 0.03, 0.03]))
    size = SIZES[rng.choice(len(SIZES), p=[0.25, 0.2, 0.2, 0.1, 0.08, 0.09, 0.05, 0.03])]
    times = np.arange(max(round(seconds * fps), 1)) / fps
    motion = draw_motion(rng, label, times)
    if cutouts is None:
        patches = draw_patches(rng, times)
        others = [pool[rng.integers(len(pool))].float() for _ in patches]
    elif parallax:
        patches = nearer_planes(rng, motion)
        others = [cutouts[rng.integers(len(cutouts))].float() for _ in patches]
    else:
        patches, others = draw_scene(rng, motion, times, pool, cutouts, ease=0.0)
    first = motion.at([0])
    for _ in range(10):
        picture = pool[rng.integers(len(pool))].float()
        texels = min(fitting_texels(motion, picture, size), min(size) * rng.uniform(1.0, 1.6))
        if texture(render(picture, [], first, [], size, texels)[:, 0]) > 2 * MIN_TEXTURE:
            break
    frames = render(picture, others, motion, patches, size, texels)
    frames = frames * rng.uniform(0.75, 1.1) + float(rng.uniform(-10, 10))
    if rng.random() < 0.5:
        frames = frames + noise(rng, frames.shape) * float(rng.exponential(3))
    crf = int(rng.integers(28, 37)) if rng.random() < 2 / 3 else int(rng.integers(18, 28))
    pixels = frames.clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().numpy()
    write_mp4(path, pixels, fps, crf=crf, options={"preset": "veryfast"})
    return Generated(motion, patches, others, fps, size, crf)


def _coded_part(seed: int, videos: int, spec: ClipSpec, photographs: Path | None) -> list[Sample]:
    torch.set_num_threads(1)
    pool = make_pool(60, seed, 640, photographs)
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for video_number in range(videos):
        coded, label = io.BytesIO(), video_number % len(LABELS)
        made = make_video(coded, rng, label, pool.pictures, rng.uniform(2.2, 3.0), pool.cutouts)
        with open_video(coded) as video:
            for row in train_clips(video.times, spec, rng, num_clips=2):
                clip, _ = fit_crops(video.frames(row).pixels, spec, 1)
                moved = [patch.at(row) for patch in made.patches]
                seen = flow(made.motion.at(row), moved, spec.size[0] // 4, made.others)
                samples.append((clip, seen.half(), label))
    return samples


def coded_clips(count: int, seed: int, spec: ClipSpec, photographs: Path | None, *, workers: int) -> list[Sample]:
    """``count`` clips uint8 that went through H.264 and our own reader, made by ``workers`` processes."""
    part = min(36, -(-count // 2))
    jobs = -(-count // (2 * part))
    samples: list[Sample] = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
        same = ([part] * jobs, [spec] * jobs, [photographs] * jobs)
        parts = executor.map(_coded_part, range(seed, seed + jobs), *same)
        for made in tqdm(parts, total=jobs, desc="coded clips", unit="part"):
            samples += made
    return samples[:count]


def kept_clips(
    count: int, seed: int, spec: ClipSpec, photographs: Path | None, num_workers: int, cache: Path | None
) -> list[Sample]:
    """Coded clips, from ``cache`` where it has these, else put there."""

    def made() -> list[Sample]:
        return coded_clips(count, seed + 1_000_000, spec, photographs, workers=max(1, num_workers))

    if cache is None:
        return made()
    facts = [spec.to_dict(), None if photographs is None else photographs.name]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    path = cache / f"coded_{count}_{seed}_{digest}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(made(), temporary)
    try:
        # Use whichever file won the race: several processes may have made one.
        return torch.load(path, weights_only=True)
    except Exception as error:  # a cut file raises one of many kinds
        raise RequestError(f"{path} is damaged: delete it, and it is made again") from error
