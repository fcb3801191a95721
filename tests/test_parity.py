"""Parity with hiera-transformer 0.1.4, a black box: all ten published variants, from weights in the published layout.

Base is compared at full depth, images and videos; the others at fewer blocks, their keys and shapes at all of them.
Slow tests compare every one but huge at full depth. Both compute in fp32 on a CPU: what differs is the order of sums.
A tolerance is of max|a - b| / max|b|, of each tensor.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import reference_fields
from torch import Tensor, nn

from hiera_video.models.architecture import Architecture
from hiera_video.models.hiera import Hiera
from hiera_video.models.published import ARCHITECTURES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports from a path that timm has deprecated
    hiera = pytest.importorskip("hiera")

IMAGES = ["tiny_224", "small_224", "base_224", "base_plus_224", "large_224", "huge_224"]
VIDEOS = ["base_16x224", "base_plus_16x224", "large_16x224", "huge_16x224"]
PUBLISHED = [f"hiera_{name}" for name in IMAGES + VIDEOS]
SMALL = Architecture(input_size=(4, 64, 96), embed_dim=16, stages=(1, 2, 2, 1), num_classes=7)
CHANGES: dict[str, dict[str, Any]] = {
    "published": {},
    "q_pool_2": {"q_pool": 2},
    "joint_positions": {"sep_pos_embed": False, "mask_unit_attn": (True, False, False, False)},
    "heads": {"num_heads": 2, "head_mul": 1.0, "mlp_ratio": 2.0},
}
WHOLE = {"hiera_base_224", "hiera_base_16x224"}
FEWER = (1, 1, 2, 1)
LARGE = ("hiera_large_16x224", "hiera_huge_224", "hiera_huge_16x224")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def drop_path_rates_off_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference reads its drop path rates out of a tensor, which a meta tensor does not allow."""
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))


@pytest.fixture
def weights_file(tmp_path: Path) -> Iterator[Path]:
    """Where the reference saves; removed at once, since large has 850 MB."""
    path = tmp_path / "published.pth"
    yield path
    path.unlink(missing_ok=True)


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """A model whose parameters take no memory yet, and no time to draw."""
    with torch.device("meta"):
        return build().eval()


def reference_of(arch: Architecture) -> nn.Module:
    """The reference with random weights, large enough that each of them counts, giving logits in place of softmax."""
    return randomized(without_weights(lambda: hiera.Hiera(**reference_fields(arch))))


def randomized(model: nn.Module) -> nn.Module:
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(start, 0.05, generator=generator)
    model.head.act_func = nn.Identity()
    return model


def ours_from(reference: nn.Module, arch: Architecture, path: Path) -> Hiera:
    """Our model, from what the reference saved in the layout of the published files."""
    torch.save({"model_state": reference.state_dict()}, path)
    model = without_weights(lambda: Hiera(arch))
    assert isinstance(model, Hiera)
    state = torch.load(path, weights_only=True, mmap=True)["model_state"]
    model.load_state_dict(state, strict=True, assign=True)
    return model


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def by_unit(feature_map: Tensor, unit_grid: tuple[int, ...]) -> Tensor:
    """``[B, *grid, C]`` -> ``[B, M, *unit, C]``: the form in which the reference gives the maps of a masked clip."""
    dims = len(unit_grid)
    pairs = [n for size, units in zip(feature_map.shape[1:-1], unit_grid, strict=True) for n in (units, size // units)]
    split = feature_map.reshape(feature_map.shape[0], *pairs, -1)
    return split.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1).flatten(1, dims)


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    reference = without_weights(getattr(hiera, name))
    ours = without_weights(lambda: Hiera(ARCHITECTURES[name]))
    expected = {key: tuple(value.shape) for key, value in reference.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        *((name, None if name in WHOLE else FEWER) for name in PUBLISHED if name not in LARGE),
        *(pytest.param(name, FEWER, marks=pytest.mark.slow) for name in LARGE),
        *(
            pytest.param(name, None, marks=pytest.mark.slow)
            for name in PUBLISHED
            if name not in WHOLE and "huge" not in name
        ),
    ],
)
@torch.no_grad()
def test_logits_maps_and_masked_tokens_equal_the_references(
    name: str, stages: tuple[int, ...] | None, weights_file: Path
) -> None:
    arch = ARCHITECTURES[name]
    if stages is not None:
        arch = replace(arch, stages=stages)
        reference = reference_of(arch)
    else:
        reference = randomized(without_weights(getattr(hiera, name)))  # the reference's own table of sizes
    ours = ours_from(reference, arch, weights_file)
    assert ours.arch == arch

    big = "large" in name or "huge" in name or "16x224" in name
    errors = differences(reference, ours, batch=1 if big else 2)
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_smaller_videos_with_other_fields_and_rows_that_hide_other_units_equal_too(
    changes: dict[str, Any], weights_file: Path
) -> None:
    arch = replace(SMALL, **changes)
    reference = reference_of(arch)
    errors = differences(reference, ours_from(reference, arch, weights_file), batch=3)
    assert all(error <= TOLERANCE for error in errors.values()), errors


def differences(reference: nn.Module, ours: Hiera, *, batch: int) -> dict[str, float]:
    """The relative difference of each output, of the whole clip and with three quarters of the mask units hidden."""
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(batch, 3, *ours.arch.input_size, generator=generator)
    logits, maps = reference(clip, return_intermediates=True)
    tokens, our_maps = ours.forward_intermediates(clip, output_fmt="NHWC")
    errors = {"logits": relative(ours.forward_head(tokens), logits)}
    for stage, (got, expected) in enumerate(zip(our_maps, maps, strict=True), start=1):
        errors[f"map {stage}"] = relative(got, expected)

    hidden = int(0.75 * ours.num_mask_units())
    keep = torch.rand(batch, ours.num_mask_units(), generator=generator).argsort(dim=1).argsort(dim=1) >= hidden
    masked_tokens, masked_maps = reference(clip, mask=keep, return_intermediates=True)
    tokens, our_maps = ours.forward_intermediates(clip, keep=keep, output_fmt="NHWC")
    # The reference leaves its tokens unrolled, units fastest; ours come unit by unit. With q_pool 3 that is the same.
    masked_tokens = masked_tokens.unflatten(1, (-1, ours.num_mask_units() - hidden)).transpose(1, 2).flatten(1, 2)
    errors["masked tokens"] = relative(tokens, masked_tokens)
    for stage, (got, expected) in enumerate(zip(our_maps, masked_maps, strict=True), start=1):
        units = by_unit(got, ours.unit_grid())
        errors[f"masked map {stage}"] = relative(units[keep].view(expected.shape), expected)
        assert not units[~keep].any()
    return errors


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_gradients_of_every_parameter_equal_the_references(changes: dict[str, Any], weights_file: Path) -> None:
    arch = replace(SMALL, **changes)
    reference = reference_of(arch).train()
    ours = ours_from(reference, arch, weights_file).train()
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(2, 3, *arch.input_size, generator=generator)
    labels = torch.tensor([1, 4])
    for model in (reference, ours):
        nn.functional.cross_entropy(model(clip), labels).backward()

    expected = dict(reference.named_parameters())
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        want, got = expected[name].grad, parameter.grad
        assert want is not None, name
        assert got is not None, name
        assert float(want.norm()) > 1e-4, f"{name}: a gradient this small shows nothing"
        assert float((got - want).norm() / want.norm()) <= 1e-4, name
