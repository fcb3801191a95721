"""Pictures for generated clips: procedural ones, and photographs that other packages carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from hiera_video.errors import RequestError


def procedural_picture(rng: np.random.Generator, size: int) -> Tensor:
    """A picture uint8 ``[3, size, size]`` with the statistics of natural ones: occluding shapes of all sizes
    ("dead leaves"), each more or less rough, 1/f noise and uneven light; some nearly empty, some all noise.
    """
    palette = rng.uniform(0, 255, (int(rng.integers(2, 9)), 3))
    if rng.random() < 0.5:  # many real scenes are nearly of one hue
        grey = palette.mean(axis=1, keepdims=True)
        palette = grey * rng.uniform(0.8, 1.2, 3) + 0.25 * (palette - grey)
    image = Image.new("RGB", (size, size), _colour(rng, palette))
    rough = Image.new("L", (size, size), int(rng.integers(0, 256)))
    ink, grain = ImageDraw.Draw(image), ImageDraw.Draw(rough)
    smallest = size * float(np.exp(rng.uniform(np.log(0.006), np.log(0.03))))
    for _ in range(int(np.exp(rng.uniform(np.log(12), np.log(900)))) if rng.random() < 0.85 else 0):
        radius = min(smallest * rng.uniform() ** -0.7, 0.3 * size)
        outline = _outline(rng, radius) + rng.uniform(0, size, 2)
        corners = [tuple(corner) for corner in outline.tolist()]
        ink.polygon(corners, fill=_colour(rng, palette))
        grain.polygon(corners, fill=int(255 * rng.uniform() ** 2))
    pixels: NDArray[Any] = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    noise = _noise(rng, size, rng.uniform(0.4, 1.6))
    tint = rng.uniform(0.5, 1.0, (3, 1, 1)).astype(np.float32)
    pixels = pixels + rng.uniform(5, 60) * tint * noise * (np.asarray(rough, dtype=np.float32) / 255)
    pixels = pixels * (1 + rng.uniform(0, 0.4) * _noise(rng, size, 2.0).clip(-2, 2))
    low, high = np.percentile(pixels, [1, 99])
    contrast = rng.uniform(80, 255)
    pixels = (pixels - low) / max(high - low, 1) * contrast + rng.uniform(0, 255 - contrast)
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, palette: NDArray[np.float64]) -> tuple[int, int, int]:
    colour = palette[rng.integers(len(palette))] + rng.normal(0, 18)
    red, green, blue = colour.clip(0, 255).astype(int).tolist()
    return red, green, blue


def _outline(rng: np.random.Generator, radius: float) -> NDArray[Any]:
    """An ellipse, a box, a stroke or a blob around the origin, ``[corners, 2]``."""
    kind, aspect = rng.integers(4), np.exp(rng.uniform(-1.0, 0))
    if kind == 1 or kind == 2:
        half = np.array([radius, radius * (aspect if kind == 1 else 0.12)])
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    else:
        around = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        reach = radius * (1 + (0.25 * rng.normal(0, 1, 18) if kind == 3 else 0))
        points = np.stack([np.cos(around), aspect * np.sin(around)], axis=1) * np.reshape(reach, (-1, 1))
    turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else rng.integers(2) * np.pi / 2
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _noise(rng: np.random.Generator, size: int, exponent: float) -> NDArray[np.float32]:
    """Noise of spectrum ``1 / f ** exponent``, mean 0, standard deviation 1, periodic, ``[size, size]``."""
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    amplitude = np.maximum(np.hypot(x, y), 1 / size) ** -exponent
    amplitude[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(0, 1, (size, size))) * amplitude, (size, size))
    return (field / field.std()).astype(np.float32)


def photographs(*, held_out: bool = False) -> list[Tensor]:
    """Photographs uint8 ``[3, h, w]`` that scikit-image and scikit-learn carry (extra ``camera-motion``); those held
    out are never trained on. Raises :class:`RequestError` without these packages.
    """
    try:
        import skimage
        import sklearn
    except ImportError as error:
        raise RequestError(f"generated clips need {error.name}: pip install 'hiera-video[camera-motion]'") from error

    data, images = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    train = "astronaut.png brick.png camera.png cell.png coins.png color.png grass.png gravel.png hubble_deep_field.jpg"
    train += " ihc.png moon.png motorcycle_left.png page.png retina.jpg text.png"
    test = [data / "chelsea.png", data / "coffee.png", data / "rocket.jpg", images / "flower.jpg"]
    files = test if held_out else [*(data / name for name in train.split()), images / "china.jpg"]
    return [torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy()).permute(2, 0, 1) for file in files]
