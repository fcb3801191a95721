"""Training augmentation: every random number is drawn by key in the loader, the arithmetic runs where it is cheapest.

A worker draws a crop (:func:`draw_crop`), which tells how small frames may be decoded (:func:`short_side_needed`), runs
RandAugment on the whole frames (:func:`rand_augment`) and cuts the crop (:func:`crop_resize`). The flip and the erased
box are only drawn there: :mod:`hiera_video.data.on_device` carries them out. One draw serves all frames of a clip.
Source of meaning and defaults: SlowFast ``slowfast/datasets/{transform,rand_augment,random_erasing}.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from hiera_video.spec import Augment, ClipSpec

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""

NUM_TRIES = 10


@dataclass(frozen=True, eq=False)
class CropDraw:
    """The random numbers of one crop, whatever the picture's size: tries of share and aspect, and a place in [0, 1)."""

    areas: NDArray[np.float64]
    aspects: NDArray[np.float64]
    place: tuple[float, float]
    aspect_range: tuple[float, float]


def draw_crop(rng: np.random.Generator, augment: Augment) -> CropDraw:
    """A random resized crop, to be laid on pictures of any size by :func:`crop_box`."""
    areas, aspects = _draw_shapes(rng, augment.crop_area, augment.crop_aspect)
    y, x = rng.random(2)
    return CropDraw(areas, aspects, (float(y), float(x)), augment.crop_aspect)


def crop_box(draw: CropDraw, height: int, width: int, pixel_aspect: float = 1) -> Box:
    """The crop in a picture of this size: the first try that fits, or else the largest in the centre.

    The same draw gives the corresponding box, up to rounding, at every resolution of one video. Where pixels are shown
    ``pixel_aspect`` times as wide as high, the crop has its proportions as they are shown.
    """
    box_height, box_width, (y, x) = _crop_shape(draw, height, width * pixel_aspect)
    rows, columns = (max(1, round(side)) for side in (box_height, box_width / pixel_aspect))
    return int(y * (height - rows + 1)), int(x * (width - columns + 1)), rows, columns


def short_side_needed(draw: CropDraw, height: int, width: int, size: tuple[int, int], pixel_aspect: float = 1) -> int:
    """The smallest short side to which frames may be shrunk so that the crop has at least ``size`` (h, w) pixels.

    Never above the video's own. ``height`` and ``width`` are those stored: the picture may still be turned by 90
    degrees, so the answer serves both ways, and so is ``pixel_aspect`` that of stored pixels.
    """
    short = min(height, width)
    needed = 0.0
    for high, wide, aspect in ((height, width, pixel_aspect), (width, height, 1 / pixel_aspect)):
        rows, columns, _ = _crop_shape(draw, high, wide * aspect)
        # Half a pixel more, since the long side is rounded on shrinking, perhaps to an even number.
        needed = max(needed, (size[0] + 0.5) / rows, (size[1] + 0.5) * aspect / columns)
    return min(short, math.ceil(short * needed))


def _crop_shape(draw: CropDraw, height: float, width: float) -> tuple[float, float, tuple[float, float]]:
    """Height and width in unrounded pixels (so that no rounding decides which try fits), and the place."""
    shape = _first_that_fits(draw.areas, draw.aspects, height, width)
    if shape is not None:
        return *shape, draw.place
    aspect = min(max(width / height, draw.aspect_range[0]), draw.aspect_range[1])
    return min(height, width / aspect), min(width, height * aspect), (0.5, 0.5)


def draw_erase(rng: np.random.Generator, augment: Augment, size: tuple[int, int]) -> NDArray[np.int64]:
    """The box to be erased in pictures of ``size`` (height, width), as int64 [4] of :data:`Box`; zeros: none."""
    erased = rng.random() < augment.erasing
    shape = _first_that_fits(*_draw_shapes(rng, augment.erasing_area, augment.erasing_aspect), *size)
    y, x = rng.random(2)
    if not erased or shape is None:
        return np.zeros(4, dtype=np.int64)
    rows, columns = (max(1, round(side)) for side in shape)
    return np.array([y * (size[0] - rows + 1), x * (size[1] - columns + 1), rows, columns], dtype=np.int64)


