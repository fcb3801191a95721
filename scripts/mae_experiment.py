"""Does MAE pretraining learn, and does it help? A fixed experiment on generated clips; two CPU cores.

    python scripts/mae_experiment.py make --output runs/mae_experiment/data
    hiera-video pretrain --config runs/exp/pretrain.yaml --run.output runs/mae_experiment/mae
    python scripts/mae_experiment.py predictors --model runs/mae_experiment/mae --clips runs/mae_experiment/data/test
    python scripts/mae_experiment.py compare --data runs/mae_experiment/data --mae runs/mae_experiment/mae ...

The task: four bodies, each with two gaits, make eight classes of articulated creatures over moving textures. Colour,
texture, size, place, heading, proportions, pace and camera motion are drawn alike for all classes; a gait's pose at any
one moment is also possible in the other gait of its body (nearly so), so half of the answer is in the motion.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from hiera_video.data.camera_motion import draw_motion, draw_patches, fitting_texels, noise, render, write_h264
from hiera_video.data.pictures import procedural_picture

Floats = NDArray[np.float64]
Part = tuple[int, Floats]
"""A colour (0 or 1) and the corners ``[N, 2]`` of a polygon; a body is about 1 long, x forwards, y down."""

CLASSES = (
    "bird_flap",
    "bird_soar",
    "quadruped_bound",
    "quadruped_walk",
    "star_bounce",
    "star_roll",
    "worm_inch",
    "worm_undulate",
)
SIDE, FPS, FRAMES = 80, 15, 24
#: Videos per class of each labelled split, and the number without labels. ``draw_*`` are the three draws of few labels;
#: ``tune_*`` served to choose hyperparameters and is not used in the comparison; all splits are disjoint.
SPLITS = {"draw_0": 20, "draw_1": 20, "draw_2": 20, "test": 100, "tune_train": 20, "tune_val": 40}
UNLABELLED = 6000


# --- creatures --------------------------------------------------------------------------------------------------------


def _ellipse(x: float, y: float, a: float, b: float) -> Floats:
    around = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + a * np.cos(around), y + b * np.sin(around)], axis=1)


def _limb(start: Floats, angle: float, length: float, width: float) -> Floats:
    """A tapering limb from ``start``; angle 0 points down, positive ones forwards."""
    along = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([along[1], -along[0]]) * width
    end = start + length * along
    return np.array([start + across, end + 0.6 * across, end - 0.6 * across, start - across])


def _turned(parts: list[Part], angle: float) -> list[Part]:
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return [(colour, points @ turn) for colour, points in parts]


def _quadruped(rng: np.random.Generator, *, bound: bool) -> Callable[[float], list[Part]]:
    thick, leg, width = rng.uniform(0.11, 0.18), rng.uniform(0.28, 0.42), rng.uniform(0.035, 0.06)
    swing, neck, head = rng.uniform(0.4, 0.7), rng.uniform(0.3, 1.1), rng.uniform(0.08, 0.13)
    tail = rng.uniform(-2.4, -1.0)

    def pose(phase: float) -> list[Part]:
        # Near and far legs: in step with each other in a bound, opposite in a walk.
        near, far = (0.0, 0.5) if bound else (0.0, math.pi)
        front, hind = (0.0, 2.3) if bound else (0.0, math.pi / 2)
        parts: list[Part] = []
        for side, colour in ((far, 1), (near, 0)):
            for x, shift in ((0.3, front), (-0.3, hind)):
                angle = swing * math.sin(phase + side + shift)
                parts.append((colour, _limb(np.array([x, 0.05]), angle, leg, width)))
        parts.append((1, _limb(np.array([-0.42, -0.02]), tail, 0.25, 0.03)))
        parts.append((0, _ellipse(0, 0, 0.45, thick)))
        top = np.array([0.4, -0.03]) + 0.22 * np.array([math.cos(neck), -math.sin(neck)])
        parts.append((0, np.array([[0.32, -0.1], [0.44, 0.04], top + [0.03, 0.05], top - [0.03, 0.05]])))
        parts.append((0, _ellipse(*top, head * 1.3, head)))
        return _turned(parts, -0.28 * math.sin(phase + 1.2)) if bound else parts

    return pose


def _bird(rng: np.random.Generator, *, flap: bool) -> Callable[[float], list[Part]]:
    thick, span, chord = rng.uniform(0.09, 0.15), rng.uniform(0.4, 0.6), rng.uniform(0.12, 0.2)
    reach, still, sweep = rng.uniform(0.6, 1.1), rng.uniform(-1, 1), rng.uniform(-0.2, 0.1)

    def pose(phase: float) -> list[Part]:
        lift = reach * (math.sin(phase) if flap else still)
        parts: list[Part] = []
        for colour, opening in ((1, 0.25), (0, 0.0)):
            tip = np.array([sweep + opening * 0.4, -span * math.sin(lift + opening)])
            tip[0] -= 0.25 * span * math.cos(lift)
            root = np.array([0.0, -0.03])
            wing = np.array([root + [chord, 0], tip + [0.4 * chord, 0], tip - [0.4 * chord, 0], root - [chord, 0]])
            parts.append((colour, wing))
        parts.insert(1, (0, _ellipse(0, 0, 0.32, thick)))
        parts.insert(1, (1, np.array([[-0.25, -0.03], [-0.5, -0.1], [-0.5, 0.1], [-0.25, 0.05]])))
        parts.append((0, _ellipse(0.34, -0.05, thick * 0.8, thick * 0.75)))
        parts.append((1, np.array([[0.4, -0.09], [0.55, -0.03], [0.4, 0.01]])))
        return parts if flap else _turned(parts, 0.25 * math.sin(phase / 2))

    return pose


def _star(rng: np.random.Generator, *, roll: bool) -> Callable[[float], list[Part]]:
    arms, inner, start = int(rng.integers(4, 8)), rng.uniform(0.4, 0.6), rng.uniform(0, 2 * np.pi)
    way, squash = rng.choice([-1, 1]), rng.uniform(0.15, 0.3)
    around = np.arange(2 * arms) * np.pi / arms
    reach = np.where(np.arange(2 * arms) % 2, 0.45 * inner, 0.45)
    outline = np.stack([reach * np.cos(around), reach * np.sin(around)], axis=1)

    def pose(phase: float) -> list[Part]:
        parts: list[Part] = [(0, outline), (1, _ellipse(0.22, 0, 0.12, 0.09)), (1, _ellipse(0, 0, 0.08, 0.08))]
        if roll:
            return _turned(parts, start + way * phase / 3)
        parts = _turned(parts, start)
        stretch = squash * math.sin(phase)
        return [(colour, points * [1 - stretch, 1 + stretch]) for colour, points in parts]

    return pose


def _worm(rng: np.random.Generator, *, undulate: bool) -> Callable[[float], list[Part]]:
    count, width = int(rng.integers(9, 14)), rng.uniform(0.06, 0.1)
    height, waves = rng.uniform(0.1, 0.2), rng.uniform(0.5, 1.1)
    stripes = int(rng.integers(2, 4))

    def pose(phase: float) -> list[Part]:
        along = np.linspace(0, 1, count)
        if undulate:
            x, y = along - 0.5, height * np.sin(phase - 2 * np.pi * waves * along)
        else:
            arch = 0.5 + 0.5 * math.sin(phase)
            x, y = (along - 0.5) * (1 - 0.35 * arch), -2.2 * height * arch * np.sin(np.pi * along) + height * arch
        sizes = width * (0.7 + 0.3 * np.sin(np.pi * along))
        parts: list[Part] = [
            (int(number % stripes == 0), _ellipse(x[number], y[number], sizes[number], sizes[number]))
            for number in range(count)
        ]
        return [*parts, (0, _ellipse(x[-1] + 0.03, y[-1], width * 1.25, width * 1.1))]

    return pose


def _bob(label: str, phase: float) -> float:
    """How far a gait lifts the whole body, in body lengths."""
    if label == "star_bounce":
        return -0.5 * abs(math.sin(phase / 2)) + 0.25
    return {"quadruped_bound": -0.1, "bird_flap": 0.06}.get(label, 0.0) * math.sin(phase)


def creature(rng: np.random.Generator, label: str) -> Callable[[float], list[Part]]:
    """One creature of a class: phase of its gait in radians -> its parts, from back to front."""
    body, _, gait = label.partition("_")
    if body == "quadruped":
        return _quadruped(rng, bound=gait == "bound")
    if body == "bird":
        return _bird(rng, flap=gait == "flap")
    if body == "star":
        return _star(rng, roll=gait == "roll")
    return _worm(rng, undulate=gait == "undulate")


def silhouettes(rng: np.random.Generator, label: str, times: Floats) -> tuple[Tensor, Floats]:
    """Masks of both colours, float ``[2, T, SIDE, SIDE]`` in [0, 1], and the body's path ``[T, 2]`` in windows."""
    pose = creature(rng, label)
    rate, first, size = rng.uniform(1.0, 2.2), rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 0.9)
    heading, mirror, tilt = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1]), rng.normal(0, 0.2)
    velocity = rng.uniform(0, 0.1) * np.array([np.cos(heading), 0.5 * np.sin(heading)])
    path = rng.uniform(-0.08, 0.08, 2) + velocity * (times - times.mean())[:, None]
    fine = 3 * SIDE
    masks = np.zeros((2, len(times), SIDE, SIDE), dtype=np.float32)
    for frame, time in enumerate(times):
        phase = 2 * np.pi * rate * time + first
        path[frame, 1] += size * _bob(label, phase)
        layers = [Image.new("L", (fine, fine)) for _ in range(2)]
        inks = [ImageDraw.Draw(layer) for layer in layers]
        for colour, points in _turned(pose(phase), tilt):
            corners = (points * [mirror * size, size] + path[frame] + 0.5) * fine
            outline = [tuple(corner) for corner in corners.tolist()]
            inks[colour].polygon(outline, fill=255)
            inks[1 - colour].polygon(outline, fill=0)
        for colour, layer in enumerate(layers):
            masks[colour, frame] = np.asarray(layer.reduce(3), dtype=np.float32) / 255
    return torch.from_numpy(masks), path


