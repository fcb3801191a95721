"""Hiera (Ryali et al., ICML 2023, arXiv 2306.00989) for video, images and sequences: trunk and classifier.

Read top to bottom: what an architecture is, which sizes it takes, the trunk that walks the stages, the classifier.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import RequestError, SizeError
from hiera_video.models.layers import (
    ACTIVATIONS,
    Block,
    Head,
    MaskUnitAttention,
    PatchEmbed,
    init_weights,
    resize_positions,
)
from hiera_video.models.unroll import Size, gather_units, reroll, unit_size, units, unroll
from hiera_video.spec import ClipSpec


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Constructor fields by their published names; the defaults are base 16x224 (paper, Table 1; reference package).

    Sizes are (time, height, width), (height, width) or (length,). ``stages`` are blocks per stage; ``q_pool`` of
    the stage changes pool by ``q_stride``; ``mask_unit_attn`` says per stage whether attention stays within mask
    units of ``mask_unit_size`` tokens. The mask unit must be what all stage changes together could pool away.
    """

    input_size: Size = (16, 224, 224)
    in_chans: int = 3
    embed_dim: int = 96
    num_heads: int = 1
    num_classes: int = 400
    stages: Size = (2, 3, 16, 3)
    q_pool: int = 3
    q_stride: Size = (1, 2, 2)
    mask_unit_size: Size = (1, 8, 8)
    mask_unit_attn: tuple[bool, ...] = (True, True, False, False)
    dim_mul: float = 2.0
    head_mul: float = 2.0
    patch_kernel: Size = (3, 7, 7)
    patch_stride: Size = (2, 4, 4)
    patch_padding: Size = (1, 3, 3)
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    head_dropout: float = 0.0
    head_init_scale: float = 0.001
    sep_pos_embed: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        dims, changes = len(self.input_size), len(self.stages) - 1
        for field in ("q_stride", "mask_unit_size", "patch_kernel", "patch_stride", "patch_padding"):
            value = getattr(self, field)
            if len(value) != dims:
                raise RequestError(f"{field} {value} must have {dims} numbers, one per axis of input_size")
        pooled = tuple(s**changes for s in self.q_stride)
        if self.mask_unit_size != pooled:
            raise RequestError(
                f"mask_unit_size {self.mask_unit_size} must be q_stride to the power {changes}: {pooled}"
            )
        if not 0 <= self.q_pool <= changes:
            raise RequestError(f"q_pool {self.q_pool} must be from 0 to {changes}, the number of stage changes")
        if len(self.mask_unit_attn) != len(self.stages):
            raise RequestError(f"mask_unit_attn needs {len(self.stages)} entries, one per stage")
        if self.sep_pos_embed and dims != 3:
            raise RequestError("sep_pos_embed needs an input_size of (frames, height, width)")
        if self.hidden_act not in ACTIVATIONS:
            raise RequestError(f"hidden_act {self.hidden_act!r} must be one of {', '.join(ACTIVATIONS)}")
        for stage, (dim, heads) in enumerate(zip(self.dims, self.heads, strict=True), start=1):
            if heads < 1 or dim % heads:
                raise RequestError(f"stage {stage} has {dim} channels, which {heads} attention heads do not divide")

    @property
    def strides(self) -> tuple[Size, ...]:
        """The strides that tokens are unrolled by: one for each stage change, pooled or not."""
        return (self.q_stride,) * (len(self.stages) - 1)

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return self._grow(self.embed_dim, self.dim_mul)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return self._grow(self.num_heads, self.head_mul)

    def _grow(self, first: int, factor: float) -> tuple[int, ...]:
        """One number per stage, each the one before times ``factor``, rounded down."""
        numbers = [first]
        for _ in self.stages[1:]:
            numbers.append(int(numbers[-1] * factor))
        return tuple(numbers)

    def token_grid(self, size: Size) -> Size:
        """The token grid of stage 1 for an input of ``size`` pixels.

        Raises :class:`SizeError`, naming the nearest sizes that fit, where mask units do not divide ``size``.
        """
        step = tuple(p * m for p, m in zip(self.patch_stride, self.mask_unit_size, strict=True))
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
        return tuple(n // p for n, p in zip(size, self.patch_stride, strict=True))


def _times(size: Size) -> str:
    return "x".join(map(str, size))


class StageTokens(NamedTuple):
    """What a stage leaves: unrolled tokens ``[B, M, T, C]``, their grid, and the strides not pooled yet."""

    tokens: Tensor
    grid: Size
    strides: tuple[Size, ...]


class HieraTrunk(nn.Module):
    """Patch embedding, position embeddings and blocks, without norm, head or decoder.

    The classifier and the MAE inherit from it, rather than hold it, only because state-dict keys must stay flat.
    """

    def __init__(self, arch: Architecture, spec: ClipSpec | None = None) -> None:
        super().__init__()
        self.arch = arch
        self.spec = spec or ClipSpec(num_frames=arch.input_size[0] if len(arch.input_size) == 3 else 1)
        self.position_resize = "window"
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(
            arch.in_chans, arch.embed_dim, arch.patch_kernel, arch.patch_stride, arch.patch_padding
        )
        grid = arch.token_grid(arch.input_size)
        if arch.sep_pos_embed:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, math.prod(grid[1:]), arch.embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, grid[0], arch.embed_dim))
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(grid), arch.embed_dim))
        self.blocks = nn.ModuleList(self._build_blocks())

    def _build_blocks(self) -> Iterator[Block]:
        arch = self.arch
        rates = torch.linspace(0, arch.drop_path_rate, sum(arch.stages), device="cpu").tolist()
        dim, index = arch.embed_dim, 0
        for stage, blocks in enumerate(arch.stages):
            for block in range(blocks):
                first = stage > 0 and block == 0
                yield Block(
                    dim,
                    arch.dims[stage],
                    arch.heads[stage],
                    q_stride=arch.q_stride if first and stage <= arch.q_pool else None,
                    # A stage's first block still attends by the rule of the stage before (DESIGN section 3).
                    local=arch.mask_unit_attn[stage - first],
                    mlp_ratio=arch.mlp_ratio,
                    drop_path_rate=rates[index],
                    hidden_act=arch.hidden_act,
                    layer_norm_eps=arch.layer_norm_eps,
                    qkv_bias=arch.qkv_bias,
                )
                dim, index = arch.dims[stage], index + 1

    def _init_trunk(self, bias: float) -> None:
        self.apply(lambda module: init_weights(module, bias))
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.arch.dims[-1]

    @property
    def feature_info(self) -> list[dict[str, object]]:
        """Per stage, as timm has it: ``num_chs``, ``reduction`` (pixels, or frames, per token and axis), ``module``."""
        info: list[dict[str, object]] = []
        reduction, last = self.arch.patch_stride, -1
        for stage, blocks in enumerate(self.arch.stages):
            if 0 < stage <= self.arch.q_pool:
                reduction = tuple(r * s for r, s in zip(reduction, self.arch.q_stride, strict=True))
            last += blocks
            info.append({"num_chs": self.arch.dims[stage], "reduction": reduction, "module": f"blocks.{last}"})
        return info

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay leaves alone beside biases and norms (reference package; RECIPES section 4)."""
        return {"pos_embed", "pos_embed_spatial", "pos_embed_temporal"}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """timm's groups for layer-wise learning-rate decay: embeddings, each block, then the rest (norm, head)."""
        return {"stem": r"^pos_embed|^patch_embed", "blocks": r"^blocks\.(\d+)"}

    def position_embedding(self, grid: Size) -> Tensor:
        """Row-major ``[1, N, C]`` for a token grid, resized by ``self.position_resize`` ("window" or "plain")."""
        if self.position_resize not in ("window", "plain"):
            raise RequestError(f"position_resize {self.position_resize!r} must be window or plain")
        trained = self.arch.token_grid(self.arch.input_size)
        window = self.arch.mask_unit_size if self.position_resize == "window" else (1,) * len(grid)
        if not self.arch.sep_pos_embed:
            return resize_positions(self.pos_embed, trained, grid, window)
        space = resize_positions(self.pos_embed_spatial, trained[1:], grid[1:], window[1:])
        time = resize_positions(self.pos_embed_temporal, trained[:1], grid[:1], (1,))
        return (time[:, :, None] + space[:, None]).flatten(1, 2)

    def unit_grid(self, size: Size | None = None) -> Size:
        """The grid of mask units for an input of ``size`` pixels (default: the size trained on)."""
        return units(self.arch.token_grid(size or self.arch.input_size), self.arch.strides)

    def num_mask_units(self, size: Size | None = None) -> int:
        """How many mask units :meth:`unit_grid` has: the length of a row of ``keep``."""
        return math.prod(self.unit_grid(size))

    def keep_ids(self, clip: Tensor, keep: Tensor | None) -> Tensor | None:
        """Boolean ``keep`` ``[B, M]`` -> indices of the visible units, int64 ``[B, K]``, ascending; None stays None.

        Reading the counts is the one synchronisation with the device that a mask costs, so that everything inside
        :meth:`stages` can gather. Raises :class:`RequestError` where ``keep`` does not fit ``clip``, or where its
        rows show unequal numbers of units.
        """
        if keep is None:
            return None
        shape = (clip.shape[0], self.num_mask_units(tuple(clip.shape[2:])))
        if keep.dtype != torch.bool or tuple(keep.shape) != shape:
            found = f"{str(keep.dtype).removeprefix('torch.')} {list(keep.shape)}"
            raise RequestError(f"keep must be bool {list(shape)}, one entry per clip and mask unit, not {found}")
        counts = set(keep.sum(dim=1).tolist())
        if len(counts) != 1 or 0 in counts:
            raise RequestError(
                f"rows of keep must show equal numbers of mask units, at least one, not {sorted(counts)}"
            )
        # A stable sort puts visible units first, both parts ascending.
        return (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, : counts.pop()]

    def stages(self, clip: Tensor, ids: Tensor | None = None) -> Iterator[StageTokens]:
        """Yields every stage once: the one walk that all forwards here consume.

        ``clip`` is normalised float ``[B, C, *size]``; ``ids`` are the visible mask units, int64 ``[B, K]``
        (:meth:`keep_ids`): all others are hidden, and nothing is computed for them.
        """
        arch = self.arch
        grid = arch.token_grid(tuple(clip.shape[2:]))
        positions = self.position_embedding(grid)
        if ids is None:
            tokens = unroll(self.patch_embed(clip) + positions, grid, arch.strides)
        else:
            visible = self.patch_embed.visible_units(clip, ids, units(grid, arch.strides))
            tokens = unroll(visible.flatten(0, 1), arch.mask_unit_size, arch.strides).view_as(visible)
            tokens = tokens + gather_units(unroll(positions, grid, arch.strides).expand(len(clip), -1, -1, -1), ids)
        strides, index = arch.strides, 0
        for stage, blocks in enumerate(arch.stages):
            for block in self.blocks[index : index + blocks]:
                if self.grad_checkpointing and torch.is_grad_enabled():
                    tokens = checkpoint(block, tokens, use_reentrant=False)
                else:
                    tokens = block(tokens)
            index += blocks
            if 0 < stage <= arch.q_pool:
                grid, strides = units(grid, strides[:1]), strides[1:]
            yield StageTokens(tokens, grid, strides)

    def forward_features(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens of the last stage ``[B, N, C]``, not normalised, in row-major (t, y, x) order.

        With ``keep`` only those of visible mask units, unit by unit in ascending order, each row-major inside.
        """
        *_, last = self.stages(clip, self.keep_ids(clip, keep))
        return _public_order(last, by_unit=keep is not None)

    def forward_intermediates(
        self, clip: Tensor, *, stages: list[int] | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Last-stage tokens as :meth:`forward_features` gives them, and maps ``[B, T', H', W', C]`` of the stages.

        ``stages`` counts from 1 (default: all). Hidden places of a map are zero.
        """
        total = len(self.arch.stages)
        wanted = range(1, total + 1) if stages is None else stages
        if bad := [stage for stage in wanted if not 1 <= stage <= total]:
            raise RequestError(f"stage {bad[0]} does not exist; this model has stages 1 to {total}")
        ids = self.keep_ids(clip, keep)
        outputs = list(self.stages(clip, ids))
        maps = [reroll(*outputs[stage - 1], ids) for stage in wanted]
        return _public_order(outputs[-1], by_unit=keep is not None), maps

    @torch.no_grad()
    def forward_attentions(self, clip: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """Attention of every block, ``[B, windows, heads, queries, keys]`` after the softmax, without gradients.

        Windows are row-major mask units, or one for global attention; so are queries and keys inside a window
        (in global attention with ``keep``: unit by unit). Computed beside the fused path, which is left as it is.
        """
        attentions = [module for module in self.blocks.modules() if isinstance(module, MaskUnitAttention)]
        weights: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            for attention in attentions:
                look = attention.register_forward_pre_hook(lambda attn, args: weights.append(attn.weights(args[0])))
                hooks.callback(look.remove)
            outputs = list(self.stages(clip, self.keep_ids(clip, keep)))
        ordered: list[Tensor] = []
        for blocks, before, after in zip(self.arch.stages, (outputs[0], *outputs[:-1]), outputs, strict=True):
            for keys in (before, *(after,) * (blocks - 1)):
                local = attentions[len(ordered)].local
                rows, columns = (_window_order(stage, local=local, by_unit=keep is not None) for stage in (after, keys))
                ordered.append(weights[len(ordered)][..., rows, :][..., columns])
        return ordered


class Hiera(HieraTrunk):
    """The classifier: logits from the normalised mean of the last stage's tokens."""

    def __init__(self, arch: Architecture, spec: ClipSpec | None = None) -> None:
        super().__init__(arch, spec)
        self.norm = nn.LayerNorm(self.num_features, eps=arch.layer_norm_eps)
        self.head = Head(self.num_features, arch.num_classes, arch.head_dropout)
        self._init_trunk(bias=0.02)
        self._scale_head()
        # These travel with the weights: class names, test views (the papers' where nothing else is said), licence.
        self.labels: list[str] | None = None
        self.views = "5x3" if len(arch.input_size) == 3 else "1x1"
        self.license: str | None = None

    def _scale_head(self) -> None:
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(self.arch.head_init_scale)

    def reset_classifier(self, num_classes: int) -> None:
        """A new head of ``num_classes``, started as in training; the labels of the old one are dropped.

        With 0 classes there is none, and :meth:`forward` gives the embedding ``[B, C]``, as in timm.
        """
        self.arch = replace(self.arch, num_classes=num_classes)
        head = Head(self.num_features, num_classes, self.arch.head_dropout).train(self.training)
        head.apply(lambda module: init_weights(module, bias=0.02))
        self.head = head.to(self.norm.weight.device, self.norm.weight.dtype)
        self._scale_head()
        self.labels = None

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Last-stage tokens ``[B, ..., C]`` in any order -> logits ``[B, num_classes]``.

        With ``pre_logits`` the embedding ``[B, C]`` that the head sees: the normalised mean of the tokens.
        """
        embedding = self.norm(tokens.flatten(1, -2).mean(dim=1))
        return embedding if pre_logits else self.head(embedding)

    def forward(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised clip ``[B, C, T, H, W]`` (images ``[B, C, H, W]``) -> logits ``[B, num_classes]``.

        With ``keep`` (boolean ``[B, num_mask_units]``) from the visible tokens alone.
        """
        *_, last = self.stages(clip, self.keep_ids(clip, keep))
        return self.forward_head(last.tokens)


def _public_order(stage: StageTokens, *, by_unit: bool) -> Tensor:
    """Tokens ``[B, N, C]`` in row-major order, or unit by unit where only some units are there."""
    if not by_unit:
        return reroll(*stage).flatten(1, -2)
    batch, num_units = stage.tokens.shape[:2]
    each = reroll(stage.tokens.flatten(0, 1).unsqueeze(1), unit_size(stage.strides, len(stage.grid)), stage.strides)
    return each.flatten(1, -2).unflatten(0, (batch, num_units)).flatten(1, 2)


def _window_order(stage: StageTokens, *, local: bool, by_unit: bool) -> Tensor:
    """Where to find, in an attention window of this stage, its tokens in public order."""
    tokens = stage.tokens[:1, :1, :, :1] if local else stage.tokens[:1, :, :, :1]
    index = torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
    window = stage._replace(tokens=index, grid=unit_size(stage.strides, len(stage.grid)) if local else stage.grid)
    return _public_order(window, by_unit=by_unit and not local).flatten()
