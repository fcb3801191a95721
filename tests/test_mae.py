"""The masked autoencoder: parity with hiera-transformer 0.1.4, and what hidden and visible mean."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import reference_fields
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture, classifier_form, mae_form
from hiera_video.models.checkpoints.formats import IMAGE_FORM
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, MAEArchitecture, random_keep

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports from a path that timm has deprecated
    hiera_mae = pytest.importorskip("hiera.hiera_mae")

SMALL: dict[str, Any] = {"embed_dim": 16, "stages": (1, 2, 2, 1), "num_classes": 1}
DECODER: dict[str, Any] = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}
VIDEO = MAEArchitecture(input_size=(4, 64, 96), mask_ratio=0.7, **SMALL, **DECODER)
IMAGE = MAEArchitecture(**{**IMAGE_FORM, "input_size": (64, 96), **SMALL}, mask_ratio=0.6, **DECODER)


def pair(arch: MAEArchitecture) -> tuple[nn.Module, HieraMAE]:
    """The reference with random weights that all count, and ours with the same, loaded strictly."""
    fields = reference_fields(arch, "mask_ratio", "num_classes", "head_init_scale")
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


# ---- decoding a share of what is hidden


def hidden_half(keep: Tensor) -> Tensor:
    """A mask of every second hidden unit of each row, ``keep`` hiding an even number."""
    rank = (~keep).cumsum(dim=1)
    return ~keep & (rank % 2 == 0)


def by_position(model: HieraMAE, mask: Tensor) -> Tensor:
    """A mask of units as one of final positions, row-major ``[B, N]``."""
    mask = mask.view(len(mask), *model.unit_grid())
    for axis, size in enumerate(model.final_grid(model.arch.input_size), start=1):
        mask = mask.repeat_interleave(size // mask.shape[axis], dim=axis)
    return mask.flatten(1)


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_decoding_every_hidden_unit_is_the_same_as_not_choosing(arch: MAEArchitecture) -> None:
    model = HieraMAE(arch)
    clip, keep = clip_and_keep(arch)
    chosen, every = model(clip, keep, decode=~keep), model(clip, keep)
    assert torch.equal(chosen.loss, every.loss) and torch.equal(chosen.prediction, every.prediction)


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_a_share_is_decoded_and_predicted_where_it_lies(arch: MAEArchitecture) -> None:
    """Without decoder blocks positions do not see each other: what is predicted of fewer is what was of all."""
    model = HieraMAE(replace(arch, decoder_depth=0))
    clip, keep = clip_and_keep(arch)
    decode = hidden_half(keep)
    some, all_of_them = model(clip, keep, decode=decode), model(clip, keep, all_positions=True)
    places = by_position(model, decode)
    assert torch.equal(some.target.flatten(0, 1), all_of_them.target[places])
    assert torch.allclose(some.prediction.flatten(0, 1), all_of_them.prediction[places], atol=1e-6)
    assert torch.allclose(some.loss, (some.prediction - some.target).square().mean())
    assert torch.equal(some.keep, keep)


def test_the_decoder_sees_no_mask_tokens_of_units_that_are_not_decoded() -> None:
    seen: list[int] = []
    model = HieraMAE(VIDEO)
    model.decoder_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    clip, keep = clip_and_keep(VIDEO)
    out = model(clip, keep, decode=hidden_half(keep))
    per_unit = 4  # 2 x 2 final tokens
    half = int((~keep[0]).sum()) // 2
    assert seen == [per_unit * (int(keep[0].sum()) + half)]
    assert out.prediction.shape[1] == per_unit * half
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("keep", "decode", "message"),
    [
        ([1, 0, 0, 0], [1, 1, 0, 0], "decode must be among the hidden mask units; 1 of its units are visible"),
        ([1, 0, 0, 0], [0, 0, 0, 0], "rows of decode must show equal numbers of mask units, at least one, not [0]"),
        ([1, 0, 0, 0], [0, 1, 1], "decode must be bool [1, 4], one entry per clip and mask unit, not bool [1, 3]"),
        ([1, 1, 1, 1], None, "keep shows every mask unit: an MAE needs hidden ones to predict"),
    ],
    ids=["visible", "none", "units", "all_kept"],
)
def test_masks_that_do_not_fit_are_refused_in_one_sentence(
    keep: list[int], decode: list[int] | None, message: str
) -> None:
    model = HieraMAE(replace(VIDEO, input_size=(2, 64, 64)))
    masks = [None if mask is None else torch.tensor([mask]).bool() for mask in (keep, decode)]
    with pytest.raises(RequestError) as error:
        model(torch.zeros(1, 3, 2, 64, 64), masks[0], decode=masks[1])
    assert str(error.value) == message


def test_a_decoder_that_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(RequestError, match="the decoder has 32 channels, which 3 attention heads do not divide"):
        replace(VIDEO, decoder_num_heads=3)
    with pytest.raises(RequestError, match=r"mask_ratio 1.5 must be at least 0 and less than 1"):
        replace(VIDEO, mask_ratio=1.5)


# ---- masks and the device


class Transfers(TorchDispatchMode):
    """Every operation that takes tensors of the host and gives some of the device, and whether it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = [
            {leaf.device.type for leaf in tree_leaves(part) if isinstance(leaf, Tensor)}
            for part in ((args, kwargs), out)
        ]
        if devices[0] and devices[0] != devices[1]:
            self.seen.append((str(func), not (kwargs or {}).get("non_blocking", False)))
        return out


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
@pytest.mark.parametrize("masks", ["host", "numpy", "decode", "drawn", "generator"])
def test_nothing_waits_for_the_device(arch: MAEArchitecture, masks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for one: it has no values, so that reading any raises; copies to it must not wait."""
    _, keep = clip_and_keep(arch)
    given: dict[str, Any] = {
        "host": {"keep": keep},
        "numpy": {"keep": keep.numpy()},
        "decode": {"keep": keep, "decode": hidden_half(keep)},
        "drawn": {},
        "generator": {"generator": torch.Generator().manual_seed(0)},
    }[masks]
    with torch.device("meta"):
        model = HieraMAE(arch)
        clip = torch.empty(2, 3, *arch.input_size)
    monkeypatch.setattr(torch, "tensor", None)  # torch.tensor(values, device=...) waits, and no mode sees it
    with Transfers() as transfers:
        model(clip, **given).loss.backward()
    assert all(name == "aten._to_copy.default" and not waits for name, waits in transfers.seen), transfers.seen


@pytest.mark.parametrize("model", [Hiera, HieraMAE])
def test_a_numpy_mask_is_one_too(model: type[Hiera] | type[HieraMAE]) -> None:
    clip, keep = clip_and_keep(VIDEO)
    built: Any = model(VIDEO).eval()
    got, expected = built(clip, keep.numpy()), built(clip, keep)
    assert torch.equal(*((out.loss if isinstance(out, tuple) else out) for out in (got, expected)))


# ---- training and looking


def test_gradient_checkpointing_covers_the_decoder_and_gives_the_same_gradients() -> None:
    model = HieraMAE(VIDEO).train()
    clip, keep = clip_and_keep(VIDEO)
    calls: list[int] = []
    model.decoder_blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(clip, keep).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 1 + 2
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_a_reconstruction_shows_the_clip_where_it_is_seen_and_the_prediction_where_not(arch: MAEArchitecture) -> None:
    model = HieraMAE(arch).eval()
    clip, keep = clip_and_keep(arch)
    masked, reconstructed = model.reconstruct(clip, keep)
    frames = clip[:, :, ::2] if clip.ndim == 5 else clip
    seen = keep.view(2, 1, *model.unit_grid())
    for axis, size in enumerate(frames.shape[2:], start=2):
        seen = seen.repeat_interleave(size // seen.shape[axis], dim=axis)
    assert masked.shape == reconstructed.shape == frames.shape
    assert torch.equal(masked, frames * seen)
    assert torch.equal(torch.where(seen, reconstructed, 0), masked)
    out = model(clip, keep)
    patches = model.target(reconstructed.repeat_interleave(2, dim=2) if clip.ndim == 5 else reconstructed)
    true = model.target(clip)
    predicted = (patches - true.mean(-1, keepdim=True)) / (true.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = by_position(model, ~keep)
    assert torch.allclose(predicted[hidden], out.prediction.flatten(0, 1), atol=1e-4)


def test_a_perfect_prediction_reconstructs_the_clip() -> None:
    class Knowing(HieraMAE):
        def forward(self, clip: Tensor, keep: Any = None, **kwargs: Any) -> Any:
            out = super().forward(clip, keep, **kwargs)
            return out._replace(prediction=out.target)

    for arch in (VIDEO, IMAGE):
        clip, keep = clip_and_keep(arch)
        _, reconstructed = Knowing(arch).reconstruct(clip, keep.numpy())
        assert torch.allclose(reconstructed, clip[:, :, ::2] if clip.ndim == 5 else clip, atol=1e-5)


def test_an_mae_is_built_from_any_encoder_and_gives_it_back() -> None:
    video, image = Architecture(), Architecture(**IMAGE_FORM)
    assert [(mae_form(arch).mask_ratio, mae_form(arch).q_pool) for arch in (video, image)] == [(0.9, 2), (0.6, 2)]
    assert all(classifier_form(mae_form(arch)) == arch for arch in (video, image))
