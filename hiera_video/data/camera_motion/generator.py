"""Generated clips of nine camera motions, with the exact optical flow: a task that one frame cannot answer.

The label names the camera's motion: in ``pan_left`` the picture moves right, in ``tilt_up`` it moves down, in
``roll_clockwise`` it turns counterclockwise. A camera looks through a window at a flat picture (procedural, or a
photograph) that it moves over; up to three foreign patches cross the view on their own. Lengths are in windows
(the picture's short side), times in seconds, angles in radians; x goes right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LABELS = (
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "zoom_in",
    "zoom_out",
    "roll_clockwise",
    "roll_counterclockwise",
)
#: The task's range, per second: windows for pan and tilt, relative scale for zoom, degrees / 100 for roll.
SLOWEST, FASTEST = 0.04, 0.30
#: Least texture of an answerable picture (:func:`texture`).
MIN_TEXTURE = 1e-4

Floats = NDArray[np.float64]


@dataclass
class Path2D:
    """A window's path: ``center [T, 2]``, ``log_zoom [T]``, ``angle [T]``; a picture point ``u`` of the scene is
    seen at the screen point ``p`` where ``u = center + exp(-log_zoom) * R(angle) @ p``.
    """

    center: Floats
    log_zoom: Floats
    angle: Floats

    def at(self, frames: Sequence[int] | NDArray[np.int64]) -> Path2D:
        """The path at some frames alone."""
        return Path2D(self.center[frames], self.log_zoom[frames], self.angle[frames])

    def matrices(self) -> Tensor:
        """``[T, 2, 3]``: screen to scene."""
        scale = np.exp(-self.log_zoom)
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        rows = np.stack([cos, -sin, self.center[:, 0], sin, cos, self.center[:, 1]], axis=-1)
        return torch.from_numpy(rows.reshape(-1, 2, 3)).float()


@dataclass
class Motion:
    """A camera's path as filmed, and its trend alone, without shake."""

    label: int
    camera: Path2D
    trend: Path2D

    def at(self, frames: Sequence[int] | NDArray[np.int64]) -> Motion:
        """The motion at some frames alone."""
        return Motion(self.label, self.camera.at(frames), self.trend.at(frames))


@dataclass
class Patch:
    """A foreign patch: its own path on the screen, its size in windows, and its outline.

    Its own coordinates go from -1 to 1 in x and from ``-aspect`` to ``aspect`` in y. A picture with an alpha channel
    is its own outline. ``bend [T, 2]`` shears it along x by ``amplitude * sin(3 y + phase)``, as cloth and fish do.
    """

    path: Path2D
    round: bool
    opacity: float
    aspect: float = 1.0
    bend: Floats | None = None

    def at(self, frames: Sequence[int] | NDArray[np.int64]) -> Patch:
        """The patch at some frames alone."""
        return replace(self, path=self.path.at(frames), bend=None if self.bend is None else self.bend[frames])

    def material(self, local: Tensor, *, back: bool = False) -> Tensor:
        """The points of its picture at own coordinates ``[T, ..., 2]``; or, ``back``, where such points are seen."""
        if self.bend is None:
            return local
        amplitude, phase = torch.from_numpy(self.bend).float().view(-1, *[1] * (local.ndim - 2), 2).unbind(-1)
        x, y = local.unbind(-1)
        shear = amplitude * torch.sin(3 * y + phase)
        return torch.stack([x + shear if back else x - shear, y], dim=-1)

    def covers(self, material: Tensor, picture: Tensor | None) -> Tensor:
        """How much it hides at points of its picture ``[..., 2]``: float ``[...]`` from 0 to ``opacity``."""
        scaled = material / torch.tensor([1.0, self.aspect])
        if picture is not None and len(picture) == 4:
            alpha = F.grid_sample(picture[None, 3:], scaled.reshape(1, 1, -1, 2), "bilinear", "zeros", False)
            return alpha.view(material.shape[:-1]) * (self.opacity / 255)
        inside = scaled.square().sum(-1) < 1 if self.round else scaled.abs().amax(-1) < 1
        return inside * self.opacity


def draw_motion(
    rng: np.random.Generator,
    label: int,
    times: Floats,
    *,
    slowest: float = SLOWEST,
    fastest: float = FASTEST,
    shake: float = 1.0,
) -> Motion:
    """A camera motion of class ``label`` at ``times`` (seconds): speed drawn log-uniformly from ``slowest`` to
    ``fastest`` and varying in time, a little of the other motions, and hand shake (``shake`` times its usual size).
    """
    rate = float(np.exp(rng.uniform(np.log(slowest), np.log(fastest))))
    # Distance travelled at a mean speed of one, with a wave on top.
    wave, frequency, phase = rng.uniform(0, 0.6), rng.uniform(0.1, 0.7), rng.uniform(0, 2 * np.pi)
    turn = 2 * np.pi * frequency
    travel = times - wave * (np.cos(turn * times + phase) - np.cos(phase)) / turn
    travel = travel - travel.mean()
    kind, sign = (label - 1) // 2, -1 if label % 2 else 1
    # Component order: x, y, log zoom, angle. A roll of 4 degrees a second is 0.07 rad: rates are degrees / 100.
    unit = np.array([1.0, 1.0, 1.0, np.deg2rad(100)])
    signs = (sign, sign, -sign, -sign)
    speed = np.zeros(4)
    if label:
        speed[kind] = signs[kind] * rate * unit[kind]
        if rng.random() < 0.6:
            side = rng.uniform(-0.12, 0.12, 4) * rate
            side[kind] = 0
            if kind >= 2:  # the edge of a zooming or rolling picture moves by half of what its rate says
                side[:2] *= 0.5
            speed += side
    trend = speed[:, None] * travel
    return Motion(label, _path(trend + shake * _shake(rng, times)), _path(trend))


