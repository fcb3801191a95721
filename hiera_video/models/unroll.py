"""The order of tokens inside the model: the whole of what 1D, 2D and 3D models share about geometry.

Hiera (arXiv 2306.00989, section 3) pools its queries by a fixed stride between stages and attends within
mask units in the first ones. Both would need a strided gather in row-major order. Instead, tokens are sorted
once, right after the patch embedding, into ``[B, M, T, C]``: M mask units in row-major order, T tokens in each,
sorted so that the members of a pooling window lie ``T / prod(stride)`` apart. Pooling is then a view and a maximum
over one axis, attention within a mask unit folds M into the batch, and hiding units is a gather along M.

A 4x4 grid with two strides of 2x2 (one mask unit is all of it), numbered in row-major order::

     0  1 |  2  3        unrolled:  0  2  8 10   top-left of each 2x2 window, the windows in their own order,
     4  5 |  6  7                   1  3  9 11   top-right of each,
    ------+------                   4  6 12 14   bottom-left of each,
     8  9 | 10 11                   5  7 13 15   bottom-right of each
    12 13 | 14 15

Pooling takes the maximum over the four rows of that table: what is left are the four windows, sorted
for the second pooling by the same rule.

>>> import torch
>>> grid = torch.arange(16).view(1, 16, 1)
>>> unroll(grid, (4, 4), [(2, 2), (2, 2)]).view(4, 4).tolist()
[[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
>>> pool(unroll(grid, (4, 4), [(2, 2), (2, 2)]), (2, 2)).view(4).tolist()
[5, 7, 13, 15]

With one stride the same grid is four mask units of four tokens:

>>> unroll(grid, (4, 4), [(2, 2)]).view(4, 4).tolist()
[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]

All functions are given the sizes in each call and hold nothing; ``strides`` are the poolings still to come,
first one first. Sizes must divide: :func:`token_grid` checks that once, and tells the user what would fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hiera_video.errors import SizeError

Size = tuple[int, ...]


class StageTokens(NamedTuple):
    """What a stage of a model leaves: unrolled tokens ``[B, M, T, C]``, their grid, and the strides not pooled yet."""

    tokens: Tensor
    grid: Size
    strides: tuple[Size, ...]


def token_grid(size: Size, patch_stride: Size, mask_unit_size: Size) -> Size:
    """Divides an input into patches.

    Args:
        size: The input's size in pixels (frames), one number for each axis.
        patch_stride: Pixels (frames) from one patch to the next, for each axis.
        mask_unit_size: The size of a mask unit in patches, for each axis.

    Returns:
        The grid of tokens, one for each patch.

    Raises:
        SizeError: Mask units do not divide ``size``. The nearest sizes that fit are named.
    """
    step = tuple(p * m for p, m in zip(patch_stride, mask_unit_size, strict=True))
    if len(size) != len(step):
        raise SizeError(f"an input of size {_times(size)} has {len(size)} axes, this model takes {len(step)}")
    if any(n < s or n % s for n, s in zip(size, step, strict=True)):
        down = tuple(max(n // s, 1) * s for n, s in zip(size, step, strict=True))
        up = tuple(max(-(-n // s), 1) * s for n, s in zip(size, step, strict=True))
        nearest = _times(down) if down == up else f"{_times(down)} and {_times(up)}"
        raise SizeError(
            f"input size {_times(size)} must be a multiple of {_times(step)} in each axis; "
            f"the nearest that fit: {nearest}"
        )
    return tuple(n // p for n, p in zip(size, patch_stride, strict=True))


def _times(size: Size) -> str:
    return "x".join(map(str, size))


def units(grid: Size, strides: Sequence[Size]) -> Size:
    """Pools a grid by every stride.

    Args:
        grid: A grid of tokens.
        strides: The poolings still to come.

    Returns:
        The grid of mask units that is left.
    """
    for stride in strides:
        grid = tuple(g // s for g, s in zip(grid, stride, strict=True))
    return grid


def unit_size(strides: Sequence[Size], dims: int) -> Size:
    """Multiplies the strides up.

    Args:
        strides: The poolings still to come.
        dims: The number of axes.

    Returns:
        The size of a mask unit in tokens of now.
    """
    # A list for each axis: torch.compile would break its graph at a generator.
    return tuple(math.prod([stride[axis] for stride in strides]) for axis in range(dims))


def _split(grid: Size, strides: Sequence[Size]) -> tuple[list[int], list[int]]:
    """Each axis as (unit, last stride, ..., first stride), and the order of those axes after unrolling."""
    dims, levels = len(grid), len(strides)
    shape = [
        size
        for axis, unit in enumerate(units(grid, strides))
        for size in (unit, *(stride[axis] for stride in reversed(strides)))
    ]
    # Slowest: the units; then the offsets within the first stride's window, over all axes; fastest: the last stride's.
    order = [axis * (levels + 1) + level for level in (0, *range(levels, 0, -1)) for axis in range(dims)]
    return shape, order


def unroll(tokens: Tensor, grid: Size, strides: Sequence[Size]) -> Tensor:
    """Sorts row-major tokens into mask units (paper, section 3; see the top of this file).

    Args:
        tokens: ``[B, N, C]`` in row-major order.
        grid: Their grid, of any number of dimensions.
        strides: The poolings to come, the first one first.

    Returns:
        ``[B, M, T, C]``: M mask units in row-major order, T tokens in each.
    """
    shape, order = _split(grid, strides)
    batch, _, channels = tokens.shape
    split = tokens.reshape(batch, *shape, channels).permute(0, *(axis + 1 for axis in order), len(shape) + 1)
    return split.reshape(batch, math.prod(units(grid, strides)), -1, channels)


def reroll(tokens: Tensor, grid: Size, strides: Sequence[Size], keep_ids: Tensor | None = None) -> Tensor:
    """Puts unrolled tokens back into row-major order: the inverse of :func:`unroll`.

    Args:
        tokens: ``[B, M, T, C]``, or those of the visible mask units alone, ``[B, K, T, C]``.
        grid: The grid of the stage that the tokens come from.
        strides: The poolings still to come after that stage.
        keep_ids: The visible mask units, int64 ``[B, K]``, where only they are there.

    Returns:
        A map ``[B, *grid, C]``; hidden places are zero.
    """
    if keep_ids is not None:
        hidden = tokens.new_zeros(tokens.shape[0], math.prod(units(grid, strides)), *tokens.shape[2:])
        tokens = scatter_units(tokens, keep_ids, hidden)
    shape, order = _split(grid, strides)
    inverse = [order.index(axis) + 1 for axis in range(len(order))]
    split = tokens.reshape(tokens.shape[0], *(shape[axis] for axis in order), -1)
    return split.permute(0, *inverse, split.ndim - 1).reshape(tokens.shape[0], *grid, -1)


def reroll_units(tokens: Tensor, grid: Size, strides: Sequence[Size]) -> Tensor:
    """Puts the tokens of each mask unit into row-major order, the units apart.

    Args:
        tokens: Unrolled ``[B, M, T, C]``, of all mask units or of the visible ones.
        grid: The grid of the stage that the tokens come from.
        strides: The poolings still to come after that stage.

    Returns:
        A map of each unit, ``[B, M, *unit, C]``.
    """
    maps = reroll(tokens.flatten(0, 1).unsqueeze(1), unit_size(strides, len(grid)), strides)
    return maps.unflatten(0, tokens.shape[:2])


def gather_units(tokens: Tensor, keep_ids: Tensor) -> Tensor:
    """Picks the visible mask units.

    Args:
        tokens: Unrolled ``[B, M, T, C]``.
        keep_ids: The visible mask units, int64 ``[B, K]``.

    Returns:
        ``[B, K, T, C]``.
    """
    return tokens.gather(1, keep_ids[:, :, None, None].expand(-1, -1, *tokens.shape[2:]))


def scatter_units(visible: Tensor, keep_ids: Tensor, tokens: Tensor) -> Tensor:
    """Puts visible mask units in their places.

    Args:
        visible: Tokens of the visible units, ``[B, K, T, C]``.
        keep_ids: Where they belong, int64 ``[B, K]``.
        tokens: ``[B, M, T, C]``, which says what stands in the other places.

    Returns:
        A copy of ``tokens`` with ``visible`` in it.
    """
    return tokens.scatter(1, keep_ids[:, :, None, None].expand_as(visible), visible)


def pool(tokens: Tensor, stride: Size, mean: bool = False) -> Tensor:
    """Takes the maximum, or the mean, over each pooling window.

    Args:
        tokens: Unrolled ``[B, M, T, C]``.
        stride: The first of the strides that the tokens were unrolled by.
        mean: Whether to take the mean.

    Returns:
        ``[B, M, T / prod(stride), C]``, unrolled by the strides that follow.
    """
    windows = tokens.unflatten(2, (math.prod(stride), -1))
    return windows.mean(dim=2) if mean else windows.amax(dim=2)


def as_sequence(tokens: Tensor) -> Tensor:
    """Puts unrolled tokens into transformers' order: the mask unit fastest.

    Args:
        tokens: ``[B, M, T, C]``.

    Returns:
        ``[B, T * M, C]``.
    """
    return tokens.transpose(1, 2).flatten(1, 2)


def from_sequence(sequence: Tensor, units: int) -> Tensor:
    """The inverse of :func:`as_sequence`.

    Args:
        sequence: ``[B, T * M, C]``.
        units: M.

    Returns:
        ``[B, M, T, C]``.
    """
    return sequence.unflatten(1, (-1, units)).transpose(1, 2)


def public_order(stage: StageTokens, *, by_unit: bool) -> Tensor:
    """Puts a stage's tokens into the order in which users see them.

    Args:
        stage: What the stage left.
        by_unit: Whether only the visible mask units are there.

    Returns:
        ``[B, N, C]`` in row-major order; with ``by_unit`` unit by unit, each row-major inside.
    """
    return (reroll_units if by_unit else reroll)(*stage).flatten(1, -2)


def window_order(stage: StageTokens, *, local: bool, by_unit: bool) -> Tensor:
    """Says where the tokens of an attention window lie, in the order in which users see them.

    Args:
        stage: What a stage left.
        local: Whether a window is a mask unit, or all tokens.
        by_unit: Whether only the visible mask units are there.

    Returns:
        Indices into the window's unrolled tokens, among all tokens with the mask unit fastest, int64 ``[N]``.
    """
    units, inside = 1 if local else stage.tokens.shape[1], stage.tokens.shape[2]
    index = torch.arange(units * inside, device=stage.tokens.device).view(1, inside, units, 1).transpose(1, 2)
    window = stage._replace(tokens=index, grid=unit_size(stage.strides, len(stage.grid)) if local else stage.grid)
    return public_order(window, by_unit=by_unit and not local).flatten()
