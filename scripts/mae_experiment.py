"""Does MAE pretraining learn, and does it help? A fixed experiment on generated clips, for two CPU cores.

    python scripts/mae_experiment.py make --output D
    hiera-video pretrain --config PRETRAIN.yaml --data.train D/pretrain --run.output RUNS/mae
    python scripts/mae_experiment.py predictors --model RUNS/mae --clips D/test
    python scripts/mae_experiment.py compare --data D --mae_recipe M.yaml --scratch_recipe S.yaml --output R

Four bodies with two gaits each make eight classes of articulated creatures over moving, blurred textures. Colours,
texture, size, place, heading, proportions, pace and camera motion are drawn alike for all classes: shape tells the
body, and mostly motion the gait.
"""

from __future__ import annotations

import math
import multiprocessing
import subprocess
import sys
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

from hiera_video.data.camera_motion.generator import (
    draw_motion,
    draw_patches,
    fitting_texels,
    noise,
    render,
)
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.lists.video_list import list_videos
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.views import load_views
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.zoo import mae_from_pretrained

Floats = NDArray[np.float64]
Part = tuple[int, Floats]
"""A colour (0 or 1) and the corners ``[N, 2]`` of a polygon; a body is about 1 long, x forwards, y down."""

BODIES = {"bird": "flap soar", "quadruped": "bound walk", "star": "bounce roll", "worm": "inch undulate"}
CLASSES = [f"{body}_{gait}" for body, gaits in BODIES.items() for gait in gaits.split()]
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


def _quadruped(rng: np.random.Generator, bound: bool) -> Callable[[float], list[Part]]:
    """From its random proportions a function: phase of the gait in radians -> parts, from back to front."""
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
        half = np.array([0.03, 0.05])
        parts.append((0, np.array([[0.32, -0.1], [0.44, 0.04], top + half, top - half])))
        parts.append((0, _ellipse(top[0], top[1], head * 1.3, head)))
        return _turned(parts, -0.28 * math.sin(phase + 1.2)) if bound else parts

    return pose


def _bird(rng: np.random.Generator, flap: bool) -> Callable[[float], list[Part]]:
    thick, span, chord = rng.uniform(0.09, 0.15), rng.uniform(0.4, 0.6), rng.uniform(0.12, 0.2)
    reach, still, sweep = rng.uniform(0.6, 1.1), rng.uniform(-1, 1), rng.uniform(-0.2, 0.1)

    def pose(phase: float) -> list[Part]:
        lift = reach * (math.sin(phase) if flap else still)
        parts: list[Part] = []
        for colour, opening in ((1, 0.25), (0, 0.0)):
            tip = np.array([sweep + opening * 0.4, -span * math.sin(lift + opening)])
            tip[0] -= 0.25 * span * math.cos(lift)
            root, half = np.array([0.0, -0.03]), np.array([chord, 0])
            wing = np.array([root + half, tip + 0.4 * half, tip - 0.4 * half, root - half])
            parts.append((colour, wing))
        parts.insert(1, (0, _ellipse(0, 0, 0.32, thick)))
        parts.insert(1, (1, np.array([[-0.25, -0.03], [-0.5, -0.1], [-0.5, 0.1], [-0.25, 0.05]])))
        parts.append((0, _ellipse(0.34, -0.05, thick * 0.8, thick * 0.75)))
        parts.append((1, np.array([[0.4, -0.09], [0.55, -0.03], [0.4, 0.01]])))
        return parts if flap else _turned(parts, 0.25 * math.sin(phase / 2))

    return pose


def _star(rng: np.random.Generator, bounce: bool) -> Callable[[float], list[Part]]:
    arms, inner, start = int(rng.integers(4, 8)), rng.uniform(0.4, 0.6), rng.uniform(0, 2 * np.pi)
    way, squash = rng.choice([-1, 1]), rng.uniform(0.15, 0.3)
    around = np.arange(2 * arms) * np.pi / arms
    reach = np.where(np.arange(2 * arms) % 2, 0.45 * inner, 0.45)
    outline = np.stack([reach * np.cos(around), reach * np.sin(around)], axis=1)

    def pose(phase: float) -> list[Part]:
        parts: list[Part] = [(0, outline), (1, _ellipse(0.22, 0, 0.12, 0.09)), (1, _ellipse(0, 0, 0.08, 0.08))]
        if not bounce:
            return _turned(parts, start + way * phase / 3)
        parts = _turned(parts, start)
        stretch = squash * math.sin(phase)
        return [(colour, points * [1 - stretch, 1 + stretch]) for colour, points in parts]

    return pose


def _worm(rng: np.random.Generator, inch: bool) -> Callable[[float], list[Part]]:
    count, width = int(rng.integers(9, 14)), rng.uniform(0.06, 0.1)
    height, waves = rng.uniform(0.1, 0.2), rng.uniform(0.5, 1.1)
    stripes = int(rng.integers(2, 4))

    def pose(phase: float) -> list[Part]:
        along = np.linspace(0, 1, count)
        if not inch:
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