def _path(components: Floats) -> Path2D:
    return Path2D(components[:2].T.copy(), components[2].copy(), components[3].copy())


def _shake(rng: np.random.Generator, times: Floats) -> Floats:
    """Hand shake ``[4, T]``: a few waves of 0.8 to 8 Hz, sometimes white jitter, about half a percent of the window."""
    shape = np.array([1.0, 1.0, 0.25, 0.8])
    if rng.random() < 0.15:
        return np.zeros((4, len(times)))
    amplitude = float(np.exp(rng.uniform(np.log(0.0004), np.log(0.008)))) * shape
    if rng.random() < 0.25:
        return amplitude[:, None] * rng.normal(0, 1, (4, len(times))) * 0.7
    waves = np.zeros((4, len(times)))
    for _ in range(4):
        frequency = np.exp(rng.uniform(np.log(0.8), np.log(8), (4, 1)))
        # A hand's slow sway is wider than its tremor, but stays far below the slowest motion.
        size = rng.normal(0, 1, (4, 1)) / np.sqrt(np.maximum(frequency, 1.0))
        waves += size * np.sin(2 * np.pi * frequency * times + rng.uniform(0, 2 * np.pi, (4, 1)))
    return amplitude[:, None] * waves


def draw_patches(rng: np.random.Generator, times: Floats, *, share: float = 0.6) -> list[Patch]:
    """Up to three patches that cross the view by themselves, or rest on the screen like a watermark."""
    patches: list[Patch] = []
    while len(patches) < 3 and rng.random() < share:
        share *= 0.5
        half = float(np.exp(rng.uniform(np.log(0.05), np.log(0.22))))
        speed = 0.0 if rng.random() < 0.2 else rng.uniform(0.05, 0.7)
        heading, middle = rng.uniform(0, 2 * np.pi), rng.uniform(times[0], times[-1])
        velocity = speed * np.array([np.cos(heading), np.sin(heading)])
        center = rng.uniform(-0.45, 0.45, 2) + velocity * (times[:, None] - middle)
        spin = rng.normal(0, 0.4) if rng.random() < 0.4 else 0.0
        angle = rng.uniform(0, 2 * np.pi) + spin * times
        path = Path2D(center, np.full(len(times), -math.log(half)), angle)
        patches.append(Patch(path, bool(rng.random() < 0.5), 1.0 if rng.random() < 0.85 else rng.uniform(0.4, 1)))
    return patches


def _apply(matrices: Tensor, points: Tensor) -> Tensor:
    """``[..., 2, 3]`` on ``[..., 2]``, broadcast; by whole coordinates, since products of tiny matrices are slow."""
    x, y = points.unbind(-1)
    rows = [matrices[..., row, 0] * x + matrices[..., row, 1] * y + matrices[..., row, 2] for row in (0, 1)]
    return torch.stack(rows, dim=-1)


def _inverse(matrices: Tensor) -> Tensor:
    linear = torch.linalg.inv(matrices[..., :2])
    return torch.cat([linear, -linear @ matrices[..., 2:]], dim=-1)


def screen(height: int, width: int) -> Tensor:
    """Screen points ``[height, width, 2]`` in windows: pixel centres, zero in the middle, the short side is 1."""
    short = min(height, width)
    y = (torch.arange(height) + 0.5 - height / 2) / short
    x = (torch.arange(width) + 0.5 - width / 2) / short
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def _sample(picture: Tensor, points: Tensor, texels: float) -> Tensor:
    """``picture`` ``[3, h, w]`` at scene points ``[N, M, 2]``, ``texels`` to a window: ``[3, N, M]``."""
    height, width = picture.shape[-2:]
    grid = points * (2 * texels / torch.tensor([width, height]))
    return F.grid_sample(picture[None], grid[None], "bilinear", "reflection", False)[0]


