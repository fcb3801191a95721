"""Unrolled order: properties over 1, 2 and 3 dimensions by one code path."""

from __future__ import annotations

import doctest
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiera_video.models import unroll as module
from hiera_video.models.unroll import Size, gather_units, pool, reroll, units, unroll

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class Case:
    """A token grid with its strides, and row-major tokens that are numbered so that each entry is unique."""

    unit_grid: Size
    strides: tuple[Size, ...]
    batch: int
    channels: int

    @property
    def grid(self) -> Size:
        return tuple(math.prod(axis) for axis in zip(self.unit_grid, *self.strides, strict=True))

    @property
    def tokens(self) -> Tensor:
        shape = (self.batch, math.prod(self.grid), self.channels)
        numbers = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(0))
        return (numbers + 1.0).view(shape)

    @property
    def map(self) -> Tensor:
        return self.tokens.view(self.batch, *self.grid, self.channels)

    @property
    def unit(self) -> Size:
        return tuple(g // u for g, u in zip(self.grid, self.unit_grid, strict=True))


def cases(*, min_strides: int = 0) -> st.SearchStrategy[Case]:
    def of(dims: int) -> st.SearchStrategy[Case]:
        size = st.tuples(*[st.integers(1, 3)] * dims)
        strides = st.lists(st.tuples(*[st.integers(1, 2)] * dims), min_size=min_strides, max_size=3).map(tuple)
        return st.builds(Case, size, strides, st.integers(1, 2), st.integers(1, 3))

    return st.integers(1, 3).flatmap(of)


def by_unit(case: Case, tokens: Tensor) -> Tensor:
    """A map ``[B, *grid, C]`` -> ``[B, M, T, C]``, units and the tokens inside them row-major, by plain slicing."""
    parts = []
    for index in torch.cartesian_prod(*(torch.arange(n) for n in case.unit_grid)).view(-1, len(case.grid)).tolist():
        window = tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, case.unit, strict=True))
        parts.append(tokens[(slice(None), *window)].flatten(1, -2))
    return torch.stack(parts, dim=1)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_reroll_undoes_unroll(case: Case) -> None:
    unrolled = unroll(case.tokens, case.grid, case.strides)
    assert unrolled.shape == (case.batch, math.prod(case.unit_grid), math.prod(case.unit), case.channels)
    assert torch.equal(reroll(unrolled, case.grid, case.strides), case.map)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_each_mask_unit_holds_the_tokens_of_its_own_window(case: Case) -> None:
    unrolled = unroll(case.tokens, case.grid, case.strides)
    assert torch.equal(unrolled.sort(dim=2).values, by_unit(case, case.map).sort(dim=2).values)


@given(cases(min_strides=1))
@settings(deadline=None, max_examples=60)
def test_pooling_step_by_step_equals_max_pooling_of_the_map(case: Case) -> None:
    tokens, grid, strides = unroll(case.tokens, case.grid, case.strides), case.grid, case.strides
    expected = case.map.movedim(-1, 1)
    while strides:
        tokens, grid = pool(tokens, strides[0]), units(grid, strides[:1])
        expected = MAX_POOL[len(grid)](expected, kernel_size=strides[0], stride=strides[0])
        strides = strides[1:]
        assert torch.equal(reroll(tokens, grid, strides), expected.movedim(1, -1))


@given(cases(min_strides=1), st.data())
@settings(deadline=None, max_examples=60)
def test_masked_units_never_mix(case: Case, data: st.DataObject) -> None:
    """Gathered, pooled and rerolled with ``keep_ids``, the map is the full one, zero where units are hidden."""
    total = math.prod(case.unit_grid)
    count = data.draw(st.integers(1, total))
    rows = [sorted(data.draw(st.permutations(range(total)))[:count]) for _ in range(case.batch)]
    keep_ids = torch.tensor(rows)
    keep = torch.zeros(case.batch, total, dtype=torch.bool).scatter(1, keep_ids, True)

    full = unroll(case.tokens, case.grid, case.strides)
    visible = gather_units(full, keep_ids)
    grid, strides = units(case.grid, case.strides[:1]), case.strides[1:]
    full, visible = pool(full, case.strides[0]), pool(visible, case.strides[0])

    shown = keep.view(case.batch, *case.unit_grid)
    for axis, (size, unit) in enumerate(zip(grid, case.unit_grid, strict=True), start=1):
        shown = shown.repeat_interleave(size // unit, dim=axis)
    expected = reroll(full, grid, strides) * shown[..., None]
    assert torch.equal(reroll(visible, grid, strides, keep_ids), expected)


def test_sizes_that_do_not_agree_in_dimensions_are_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        units((4, 4), [(2,)])


def test_the_drawn_example_is_true() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0
