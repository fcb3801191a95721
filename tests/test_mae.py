"""The masked autoencoder: parity with hiera-transformer 0.1.4, and what hidden and visible mean."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hiera_video.errors import RequestError
from hiera_video.models.layouts import IMAGE_FORM
from hiera_video.models.mae import HieraMAE, MAEArchitecture, random_keep

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports from a path that timm has deprecated
    hiera_mae = pytest.importorskip("hiera.hiera_mae")

SMALL: dict[str, Any] = {"embed_dim": 16, "stages": (1, 2, 2, 1), "num_classes": 1}
DECODER: dict[str, Any] = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}
VIDEO = MAEArchitecture(input_size=(4, 64, 96), mask_ratio=0.7, **SMALL, **DECODER)
IMAGE = MAEArchitecture(**{**IMAGE_FORM, "input_size": (64, 96), **SMALL}, mask_ratio=0.6, **DECODER)
OURS_ALONE = {"hidden_act", "layer_norm_eps", "qkv_bias", "mask_ratio", "num_classes", "head_init_scale"}


def pair(arch: MAEArchitecture) -> tuple[nn.Module, HieraMAE]:
    """The reference with random weights that all count, and ours with the same, loaded strictly."""
    fields = {name: value for name, value in vars(arch).items() if name not in OURS_ALONE}
    reference = hiera_mae.MaskedAutoencoderHiera(**fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(start, 0.05, generator=generator)
    ours = HieraMAE(arch)
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference, ours


def clip_and_keep(arch: MAEArchitecture) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(2, 3, *arch.input_size, generator=generator)
    units = HieraMAE(arch).num_mask_units()
    return clip, random_keep(2, units, arch.mask_ratio, generator=generator)


def off(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_loss_prediction_target_mask_and_gradients_are_those_of_the_reference(arch: MAEArchitecture) -> None:
    reference, ours = pair(arch)
    clip, keep = clip_and_keep(arch)
    loss, prediction, target, _ = reference(clip, mask=keep)
    out = ours(clip, keep)
    assert off(out.loss, loss) < 1e-5
    assert off(out.prediction.flatten(0, 1), prediction) < 1e-5
    assert off(out.target.flatten(0, 1), target) < 1e-5
    assert torch.equal(out.keep, keep)
    assert out.prediction.shape[:2] == out.target.shape[:2] == (2, len(prediction) // 2)
    loss.backward()
    out.loss.backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[name].grad
        if parameter.grad is None or expected is None:
            assert parameter.grad is None and (expected is None or expected.norm() == 0), name
            continue
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_sparse_patch_embedding_equals_the_convolution_of_the_zeroed_clip(arch: MAEArchitecture) -> None:
    model = HieraMAE(arch)
    clip, keep = clip_and_keep(arch)
    ids = model.keep_ids(clip, keep)
    assert ids is not None
    grid = model.unit_grid()
    sparse = model.patch_embed.visible_units(clip, ids, grid)
    mask = keep.view(2, 1, *grid).float()
    for axis, (size, number) in enumerate(zip(arch.input_size, grid, strict=True), start=2):
        mask = mask.repeat_interleave(size // number, dim=axis)
    dense = model.patch_embed.proj(clip * mask)
    for axis, number in enumerate(grid):
        dense = dense.unflatten(2 + 2 * axis, (number, -1))
    dims = len(grid)
    by_unit = dense.permute(0, *(2 + 2 * a for a in range(dims)), *(3 + 2 * a for a in range(dims)), 1)
    by_unit = by_unit.flatten(1, dims).flatten(2, -2)
    expected = by_unit[keep].view_as(sparse)
    assert off(sparse, expected) < 1e-5


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_what_is_hidden_does_not_change_the_prediction(arch: MAEArchitecture) -> None:
    model = HieraMAE(arch).eval()
    clip, keep = clip_and_keep(arch)
    mask = keep.view(2, 1, *model.unit_grid())
    for axis, size in enumerate(arch.input_size, start=2):
        mask = mask.repeat_interleave(size // mask.shape[axis], dim=axis)
    other = torch.where(mask, clip, torch.randn_like(clip))
    assert torch.equal(model(clip, keep).prediction, model(other, keep).prediction)
    assert not torch.equal(model(clip, keep).target, model(other, keep).target)


def test_all_positions_hold_the_hidden_ones_in_row_major_order() -> None:
    model = HieraMAE(VIDEO).eval()
    clip, keep = clip_and_keep(VIDEO)
    some, every = model(clip, keep), model(clip, keep, all_positions=True)
    grid = model.final_grid(VIDEO.input_size)
    hidden = ~keep.view(2, *model.unit_grid())
    for axis, size in enumerate(grid, start=1):
        hidden = hidden.repeat_interleave(size // hidden.shape[axis], dim=axis)
    hidden = hidden.flatten(1)
    assert every.prediction.shape[1] == hidden.shape[1]
    assert torch.allclose(every.prediction[hidden], some.prediction.flatten(0, 1), atol=1e-6)
    assert torch.equal(every.target[hidden], some.target.flatten(0, 1))
    assert torch.allclose(every.loss, some.loss)


def test_the_mask_is_drawn_from_the_generator_in_equal_numbers() -> None:
    first, same = (random_keep(5, 98, 0.9, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = random_keep(5, 98, 0.9, generator=torch.Generator().manual_seed(4))
    assert first.sum(dim=1).tolist() == [int(98 * (1 - 0.9))] * 5
    assert torch.equal(first, same) and not torch.equal(first, other)
    with pytest.raises(RequestError, match=r"mask_ratio 0.999 leaves 0 of 98 mask units visible"):
        random_keep(5, 98, 0.999)


def test_another_input_size_is_taken_as_it_comes() -> None:
    model = HieraMAE(VIDEO)
    out = model(torch.randn(1, 3, 2, 96, 128))
    assert out.loss.isfinite() and out.prediction.shape[2] == 16 * 16 * 3


def test_an_encoder_that_pools_to_the_last_stage_works_too() -> None:
    model = HieraMAE(MAEArchitecture(**{**vars(VIDEO), "q_pool": 3}))
    out = model(torch.randn(1, 3, 2, 96, 128))
    assert out.loss.isfinite()
    assert out.prediction.shape[2] == 32 * 32 * 3