def _box(patch: Patch, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of the screen that a patch ever touches."""
    wide = 1 + (0 if patch.bend is None else float(np.abs(patch.bend[:, 0]).max()))
    reach = (np.exp(-patch.path.log_zoom) * math.hypot(wide, patch.aspect))[:, None]
    first, last = (patch.path.center - reach).min(axis=0), (patch.path.center + reach).max(axis=0)
    columns, rows = (
        slice(max(0, math.floor(low * min(size) + n / 2)), max(0, min(n, math.ceil(high * min(size) + n / 2))))
        for low, high, n in zip(first, last, reversed(size), strict=True)
    )
    return rows, columns


def render(
    picture: Tensor,
    others: list[Tensor],
    motion: Motion,
    patches: list[Patch],
    size: tuple[int, int],
    texels: float,
    *,
    shutter: float = 0.0,
) -> Tensor:
    """Frames ``[3, T, H, W]`` float in [0, 255].

    ``picture`` is the scene, float ``[3, h, w]``; ``others[k]`` that of patch ``k``, or, ``[4, h, w]``, a cut-out that
    fills the patch; ``texels`` are picture pixels to a window at zoom one. Values between pixels are bilinear: for a
    clean picture render larger and shrink. ``shutter`` is the share of the time between two frames in which a rolling
    shutter reads one, from its top to its bottom row.
    """
    points = screen(*size)
    seen = _apply(motion.camera.matrices()[:, None, None], points)
    if shutter and len(motion.camera.angle) > 1:
        velocity = torch.from_numpy(np.gradient(motion.camera.center, axis=0)).float()[:, None, None]
        seen = seen + shutter * points[..., 1:] * velocity
    frames = _sample(picture, seen.flatten(1, 2), texels).unflatten(2, size)
    for patch, other in zip(patches, others, strict=True):
        rows, columns = _box(patch, size)
        local = _apply(_inverse(patch.path.matrices())[:, None, None], points[rows, columns])
        material = patch.material(local)
        hidden = patch.covers(material, other)
        inside = hidden > 0
        if len(other) == 4:
            grid = (material[inside] / torch.tensor([1.0, patch.aspect]))[None, None]
            shown = F.grid_sample(other[None, :3], grid, "bilinear", "border", False)[0, :, 0]
        else:
            shown = _sample(other, material[inside][None], texels * math.exp(-patch.path.log_zoom[0]))[:, 0]
        below = frames[:, :, rows, columns]
        below[:, inside] += hidden[inside] * (shown - below[:, inside])
    return frames


def flow(motion: Motion, patches: list[Patch], grid: int, others: Sequence[Tensor | None] = ()) -> Tensor:
    """Optical flow on a ``grid x grid`` raster of the square window, ``[4, T // 2, grid, grid]``, in windows.

    The first two channels: where what is seen at frame ``2j`` has moved by frame ``2j + 1``. The last two: the
    motion of the camera's trend over the whole clip, divided by ``T - 1``, patches and shake left out. ``others`` as in
    :func:`render`, for the outlines of cut-outs.
    """
    points = screen(grid, grid)
    camera, trend = motion.camera.matrices(), motion.trend.matrices()
    step = camera[1::2].shape[0]
    first, second = camera[0 : 2 * step : 2, None, None], camera[1::2, None, None]
    moved = _apply(_inverse(second), _apply(first, points)) - points
    early, late = np.arange(0, 2 * step, 2), np.arange(1, 2 * step, 2)
    for patch, other in zip(patches, others or [None] * len(patches), strict=True):
        before, after = patch.at(early), patch.at(late)
        material = before.material(_apply(_inverse(before.path.matrices()[:, None, None]), points))
        there = _apply(after.path.matrices()[:, None, None], after.material(material, back=True))
        moved = torch.where((before.covers(material, other) > 0.3)[..., None], there - points, moved)
    whole = (_apply(_inverse(trend[-1]), _apply(trend[0], points)) - points) / (len(trend) - 1)
    both = torch.cat([moved, whole.expand_as(moved)], dim=-1)
    return both.permute(3, 0, 1, 2)


def texture(frame: Tensor) -> float:
    """How well a picture ``[3, H, W]`` in [0, 255] shows motion in its least textured direction.

    The smaller eigenvalue of the mean product of brightness gradients of its centre square at 64 x 64 pixels,
    brightness in [0, 1]. Without texture in some direction a motion along it cannot be seen (aperture problem).
    """
    _, height, width = frame.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[None, :, top : top + side, left : left + side].float().mean(1, keepdim=True) / 255
    small = F.interpolate(square, size=(64, 64), mode="bilinear", antialias=True)[0, 0]
    dx, dy = small[1:-1, 2:] - small[1:-1, :-2], small[2:, 1:-1] - small[:-2, 1:-1]
    xx, yy, xy = (dx * dx).mean().item() / 4, (dy * dy).mean().item() / 4, (dx * dy).mean().item() / 4
    return (xx + yy) / 2 - math.hypot((xx - yy) / 2, xy)


def fitting_texels(motion: Motion, picture: Tensor, size: tuple[int, int]) -> float:
    """The most texels a window may have for its whole path to stay inside ``picture`` ``[3, h, w]``."""
    corners = screen(*size)[[0, 0, -1, -1], [0, -1, 0, -1]]
    reach = _apply(motion.camera.matrices()[:, None], corners).abs().amax(dim=(0, 1))
    height, width = picture.shape[-2:]
    return min(width / 2 / float(reach[0]), height / 2 / float(reach[1]))


def noise(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Normal noise of standard deviation 1, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
