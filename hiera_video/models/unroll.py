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
first one first. Sizes must divide: callers check that once, where a user can be told what would fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Size = tuple[int, ...]


def units(grid: Size, strides: Sequence[Size]) -> Size:
    """The grid of mask units left when every stride has been pooled away."""
    for stride in strides:
        grid = tuple(g // s for g, s in zip(grid, stride, strict=True))
    return grid


def unit_size(strides: Sequence[Size], dims: int) -> Size:
    """The size of a mask unit, in tokens, while ``strides`` are still to come."""
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
    """Row-major tokens ``[B, N, C]`` of a grid of any number of dimensions -> unrolled ``[B, M, T, C]``."""
    shape, order = _split(grid, strides)
    batch, _, channels = tokens.shape
    split = tokens.reshape(batch, *shape, channels).permute(0, *(axis + 1 for axis in order), len(shape) + 1)
    return split.reshape(batch, math.prod(units(grid, strides)), -1, channels)


def reroll(tokens: Tensor, grid: Size, strides: Sequence[Size], keep_ids: Tensor | None = None) -> Tensor:
    """The inverse: unrolled ``[B, M, T, C]`` -> channels-last map ``[B, *grid, C]`` in row-major order.

    ``grid`` and ``strides`` are those of the stage that the tokens come from. With ``keep_ids`` (int64 ``[B, K]``,
    the visible mask units) the tokens are those of the visible units, ``[B, K, T, C]``; hidden places are zero.
    """
    if keep_ids is not None:
        hidden = tokens.new_zeros(tokens.shape[0], math.prod(units(grid, strides)), *tokens.shape[2:])
        tokens = scatter_units(tokens, keep_ids, hidden)
    shape, order = _split(grid, strides)
    inverse = [order.index(axis) + 1 for axis in range(len(order))]
    split = tokens.reshape(tokens.shape[0], *(shape[axis] for axis in order), -1)
    return split.permute(0, *inverse, split.ndim - 1).reshape(tokens.shape[0], *grid, -1)


def gather_units(tokens: Tensor, keep_ids: Tensor) -> Tensor:
    """Unrolled ``[B, M, T, C]`` -> the visible mask units ``keep_ids`` ``[B, K]`` alone, ``[B, K, T, C]``."""
    return tokens.gather(1, keep_ids[:, :, None, None].expand(-1, -1, *tokens.shape[2:]))


def scatter_units(visible: Tensor, keep_ids: Tensor, tokens: Tensor) -> Tensor:
    """``tokens`` ``[B, M, T, C]`` with the mask units ``keep_ids`` replaced by ``visible`` ``[B, K, T, C]``."""
    return tokens.scatter(1, keep_ids[:, :, None, None].expand_as(visible), visible)


def pool(tokens: Tensor, stride: Size) -> Tensor:
    """Unrolled ``[B, M, T, C]`` -> ``[B, M, T / prod(stride), C]``: the maximum over each pooling window."""
    return tokens.unflatten(2, (math.prod(stride), -1)).amax(dim=2)
