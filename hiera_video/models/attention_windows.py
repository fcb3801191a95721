"""Attention in windows of any size on maps of any size: what SAM 2's trunk does where its windows are no mask units.

The walk over unrolled tokens (:mod:`hiera_video.models.unroll`) needs sizes that mask units divide, and windows that
are mask units or everything. :func:`walk_units` says whether a size is such; else tokens stay in row-major order, and
each block pads its map to whole windows, as SAM 2's code does: zeros behind the norm, which attention sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from hiera_video.models.architecture import Architecture
from hiera_video.models.attention import attend
from hiera_video.models.layers import Block
from hiera_video.models.unroll import Size, StageTokens, units


def walk_units(arch: Architecture, grid: Size) -> bool:
    """Whether attention in ``arch.windows`` is attention in mask units or over everything, on a grid of tokens.

    Args:
        arch: The architecture, which has ``windows``.
        grid: Tokens of the first stage along each axis.

    Returns:
        True where the walk over mask units gives the same.
    """
    if any(n % unit for n, unit in zip(grid, arch.mask_unit_size, strict=True)):
        return False
    assert arch.windows is not None
    whole, unit, block = grid, arch.mask_unit_size, 0
    for stage, blocks in enumerate(arch.stages):
        if 0 < stage <= arch.q_pool:
            whole, unit = units(whole, [arch.q_stride]), units(unit, [arch.q_stride])
        window = _sides(arch.windows[stage], len(grid))
        # The first block of a stage attends in the windows of the stage before.
        inside = range(block + (stage > 0), block + blocks + (stage + 1 < len(arch.stages)))
        everywhere = window == whole or all(index in arch.global_blocks for index in inside)
        if arch.mask_unit_attn[stage]:
            if window != unit or any(index in arch.global_blocks for index in inside):
                return False
        elif not everywhere:
            return False
        block += blocks
    return True


def walk_maps(
    arch: Architecture,
    blocks: Sequence[Block],
    tokens: Tensor,
    run: Callable[..., Tensor],
    through: Callable[[StageTokens], Tensor] | None,
    every_block: bool,
) -> Iterator[StageTokens]:
    """The walk through the stages on row-major maps.

    Args:
        arch: The architecture, which has ``windows``.
        blocks: The trunk's.
        tokens: With their positions, ``[B, *grid, C]``.
        run: ``run(function, *args)`` calls it, with activation checkpointing where that is on.
        through: As in :meth:`hiera_video.models.trunk.HieraTrunk.stages`.
        every_block: Whether to say what each block leaves, in place of each stage.

    Yields:
        What each stage leaves, as one mask unit without strides.
    """
    index = 0
    if through is not None:
        tokens = through(_one_unit(tokens)).view_as(tokens)
    for stage, count in enumerate(arch.stages):
        for place in range(count):
            window = _window(arch, stage, stage > 0 and place == 0, index)
            tokens = run(run_on_map, blocks[index], tokens, window)
            index += 1
            if place == count - 1 and through is not None:
                tokens = through(_one_unit(tokens)).view_as(tokens)
            if every_block or place == count - 1:
                yield _one_unit(tokens)


def _one_unit(tokens: Tensor) -> StageTokens:
    """A map ``[B, *grid, C]`` as one mask unit without strides."""
    return StageTokens(tokens.flatten(1, -2).unsqueeze(1), tuple(tokens.shape[1:-1]), ())


def _window(arch: Architecture, stage: int, first: bool, index: int) -> Size | None:
    """The window of a block, before pooling; None for everything. A stage's first attends by the one before."""
    assert arch.windows is not None
    return None if index in arch.global_blocks else _sides(arch.windows[stage - first], len(arch.input_size))


def _sides(side: int, dims: int) -> Size:
    """A window is as high as it is wide, and of video one step in time deep."""
    return (1, side, side) if dims == 3 else (side,) * dims


def pool_map(tokens: Tensor, stride: Size, mean: bool = False) -> Tensor:
    """Takes the maximum, or the mean, over each pooling window of a map; what is left over at an edge is dropped.

    Args:
        tokens: ``[B, *grid, C]``.
        stride: Of the pooling, along each axis.
        mean: Whether to take the mean.

    Returns:
        ``[B, *(grid // stride), C]``.
    """
    for axis, step in enumerate(stride, start=1):
        kept = tokens.shape[axis] // step
        parts = tokens.narrow(axis, 0, kept * step).unflatten(axis, (kept, step))
        tokens = parts.mean(dim=axis + 1) if mean else parts.amax(dim=axis + 1)
    return tokens


def run_on_map(block: Block, tokens: Tensor, window: Size | None) -> Tensor:
    """A block on a row-major map.

    Args:
        block: One of a trunk's.
        tokens: ``[B, *grid, C]``.
        window: Tokens of an attention window along each axis; None: attention sees everything.

    Returns:
        ``[B, *grid', C']``, pooled where the block pools.
    """
    normed = block.norm1(tokens)
    stride, attn = block.q_stride, block.attn
    shortcut = block.shortcut(tokens, normed, pool_map)
    cut = normed.unsqueeze(1) if window is None else _partition(normed, window)
    counts = [] if window is None else [-(-n // w) for n, w in zip(normed.shape[1:-1], window, strict=True)]
    query, key, value = attn.qkv(cut.flatten(0, 1)).chunk(3, dim=-1)
    if stride is not None:
        query = pool_map(query, stride)
    inside = query.shape[1:-1]
    heads = [part.flatten(1, -2).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value)]
    mixed = attend(*heads).transpose(1, 2).flatten(2)
    mixed = attn.proj(mixed).unflatten(0, cut.shape[:2]).unflatten(2, tuple(inside))
    after = tuple(shortcut.shape[1:-1])
    mixed = mixed[:, 0] if window is None else _merge(mixed, counts, after)
    return block.second_half(shortcut, mixed)


def _partition(tokens: Tensor, window: Size) -> Tensor:
    """``[B, *grid, C]`` padded with zeros and cut: ``[B, windows, *window, C]``."""
    grid, dims = tokens.shape[1:-1], len(window)
    margins = [-n % w for n, w in zip(grid, window, strict=True)]
    tokens = F.pad(tokens, [0, 0, *(part for margin in reversed(margins) for part in (0, margin))])
    for axis, side in zip(reversed(range(dims)), reversed(window), strict=True):
        tokens = tokens.unflatten(axis + 1, (-1, side))
    outer, inner = [2 * axis + 1 for axis in range(dims)], [2 * axis + 2 for axis in range(dims)]
    return tokens.permute(0, *outer, *inner, -1).flatten(1, dims)


def _merge(windows: Tensor, counts: list[int], grid: Size) -> Tensor:
    """The inverse, of ``counts`` windows along each axis: ``[B, windows, *window, C]`` -> ``[B, *grid, C]``."""
    dims = len(grid)
    tokens = windows.unflatten(1, counts)
    order = [part for axis in range(dims) for part in (1 + axis, 1 + dims + axis)]
    tokens = tokens.permute(0, *order, -1)
    for axis in range(dims):
        tokens = tokens.flatten(axis + 1, axis + 2).narrow(axis + 1, 0, grid[axis])
    return tokens
