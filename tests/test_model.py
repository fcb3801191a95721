"""The model beside an independent one in row-major order, and the habits that others build on."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.errors import RequestError, SizeError
from hiera_video.models.architecture import Architecture
from hiera_video.models.hiera import Hiera
from hiera_video.models.layers import resize_positions
from hiera_video.models.published import ARCHITECTURES as ARCHITECTURE_TABLE
from hiera_video.models.published import CHECKPOINTS, MAE_ARCHITECTURES, ClassifierName, MAEName

VIDEO = Architecture(input_size=(4, 64, 96), embed_dim=8, num_heads=1, stages=(1, 2, 2, 1), num_classes=5)
IMAGE = Architecture(
    input_size=(64, 96),
    embed_dim=8,
    stages=(1, 2, 2, 1),
    num_classes=5,
    q_stride=(2, 2),
    mask_unit_size=(8, 8),
    patch_kernel=(7, 7),
    patch_stride=(4, 4),
    patch_padding=(3, 3),
    sep_pos_embed=False,
)
SEQUENCE = Architecture(
    input_size=(256,),
    in_chans=2,
    embed_dim=8,
    stages=(1, 2, 2, 1),
    num_classes=5,
    q_stride=(2,),
    mask_unit_size=(8,),
    patch_kernel=(7,),
    patch_stride=(4,),
    patch_padding=(3,),
    sep_pos_embed=False,
)
JOINT = replace(VIDEO, sep_pos_embed=False)
POOL_TWICE = replace(VIDEO, q_pool=2)
ALL_AXES = replace(JOINT, input_size=(32, 32, 64), q_stride=(2, 2, 2), mask_unit_size=(8, 8, 8), stages=(1, 1, 1, 1))
ARCHITECTURES = {
    "video": VIDEO,
    "image": IMAGE,
    "sequence": SEQUENCE,
    "joint": JOINT,
    "pool_twice": POOL_TWICE,
    "all_axes": ALL_AXES,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Operators this small only wait for each other on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(arch: Architecture, *, seed: int = 0) -> Hiera:
    """A model whose every parameter is random enough that nothing is small by chance."""
    model = Hiera(arch).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(start, 0.1, generator=generator)
    return model


def clip_of(arch: Architecture, *, batch: int = 2, size: tuple[int, ...] | None = None, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, arch.in_chans, *(size or arch.input_size), generator=generator)


def keep_of(model: Hiera, *, batch: int = 2, hidden: int = 2, seed: int = 2) -> Tensor:
    """Rows that differ, each hiding ``hidden`` mask units."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, model.num_mask_units(), generator=generator)
    return noise.argsort(dim=1).argsort(dim=1) >= hidden


def assert_near(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) <= tolerance


# ---- an independent Hiera: everything stays in row-major order, units are cut out of maps by slicing


class RowMajor(NamedTuple):
    """What the independent model says: per stage a map with hidden places zero; attention of each block; logits."""

    maps: list[Tensor]
    attentions: list[Tensor]
    tokens: Tensor
    logits: Tensor


def cut(tensor: Tensor, counts: tuple[int, ...]) -> Tensor:
    """A map ``[B, *grid, C]`` -> ``[B, M, *unit, C]``."""
    for axis, count in enumerate(counts):  # each cut moves the axis' unit index behind those already cut
        tensor = torch.stack(tensor.chunk(count, dim=1 + axis + axis), dim=1 + axis)
    return tensor.flatten(1, len(counts))


