"""Pictures for generated clips: procedural ones, and photographs that other packages carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from hiera_video.data.camera_motion.generator import MIN_TEXTURE, texture
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


@dataclass
class Pool:
    """What generated clips show: ``pictures`` uint8 ``[3, n, n]`` and, to stand before them, ``cutouts`` ``[4, m, m]``
    (red, green, blue, alpha).
    """

    pictures: list[Tensor]
    cutouts: list[Tensor]


def make_pool(count: int, seed: int, size: int, photographs: Path | None = None, *, held_out: bool = False) -> Pool:
    """The pool of :func:`pictures`, and cut-outs of a third of their size: one for every four pictures.

    Args:
        count: Procedural pictures.
        seed: Of all that is drawn.
        size: Side of a picture in pixels.
        photographs: A folder with more photographs in ``photographs/`` and cut-outs in ``cutouts/``: there are then
            ``count`` crops of those beside all others, and every cut-out.
        held_out: As in :func:`pictures`.

    Returns:
        The pool.

    Raises:
        RequestError: The folder has no photographs.
    """
    made, rng = pictures(count, seed, size, held_out=held_out), np.random.default_rng((seed, 1))
    cut = list[Tensor]()
    side = max(16, size // 3)
    if photographs is not None:
        more = [_read(file, "RGB") for file in sorted((photographs / "photographs").glob("*.jpg"))]
        if not more:
            raise RequestError(f"{photographs} has no photographs/*.jpg: make it by scripts/general_pictures.py")
        made += [_crop(rng, more[rng.integers(len(more))], size, 0.15) for _ in range(count)]
        cut += [_squared(_read(file, "RGBA"), side) for file in sorted((photographs / "cutouts").glob("*.png"))]
    cut += [_blob(rng, made[rng.integers(len(made))], side) for _ in range(count // 4)]
    return Pool(made, cut)


def _read(file: Path, mode: str) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(file).convert(mode)).copy()).permute(2, 0, 1)


def _crop(rng: np.random.Generator, photo: Tensor, size: int, least: float) -> Tensor:
    """A square crop of at least a share ``least`` of the photograph's short side, at ``size`` pixels."""
    side = int(min(photo.shape[1:]) * rng.uniform(least, 1))
    top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[1:])
    crop = photo[None, :, top : top + side, left : left + side]
    return F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)[0]


def _squared(cutout: Tensor, side: int) -> Tensor:
    """A cut-out in the middle of a square of ``side`` pixels, transparent around it."""
    _, height, width = cutout.shape
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = F.interpolate(cutout[None], size=size, mode="bilinear", antialias=True)[0]
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square = torch.zeros(4, side, side, dtype=torch.uint8)
    square[:, top : top + size[0], left : left + size[1]] = small
    return square


def _blob(rng: np.random.Generator, picture: Tensor, side: int) -> Tensor:
    """A piece of a picture with a ragged outline."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    height = (
        _noise(rng, side, rng.uniform(1.5, 2.5)) * rng.uniform(0.1, 0.5)
        + 0.75
        - np.maximum(np.hypot(x, y), np.maximum(abs(x), abs(y)) * rng.uniform(0.8, 1.1))
    )
    alpha = torch.from_numpy((height * 12 * 255).clip(0, 255).astype(np.uint8))
    return torch.cat([_crop(rng, picture, side, 0.3), alpha[None]])


def pictures(count: int, seed: int, size: int, *, held_out: bool = False) -> list[Tensor]:
    """Up to ``count`` procedural pictures uint8 ``[3, size, size]`` and, for every two of them, a crop of a photograph
    (of those held out from training, where asked), its side 40 to 100 % of the photograph's short one.
    Procedural ones with too little texture as a whole are left out.
    """
    rng = np.random.default_rng(seed)
    made = (procedural_picture(rng, size) for _ in range(count))
    chosen = [picture for picture in made if texture(picture) > 2 * MIN_TEXTURE]
    photos = photographs(held_out=held_out)
    for _ in range(count // 2):
        photo = photos[rng.integers(len(photos))]
        side = int(min(photo.shape[1:]) * rng.uniform(0.4, 1))
        top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[1:])
        crop = photo[torch.from_numpy(rng.permutation(3)), top : top + side, left : left + side]
        chosen.append(F.interpolate(crop[None], size=(size, size), mode="bilinear", antialias=True)[0])
    return chosen
