"""The trunk of Hiera for video, images and sequences: embeddings and blocks, which classifier and MAE share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture
from hiera_video.models.attention_windows import walk_maps, walk_units
from hiera_video.models.layers import Block, PatchEmbed, init_weights, resize_positions, window_positions
from hiera_video.models.masks import Mask, count_of, moved, unit_ids
from hiera_video.models.timm_form import stage_info, taken
from hiera_video.models.unroll import (
    Size,
    StageTokens,
    gather_units,
    public_order,
    reroll,
    token_grid,
    units,
    unroll,
    window_order,
)
from hiera_video.spec import ClipSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class HieraTrunk(nn.Module):
    """Patch embedding, position embeddings and blocks, without norm, head or decoder.

    The classifier and the MAE inherit from it, rather than hold it, only because state-dict keys must stay flat.
    The position embeddings are read in the forward of the whole model: call that, not a method, where accelerate
    offloads the weights.

    Args:
        arch: The architecture.
        spec: What a clip is. Default: :class:`hiera_video.ClipSpec` with the architecture's number of frames.
    """

    #: What blocks are made of: transformers' form has its own.
    block: type[Block] = Block

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
        self.strides = arch.strides
        self.trained_grid = grid = arch.token_grid(arch.input_size)
        if arch.abs_win_pos_embed:
            space = slice(1 if arch.sep_pos_embed else 0, None)
            self.pos_embed = nn.Parameter(torch.zeros(1, arch.embed_dim, *arch.global_pos_size))
            self.pos_embed_window = nn.Parameter(torch.zeros(1, arch.embed_dim, *arch.mask_unit_size[space]))
            if arch.sep_pos_embed:
                self.pos_embed_temporal = nn.Parameter(torch.zeros(1, grid[0], arch.embed_dim))
        elif arch.sep_pos_embed:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, math.prod(grid[1:]), arch.embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, grid[0], arch.embed_dim))
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(grid), arch.embed_dim))
        self.blocks: Any = nn.ModuleList(self._build_blocks())  # Any: torch does not say of which modules

    def _build_blocks(self) -> Iterator[Block]:
        arch = self.arch
        rates = torch.linspace(0, arch.drop_path_rate, sum(arch.stages), device="cpu").tolist()
        dim, index = arch.embed_dim, 0
        for stage, blocks in enumerate(arch.stages):
            for block in range(blocks):
                first = stage > 0 and block == 0
                yield self.block(
                    dim,
                    arch.dims[stage],
                    arch.heads[stage],
                    q_stride=arch.q_stride if first and stage <= arch.q_pool else None,
                    # As published, a stage's first block still attends by the rule of the stage before.
                    local=arch.mask_unit_attn[stage - first],
                    drop_path_rate=rates[index],
                    **arch.block_options,
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
    def feature_info(self) -> list[dict[str, Any]]:
        """What timm says of each stage (:func:`hiera_video.models.timm_form.stage_info`)."""
        return stage_info(self.arch)

    def freeze_stages(self, count: int) -> None:
        """Stops the training of the embeddings and of the first stages' blocks.

        Frozen blocks stay in evaluation mode whatever :meth:`train` says, so that drop path is off there.

        Args:
            count: How many stages; 0 trains everything again.

        Raises:
            RequestError: The model does not have so many stages.
        """
        if not 0 <= count <= len(self.arch.stages):
            raise RequestError(f"freeze_stages {count} must be from 0 to {len(self.arch.stages)}, the number of stages")
        self.frozen_blocks = sum(self.arch.stages[:count])
        stem = [p for name, p in self.named_parameters() if name.startswith(("pos_embed", "patch_embed."))]
        for parameter in stem:
            parameter.requires_grad_(count == 0)
        for index, block in enumerate(self.blocks):
            block.requires_grad_(index >= self.frozen_blocks)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch; frozen blocks stay in evaluation mode."""
        super().train(mode)
        for block in self.blocks[: self.frozen_blocks]:
            block.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """With ``enable`` each block is computed again in the backward pass, and its activations are not kept."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of what weight decay leaves alone beside biases and norms, as in the reference package."""
        return {"pos_embed", "pos_embed_window", "pos_embed_spatial", "pos_embed_temporal"}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """timm's groups for layer-wise learning-rate decay: embeddings, each block, then the rest (norm, head)."""
        return {"stem": r"^pos_embed|^patch_embed", "blocks": r"^blocks\.(\d+)"}

    def position_embedding(self, grid: Size) -> Tensor:
        """The position embedding, resized by ``self.position_resize`` ("window" or "plain") where it must be.

        Args:
            grid: The token grid of the clip.

        Returns:
            Row-major ``[1, N, C]``.

        Raises:
            RequestError: ``self.position_resize`` is something else.
        """
        if self.position_resize not in ("window", "plain"):
            raise RequestError(f"position_resize {self.position_resize!r} must be window or plain")
        trained = self.trained_grid
        window = self.arch.mask_unit_size if self.position_resize == "window" else (1,) * len(grid)
        if not self.arch.sep_pos_embed:
            if self.arch.abs_win_pos_embed:
                return window_positions(self.pos_embed, self.pos_embed_window, grid, self.arch.pos_antialias)
            return resize_positions(self.pos_embed, trained, grid, window)
        if self.arch.abs_win_pos_embed:
            space = window_positions(self.pos_embed, self.pos_embed_window, grid[1:], self.arch.pos_antialias)
        else:
            space = resize_positions(self.pos_embed_spatial, trained[1:], grid[1:], window[1:])
        time = resize_positions(self.pos_embed_temporal, trained[:1], grid[:1], (1,))
        return (time[:, :, None] + space[:, None]).flatten(1, 2)

    def unit_grid(self, size: Size | None = None) -> Size:
        """The grid of mask units.

        Args:
            size: The input's size in pixels (frames). Default: the size trained on.

        Returns:
            Mask units along each axis.

        Raises:
            SizeError: Mask units do not divide ``size``.
        """
        grid = token_grid(size or self.arch.input_size, self.arch.patch_stride, self.arch.mask_unit_size)
        return units(grid, self.strides)

    def num_mask_units(self, size: Size | None = None) -> int:
        """How many mask units :meth:`unit_grid` has, given the same ``size``: the length of a row of ``keep``."""
        return math.prod(self.unit_grid(size))

    def keep_ids(self, clip: Tensor, keep: Mask | None) -> Tensor | None:
        """Turns a mask into indices, by which everything inside :meth:`stages` gathers.

        A mask on the device costs one synchronisation, since its counts are read; a mask on the host costs none.

        Args:
            clip: The clips that the mask belongs to, ``[B, C, *size]``.
            keep: Boolean ``[B, num_mask_units]``, True for visible units; or None.

        Returns:
            The visible units, int64 ``[B, K]``, ascending, on the clip's device; None where ``keep`` is None.

        Raises:
            RequestError: ``keep`` does not fit ``clip``, or its rows show unequal numbers of units.
        """
        if keep is None:
            return None
        mask = torch.as_tensor(keep)
        count = count_of(mask, (clip.shape[0], self.num_mask_units(tuple(clip.shape[2:]))), "keep")
        return moved(unit_ids(mask, count), clip.device)

    def stages(
        self,
        clip: Tensor,
        ids: Tensor | None = None,
        *,
        attentions: list[Tensor] | None = None,
        through: Callable[[StageTokens], Tensor] | None = None,
        every_block: bool = False,
    ) -> Iterator[StageTokens]:
        """Walks through the stages (paper, Figure 2): the one walk that all forwards here consume.

        Args:
            clip: Normalised float ``[B, C, *size]``.
            ids: The visible mask units, int64 ``[B, K]`` (:meth:`keep_ids`): nothing is computed for all others.
            attentions: A list that gets each block's attention, as ``MaskUnitAttention.in_view`` gives it; tokens are
                then made with it.
            through: Is given the embedding and what each stage leaves, and gives the tokens to go on with.
            every_block: Whether to say what each block leaves, in place of each stage.

        Yields:
            What each stage leaves.

        Raises:
            SizeError: Mask units do not divide the clip's size.
        """
        arch, strides = self.arch, self.strides
        if arch.windows is not None and not walk_units(arch, self.patch_embed.grid(tuple(clip.shape[2:]))):
            if ids is not None or attentions is not None:
                raise RequestError("masks and attentions need a size at which the model's windows are its mask units")
            tokens, grid = self.patch_embed(clip), self.patch_embed.grid(tuple(clip.shape[2:]))
            tokens = (tokens + self.position_embedding(grid)).unflatten(1, grid)
            yield from walk_maps(arch, self.blocks, tokens, self._run, through, every_block)
            return
        grid = token_grid(tuple(clip.shape[2:]), arch.patch_stride, arch.mask_unit_size)
        positions = self.position_embedding(grid)
        if ids is None:
            tokens = unroll(self.patch_embed(clip) + positions, grid, strides)
        else:
            visible = self.patch_embed.visible_units(clip, ids, units(grid, strides))
            tokens = unroll(visible.flatten(0, 1), arch.mask_unit_size, strides).view_as(visible)
            tokens = tokens + gather_units(unroll(positions, grid, strides).expand(len(clip), -1, -1, -1), ids)
        if through is not None:
            tokens = through(StageTokens(tokens, grid, strides))
        index = 0
        for stage, blocks in enumerate(arch.stages):
            for place, block in enumerate(self.blocks[index : index + blocks]):
                if attentions is None:
                    tokens = self._run(block, tokens)
                else:
                    tokens, weights = self._run(block, tokens, True)
                    attentions.append(weights)
                if place == 0 < stage <= arch.q_pool:
                    grid, strides = units(grid, strides[:1]), strides[1:]
                if place == blocks - 1 and through is not None:
                    tokens = through(StageTokens(tokens, grid, strides))
                if every_block or place == blocks - 1:
                    yield StageTokens(tokens, grid, strides)
            index += blocks

    def _run(self, run: Callable[..., Any], *args: Any) -> Any:
        """``run(*args)``, to be computed again in the backward pass where gradient checkpointing is on."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(run, *args, use_reentrant=False)
        return run(*args)

    def forward_features(self, clip: Tensor, keep: Mask | None = None) -> Tensor:
        """The tokens of the last stage, not normalised.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
            keep: Boolean ``[B, num_mask_units]``, True for visible units. Default: all are visible.

        Returns:
            ``[B, N, C]`` in row-major (t, y, x) order. With ``keep`` only tokens of visible mask units, unit by unit
            in ascending order, each row-major inside.

        Raises:
            SizeError, RequestError: The clip's size does not fit the model, ``keep`` does not fit the clip.
        """
        *_, last = self.stages(clip, self.keep_ids(clip, keep))
        return public_order(last, by_unit=keep is not None)

    @overload
    def forward_intermediates(
        self,
        clip: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        *,
        intermediates_only: Literal[True],
        coarse: bool = ...,
        keep: Mask | None = ...,
    ) -> list[Tensor]: ...
    @overload
    def forward_intermediates(
        self,
        clip: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        intermediates_only: Literal[False] = ...,
        coarse: bool = ...,
        keep: Mask | None = ...,
    ) -> tuple[Tensor, list[Tensor]]: ...
    def forward_intermediates(
        self,
        clip: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = True,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        coarse: bool = True,
        keep: Mask | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps, as timm's models give them, and tokens.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
            indices: Which stages to give maps of, counted from 0 (negative ones from the end); a number: so many last
                ones; None: all. Maps come in the order of the stages.
            norm: Not there, as in timm's Hiera: stages before the last have no norm.
            stop_early: Whether to compute nothing behind the last stage asked for, whose tokens then come out.
            output_fmt: ``NCHW`` (of video the same as ``NCTHW``), or channels last: ``NHWC`` (``NTHWC``).
            intermediates_only: Whether to give the maps alone.
            coarse: Whether indices are of stages; otherwise of blocks.
            keep: As in :meth:`forward_features`.

        Returns:
            The tokens as :meth:`forward_features` gives them, and the maps ``[B, C, T', H', W']`` (images
            ``[B, C, H', W']``), whose hidden places are zero.

        Raises:
            SizeError, RequestError: As in :meth:`forward_features`; or there is no such stage, block or format.
        """
        first = output_fmt in ("NCHW", "NCTHW", "NCL")
        if not first and output_fmt not in ("NHWC", "NTHWC", "NLC"):
            raise RequestError(f"output_fmt {output_fmt!r} must be NCHW (NCTHW) or NHWC (NTHWC)")
        if norm:
            raise RequestError("norm=True: stages before the last have no norm of their own; leave it out")
        chosen = taken(self.arch, indices, coarse=coarse)
        ids = self.keep_ids(clip, keep)
        maps = []
        for number, last in enumerate(self.stages(clip, ids, every_block=not coarse)):
            if number in chosen:
                shown = reroll(*last, ids)
                maps.append(shown.movedim(-1, 1) if first else shown)
            if stop_early and number == chosen[-1]:
                break
        return maps if intermediates_only else (public_order(last, by_unit=keep is not None), maps)

    @torch.no_grad()
    def forward_attentions(self, clip: Tensor, keep: Mask | None = None) -> list[Tensor]:
        """The attention of every block, computed beside the fused path, which is left as it is.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
            keep: As in :meth:`forward_features`.

        Returns:
            For each block ``[B, windows, heads, queries, keys]`` after the softmax, without gradients. Windows are
            row-major mask units, or one for global attention; so are queries and keys inside a window (in global
            attention with ``keep``: unit by unit).

        Raises:
            SizeError, RequestError: The clip's size does not fit the model, ``keep`` does not fit the clip.
        """
        weights: list[Tensor] = []
        outputs = list(self.stages(clip, self.keep_ids(clip, keep), attentions=weights))
        ordered: list[Tensor] = []
        for blocks, before, after in zip(self.arch.stages, (outputs[0], *outputs[:-1]), outputs, strict=True):
            for keys in (before, *(after,) * (blocks - 1)):
                local = self.blocks[len(ordered)].attn.local
                rows, columns = (window_order(stage, local=local, by_unit=keep is not None) for stage in (after, keys))
                ordered.append(weights[len(ordered)].transpose(1, 2)[..., rows, :][..., columns])
        return ordered