def paste(tensor: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`cut`."""
    tensor = tensor.unflatten(1, counts)
    for axis in reversed(range(len(counts))):
        tensor = torch.cat(tensor.unbind(1 + axis), dim=1 + axis + axis)
    return tensor


def max_pool(unit_maps: Tensor, stride: tuple[int, ...]) -> Tensor:
    """``[B, K, *unit, C]`` pooled inside each unit."""
    operation = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(stride)]
    return operation(unit_maps.flatten(0, 1).movedim(-1, 1), stride).movedim(1, -1).unflatten(0, unit_maps.shape[:2])


def row_major(model: Hiera, clip: Tensor, keep: Tensor | None = None) -> RowMajor:
    arch = model.arch
    counts = tuple(n // (p * m) for n, p, m in zip(clip.shape[2:], arch.patch_stride, arch.mask_unit_size, strict=True))
    batch, total = clip.shape[0], math.prod(counts)
    seen = torch.ones(batch, total, dtype=torch.bool) if keep is None else keep
    ids = torch.stack([row.nonzero().flatten() for row in seen])

    def show(units: Tensor) -> Tensor:
        return torch.stack([row[index] for row, index in zip(units, ids, strict=True)])

    def full_map(units: Tensor) -> Tensor:
        full = units.new_zeros(batch, total, *units.shape[2:])
        for row, index, values in zip(full, ids, units, strict=True):
            row[index] = values
        return paste(full, counts)

    pixels = cut(clip.movedim(1, -1), counts)
    clip = paste(pixels * seen.view(batch, total, *(1,) * (pixels.ndim - 2)), counts).movedim(-1, 1)
    grid = tuple(n // p for n, p in zip(clip.shape[2:], arch.patch_stride, strict=True))
    if arch.sep_pos_embed:
        space = model.pos_embed_spatial.view(1, *grid[1:], arch.embed_dim)
        positions = space + model.pos_embed_temporal.view(grid[0], 1, 1, arch.embed_dim)
    else:
        positions = model.pos_embed.view(*grid, arch.embed_dim)
    tokens = show(cut(model.patch_embed.proj(clip).movedim(1, -1) + positions, counts))

    def flat(part: Tensor, local: bool, heads: int) -> Tensor:
        """-> ``[B, windows, heads, tokens, d]``; a global window is row-major over the clip, or unit by unit."""
        if local:
            windows = part.flatten(2, -2)
        else:
            windows = (paste(part, counts) if keep is None else part).flatten(1, -2)[:, None]
        return windows.unflatten(-1, (heads, -1)).transpose(2, 3)

    maps, attentions, index = [], [], 0
    for stage, num_blocks in enumerate(arch.stages):
        for number in range(num_blocks):
            block = model.blocks[index]
            first = stage > 0 and number == 0
            local = arch.mask_unit_attn[stage - 1 if first else stage]
            heads = arch.num_heads * 2**stage
            normed = F.layer_norm(tokens, tokens.shape[-1:], block.norm1.weight, block.norm1.bias, arch.layer_norm_eps)
            query, key, value = F.linear(normed, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=-1)
            if first:
                tokens = F.linear(normed, block.proj.weight, block.proj.bias)
            if first and stage <= arch.q_pool:
                tokens, query = max_pool(tokens, arch.q_stride), max_pool(query, arch.q_stride)
            shape = query.shape
            query, key, value = (flat(part, local, heads) for part in (query, key, value))
            attention = torch.einsum("bwhqd,bwhkd->bwhqk", query, key / query.shape[-1] ** 0.5).softmax(dim=-1)
            attentions.append(attention)
            mixed = torch.einsum("bwhqk,bwhkd->bwqhd", attention, value).flatten(3)
            if local or keep is not None:
                mixed = mixed.reshape(shape)
            else:
                mixed = cut(
                    mixed.reshape(batch, *(c * u for c, u in zip(counts, shape[2:-1], strict=True)), -1), counts
                )
            tokens = tokens + F.linear(mixed, block.attn.proj.weight, block.attn.proj.bias)
            normed = F.layer_norm(tokens, tokens.shape[-1:], block.norm2.weight, block.norm2.bias, arch.layer_norm_eps)
            hidden = F.gelu(F.linear(normed, block.mlp.fc1.weight, block.mlp.fc1.bias))
            tokens = tokens + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
            index += 1
        maps.append(full_map(tokens))
    last = (tokens if keep is not None else maps[-1]).flatten(1, -2)
    embedding = F.layer_norm(
        tokens.flatten(1, -2).mean(1), last.shape[-1:], model.norm.weight, model.norm.bias, arch.layer_norm_eps
    )
    logits = F.linear(embedding, model.head.projection.weight, model.head.projection.bias)
    return RowMajor(maps, attentions, last, logits)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_output_equals_that_of_a_model_which_never_leaves_row_major_order(name: str, masked: bool) -> None:
    model = build(ARCHITECTURES[name])
    clip = clip_of(model.arch)
    keep = keep_of(model) if masked else None
    expected = row_major(model, clip, keep)

    assert_near(model(clip, keep), expected.logits)
    assert_near(model.forward_features(clip, keep), expected.tokens)
    tokens, maps = model.forward_intermediates(clip, keep=keep, output_fmt="NHWC")
    assert_near(tokens, expected.tokens)
    for got, want in zip(maps, expected.maps, strict=True):
        assert_near(got, want)
        assert torch.equal(got == 0, want == 0)
    for got, want in zip(model.forward_attentions(clip, keep), expected.attentions, strict=True):
        assert_near(got, want)


# ---- the calls


@torch.no_grad()
def test_features_are_the_last_map_flattened_and_the_head_finishes_them() -> None:
    model = build(VIDEO)
    clip = clip_of(VIDEO)
    tokens, maps = model.forward_intermediates(clip, output_fmt="NHWC")
    assert torch.equal(model.forward_features(clip), maps[-1].flatten(1, -2))
    assert torch.equal(tokens, maps[-1].flatten(1, -2))
    assert_near(model.forward_head(tokens), model(clip))
    assert_near(model.forward_head(tokens, pre_logits=True), model.norm(tokens.mean(dim=1)))
    assert_near(model.head(model.forward_head(tokens, pre_logits=True)), model(clip))


@torch.no_grad()
def test_intermediates_come_for_the_stages_asked_in_the_order_asked() -> None:
    model = build(VIDEO)
    clip = clip_of(VIDEO)
    tokens, every = model.forward_intermediates(clip)
    assert [tuple(m.shape[1:]) for m in every] == [(8, 2, 16, 24), (16, 2, 8, 12), (32, 2, 4, 6), (64, 2, 2, 3)]
    for indices, expected in (([3, 1], (1, 3)), ([-1], (3,)), (2, (2, 3)), (None, range(4)), ([-4, 0], (0,))):
        some = model.forward_intermediates(clip, indices, intermediates_only=True)
        assert all(torch.equal(got, every[stage]) for got, stage in zip(some, expected, strict=True))
    early, (first,) = model.forward_intermediates(clip, [0])
    assert torch.equal(early, first.flatten(2).transpose(1, 2))
    assert torch.equal(model.forward_intermediates(clip, [0], stop_early=False)[0], tokens)
    blocks = model.forward_intermediates(clip, coarse=False, intermediates_only=True)
    assert len(blocks) == len(model.blocks)
    assert all(torch.equal(blocks[end], one) for end, one in zip((0, 2, 4, 5), every, strict=True))
    for wrong, sentence in (
        ({"indices": [0, 4]}, r"^index 4 does not exist; this model has stages 0 to 3$"),
        ({"indices": 5}, r"^index -1 does not exist; this model has stages 0 to 3$"),
        ({"indices": []}, "name none of the stages 0 to 3"),
        ({"indices": [6], "coarse": False}, "has blocks 0 to 5"),
        ({"norm": True}, "stages before the last have no norm"),
        ({"output_fmt": "CHW"}, r"must be NCHW \(NCTHW\) or NHWC"),
    ):
        with pytest.raises(RequestError, match=sentence):
            model.forward_intermediates(clip, **wrong)


@torch.no_grad()
def test_everything_visible_equals_no_mask() -> None:
    model = build(VIDEO)
    clip = clip_of(VIDEO)
    keep = torch.ones(2, model.num_mask_units(), dtype=torch.bool)
    assert_near(model(clip, keep), model(clip))


@torch.no_grad()
def test_pixels_of_hidden_units_change_nothing() -> None:
    model = build(VIDEO)
    clip, keep = clip_of(VIDEO), keep_of(model)
    other = clip_of(VIDEO, seed=9)
    seen = keep.view(2, 1, 2, 2, 3)
    for axis, times in ((2, 2), (3, 32), (4, 32)):
        seen = seen.repeat_interleave(times, dim=axis)
    mixed = torch.where(seen, clip, other)
    assert not torch.equal(mixed, clip)
    assert torch.equal(model(mixed, keep), model(clip, keep))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool(),
            "rows of keep must show equal numbers of mask units, at least one, not [2, 3]",
        ),
        (
            torch.zeros(2, 12).bool(),
            "rows of keep must show equal numbers of mask units, at least one, not [0]",
        ),
        (
            torch.ones(2, 11).bool(),
            "keep must be bool [2, 12], one entry per clip and mask unit, not bool [2, 11]",
        ),
        (
            torch.ones(1, 12).bool(),
            "keep must be bool [2, 12], one entry per clip and mask unit, not bool [1, 12]",
        ),
        (
            torch.ones(2, 12).long(),
            "keep must be bool [2, 12], one entry per clip and mask unit, not int64 [2, 12]",
        ),
    ],
    ids=["unequal", "none", "units", "batch", "dtype"],
)
def test_a_keep_that_does_not_fit_is_refused_in_one_sentence(keep: Tensor, message: str) -> None:
    model = build(VIDEO)
    calls = [model.forward, model.forward_features, model.forward_attentions]
    for call in (*calls, lambda clip, keep: model.forward_intermediates(clip, keep=keep)):
        with pytest.raises(RequestError) as error:
            call(clip_of(VIDEO), keep)
        assert str(error.value) == message


# ---- sizes


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (15, 224, 224),
            "input size 15x224x224 must be a multiple of 2x32x32 in each axis; "
            "the nearest that fit: 14x224x224 and 16x224x224",
        ),
        (
            (16, 230, 100),
            "input size 16x230x100 must be a multiple of 2x32x32 in each axis; "
            "the nearest that fit: 16x224x96 and 16x256x128",
        ),
        (
            (2, 16, 16),
            "input size 2x16x16 must be a multiple of 2x32x32 in each axis; the nearest that fit: 2x32x32",
        ),
        ((224, 224), "an input of size 224x224 has 2 axes, this model takes 3"),
    ],
)
def test_a_size_that_does_not_divide_gets_one_sentence_with_the_nearest(size: tuple[int, ...], message: str) -> None:
    model = build(replace(VIDEO, input_size=(2, 32, 32)))
    with pytest.raises(SizeError) as error:
        model(torch.zeros(1, 3, *size))
    assert str(error.value) == message
    if len(size) == 3:
        with pytest.raises(SizeError) as error:
            Hiera(replace(VIDEO, input_size=size))
        assert str(error.value) == message


@pytest.mark.parametrize("way", ["window", "plain"])
@pytest.mark.parametrize("arch", [VIDEO, JOINT, IMAGE, SEQUENCE], ids=["separate", "joint", "image", "sequence"])
@torch.no_grad()
def test_another_size_on_the_fly_equals_a_model_built_for_it(arch: Architecture, way: str) -> None:
    size = {1: (320,), 2: (96, 32), 3: (8, 96, 32)}[len(arch.input_size)]
    model = build(arch)
    model.position_resize = way
    grid = arch.token_grid(size)
    built = Hiera(replace(arch, input_size=size)).eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("pos_embed")}
    if arch.sep_pos_embed:
        state |= {"pos_embed_spatial": built.pos_embed_spatial, "pos_embed_temporal": built.pos_embed_temporal}
        state["pos_embed_temporal"] = F.interpolate(
            model.pos_embed_temporal.transpose(1, 2), grid[0], mode="linear"
        ).transpose(1, 2)
        window = (8, 8) if way == "window" else (1, 1)
        state["pos_embed_spatial"] = resize_positions(
            model.pos_embed_spatial, arch.token_grid(arch.input_size)[1:], grid[1:], window
        )
    else:
        window = arch.mask_unit_size if way == "window" else (1,) * len(grid)
        state["pos_embed"] = resize_positions(model.pos_embed, arch.token_grid(arch.input_size), grid, window)
    built.load_state_dict(state, strict=True)
    clip = clip_of(arch, size=size)
    assert_near(model(clip), built(clip))
    assert not torch.allclose(model(clip), model(clip_of(arch, size=size, seed=5)))


@pytest.mark.parametrize("size", [(8, 64, 64), (16, 96, 96), (16, 32, 128), (4, 320, 320)])
@torch.no_grad()
def test_sixteen_frame_video_models_take_fewer_frames_larger_and_non_square_pictures(size: tuple[int, ...]) -> None:
    model = build(replace(VIDEO, input_size=(16, 64, 64)))
    clip = clip_of(VIDEO, size=size, batch=1)
    tokens, maps = model.forward_intermediates(clip, output_fmt="NHWC")
    grid = (size[0] // 2, size[1] // 32, size[2] // 32)
    assert maps[-1].shape == (1, *grid, 64)
    assert tokens.shape == (1, math.prod(grid), 64)
    assert model(clip).isfinite().all()


def numbered(*size: int) -> Tensor:
    """A position table of two random channels."""
    return torch.randn(1, math.prod(size), 2, generator=torch.Generator().manual_seed(0))


def test_the_plain_way_is_bicubic_in_space_and_linear_in_time() -> None:
    plane = numbered(4, 6)
    expected = F.interpolate(plane.view(1, 4, 6, 2).permute(0, 3, 1, 2), size=(8, 5), mode="bicubic")
    got = resize_positions(plane, (4, 6), (8, 5), (1, 1))
    assert_near(got.view(8, 5, 2), expected[0].permute(1, 2, 0))

    line = numbered(4)
    expected = F.interpolate(line.transpose(1, 2), size=7, mode="linear").transpose(1, 2)
    assert_near(resize_positions(line, (4,), (7,), (1,)), expected)

    volume = numbered(4, 4, 6)
    in_time = F.interpolate(volume.view(1, 4, 24, 2).permute(0, 2, 3, 1).flatten(0, 1), size=2, mode="linear")
    frames = in_time.view(4, 6, 2, 2).permute(3, 2, 0, 1)  # [T, C, H, W]
    expected = F.interpolate(frames, size=(8, 5), mode="bicubic").permute(0, 2, 3, 1)
    got = resize_positions(volume, (4, 4, 6), (2, 8, 5), (1, 1, 1))
    assert_near(got.view(2, 8, 5, 2), expected)
    only_time = resize_positions(volume, (4, 4, 6), (2, 4, 6), (1, 1, 1))
    assert_near(only_time.view(2, 4, 6, 2), frames.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("old", "new", "window"),
    [
        ((16,), (24,), (8,)),
        ((16, 24), (32, 16), (8, 8)),
        ((4, 16, 24), (2, 32, 16), (1, 8, 8)),
        ((8, 8, 16), (4, 16, 8), (2, 4, 4)),
    ],
)
def test_the_window_way_keeps_the_phase_within_a_mask_unit(
    old: tuple[int, ...], new: tuple[int, ...], window: tuple[int, ...]
) -> None:
    """Each phase is interpolated from itself alone; what repeats in every window comes out exactly so."""
    table = numbered(*old)
    got = resize_positions(table, old, new, window).view(*new, 2)
    phase = tuple(size // 2 for size in window)
    at_phase = tuple(slice(p, None, w) for p, w in zip(phase, window, strict=True))
    units = [tuple(n // w for n, w in zip(size, window, strict=True)) for size in (old, new)]
    alone = resize_positions(table.view(*old, 2)[at_phase].reshape(1, -1, 2), *units, (1,) * len(old))
    assert_near(got[at_phase].reshape(1, -1, 2), alone)

    tile = numbered(*window).view(*window, 2)
    tiled = [tile.repeat(*(n // w for n, w in zip(size, window, strict=True)), 1) for size in (old, new)]
    assert_near(resize_positions(tiled[0].view(1, -1, 2), old, new, window).view(*new, 2), tiled[1])


def test_an_unknown_way_to_resize_is_refused() -> None:
    model = build(VIDEO)
    model.position_resize = "bilinear"
    with pytest.raises(RequestError, match=r"^position_resize 'bilinear' must be window or plain$"):
        model(clip_of(VIDEO))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_stride": (2, 2)}, "q_stride (2, 2) must have 3 numbers, one per axis of input_size"),
        (
            {"mask_unit_size": (1, 4, 4)},
            "mask_unit_size (1, 4, 4) must be q_stride to the power 3: (1, 8, 8)",
        ),
        ({"q_pool": 4}, "q_pool 4 must be from 0 to 3, the number of stage changes"),
        ({"mask_unit_attn": (True,)}, "mask_unit_attn needs 4 entries, one per stage"),
        ({"hidden_act": "gellu"}, "hidden_act 'gellu' must be one of gelu, gelu_new, relu, selu, silu"),
        ({"num_heads": 3}, "stage 1 has 8 channels, which 3 attention heads do not divide"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused_in_one_sentence(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as error:
        replace(VIDEO, **changes)
    assert str(error.value) == message


def test_separate_position_embeddings_need_a_video() -> None:
    with pytest.raises(RequestError, match="sep_pos_embed needs an input_size of"):
        replace(IMAGE, sep_pos_embed=True)


# ---- training


def gradients(model: Hiera, clip: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    model(clip, keep).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_gradient_checkpointing_gives_the_same_gradients(masked: bool) -> None:
    model = build(replace(VIDEO, drop_path_rate=0.5)).train()
    keep = keep_of(model) if masked else None
    torch.manual_seed(0)
    expected = gradients(model, clip_of(VIDEO), keep)
    assert expected.keys() == dict(model.named_parameters()).keys()
    model.set_grad_checkpointing(True)
    torch.manual_seed(0)
    got = gradients(model, clip_of(VIDEO), keep)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_gradient_checkpointing_runs_the_blocks_twice_and_can_be_switched_off() -> None:
    model = build(VIDEO).train()
    calls: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, expected in ((True, 2), (False, 1)):
        calls.clear()
        model.set_grad_checkpointing(enable)
        gradients(model, clip_of(VIDEO))
        assert len(calls) == expected


def test_drop_path_rates_rise_linearly_and_act_in_training_alone() -> None:
    model = build(replace(VIDEO, drop_path_rate=0.5))
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    clip = clip_of(VIDEO)
    assert torch.equal(model(clip), model(clip))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(clip), model(clip))


def test_a_sample_is_dropped_whole_and_the_others_scaled_up() -> None:
    drop = build(replace(VIDEO, drop_path_rate=0.5)).train().blocks[-1].drop_path
    torch.manual_seed(0)
    out = drop(torch.ones(2000, 1, 2, 3)).flatten(1)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert (out == out[:, :1]).all()
    assert 0.45 < float((out[:, 0] > 0).float().mean()) < 0.55


def test_the_start_is_that_of_the_reference() -> None:
    """Weights of std 0.02, biases of linear layers and norms 0.02, the head scaled; the patch bias is torch's own."""
    torch.manual_seed(0)
    model = Hiera(replace(VIDEO, embed_dim=64, num_classes=100))
    for name, parameter in model.state_dict().items():
        scale = 0.001 if name.startswith("head") else 1.0
        if name == "patch_embed.proj.bias":
            assert 0.01 < float(parameter.std()) < 0.1  # uniform within one over the root of 3 * 3 * 7 * 7
        elif name.endswith("bias"):
            assert torch.allclose(parameter, torch.full_like(parameter, 0.02 * scale)), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert float(parameter.std()) == pytest.approx(0.02 * scale, rel=0.15), name


def test_logits_come_out_in_training_and_in_evaluation() -> None:
    model = build(VIDEO)
    clip = clip_of(VIDEO)
    assert torch.equal(model.train()(clip), model.eval()(clip))
    assert not torch.allclose(model(clip).sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("number", range(5))
def test_frozen_stages_train_nothing_and_stay_in_evaluation_mode(number: int) -> None:
    model = build(replace(VIDEO, drop_path_rate=0.5))
    model.freeze_stages(number)
    model.train()
    blocks = sum(VIDEO.stages[:number])
    for name, parameter in model.named_parameters():
        frozen = number > 0 if name.startswith(("pos_embed", "patch_embed")) else False
        if name.startswith("blocks."):
            frozen = int(name.split(".")[1]) < blocks
        assert parameter.requires_grad is not frozen, name
    assert [block.drop_path.training for block in model.blocks] == [index >= blocks for index in range(6)]
    assert model.training and model.head.training
    assert set(gradients(model, clip_of(VIDEO))) == {n for n, p in model.named_parameters() if p.requires_grad}
    model.freeze_stages(0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_stages_that_do_not_exist_cannot_be_frozen() -> None:
    with pytest.raises(RequestError, match=r"^freeze_stages 5 must be from 0 to 4, the number of stages$"):
        build(VIDEO).freeze_stages(5)


# ---- timm's habits


@pytest.mark.parametrize("training", [True, False])
def test_resetting_the_classifier_keeps_mode_dtype_and_everything_but_the_head(training: bool) -> None:
    model = build(replace(VIDEO, head_dropout=0.5)).double().train(training)
    model.labels = ["a", "b", "c", "d", "e"]
    body = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head")}
    model.reset_classifier(7)
    assert model.arch.num_classes == 7
    assert model.labels is None
    assert all(module.training is training for module in model.modules())
    assert model.head.projection.weight.dtype == torch.float64
    assert float(model.head.projection.weight.detach().std()) == pytest.approx(2e-5, rel=0.3)
    assert model(clip_of(VIDEO).double()).shape == (2, 7)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in body.items())


def test_resetting_the_classifier_stays_on_the_device() -> None:
    model = build(VIDEO).to("meta")
    model.reset_classifier(7)
    assert model.head.projection.weight.is_meta


@torch.no_grad()
def test_no_classes_leave_the_embedding() -> None:
    model = build(VIDEO)
    clip = clip_of(VIDEO)
    expected = model.forward_head(model.forward_features(clip), pre_logits=True)
    model.reset_classifier(0)
    assert_near(model(clip), expected)
    assert not [name for name in model.state_dict() if name.startswith("head")]


def test_feature_info_tells_channels_reduction_and_module_of_each_stage() -> None:
    model = build(VIDEO)
    assert model.num_features == 64
    assert model.feature_info == [
        {"num_chs": 8, "reduction": 4, "temporal_reduction": 2, "module": "blocks.0"},
        {"num_chs": 16, "reduction": 8, "temporal_reduction": 2, "module": "blocks.2"},
        {"num_chs": 32, "reduction": 16, "temporal_reduction": 2, "module": "blocks.4"},
        {"num_chs": 64, "reduction": 32, "temporal_reduction": 2, "module": "blocks.5"},
    ]
    _, maps = model.forward_intermediates(clip_of(VIDEO))
    for info, feature in zip(model.feature_info, maps, strict=True):
        assert info["num_chs"] == feature.shape[1]
        assert (info["temporal_reduction"], info["reduction"], info["reduction"]) == tuple(
            n // m for n, m in zip(VIDEO.input_size, feature.shape[2:], strict=True)
        )


@pytest.mark.parametrize("arch", [VIDEO, IMAGE], ids=["video", "image"])
def test_timms_layer_decay_sees_embeddings_each_block_then_norm_and_head(arch: Architecture) -> None:
    model = build(arch)
    depth = len(model.blocks)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale_of = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(scale_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 0 if name.startswith(("pos_embed", "patch_embed")) else depth + 1
        decays = parameter.ndim > 1 and not name.startswith("pos_embed")
        assert scale_of[id(parameter)] == (0.5 ** (depth + 1 - layer), 0.05 if decays else 0.0), name


def test_timms_weight_decay_groups_leave_position_embeddings_biases_and_norms_alone() -> None:
    model = build(VIDEO)
    still, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert {id(p) for p in decayed["params"]} == {
        id(p) for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("pos_embed")
    }
    assert len(still["params"]) + len(decayed["params"]) == len(list(model.parameters()))


# ---- copies, precisions, devices, compilation


@torch.no_grad()
def test_a_model_can_be_copied_and_pickled() -> None:
    model = build(VIDEO)
    model.forward_attentions(clip_of(VIDEO))  # leaves no hook behind, which a pickle would refuse
    clip = clip_of(VIDEO)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(clip), model(clip))
        assert other.arch == model.arch


@torch.no_grad()
def test_attention_maps_leave_the_model_as_it_was_even_after_an_error() -> None:
    model = build(VIDEO)
    with pytest.raises(SizeError):
        model.forward_attentions(torch.zeros(1, 3, 3, 64, 64))
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_lower_precisions_run_and_stay_near(dtype: torch.dtype) -> None:
    model = build(VIDEO)
    clip, keep = clip_of(VIDEO, size=(8, 64, 64)), None
    expected = model(clip, keep)
    with torch.autocast("cpu", dtype=dtype):
        assert_near(model(clip).float(), expected, 2e-2)
    lower = copy.deepcopy(model).to(dtype)
    assert lower(clip.to(dtype)).dtype == dtype
    assert_near(lower(clip.to(dtype)).float(), expected, 2e-2)
    masked = keep_of(model)
    assert_near(lower(clip_of(VIDEO).to(dtype), masked).float(), model(clip_of(VIDEO), masked), 2e-2)


def test_a_published_size_is_built_and_counted_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Hiera(Architecture())
        clip = torch.zeros(1, 3, 16, 224, 224)
        with FlopCounterMode(display=False) as counter:
            assert model(clip).shape == (1, 400)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(51e6, rel=0.02)
    assert counter.get_total_flops() / 2e9 == pytest.approx(102, rel=0.02)  # multiply-adds; the paper says 102


def test_blocks_are_modules_of_the_published_names() -> None:
    names = {name for name, _ in build(VIDEO).blocks[1].named_parameters()}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", "proj")
    assert names == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert isinstance(build(VIDEO).head.projection, nn.Linear)


def test_type_checkers_know_every_name_in_the_tables() -> None:
    classifiers = [*ARCHITECTURE_TABLE, *(name for name in CHECKPOINTS if not name.startswith("mae_"))]
    autoencoders = [*MAE_ARCHITECTURES, *(name for name in CHECKPOINTS if name.startswith("mae_"))]
    assert sorted(get_args(ClassifierName)) == sorted(classifiers)
    assert sorted(get_args(MAEName)) == sorted(autoencoders)