# --- clips ------------------------------------------------------------------------------------------------------------


def frames_of(rng: np.random.Generator, label: str, pool: list[Tensor]) -> Tensor:
    """A clip of one creature over a picture of ``pool``: float ``[3, FRAMES, SIDE, SIDE]`` in [0, 255].

    The camera moves over the background in any of the ways of the camera-motion task, at up to the same speeds, and
    foreign patches may cross behind the creature. Its colours are drawn to stand out from the background's mean.
    """
    times, window = np.arange(FRAMES) / FPS, (SIDE, SIDE)
    camera = draw_motion(rng, int(rng.integers(9)), times)
    patches = draw_patches(rng, times, share=0.3)
    picture, coat, *others = (pool[rng.integers(len(pool))].float() for _ in range(2 + len(patches)))
    texels = min(fitting_texels(camera, picture, window), SIDE * rng.uniform(1.0, 1.6))
    frames = render(picture, others, camera, patches, window, texels)
    behind = frames.mean(dim=(1, 2, 3))
    soft = F.avg_pool2d(frames, 5, stride=1, padding=2, count_include_pad=False)
    soft = F.avg_pool2d(soft, 5, stride=1, padding=2, count_include_pad=False)
    frames = soft.lerp(behind.view(3, 1, 1, 1), float(rng.uniform(0.2, 0.6)))
    masks, path = silhouettes(rng, label, times)
    grain = coat[:, :SIDE, :SIDE].unsqueeze(1) - coat.mean()
    for mask in masks:
        colour = torch.from_numpy(rng.uniform(0, 255, 3)).float()
        for _ in range(20):
            if (colour - behind).norm() > 120:
                break
            colour = torch.from_numpy(rng.uniform(0, 255, 3)).float()
        steps = (path * SIDE).round().astype(int).tolist()
        moved = torch.cat([torch.roll(grain, (y, x), dims=(2, 3)) for x, y in steps], dim=1)
        frames = frames + mask * (colour.view(3, 1, 1, 1) + 0.4 * moved - frames)
    frames = frames * rng.uniform(0.75, 1.1) + float(rng.uniform(-10, 10))
    if rng.random() < 0.5:
        frames = frames + noise(rng, frames.shape) * float(rng.exponential(3))
    return frames.clamp(0, 255)


