"""What stands and moves in a generated scene: planes nearer than the background, cut-outs, walkers, crowds."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hiera_video.data.camera_motion.generator import Floats, Motion, Patch, Path2D, draw_patches

Scene = tuple[list[Patch], list[Tensor]]
"""Patches from back to front, and the picture of each, ``[3, h, w]`` or a cut-out ``[4, h, w]``."""


def draw_scene(
    rng: np.random.Generator, motion: Motion, times: Floats, pool: list[Tensor], cutouts: list[Tensor], *, ease: float
) -> Scene:
    """What a clip shows before its background, and, by ``ease`` from 0 to 1, less of it.

    Args:
        rng: Draws.
        motion: The camera's.
        times: Of the frames, seconds.
        pool: Pictures uint8 ``[3, h, w]``.
        cutouts: Pictures uint8 ``[4, h, w]``; without them nothing but plain patches and walkers is drawn.
        ease: Probability that a kind of object is left out.

    Returns:
        The scene: nearer planes in a third of the clips, plain patches in half of them, cut-outs and walkers in a
        third, a crowd in one of twenty.
    """
    patches: list[Patch] = []
    shown: list[Tensor] = []

    def add(some: list[Patch], pictures: list[Tensor]) -> None:
        patches.extend(some)
        shown.extend(picture.float() for picture in pictures)

    def hard(share: float) -> bool:
        return bool(rng.random() < share * (1 - ease))

    if cutouts and hard(0.35):
        planes = nearer_planes(rng, motion)
        add(planes, [_any(rng, cutouts) for _ in planes])
    plain = draw_patches(rng, times, share=0.5 * (1 - 0.8 * ease))
    add(plain, [_any(rng, pool) for _ in plain])
    if cutouts and hard(0.35):
        things = [thing(rng, times) for _ in range(int(rng.integers(1, 4)))]
        add(things, [_any(rng, cutouts) for _ in things])
    walkers = int(rng.integers(4, 9)) if hard(0.05) else int(hard(0.3))
    for _ in range(walkers):
        limbs = walker(rng, times, height=rng.uniform(0.2, 0.4) if walkers > 1 else rng.uniform(0.25, 0.8))
        coat, skin = _any(rng, pool), _any(rng, pool)
        add(limbs, [skin, skin, coat, skin, skin, skin])
    return patches, shown


def _any(rng: np.random.Generator, pictures: list[Tensor]) -> Tensor:
    return pictures[rng.integers(len(pictures))]


def nearer_planes(rng: np.random.Generator, motion: Motion) -> list[Patch]:
    """One to three planes before the background, which move more than it does as the camera moves (parallax).

    A plane of depth ``d`` shifts ``d`` times as far as the background; where the camera travels instead of zooming
    (half of the time) it also grows by its zoom to the power ``d``. Depths are 1.2 to 3, far planes come first.
    """
    camera, middle = motion.camera, len(motion.camera.angle) // 2
    travels = rng.random() < 0.5
    planes = []
    for depth in np.sort(rng.uniform(1.2, 3.0, int(rng.integers(1, 4)))):
        zoom = camera.log_zoom * (depth if travels else 1.0)
        half, aspect = float(np.exp(rng.uniform(np.log(0.12), np.log(0.45)))), rng.uniform(0.6, 1.6)
        cos, sin = np.cos(camera.angle), np.sin(camera.angle)
        # Screen of a point u of the plane: exp(zoom) * R(-angle) @ (u - depth * center); here for all times.
        here = rng.uniform(-0.5, 0.5, 2) * np.exp(-zoom[middle])
        turned = np.array(
            [cos[middle] * here[0] - sin[middle] * here[1], sin[middle] * here[0] + cos[middle] * here[1]]
        )
        away = turned + depth * (camera.center[middle] - camera.center)
        center = np.exp(zoom)[:, None] * np.stack(
            [cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0]], axis=1
        )
        path = Path2D(center, -(np.log(half) + zoom), -camera.angle)
        planes.append(Patch(path, bool(rng.random() < 0.5), 1.0, aspect=aspect))
    return planes


def thing(rng: np.random.Generator, times: Floats) -> Patch:
    """A cut-out that crosses the view, sways and bends as it likes."""
    half = float(np.exp(rng.uniform(np.log(0.08), np.log(0.32))))
    speed = 0.0 if rng.random() < 0.3 else rng.uniform(0.03, 0.5)
    heading, middle = rng.uniform(0, 2 * np.pi), rng.uniform(times[0], times[-1])
    center = rng.uniform(-0.4, 0.4, 2) + speed * np.array([np.cos(heading), np.sin(heading)]) * (
        times[:, None] - middle
    )
    if rng.random() < 0.4:
        center = center + rng.uniform(0, 0.25, 2) * half * _wave(rng, times)[:, None]
    angle = rng.normal(0, 0.3) + (rng.uniform(0, 0.6) * _wave(rng, times) if rng.random() < 0.4 else 0 * times)
    zoom = -np.log(half) + (rng.uniform(0, 0.25) * _wave(rng, times) if rng.random() < 0.3 else 0 * times)
    bend = None
    if rng.random() < 0.5:
        turn = 2 * np.pi * np.exp(rng.uniform(np.log(0.4), np.log(3)))
        bend = np.stack([np.full(len(times), rng.uniform(0.1, 0.5)), turn * times + rng.uniform(0, 6)], axis=1)
    return Patch(Path2D(center, zoom, angle), False, 1.0, aspect=rng.uniform(0.7, 1.4), bend=bend)


def _wave(rng: np.random.Generator, times: Floats) -> Floats:
    turn = 2 * np.pi * np.exp(rng.uniform(np.log(0.4), np.log(3)))
    wave: Floats = np.sin(turn * times + rng.uniform(0, 2 * np.pi))
    return wave


def walker(rng: np.random.Generator, times: Floats, *, height: float) -> list[Patch]:
    """Two legs, a trunk, two arms and a head that walk, run, jump, wave or bend: six patches.

    Each limb swings about its joint with its own share of one rhythm of 0.5 to 3 Hz; ``height`` is in windows.
    """
    unit = height / 8  # a head
    turn, phase = 2 * np.pi * np.exp(rng.uniform(np.log(0.5), np.log(3))), rng.uniform(0, 2 * np.pi)
    beat = turn * times + phase
    speed = 0.0 if rng.random() < 0.4 else rng.uniform(-0.6, 0.6) * height
    middle, hop = rng.uniform(times[0], times[-1]), (rng.uniform(0, 1.2) * unit if rng.random() < 0.5 else 0.0)
    hips = rng.uniform(-0.35, 0.35, 2) + np.stack([speed * (times - middle), -hop * np.abs(np.sin(beat))], axis=1)
    lean = rng.normal(0, 0.1) + (rng.uniform(0, 0.9) * np.sin(beat / 2) if rng.random() < 0.3 else 0 * times)
    legs = rng.uniform(0, 0.9) if rng.random() < 0.7 else 0.0
    arms, raised = rng.uniform(0, 1.2) if rng.random() < 0.7 else 0.0, rng.uniform(0, 2.6) * (rng.random() < 0.4)
    up = np.stack([np.sin(lean), -np.cos(lean)], axis=1)
    neck = hips + 3 * unit * up

    def limb(joint: Floats, angle: Floats, length: float, width: float, round_: bool = False) -> Patch:
        """Hangs from ``joint``; an angle of 0 is down, positive ones go to the left."""
        center = joint + length / 2 * np.stack([-np.sin(angle), np.cos(angle)], axis=1)
        return Patch(Path2D(center, np.full(len(times), -np.log(width / 2)), angle), round_, 1.0, aspect=length / width)

    spread = raised * (1 + 0.2 * np.sin(beat))
    return [
        limb(hips, legs * np.sin(beat), 4 * unit, 0.9 * unit),
        limb(hips, -legs * np.sin(beat), 4 * unit, 0.9 * unit),
        limb(neck, lean, 3.2 * unit, 1.7 * unit, True),
        limb(neck, spread + arms * np.sin(beat + 0.4), 3 * unit, 0.6 * unit),
        limb(neck, -spread + -arms * np.sin(beat + 0.4), 3 * unit, 0.6 * unit),
        limb(neck, lean + np.pi, 1.2 * unit, unit, True),
    ]