def _draw_shapes(
    rng: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tries of (share of the area, width over height)."""
    logs = rng.uniform(math.log(aspect[0]), math.log(aspect[1]), NUM_TRIES)
    return rng.uniform(*area, NUM_TRIES), np.exp(logs)


def _first_that_fits(
    areas: NDArray[np.float64], aspects: NDArray[np.float64], height: float, width: float
) -> tuple[float, float] | None:
    """Height and width of the first try that is not larger than the picture."""
    heights, widths = np.sqrt(areas * height * width / aspects), np.sqrt(areas * height * width * aspects)
    fits = np.flatnonzero((heights <= height) & (widths <= width))
    return (float(heights[fits[0]]), float(widths[fits[0]])) if len(fits) else None


def crop_resize(
    frames: NDArray[np.uint8] | Tensor, box: tuple[int, ...], spec: ClipSpec, out: Tensor | None = None
) -> Tensor:
    """Cut ``box`` out of uint8 [T, H, W, C] and resize it to ``spec.size``: uint8 [C, T, h, w], within a grey level.

    Bicubic with antialias is within two levels of Pillow, which published image models were trained with.
    ``out``: a tensor of that shape, of any strides, to be filled and returned.
    """
    top, left, rows, columns = box
    pictures = torch.as_tensor(frames)[:, top : top + rows, left : left + columns].permute(0, 3, 1, 2)
    # Channels-last uint8 takes torch's vectorised path (16 frames of 240p to 224: 3 ms; by planes 16, in float 30),
    # and numpy takes the channels apart in 1 ms, where torch's copy takes 2.6.
    resized = F.interpolate(
        pictures, size=spec.size, mode=spec.interpolation, align_corners=False, antialias=spec.antialias
    )
    if out is None:
        out = resized.new_empty((resized.shape[1], resized.shape[0], *spec.size))
    np.copyto(out.numpy(), resized.transpose(0, 1).numpy())
    return out


def in_proportion(images: Sequence[NDArray[np.uint8]], aspect: float, spec: ClipSpec) -> NDArray[np.uint8]:
    """Pictures whose pixels are shown ``aspect`` times as wide as high, in square ones, uint8 [T, h, w, 3].

    Their short side is ``spec.resize`` pixels, or what it is where that is less.
    """
    height, width = images[0].shape[:2]
    scale = min(1.0, spec.resize / min(height, width * aspect))
    box, size = (0, 0, height, width), (round(height * scale), round(width * aspect * scale))
    return np.ascontiguousarray(crop_resize(np.stack(images), box, spec.replace(size=size)).permute(1, 2, 3, 0))


# --- RandAugment ------------------------------------------------------------------------------------------------------


def rand_augment(frames: NDArray[np.uint8], augment: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """``rand-m7-mstd0.5-inc1``, as published, of uint8 RGB [T, H, W, C]; every frame gets the same.

    Operations resample bicubically, fill with grey 128, and give the published code's pictures (it uses Pillow), within
    one grey level. Frames come whole, before the crop, and are left as they are.
    """
    for name, level, sign in draw_operations(rng, augment):
        frames = OPERATIONS[name](frames, level, sign)
    return frames


def draw_operations(rng: np.random.Generator, augment: Augment) -> list[tuple[str, float, int]]:
    """What RandAugment does to one clip: (name in :data:`OPERATIONS`, level in [0, 1], sign 1 or -1), in order."""
    names = tuple(OPERATIONS)
    drawn = []
    for _ in range(augment.num_ops):
        name, applied = names[rng.integers(len(names))], rng.random() < augment.op_probability
        magnitude, sign = rng.normal(augment.magnitude, augment.magnitude_std), 1 if rng.random() < 0.5 else -1
        if applied:
            drawn.append((name, min(max(float(magnitude), 0.0), 10.0) / 10, sign))
    return drawn


Frames = NDArray[np.uint8]


def _affine(frames: Frames, matrix: tuple[float, ...]) -> Frames:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f) of ``matrix``, pixel centres at halves.

    Each result is a weighted sum of 4 or 16 pixels, the same ones in all frames: with frames and channels beside each
    other in a row, that is a weighted sum of rows. A clip of 256x340 takes 30 ms, by Pillow 140, by grid_sample 100.
    """
    num_frames, height, width, channels = frames.shape
    a, b, c, d, e, f = matrix
    x, y = torch.arange(width, dtype=torch.float64) + 0.5, torch.arange(height, dtype=torch.float64).unsqueeze(1) + 0.5
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
    columns, across = _taps(source_x, width)
    rows, down = _taps(source_y, height)
    index = (rows.unsqueeze(-1) * width + columns.unsqueeze(-2)).flatten(2)
    index[outside] = height * width  # one row more, of grey
    weights = (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(2)
    pixels = np.full((height * width + 1, num_frames * channels), 128, dtype=np.float32)
    pixels[:-1].reshape(height, width, num_frames, channels)[:] = frames.transpose(1, 2, 0, 3)
    sums = F.embedding_bag(
        index.flatten(0, 1), torch.from_numpy(pixels), per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    # Pillow truncates. An epsilon against float error: weights that sum to nearly 1 give 199.99999.
    result = sums.add_(1e-3).clamp_(0, 255).byte().view(height, width, num_frames, channels)
    return result.permute(2, 0, 1, 3).contiguous().numpy()


def _taps(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The 4 pixels around each position along one axis, int32 [H, W, 4], and their weights: Pillow's cubic, a = -1."""
    base = (position - 0.5).floor()
    t = (position - 0.5 - base).float()
    nearest = base.int().unsqueeze(-1)
    if not t.any():  # nothing is between pixels along this axis: 1 instead of 4
        return nearest.clamp(0, size - 1), torch.ones_like(t).unsqueeze(-1)
    weights = (t * (t * (2 - t) - 1), t * t * (t - 2) + 1, t * (t * (1 - t) + 1), t * t * (t - 1))
    return (nearest + torch.arange(-1, 3, dtype=torch.int32)).clamp_(0, size - 1), torch.stack(weights, dim=-1)


def _rotation(frames: Frames, degrees: float) -> tuple[float, ...]:
    """The matrix of a counterclockwise turn around the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = frames.shape[1] / 2, frames.shape[2] / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def _by_picture(frames: Frames, change: Callable[[Image.Image], Image.Image]) -> Frames:
    """Pillow, picture by picture: half the time of torchvision's v2.functional, and the published code's values."""
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])


def _enhance(frames: Frames, kind: Callable[[Image.Image], ImageEnhance._Enhance], signed: float) -> Frames:
    factor = max(0.1, 1 + 0.9 * signed)
    return _by_picture(frames, lambda picture: kind(picture).enhance(factor))


#: The 15 "increasing" operations of uint8 RGB [T, H, W, C] at a level in [0, 1] and a sign.
OPERATIONS: dict[str, Callable[[Frames, float, int], Frames]] = {
    "auto_contrast": lambda frames, level, sign: _by_picture(frames, ImageOps.autocontrast),
    "equalize": lambda frames, level, sign: _by_picture(frames, ImageOps.equalize),
    "invert": lambda frames, level, sign: ~frames,
    "rotate": lambda frames, level, sign: _affine(frames, _rotation(frames, sign * 30 * level)),
    "posterize": lambda frames, level, sign: frames & np.uint8(256 - 2 ** (4 + int(4 * level))),
    "solarize": lambda frames, level, sign: frames ^ (frames >= 256 - int(256 * level)) * np.uint8(255),
    "solarize_add": lambda frames, level, sign: frames + (frames < 128) * np.uint8(110 * level),
    "color": lambda frames, level, sign: _enhance(frames, ImageEnhance.Color, sign * level),
    "contrast": lambda frames, level, sign: _enhance(frames, ImageEnhance.Contrast, sign * level),
    "brightness": lambda frames, level, sign: _enhance(frames, ImageEnhance.Brightness, sign * level),
    "sharpness": lambda frames, level, sign: _enhance(frames, ImageEnhance.Sharpness, sign * level),
    "shear_x": lambda frames, level, sign: _affine(frames, (1, sign * 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda frames, level, sign: _affine(frames, (1, 0, 0, sign * 0.3 * level, 1, 0)),
    "translate_x": lambda frames, level, sign: _affine(frames, (1, 0, sign * 0.45 * level * frames.shape[2], 0, 1, 0)),
    "translate_y": lambda frames, level, sign: _affine(frames, (1, 0, 0, 0, 1, sign * 0.45 * level * frames.shape[1])),
}