@cache
def _pool(seed: int, split: int) -> list[Tensor]:
    """The pictures of one split: no picture is seen in two."""
    rng = np.random.default_rng((seed, split))
    return [procedural_picture(rng, 2 * SIDE) for _ in range(300)]


def _write(seed: int, job: tuple[Path, int, int, str]) -> None:
    path, split, number, label = job
    torch.set_num_threads(1)
    rng = np.random.default_rng((seed, split, number))
    frames = frames_of(rng, label, _pool(seed, split))
    write_h264(path, frames.byte(), FPS, int(rng.integers(20, 29)))


def make(output: Path, seed: int = 0, unlabelled: int = UNLABELLED, workers: int = 2) -> None:
    """Writes the whole data set: ``output/pretrain/any/*.mp4`` and ``output/SPLIT/CLASS/*.mp4``."""
    jobs: list[tuple[Path, int, int, str]] = []
    for split, (name, count) in enumerate(SPLITS.items(), start=1):
        for number in range(count * len(CLASSES)):
            label = CLASSES[number % len(CLASSES)]
            jobs.append((output / name / label / f"{number:05d}.mp4", split, number, label))
    for number in range(unlabelled):
        label = CLASSES[number % len(CLASSES)]
        jobs.append((output / "pretrain" / "any" / f"{number:05d}.mp4", 0, number, label))
    jobs = [job for job in jobs if not job[0].exists()]
    for folder in {path.parent for path, *_ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
        for _ in tqdm(executor.map(partial(_write, seed), jobs, chunksize=20), total=len(jobs), unit="video"):
            pass


if __name__ == "__main__":
    auto_cli([make], as_positional=False)
