"""Which videos are one recording: the same file, or pictures and motion so alike that they must be.

recordings: many videos by their statistics, in no time; copies alone that are neither cropped nor cut are sure to be
found. compare: two videos by their pixels, whatever was cut off at the sides or in time: the pictures of one are laid
over crops of the other, and must be alike in what stands still and, which tells two people before one wall apart, in
what moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.data.reading.child_process import IsolatedReader

#: Correlation of standardised statistics from which two videos count as one recording. Copies are above; other videos
#: of one person who does the same reach 0.95 (Weizmann), clips of one film that overlap by two thirds 0.4 to 0.96.
ALIKE = 0.98
#: Frames a second, seconds and pixels of the short side that are compared of a video.
RATE, SECONDS, SIDE = 15, 6.0, 48
#: The crops that are tried first: their sides as shares of the picture's, the step between their places, and the cells
#: (rows, columns) that each is shrunk to; every second frame.
SHARES, STEP, CELLS = (1.0, 0.9, 0.8, 0.7), 0.05, (12, 16)
#: Then the best one is moved: pixels of the short side, blur that is taken off (0: the mean), steps of Adam (Kingma and
#: Ba 2015; by hand, since torch.optim takes seconds to import), their size.
MOVES = ((16, 0, 20, 0.015), (24, 7, 14, 0.006), (48, 7, 14, 0.003))
#: Correlation of pictures and of what moves in them, the lesser of the two, from which two videos are one film.
#: docs/results/copies.md has what was measured.
SAME = 0.78
#: Sum of both for the first crops, and the lesser after two moves, below which they are not looked at more closely.
PLACED, MOVED = 1.5, 0.4


def recordings(files: NDArray[np.int64], features: NDArray[np.float64], alike: float = ALIKE) -> NDArray[np.int64]:
    """Puts together what must not be torn apart between learning and judging.

    Args:
        files: int64 [N], the number of the file that each of N videos is or is a segment of.
        features: float64 [N, C], one row a video: statistics. Not an embedding, which may be alike for all of a class.
        alike: The correlation of two rows, each channel standardised over all videos, from which they count as one.

    Returns:
        int64 [N], the number of each video's recording, from 0 on.
    """
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    rows = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6
    near = (rows @ rows.T >= alike) | (files[:, np.newaxis] == files)
    found: NDArray[np.int64] = connected_components(coo_array(near), directed=False)[1].astype(np.int64)
    return found


@dataclass(frozen=True, eq=False)
class Film:
    """A few seconds of a video from ``start`` on: ``pixels`` float32 [T, H, W], grey from 0 to 255, RATE a second."""

    pixels: Tensor
    start: float

    @cached_property
    def crops(self) -> tuple[Tensor, Tensor]:
        """All crops as pictures and as what moves in them, float32 [crops, T / 2, cells]; the first is the whole."""
        pixels, count = self.pixels[::2], len(_spans())
        rows, columns = (_cells(side, cells) for side, cells in zip(pixels.shape[1:], CELLS, strict=True))
        cells = (rows @ pixels @ columns.T).reshape(len(pixels), count, CELLS[0], count, CELLS[1])
        shrunk = cells.permute(1, 3, 0, 2, 4).reshape(count * count, len(pixels), -1)
        return shrunk - shrunk.mean(dim=-1, keepdim=True), shrunk - shrunk.mean(dim=1, keepdim=True)


def film_of(path: str, middle: float, reader: IsolatedReader) -> Film:
    """The seconds of a video around a moment, or all where it is shorter.

    Args:
        path: The video.
        middle: Seconds after its first frame.
        reader: Decodes in its child process.

    Returns:
        The film.

    Raises:
        UnreadableVideo: Where nothing of it can be read.
    """
    with reader.open(path) as video:
        seconds = min(SECONDS, video.duration)
        start = min(max(0.0, middle - seconds / 2), video.duration - seconds)
        times = video.times[0] + start + np.arange(max(1, int(seconds * RATE))) / RATE
        shown, which = np.unique([video.at(time + 1e-6) for time in times.tolist()], return_inverse=True)
        (frames,) = video.stream([shown], _grey)
        return Film(torch.from_numpy(frames.pixels[which]).float(), start)


def _grey(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [n, H, W, 3] -> uint8 [n, h, w], the shorter of which is SIDE."""
    scale = SIDE / min(pictures.shape[1:3])
    size = [round(side * scale) for side in pictures.shape[1:3]]
    grey = torch.from_numpy(pictures.astype(np.float32).mean(axis=-1))[:, None]
    small = F.interpolate(grey, size, mode="bilinear", antialias=True)[:, 0]
    grey_values: NDArray[np.uint8] = small.round().clamp(0, 255).to(torch.uint8).numpy()
    return grey_values


def _spans() -> list[tuple[float, float]]:
    """Where crops begin along a side, and how much of it they take."""
    return [(STEP * place, share) for share in SHARES for place in range(round((1 - share) / STEP) + 1)]


def _cells(side: int, count: int) -> Tensor:
    """float32 [spans * count, side]: what each pixel adds to the mean of each cell of each span."""
    edges = np.array([[begin + share * np.arange(count + 1) / count] for begin, share in _spans()])[:, 0] * side
    pixels = np.arange(side)
    covered = np.minimum(edges[:, 1:, None], pixels + 1) - np.maximum(edges[:, :-1, None], pixels)
    weights = covered.clip(min=0).reshape(-1, side)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()


