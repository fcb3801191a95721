"""Where and when the evidence for a class lies: the shares of tokens in a logit, class activation maps, rollout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.errors import RequestError
from hiera_video.models.hiera import WITHOUT_CLASSES, Hiera
from hiera_video.models.unroll import Size, StageTokens, reroll, unit_size, units

Method: TypeAlias = Literal["auto", "shares", "gradcam", "hirescam", "rollout"]

#: What the values of each method are.
METHODS = {
    "shares": "shares of the tokens in the logit, which is their sum",
    "gradcam": "Grad-CAM: tokens times the mean gradient of the logit, negative ones as 0",
    "hirescam": "HiResCAM: tokens times the gradient of the logit, place by place",
    "rollout": "attention rollout: how much each token is attended to, whatever the class",
}


@dataclass(frozen=True)
class Evidence:
    """Where and when the evidence for a class lies in clips."""

    maps: Tensor
    """float32 ``[B, T', H', W']`` (images ``[B, H', W']``): a value for each cell of the clip's evenly divided frames,
    height and width."""
    logits: Tensor
    """float32 ``[B]``, of the class."""
    method: str
    """A name of ``METHODS``: how the values were made."""


def token_evidence(model: Hiera, clip: Tensor, index: int, by: Method = "auto") -> Evidence:
    """Says which places and times of clips speak for a class.

    A linear head sees the normalised mean of the last tokens. With the norm's mean and deviation held, the logit is
    linear in each token: the tokens' shares, with the biases spread evenly, add up to it exactly ("shares"). Other
    heads are explained by gradients of the logit with respect to the tokens that the head sees: Grad-CAM (arXiv
    1610.02391) for an attentive head, HiResCAM (arXiv 2011.08891) for heads that see statistics. The gradient of a
    deviation is 0 in the mean over all places, so that Grad-CAM, which takes this mean, would not see it.

    The model is computed in evaluation mode, and is left in the mode that it had.

    Args:
        model: A classifier.
        clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
        index: The class.
        by: "auto" as above, or a method by name. Attention rollout (arXiv 2005.00928) does not ask for the class.

    Returns:
        The values of each cell. A head that sees several stages or speeds has the finest of their grids.

    Raises:
        RequestError: The model has no classes or not this one, or the method is not one of this head.
        SizeError: The clip's size does not fit the model.
    """
    arch = model.arch
    if not arch.num_classes:
        raise RequestError(WITHOUT_CLASSES)
    if not 0 <= index < arch.num_classes:
        raise RequestError(f"there is no class {index}: the model has {arch.num_classes}, from 0 on")
    method = method_of(arch.head, by)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        looks = list(_looks(model, clip))
        with torch.enable_grad():
            logits = _logits(model, looks)[:, index]
        if method == "rollout":
            maps = _rollout(model, clip)
        elif method == "shares":
            maps = _shares(model, looks[0].stages[-1], index)
        else:
            maps = _activation_maps(looks, logits, mean=method == "gradcam")
    finally:
        for module, training in modes:
            module.training = training
    return Evidence(maps.detach(), logits.detach(), method)


def method_of(head: str, by: Method) -> str:
    """The method that explains a kind of head.

    Args:
        head: ``Architecture.head``.
        by: "auto", or a method.

    Returns:
        A name of ``METHODS``.

    Raises:
        RequestError: There is no such method, or shares are asked for where the head is not linear.
    """
    if by == "auto":
        return {"linear": "shares", "attentive": "gradcam"}.get(head, "hirescam")
    if by not in METHODS:
        raise RequestError(f"by is {by!r}, but is auto or one of {', '.join(METHODS)}")
    if by == "shares" and head != "linear":
        raise RequestError(f"shares are of a linear head, and this model's is of the kind {head!r}: leave by out")
    return by


@dataclass(frozen=True)
class _Look:
    """A clip at one speed: what the stages leave, as leaves of the graph, and which share of the clip is seen.

    ``count`` parts, one behind the other, make a clip.
    """

    stages: list[StageTokens]
    seen: list[int]
    count: int
    share: float


def _looks(model: Hiera, clip: Tensor) -> Iterator[_Look]:
    """The walks whose stages the head sees."""
    arch = model.arch
    numbers = [*arch.head_stages, *([len(arch.stages)] if arch.head == "readout" else [])]
    seen = [stage - 1 for stage in numbers] if arch.head in ("stages", "readout") else [len(arch.stages) - 1]
    by_speed = arch.head == "stages" and clip.ndim == 5
    for stride in arch.head_strides if by_speed else (1,):
        parts = model.parts(clip, stride) if by_speed else clip
        with torch.no_grad():
            walk = list(islice(model.stages(parts), max(seen) + 1))
        # Each stage is a leaf: what it says to the head directly, not by way of the stages behind it.
        stages = [stage._replace(tokens=stage.tokens.detach().float().requires_grad_()) for stage in walk]
        count = len(parts) // len(clip)
        frames = parts.shape[2] * count * stride
        yield _Look(stages, sorted(set(seen)), count, min(frames / clip.shape[2], 1.0) if by_speed else 1.0)


def _logits(model: Hiera, looks: list[_Look]) -> Tensor:
    """float32 [B, K] from the stages' tokens."""
    if model.arch.head != "stages":
        return model.head(model.embedding_of(looks[0].stages)).float()
    means = [model.statistics_of(look.stages).unflatten(0, (-1, look.count)).mean(dim=1) for look in looks]
    return model.head(torch.cat(means, dim=-1)).float()


def _shares(model: Hiera, last: StageTokens, index: int) -> Tensor:
    """Each token's share in the logit; the biases of norm and head are spread evenly."""
    norm: Any = model.norm
    projection: Any = model.head.projection
    tokens = last.tokens.detach().float()
    number = tokens[0, ..., 0].numel()
    mean = tokens.flatten(1, 2).mean(dim=1)
    scale = (mean.var(dim=-1, correction=0) + norm.eps).rsqrt()
    row = projection.weight[index].float()
    slope = row * norm.weight.float()
    constant = row @ norm.bias.float() + (0.0 if projection.bias is None else projection.bias[index].float())
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    values = ((centred @ slope) * scale[:, None, None] + constant) / number
    return reroll(values.unsqueeze(-1), last.grid, last.strides).squeeze(-1)


def _activation_maps(looks: list[_Look], logits: Tensor, *, mean: bool) -> Tensor:
    """Tokens times gradients, of several stages and speeds added up on the finest of their grids."""
    stages = [(look, look.stages[stage]) for look in looks for stage in look.seen]
    gradients = torch.autograd.grad(logits.sum(), [stage.tokens for _, stage in stages])
    maps = []
    for (look, stage), gradient in zip(stages, gradients, strict=True):
        weights = gradient.mean(dim=(1, 2), keepdim=True) if mean else gradient
        values = reroll((stage.tokens.detach() * weights).sum(dim=-1, keepdim=True), stage.grid, stage.strides)
        maps.append(
            (
                look.share,
                values.squeeze(-1).unflatten(0, (-1, look.count)).flatten(1, 2)
                if look.count > 1
                else values.squeeze(-1),
            )
        )
    finest = tuple(max(sides) for sides in zip(*(tuple(values.shape[1:]) for _, values in maps), strict=True))
    total = torch.stack([_spread(values, share, finest) for share, values in maps]).sum(dim=0)
    return total.relu() if mean else total


def _spread(values: Tensor, share: float, grid: Size) -> Tensor:
    """``values`` [B, *cells] on a finer grid, with the same sum; a clip of which a ``share`` is seen ends in zeros."""
    size = (max(round(grid[0] * share), 1), *grid[1:]) if share < 1 else grid
    spread = F.interpolate(values.unsqueeze(1), size=size, mode="nearest").squeeze(1)
    spread = spread * (values[0].numel() / spread[0].numel())
    behind = grid[0] - size[0]
    return F.pad(spread, [0, 0] * (len(grid) - 1) + [0, behind]) if behind else spread


@torch.no_grad()
def _rollout(model: Hiera, clip: Tensor) -> Tensor:
    """From the mean of the last tokens back to the patches: half by attention, half past it, in every block."""
    arch = model.arch
    parts = model.parts(clip, 1) if arch.head == "stages" and clip.ndim == 5 else clip
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
    count = len(parts) // len(clip)
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