MAKERS = {"bird": _bird, "quadruped": _quadruped, "star": _star, "worm": _worm}


def silhouettes(rng: np.random.Generator, label: str, times: Floats) -> tuple[Tensor, Floats]:
    """Masks of both colours, float ``[2, T, SIDE, SIDE]`` in [0, 1], and the body's path ``[T, 2]`` in windows."""
    body, _, gait = label.partition("_")
    pose = MAKERS[body](rng, BODIES[body].startswith(gait))
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
    for _ in range(2):  # out of focus, and with less contrast
        frames = F.avg_pool2d(frames, 5, stride=1, padding=2, count_include_pad=False)
    frames = frames.lerp(behind.view(3, 1, 1, 1), float(rng.uniform(0.2, 0.6)))
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
    pictures = frames.byte().permute(1, 2, 3, 0).contiguous().numpy()
    write_mp4(path, pictures, FPS, crf=int(rng.integers(20, 29)), options={"preset": "veryfast"})


def make(output: Path, seed: int = 0, unlabelled: int = UNLABELLED, workers: int = 2) -> None:
    """Writes the whole data set: ``output/pretrain/any/*.mp4`` and ``output/SPLIT/CLASS/*.mp4``."""
    jobs: list[tuple[Path, int, int, str]] = []  # path, split, number, label
    counts = {"pretrain": unlabelled, **{name: count * len(CLASSES) for name, count in SPLITS.items()}}
    for split, (name, count) in enumerate(counts.items()):
        for number in range(count):
            label = CLASSES[number % len(CLASSES)]
            folder = output / name / ("any" if name == "pretrain" else label)
            jobs.append((folder / f"{number:05d}.mp4", split, number, label))
            folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
        for _ in tqdm(executor.map(partial(_write, seed), jobs, chunksize=20), total=len(jobs), unit="video"):
            pass


# --- does it learn? ---------------------------------------------------------------------------------------------------


def _normalized(patches: Tensor) -> Tensor:
    """Patches ``[..., P]`` to mean 0 and unbiased variance 1, as the model's target."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def _neighbours(patches: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the visible ones among the 26 patches around each, and where there is any. ``[B, t, h, w, P]``."""
    weight = visible.float().unsqueeze(-1)
    both = torch.cat([patches * weight, weight], dim=-1).movedim(-1, 1)
    total, count = (27 * F.avg_pool3d(both, 3, stride=1, padding=1)).movedim(1, -1).tensor_split([-1], dim=-1)
    return total / count.round().clamp(min=1), count[..., 0] > 0.5