def compare(one: Film, other: Film) -> tuple[float, float]:
    """How alike two films are, and how much later the same is seen in the first.

    Args:
        one: A film.
        other: Another, which may be a part of the first's pictures, or the first of its own.

    Returns:
        The lesser correlation, of pictures and of what moves in them, up to 1 (0: no crop is near), and seconds.
    """
    placed, turned = _placed(one.crops, other.crops), _placed(other.crops, one.crops)
    if turned[0] > placed[0]:
        similarity, later = _laid_over(other, one, *turned)
        return similarity, -later
    return _laid_over(one, other, *placed)


def _placed(whole: tuple[Tensor, Tensor], crops: tuple[Tensor, Tensor]) -> tuple[float, int, int]:
    """The crop and the lag at which the whole pictures are most like it: sum of correlations, crop, frames."""
    products = [crop @ full[0].T for full, crop in zip(whole, crops, strict=True)]  # [crops, T of crops, T of whole]
    of_whole = [full[0].square().sum(dim=-1) for full in whole]
    of_crops = [crop.square().sum(dim=-1) for crop in crops]
    length, others = len(of_whole[0]), of_crops[0].shape[1]
    least, best = max(3, math.ceil(min(length, others) / 2)), (-2.0, 0, 0)
    for lag in range(least - others, length - least + 1):
        first, last = max(0, -lag), min(others, length - lag)
        if of_whole[1][first + lag : last + lag].mean() < of_whole[1].mean() / 4:
            continue  # hardly anything moves there
        sums = torch.zeros(len(crops[0]))
        for product, energy, energies in zip(products, of_whole, of_crops, strict=True):
            power = energy[first + lag : last + lag].sum() * energies[:, first:last].sum(dim=-1)
            noise = (last - first) * math.prod(CELLS)
            sums += product.diagonal(lag, 1, 2).sum(dim=-1) / (power + noise).sqrt()
        if float(sums.max()) > best[0]:
            best = float(sums.max()), int(sums.argmax()), lag
    return best


def _laid_over(one: Film, other: Film, placed: float, crop: int, lag: int) -> tuple[float, float]:
    similarity, shift = 0.0, 2.0 * lag
    if placed >= PLACED:
        similarity, shift = _moved(one.pixels, other.pixels, 2 * lag, divmod(crop, len(_spans())))
    return similarity, one.start - other.start + shift / RATE


def _moved(whole: Tensor, other: Tensor, lag: int, crop: tuple[int, int]) -> tuple[float, float]:
    """The crop and the lag moved until the pictures lie over each other: lesser correlation, frames."""
    begins, shares = np.array([_spans()[number] for number in crop]).T
    place = torch.tensor([*(begins + shares / 2), *np.log(shares), 0.0], dtype=torch.float32, requires_grad=True)
    first, last = max(0, lag), min(len(whole), len(other) + lag)
    moments, best = torch.arange(first, last) - lag, (-2.0, 0.0, place.detach().clone())
    for side, blur, steps, size in MOVES:
        still, sought = _sharp(_resized(whole[first:last], side), blur), _resized(other, side)
        axes = [(torch.arange(length) + 0.5) / length - 0.5 for length in still.shape[1:]]
        mean, power, best = torch.zeros(5), torch.zeros(5), (-2.0, 0.0, place.detach().clone())
        for step in range(1, steps + 1):
            y, x = (2 * (place[axis] + place[axis + 2].exp() * axes[axis]) - 1 for axis in (0, 1))
            t = 2 * (moments + RATE * place[4] + 0.5) / len(other) - 1
            grid = torch.stack(torch.broadcast_tensors(x, y[:, None], t[:, None, None]), dim=-1)[None]
            seen = F.grid_sample(sought[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
            seen = _sharp(seen, blur)
            pictures, motion = _alike(still, seen), _alike(still - still.mean(dim=0), seen - seen.mean(dim=0))
            values = pictures.item(), motion.item()
            if sum(values) > best[0]:
                best = sum(values), min(values), place.detach().clone()
            (slope,) = torch.autograd.grad(pictures + motion, place)
            mean, power = 0.9 * mean + 0.1 * slope, 0.999 * power + 0.001 * slope**2
            place.data += size * mean / (1 - 0.9**step) / ((power / (1 - 0.999**step)).sqrt() + 1e-8)
        place.data.copy_(best[2])
        if blur and best[1] < MOVED:
            break
    return best[1], lag - RATE * float(best[2][4])


def _resized(pixels: Tensor, side: int) -> Tensor:
    size = [round(length * side / SIDE) for length in pixels.shape[1:]]
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def _sharp(pixels: Tensor, blur: int) -> Tensor:
    """Without what a blur of so many pixels leaves: people are told apart by their edges."""
    if not blur:
        return pixels - pixels.mean(dim=(1, 2), keepdim=True)
    padded = F.pad(pixels[:, None], (blur // 2,) * 4, mode="replicate")
    return pixels - F.avg_pool2d(padded, blur, 1)[:, 0]


def _alike(one: Tensor, other: Tensor) -> Tensor:
    """Correlation; noise of one grey level counts as nothing."""
    return (one * other).sum() / (one.square().sum() * other.square().sum() + one.numel()).sqrt()
