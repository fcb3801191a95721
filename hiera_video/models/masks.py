"""Which mask units are seen: ``keep`` drawn, checked, and turned into the indices that everything gathers by.

A mask is boolean ``[B, num_mask_units]`` with equal numbers of True in each row. It may be a numpy array, which no
wrapper (DDP, FSDP) moves to the device: what lies on the host is read on the host, and the device is never asked.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.errors import RequestError

Mask = Tensor | NDArray[np.bool_]


def random_keep(
    batch: int,
    num_mask_units: int,
    mask_ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws which mask units are seen, the same number in each row (paper, section 4).

    Args:
        batch: Number of rows.
        num_mask_units: Mask units of a clip.
        mask_ratio: The part of them that is hidden, from 0 to 1.
        generator: Where the randomness comes from, and the device that it is drawn on. Default: torch's global
            generator of ``device``.
        device: Where the result lies.

    Returns:
        Boolean ``[batch, num_mask_units]``, True where a unit is visible; it is never read back.

    Raises:
        RequestError: The ratio leaves no visible or no hidden unit.
    """
    count = num_visible(num_mask_units, mask_ratio)
    if generator is None:  # torch.compile knows no generator, not even None
        noise = torch.rand(batch, num_mask_units, device=device)
    else:
        noise = torch.rand(batch, num_mask_units, generator=generator, device=generator.device)
    order = moved(noise.argsort(dim=1), device)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :count], True)


def num_visible(num_mask_units: int, mask_ratio: float) -> int:
    """How many mask units of a clip are visible.

    Args:
        num_mask_units: Mask units of a clip.
        mask_ratio: The part of them that is hidden, from 0 to 1.

    Returns:
        ``int(num_mask_units * (1 - mask_ratio))``.

    Raises:
        RequestError: That leaves no visible or no hidden unit.
    """
    count = int(num_mask_units * (1 - mask_ratio))
    if not 0 < count < num_mask_units:
        raise RequestError(f"mask_ratio {mask_ratio} leaves {count} of {num_mask_units} mask units visible")
    return count


def count_of(mask: Tensor, shape: tuple[int, int], name: str, *, apart_from: Tensor | None = None) -> int:
    """Reads a mask, once: this waits for the device where the mask lies there.

    Args:
        mask: What should be boolean of ``shape``.
        shape: (clips, mask units).
        name: What errors call the mask.
        apart_from: A ``keep`` with which the mask may share no unit.

    Returns:
        How many units each row shows.

    Raises:
        RequestError: The mask is not boolean of ``shape``, its rows show unequal numbers of units, or none, or it
            shares a unit with ``apart_from``.
    """
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        given = f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
        raise RequestError(f"{name} must be bool {list(shape)}, one entry per clip and mask unit, not {given}")
    shared = (mask & apart_from).sum(dim=1) if apart_from is not None else mask.new_zeros(len(mask), dtype=torch.int64)
    read = torch.stack([mask.sum(dim=1), shared]).tolist()
    counts = set(read[0])
    if any(read[1]):
        raise RequestError(f"{name} must be among the hidden mask units; {sum(read[1])} of its units are visible")
    if len(counts) != 1 or 0 in counts:
        raise RequestError(f"rows of {name} must show equal numbers of mask units, at least one, not {sorted(counts)}")
    return int(counts.pop())


def unit_ids(mask: Tensor, count: int) -> Tensor:
    """Turns a mask into indices, where it lies.

    Args:
        mask: Boolean ``[B, num_mask_units]``.
        count: How many entries of each row are True.

    Returns:
        Their indices, int64 ``[B, count]``, ascending.
    """
    # A stable sort puts True first, both parts ascending.
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Moves a tensor; nobody waits, unless it comes from an accelerator to the host.

    Args:
        tensor: What to move.
        device: Where to.

    Returns:
        ``tensor`` on ``device``.
    """
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")