def _nearest_in_time(first: Tensor, second: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The visible patch at the same place that is nearest in time, and where there is any. ``[B, t, h, w, P]``.

    A mask unit shows two frames, ``first`` and ``second``; hidden ones predict their first. So an earlier unit's second
    frame is nearer than a later unit's first.
    """
    steps = first.shape[1]
    copy, found = torch.zeros_like(first), torch.zeros_like(visible)
    for distance in range(1, steps):
        for shift, source in ((-distance, second), (distance, first)):
            at = torch.arange(steps) + shift
            inside = ((at >= 0) & (at < steps)).view(1, -1, 1, 1)
            at = at.clamp(0, steps - 1)
            new = visible[:, at] & inside & ~found
            copy, found = torch.where(new.unsqueeze(-1), source[:, at], copy), found | new
    return copy, found


def trivial_errors(model: HieraMAE, clip: Tensor, keep: Tensor) -> dict[str, Tensor]:
    """Squared errors ``[hidden patches]``, the mean over a patch's values, of what needs no learning.

    ``clip`` is normalised ``[B, 3, T, H, W]``. The neighbours' mean is read as one colour, and as one patch. Each goes
    through the loss twice: normalised by the *true* patch's mean and deviation, and by its *own*. Where a predictor has
    nothing to go by it says 0, which is the true patch's mean, at an error of 1.
    """
    size = tuple(clip.shape[2:])
    grid, unit_grid = model.final_grid(size), model.unit_grid(size)
    visible = keep.view(-1, *unit_grid)
    for axis, (all_patches, num_units) in enumerate(zip(grid, unit_grid, strict=True), start=1):
        visible = visible.repeat_interleave(all_patches // num_units, dim=axis)
    first = model.target(clip).unflatten(1, grid)
    second = model.target(clip.roll(-1, dims=2)).unflatten(1, grid)  # the other frame of each temporal patch
    around, near = _neighbours(first, visible)
    colour = around.unflatten(-1, (-1, 3)).mean(-2, keepdim=True).expand(*around.shape[:-1], around.shape[-1] // 3, 3)
    copied, known = _nearest_in_time(first, second, visible)
    truth = first[~visible]
    mean, deviation = truth.mean(-1, keepdim=True), (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    target = _normalized(truth)
    errors = {"zero": target.square().mean(-1)}
    guesses = {
        "neighbours' colour": (colour.flatten(-2), near),
        "neighbours' patch": (around, near),
        "copy in time": (copied, known),
    }
    for name, (guess, has) in guesses.items():
        hidden = guess[~visible]
        for how, value in (("true", (hidden - mean) / deviation), ("own", _normalized(hidden))):
            value = torch.where(has[~visible].unsqueeze(-1), value, 0.0)
            errors[f"{name}, {how}"] = (value - target).square().mean(-1)
    return errors


@torch.no_grad()
def predictors(model: str, clips: Path, seed: int = 0, batch_size: int = 32) -> None:
    """Prints the loss of a pretrained model on the centre clip of each video, and of trivial predictors beside it."""
    mae = mae_from_pretrained(model).eval()
    videos = list_videos(clips)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    for start in tqdm(range(0, len(videos), batch_size), unit="batch"):
        paths = [videos.path(index) for index in range(start, min(start + batch_size, len(videos)))]
        clip = mae.spec.normalize(torch.cat([load_views(path, mae.spec, 1, 1).clips for path in paths]))
        num_units = mae.num_mask_units(tuple(clip.shape[2:]))
        keep = random_keep(len(clip), num_units, mae.arch.mask_ratio, generator=generator)
        means = {name: float(error.mean()) for name, error in trivial_errors(mae, clip, keep).items()}
        for name, value in {"model": float(mae(clip, keep).loss), **means}.items():
            sums[name] = sums.get(name, 0.0) + value * len(clip) / len(videos)
    trivial = {name: value for name, value in sums.items() if name not in ("model", "zero")}
    best = min(trivial, key=lambda name: trivial[name])
    for name, value in sums.items():
        print(f"{name:>28} {value:.4f}")
    print(f"The model is {1 - sums['model'] / trivial[best]:.1%} below the best trivial one ({best}).")


# --- does it help? ----------------------------------------------------------------------------------------------------


def _run(draw: int, seed: int, start: str, recipe: Path, data: Path, output: Path) -> tuple[float, float]:
    """Fine-tunes and tests one model, unless that is done; top-1 of eight classes and of four bodies, in [0, 1]."""
    import pyarrow.parquet as pq

    run = output / f"{start}_draw{draw}_seed{seed}"
    scores = run / "test" / "scores.parquet"
    if not scores.exists():
        command = ["hiera-video", "finetune", "--config", str(recipe), "--data.train", str(data / f"draw_{draw}")]
        subprocess.run([*command, "--run.seed", str(seed), "--run.output", str(run)], check=True, stdout=sys.stderr)
        command = ["hiera-video", "evaluate", "--data.source", str(data / "test"), "--data.views", "1x1"]
        command += ["--model.start", str(run), "--run.output", str(run / "test"), "--run.batch_size", "32"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    rows = pq.read_table(scores).to_pydict()
    pairs = list(zip(rows["label_name"], rows["prediction_name"], strict=True))
    bodies = [(label.partition("_")[0], str(guess).partition("_")[0]) for label, guess in pairs]
    return sum(a == b for a, b in pairs) / len(pairs), sum(a == b for a, b in bodies) / len(pairs)


def compare(data: Path, mae_recipe: Path, scratch_recipe: Path, output: Path, draws: int = 3, seeds: int = 2) -> None:
    """Fine-tunes from the MAE and from scratch on every draw and seed, and prints the table. Run again, it goes on.

    A gain is claimed when the mean difference is above two standard errors, of the pairs and of the draws' means both.
    """
    recipes = {"mae": mae_recipe, "scratch": scratch_recipe}
    top1 = np.zeros((2, draws, seeds))
    for draw in range(draws):
        for seed in range(seeds):
            for row, (start, recipe) in enumerate(recipes.items()):
                top1[row, draw, seed], body = _run(draw, seed, start, recipe, data, output)
                print(
                    f"{start:8} draw {draw} seed {seed}: top-1 {top1[row, draw, seed]:.1%}, body {body:.1%}", flush=True
                )
    for row, start in enumerate(recipes):
        error = top1[row].std(ddof=1) / math.sqrt(top1[row].size)
        print(f"{start:8} {top1[row].mean():.1%} +- {error:.1%} (mean and standard error of {top1[row].size} runs)")
    gain = top1[0] - top1[1]
    by_pair = gain.std(ddof=1) / math.sqrt(gain.size)
    by_draw = gain.mean(axis=1).std(ddof=1) / math.sqrt(draws)
    print(f"gain     {gain.mean():+.1%}, standard error {by_pair:.1%} by pairs, {by_draw:.1%} by draws")
    print("MAE helps." if gain.mean() > 2 * max(by_pair, by_draw) else "No gain above two standard errors.")


if __name__ == "__main__":
    auto_cli([make, predictors, compare], as_positional=False)
