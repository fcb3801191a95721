"""Where and when the evidence for a class lies: the shares of tokens in a logit, class activation maps, rollout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hiera_video.errors import RequestError
from hiera_video.models.heads import SEE_STAGES
from hiera_video.models.hiera import WITHOUT_CLASSES, Hiera
from hiera_video.models.unroll import Size, StageTokens, reroll, unit_size, units

Method: TypeAlias = Literal["shares", "head_shares", "gradcam", "rollout"]

#: What the values of each method are.
METHODS = {
    "shares": "shares of the patches in the logit, which is their sum",
    "head_shares": "shares of the tokens that the head sees in the logit, which is their sum",
    "gradcam": "Grad-CAM: tokens that the head sees times the mean gradient, negative values as 0",
    "rollout": "attention rollout: how much each patch is attended to, whatever the class",
}


@dataclass(frozen=True)
class Evidence:
    """Where and when the evidence for a class lies in clips."""

    maps: Tensor
    """float32 ``[B, T', H', W']`` (images ``[B, H', W']``): a value for each cell of the clip's evenly divided frames,
    height and width."""
    logits: Tensor
    """float32 ``[B]``, of the class."""
    biases: Tensor
    """float32 ``[B]``: how much of the logit comes from biases alone; shares hold it, spread evenly. Else 0."""
    method: str
    """A name of ``METHODS``: how the values were made."""


def token_evidence(model: Hiera, clip: Tensor, index: int, by: Method = "shares") -> Evidence:
    """Says which places and times of clips speak for a class.

    A linear head sees the normalised mean of the last tokens. With the norm's deviation held, the logit is linear in
    each token: the tokens' shares, with the biases spread evenly, add up to it exactly ("head_shares"). But global
    attention has mixed the last tokens, and what a token says need not have come from its place. So "shares" holds the
    deviations of all norms, the weights of attention and the gates of activations (arXiv 2202.07304): the whole trunk
    is then linear too, and the patches' shares add up to the logit. Both are made for heads of every kind; means,
    deviations and maxima of tokens grow with the tokens by the same factor.

    "gradcam" is Grad-CAM (arXiv 1610.02391) on the tokens that the head sees. It takes the mean gradient over all
    places, which for a deviation is 0: of heads that see statistics it misses these. "rollout" is attention rollout
    (arXiv 2005.00928), which does not ask for the class.

    The model is computed in evaluation mode, and is left in the mode that it had.

    Args:
        model: A classifier.
        clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
        index: The class.
        by: The method.

    Returns:
        The values of each cell. Cells of shares are those of the second stage, since single patches are noisy; of
        rollout patches; of head_shares and gradcam the tokens that the head sees, of several stages or speeds the
        finest.

    Raises:
        RequestError: The model has no classes or not this one, or there is no such method.
        SizeError: The clip's size does not fit the model.
    """
    arch = model.arch
    if not arch.num_classes:
        raise RequestError(WITHOUT_CLASSES)
    if not 0 <= index < arch.num_classes:
        raise RequestError(f"there is no class {index}: the model has {arch.num_classes}, from 0 on")
    if by not in METHODS:
        raise RequestError(f"by is {by!r}, but is one of {', '.join(METHODS)}")
    modes = [(module, module.training) for module in model.modules()]
    checkpointing, model.grad_checkpointing = model.grad_checkpointing, False
    model.eval()
    try:
        with torch.enable_grad(), _Held() if by != "gradcam" else nullcontext():
            looks = list(_looks(model, clip, by_patches=by == "shares"))
            logits = _logits(model, looks)[:, index]
        biases = torch.zeros_like(logits)
        maps = _rollout(model, clip) if by == "rollout" else _products(looks, logits, mean=by == "gradcam")
        if by == "shares":
            maps = _pooled(maps, arch.q_stride if arch.q_pool else ())
        if by in ("shares", "head_shares"):
            biases = logits - maps.flatten(1).sum(dim=1)
            maps = maps + (biases / maps[0].numel()).view(-1, *(1,) * (maps.ndim - 1))
    finally:
        model.grad_checkpointing = checkpointing
        for module, training in modes:
            module.training = training
    return Evidence(maps.detach(), logits.detach(), biases.detach(), by)


class _Held(TorchFunctionMode):
    """Computes the same, with gradients as if deviations, attention and the gates of activations were constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            return _held_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _held_attention(*args)
        if func is F.multi_head_attention_forward:
            return _held_heads(*args, **kwargs)
        if func in (F.gelu, F.silu, F.selu):
            with torch.no_grad():
                gate = func(*args, **kwargs) / args[0].where(args[0] != 0, 1)
            return args[0] * gate
        return func(*args, **kwargs)


def _held_norm(tokens: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    with torch.no_grad():
        scale = (centred.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return centred * scale * weight + bias


def _held_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with torch.no_grad():
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return weights @ value


def _held_heads(query: Tensor, key: Tensor, value: Tensor, *args: Any, **_: Any) -> tuple[Tensor, None]:
    """The attention of an attentive head: ``[N, B, C]``, as ``nn.MultiheadAttention`` hands it on."""
    _, num_heads, weight, bias, _, _, _, _, out_weight, out_bias = args
    parts = zip((query, key, value), weight.chunk(3), bias.chunk(3), strict=True)
    split = (F.linear(x, *by).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for x, *by in parts)
    return F.linear(_held_attention(*split).permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None


@dataclass(frozen=True)
class _Look:
    """A clip at one speed: what the stages leave, and the tokens, leaves of the graph, that values are asked for.

    ``count`` parts, one behind the other, make a clip, of which a ``share`` is seen.
    """

    stages: list[StageTokens]
    leaves: list[StageTokens]
    count: int
    share: float


def _looks(model: Hiera, clip: Tensor, *, by_patches: bool) -> Iterator[_Look]:
    """The clip at each speed that the head sees; a leaf is the patches, or each stage that the head sees."""
    arch = model.arch
    seen = {len(arch.stages)} if arch.head != "stages" else set()
    seen |= set(arch.head_stages) if arch.head in SEE_STAGES else set()
    by_speed = arch.head == "stages" and clip.ndim == 5
    for stride in arch.head_strides if by_speed else (1,):
        parts, count = model.parts(clip, stride) if by_speed else (clip, 1)
        share = parts.shape[2] * count * stride / clip.shape[2] if by_speed else 1.0
        walk = _from_patches(model, parts, max(seen)) if by_patches else _from_stages(model, parts, seen)
        yield _Look(*walk, count, share)


def _from_patches(model: Hiera, clip: Tensor, num_stages: int) -> tuple[list[StageTokens], list[StageTokens]]:
    leaves: list[StageTokens] = []

    def through(stage: StageTokens) -> Tensor:
        if not leaves:  # the embedding comes first
            leaves.append(_leaf(stage))
            return leaves[0].tokens
        return stage.tokens

    return list(islice(model.stages(clip, through=through), num_stages)), leaves


def _from_stages(model: Hiera, clip: Tensor, seen: set[int]) -> tuple[list[StageTokens], list[StageTokens]]:
    """Each stage as it speaks to the head directly, not by way of the stages behind it."""
    with torch.no_grad():
        walk = list(islice(model.stages(clip), max(seen)))
    stages = [_leaf(stage) if number in seen else stage for number, stage in enumerate(walk, start=1)]
    return stages, [stages[number - 1] for number in sorted(seen)]


def _leaf(stage: StageTokens) -> StageTokens:
    return stage._replace(tokens=stage.tokens.detach().requires_grad_())


def _logits(model: Hiera, looks: list[_Look]) -> Tensor:
    """float32 [B, K] from the stages' tokens."""
    if model.arch.head != "stages":
        return model.head(model.embedding_of(looks[0].stages)).float()
    means = [model.statistics_of(look.stages).unflatten(0, (-1, look.count)).mean(dim=1) for look in looks]
    return model.head(torch.cat(means, dim=-1)).float()


def _products(looks: list[_Look], logits: Tensor, *, mean: bool) -> Tensor:
    """Tokens times gradients, those of several stages and speeds added up on the finest of their grids.

    With the ``mean`` gradient this is Grad-CAM.
    """
    leaves = [(look, leaf) for look in looks for leaf in look.leaves]
    gradients = torch.autograd.grad(logits.sum(), [leaf.tokens for _, leaf in leaves])
    maps = []
    for (look, leaf), gradient in zip(leaves, gradients, strict=True):
        weights = gradient.mean(dim=(1, 2), keepdim=True) if mean else gradient
        products = (leaf.tokens.detach() * weights).sum(dim=-1, keepdim=True).float()
        values = reroll(products, leaf.grid, leaf.strides).squeeze(-1)
        maps.append((values.unflatten(0, (-1, look.count)).flatten(1, 2) if look.count > 1 else values, look.share))
    finest = tuple(max(sides) for sides in zip(*(values.shape[1:] for values, _ in maps), strict=True))
    total = torch.stack([_spread(values, share, finest) for values, share in maps]).sum(dim=0)
    return total.relu() if mean else total


def _pooled(values: Tensor, stride: Size) -> Tensor:
    """The sums over the windows of a stride, where it divides the grid."""
    grid = values.shape[1:]
    if not stride or any(side % step for side, step in zip(grid, stride, strict=True)):
        return values
    return _windows(values, stride).sum(dim=-1).unflatten(1, units(tuple(grid), [stride]))


def _spread(values: Tensor, share: float, grid: Size) -> Tensor:
    """``values`` [B, *cells] on a finer grid, with the same sum; behind the ``share`` that is seen are zeros."""
    size = (max(round(grid[0] * share), 1), *grid[1:]) if share < 1 else grid
    spread = F.interpolate(values.unsqueeze(1), size=size, mode="nearest").squeeze(1)
    spread = spread * (values[0].numel() / spread[0].numel())
    behind = grid[0] - size[0]
    return F.pad(spread, [0, 0] * (len(grid) - 1) + [0, behind]) if behind else spread


@torch.no_grad()
def _rollout(model: Hiera, clip: Tensor) -> Tensor:
    """From the mean of the last tokens back to the patches: half by attention, half past it, in every block."""
    arch = model.arch
    parts, count = model.parts(clip, 1) if arch.head == "stages" and clip.ndim == 5 else (clip, 1)
    attentions = model.forward_attentions(parts)
    strides: list[Size] = list(model.strides)
    grid = model.patch_embed.grid(tuple(parts.shape[2:]))
    ways: list[tuple[Size, Size, Size, Size | None]] = []  # of each block: grids and windows before it, and its pooling
    for block in model.blocks:
        stride = block.q_stride
        inside = unit_size(strides, len(grid)) if block.attn.local else grid
        ways.append((grid, inside, inside if stride is None else units(inside, [stride]), stride))
        if stride is not None:
            grid, strides = units(grid, [stride]), strides[1:]
    flow = parts.new_ones(len(parts), *grid) / torch.Size(grid).numel()
    for (before, keys, queries, stride), weights in zip(reversed(ways), reversed(attentions), strict=True):
        attended = (_windows(flow, queries).unsqueeze(-2) @ weights.mean(dim=2)).squeeze(-2)
        past = flow
        if stride is not None:
            past = F.interpolate(flow.unsqueeze(1), size=before, mode="nearest").squeeze(1) / torch.Size(stride).numel()
        flow = (_whole(attended, keys, before) + past) / 2
    return flow.unflatten(0, (-1, count)).flatten(1, 2) if count > 1 else flow


def _windows(values: Tensor, size: Size) -> Tensor:
    """[B, *grid] -> [B, windows, inside], both row-major."""
    dims = len(size)
    for axis, side in reversed(list(enumerate(size, start=1))):
        values = values.unflatten(axis, (-1, side))
    order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2)]
    return values.permute(order).flatten(dims + 1).flatten(1, dims)


def _whole(windows: Tensor, size: Size, grid: Size) -> Tensor:
    """The inverse of :func:`_windows`."""
    dims = len(size)
    counts = [side // part for side, part in zip(grid, size, strict=True)]
    values = windows.view(len(windows), *counts, *size)
    order = [0, *(place for axis in range(1, dims + 1) for place in (axis, axis + dims))]
    return values.permute(order).reshape(len(windows), *grid)
