"""Hiera (Ryali et al., ICML 2023, arXiv 2306.00989) for video, images and sequences: trunk and classifier.

Read top to bottom: the trunk that walks the stages, the classifier. What an architecture is stands in
:mod:`hiera_video.models.architecture`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture as Architecture
from hiera_video.models.layers import Block, Head, MaskUnitAttention, PatchEmbed, init_weights, resize_positions
from hiera_video.models.masks import Mask, count_of, moved, unit_ids
from hiera_video.models.unroll import Size, gather_units, reroll, unit_size, units, unroll
from hiera_video.spec import ClipSpec

if TYPE_CHECKING:
    from typing_extensions import Self


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
        self.frozen_blocks = 0
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

    def freeze_stages(self, number: int) -> None:
        """Trains no patch embedding, position embedding or block of the first ``number`` stages; 0 trains them all.

        Frozen blocks stay in evaluation mode whatever :meth:`train` says, so that drop path is off there. Raises
        :class:`RequestError` for a number of stages that the model does not have.
        """
        if not 0 <= number <= len(self.arch.stages):
            raise RequestError(
                f"freeze_stages {number} must be from 0 to {len(self.arch.stages)}, the number of stages"
            )
        self.frozen_blocks = sum(self.arch.stages[:number])
        stem = [p for name, p in self.named_parameters() if name.startswith(("pos_embed", "patch_embed."))]
        for parameter in stem:
            parameter.requires_grad_(number == 0)
        for index, block in enumerate(self.blocks):
            block.requires_grad_(index >= self.frozen_blocks)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for block in self.blocks[: self.frozen_blocks]:
            block.eval()
        return self

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

    def keep_ids(self, clip: Tensor, keep: Mask | None) -> Tensor | None:
        """Boolean ``keep`` ``[B, M]`` -> indices of the visible units, int64 ``[B, K]``, ascending; None stays None.

        Reading the counts is the one synchronisation that a mask on the device costs, one on the host costs none:
        everything inside :meth:`stages` can gather. Raises :class:`RequestError` where ``keep`` does not fit
        ``clip``, or where its rows show unequal numbers of units.
        """
        if keep is None:
            return None
        mask = torch.as_tensor(keep)
        count = count_of(mask, (clip.shape[0], self.num_mask_units(tuple(clip.shape[2:]))), "keep")
        return moved(unit_ids(mask, count), clip.device)

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
                tokens = self._run(block, tokens)
            index += blocks
            if 0 < stage <= arch.q_pool:
                grid, strides = units(grid, strides[:1]), strides[1:]
            yield StageTokens(tokens, grid, strides)

    def _run(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """``block(tokens)``, to be computed again in the backward pass where gradient checkpointing is on."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)

    def forward_features(self, clip: Tensor, keep: Mask | None = None) -> Tensor:
        """Tokens of the last stage ``[B, N, C]``, not normalised, in row-major (t, y, x) order.

        With ``keep`` only those of visible mask units, unit by unit in ascending order, each row-major inside.
        """
        *_, last = self.stages(clip, self.keep_ids(clip, keep))
        return _public_order(last, by_unit=keep is not None)

    def forward_intermediates(
        self, clip: Tensor, *, stages: list[int] | None = None, keep: Mask | None = None
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
    def forward_attentions(self, clip: Tensor, keep: Mask | None = None) -> list[Tensor]:
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
        #: Whether a clip may have any number of classes: scores are then the sigmoid of the logits, not the softmax.
        self.multi_label = False
        #: Whether weights were loaded that had no head for these classes, so that it starts untrained.
        self.new_head = False

    def _scale_head(self) -> None:
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(self.arch.head_init_scale)

    def reset_classifier(self, num_classes: int) -> None:
        """A new head of ``num_classes``, started as in training; what was said of the old one's classes is dropped.

        With 0 classes there is none, and :meth:`forward` gives the embedding ``[B, C]``, as in timm.
        """
        self.arch = replace(self.arch, num_classes=num_classes)
        head = Head(self.num_features, num_classes, self.arch.head_dropout).train(self.training)
        head.apply(lambda module: init_weights(module, bias=0.02))
        self.head = head.to(self.norm.weight.device, self.norm.weight.dtype)
        self._scale_head()
        self.labels, self.multi_label = None, False

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Last-stage tokens ``[B, ..., C]`` in any order -> logits ``[B, num_classes]``.

        With ``pre_logits`` the embedding ``[B, C]`` that the head sees: the normalised mean of the tokens.
        """
        embedding = self.norm(tokens.flatten(1, -2).mean(dim=1))
        return embedding if pre_logits else self.head(embedding)

    def forward(self, clip: Tensor, keep: Mask | None = None) -> Tensor:
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
