"""Masked-autoencoder pretraining (paper, section 4 and appendix A; MAE: arXiv 2111.06377, 2205.09113).

The encoder sees the visible mask units alone; its stages are fused, mask tokens take the hidden places, a plain
decoder predicts the normalised pixels of the hidden ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.errors import RequestError
from hiera_video.models.architecture import MAEArchitecture as MAEArchitecture
from hiera_video.models.checkpoints.saving import Layout, save_pretrained
from hiera_video.models.layers import CONVOLUTIONS, resize_positions
from hiera_video.models.masks import Mask, count_of, moved, num_visible, unit_ids
from hiera_video.models.masks import random_keep as random_keep
from hiera_video.models.trunk import HieraTrunk
from hiera_video.models.unroll import Size, reroll, reroll_units, unroll
from hiera_video.spec import ClipSpec


class MAEOutput(NamedTuple):
    """What :class:`HieraMAE` gives.

    Args:
        loss: Mean squared error on the positions predicted, a float32 scalar.
        prediction: Predicted pixels of those P positions (or of all that there are), ``[B, P, patch]``, row-major.
        target: The true pixels, of the same shape, each patch normalised.
        keep: Boolean ``[B, num_mask_units]``, on the device where it was given or drawn.
        embedding: The mean of the encoder's tokens, ``[B, C]``.
    """

    loss: Tensor
    prediction: Tensor
    target: Tensor
    keep: Tensor
    embedding: Tensor


class HieraMAE(HieraTrunk):
    """Encoder and decoder of the pretext task (paper, section 4 and appendix A).

    Args:
        arch: The architecture.
        spec: What a clip is. Default: :class:`hiera_video.ClipSpec` with the architecture's number of frames.
    """

    arch: MAEArchitecture
    __call__: Callable[..., MAEOutput]

    def __init__(self, arch: MAEArchitecture, spec: ClipSpec | None = None) -> None:
        super().__init__(arch, spec)
        decoder = arch.decoder_embed_dim
        convolution = CONVOLUTIONS[len(arch.q_stride)]
        heads: list[nn.Module] = []
        for stage in range(arch.q_pool):
            kernel = tuple(stride ** (arch.q_pool - stage) for stride in arch.q_stride)
            heads.append(convolution(arch.dims[stage], self.num_features, kernel, kernel))
        self.multi_scale_fusion_heads = nn.ModuleList([*heads, nn.Identity()])
        self.encoder_norm = nn.LayerNorm(self.num_features, eps=arch.layer_norm_eps)
        self.decoder_embed = nn.Linear(self.num_features, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.final_grid(arch.input_size)), decoder))
        self.decoder_blocks = nn.ModuleList(
            self.block(decoder, decoder, arch.decoder_num_heads, local=False, **arch.block_options)
            for _ in range(arch.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=arch.layer_norm_eps)
        self.patch_side = arch.patch_stride[-1] * arch.q_stride[-1] ** arch.q_pool
        self.decoder_pred = nn.Linear(decoder, self.patch_side ** min(2, len(arch.q_stride)) * arch.in_chans)
        self.apply(_init_weights)
        for parameter in self.parameters(recurse=False):  # position embeddings and the mask token
            nn.init.trunc_normal_(parameter, std=0.02)
        self.license: str | None = None  # travels with the weights

    def final_grid(self, size: Size) -> Size:
        """The grid of tokens that the decoder works on.

        Args:
            size: The input's size in pixels (frames).

        Returns:
            Tokens along each axis.
        """
        return self.arch.final_grid(size)

    def forward(
        self,
        clip: Tensor,
        keep: Mask | None = None,
        *,
        decode: Mask | None = None,
        generator: torch.Generator | None = None,
        all_positions: bool = False,
        **watch: Any,
    ) -> MAEOutput:
        """Predicts the pixels of the hidden positions.

        Masks may be tensors or numpy arrays. On the host, or drawn here, they cost no synchronisation with the
        device; each one that lies on the device is read once. Compiled, ``keep`` must show the number of units that
        ``mask_ratio`` says, or the device raises, and ``decode`` breaks the graph.

        Args:
            clip: Normalised float ``[B, C, *size]``.
            keep: Boolean ``[B, num_mask_units]``, True for visible units. Default: drawn with ``generator``.
            decode: Boolean of the same shape, in each row as many of the hidden units: these units alone are decoded
                and predicted (VideoMAE V2, arXiv 2303.16727). The loss is then the mean over them: noisier, and not
                quite the same value, since the decoder sees fewer mask tokens.
            generator: Draws ``keep``. Default: torch's global generator of the clip's device.
            all_positions: Whether to predict the visible positions too, for pictures; the loss is the same.
            watch: ``attentions`` and ``through`` of :meth:`stages`, of the encoder.

        Returns:
            The loss, predictions, targets and ``keep``.

        Raises:
            SizeError: Mask units do not divide the clip's size.
            RequestError: The masks do not fit ``clip`` or each other, or ``keep`` hides nothing.
        """
        if decode is not None and all_positions:
            raise RequestError("decode and all_positions cannot be asked for together")
        grid = self.final_grid(tuple(clip.shape[2:]))
        keep, visible, places = self._places(clip, keep, decode, generator, grid)
        latent = self.encode(clip, visible, **watch).flatten(1, 2)
        first = 0 if all_positions else latent.shape[1]
        prediction = self.decoder_pred(self.decode(latent, places, grid)[:, first:])
        target = _normalized(_gather(self.target(clip), places[:, first:]))
        hidden = latent.shape[1] - first
        loss = (prediction[:, hidden:].float() - target[:, hidden:]).square().mean()
        if all_positions:
            order = places.argsort(dim=1)
            prediction, target = _gather(prediction, order), _gather(target, order)
        return MAEOutput(loss, prediction, target, keep, latent.mean(dim=1))

    def encode(self, clip: Tensor, ids: Tensor, **watch: Any) -> Tensor:
        """Encodes the visible mask units, and fuses the stages.

        Args:
            clip: Normalised float ``[B, C, *size]``.
            ids: The visible units, int64 ``[B, K]``.
            watch: As in :meth:`forward`.

        Returns:
            Normalised tokens ``[B, K, T, C]``.
        """
        stages = list(self.stages(clip, ids, **watch))
        fused = stages[-1].tokens
        for head, stage in zip(self.multi_scale_fusion_heads, stages[: self.arch.q_pool], strict=False):
            maps = reroll_units(*stage).flatten(0, 1)
            merged = head(maps.movedim(-1, 1)).flatten(2).transpose(1, 2)
            fused = fused + merged.view_as(fused)
        return self.encoder_norm(fused)

    def decode(self, latent: Tensor, places: Tensor, grid: Size) -> Tensor:
        """Decodes; attention is global here, so tokens may come in any order.

        Args:
            latent: Encoded tokens ``[B, V, C]``.
            places: Row-major positions, int64 ``[B, S]``: the first V are those of ``latent``, mask tokens stand for
                the others.
            grid: The grid of tokens that the decoder works on.

        Returns:
            Tokens ``[B, S, decoder_embed_dim]`` of these positions.
        """
        visible = self.decoder_embed(latent)
        hidden = self.mask_token.to(visible.dtype).expand(len(latent), places.shape[1] - latent.shape[1], -1)
        positions = resize_positions(
            self.decoder_pos_embed,
            self.final_grid(self.arch.input_size),
            grid,
            self.arch.final_window(self.position_resize),
        )
        tokens = torch.cat([visible, hidden], dim=1) + _gather(positions.expand(len(latent), -1, -1), places)
        tokens = tokens.unsqueeze(1)
        for block in self.decoder_blocks:
            tokens = self._run(block, tokens)
        return self.decoder_norm(tokens.squeeze(1))

    def target(self, clip: Tensor) -> Tensor:
        """Cuts a clip into what is to be predicted: of a video the first frame of each temporal patch.

        Args:
            clip: Normalised float ``[B, C, *size]``.

        Returns:
            Pixels of every position, ``[B, N, patch]``. They lie (row, column, channel) in a video's patch and
            (channel, row, column) in an image's, as in the published weights.
        """
        side = self.patch_side
        if clip.ndim == 5:
            frames = clip[:, :, :: self.arch.patch_stride[0]]
            patches = frames.unflatten(4, (-1, side)).unflatten(3, (-1, side))  # [B, C, t, h, p, w, q]
            return patches.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)
        if clip.ndim == 4:
            patches = clip.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, C, h, p, w, q]
            return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return clip.unflatten(2, (-1, side)).transpose(1, 2).flatten(2)

    def save_pretrained(self, folder: str | Path, layout: Layout = "ours") -> Path:
        """:func:`hiera_video.save_pretrained` of this model.

        Args:
            folder: Where to.
            layout: "ours"; timm has no autoencoder.

        Returns:
            The folder.

        Raises:
            RequestError, OutputError: As there.
        """
        return save_pretrained(self, folder, layout=layout)

    @torch.no_grad()
    def reconstruct(self, clip: Tensor, keep: Mask) -> tuple[Tensor, Tensor]:
        """Shows what the encoder saw, and what the model makes of it.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
            keep: Boolean ``[B, num_mask_units]``, True for visible units.

        Returns:
            Two of float32 ``[B, C, T', H, W]`` (images ``[B, C, H, W]``), normalised like ``clip``; T' are the frames
            that are predicted, the first of each temporal patch. Hidden places are 0 (the mean colour) in the first;
            in the second they are the prediction, brought back to the true patch's mean and standard deviation, which
            the model is not asked for. Visible places are the clip's own.

        Raises:
            SizeError, RequestError: As in :meth:`forward`.
        """
        out = self(clip, keep, all_positions=True)
        grid = self.final_grid(tuple(clip.shape[2:]))
        patches = self.target(clip).float()
        mean, std = _statistics(patches)
        seen = moved(out.keep, clip.device)[:, :, None, None]
        per_unit = math.prod(grid) // seen.shape[1]
        seen = reroll(seen.expand(-1, -1, per_unit, 1), grid, self.arch.final_strides).flatten(1, -2)
        masked = torch.where(seen, patches, 0.0)
        reconstructed = torch.where(seen, patches, out.prediction.float() * std + mean)
        return self._pictures(masked, grid), self._pictures(reconstructed, grid)

    def _pictures(self, patches: Tensor, grid: Size) -> Tensor:
        """The inverse of :meth:`target`: ``[B, N, patch]`` -> pixels, of a video the frames that are predicted."""
        side, split = self.patch_side, patches.unflatten(1, grid)
        if len(grid) == 3:
            split = split.unflatten(4, (side, side, -1))  # [B, t, h, w, p, q, C]
            return split.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
        if len(grid) == 2:
            split = split.unflatten(3, (-1, side, side))  # [B, h, w, C, p, q]
            return split.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return split.unflatten(2, (-1, side)).transpose(1, 2).flatten(2)

    def _places(
        self, clip: Tensor, keep: Mask | None, decode: Mask | None, generator: torch.Generator | None, grid: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``keep`` checked or drawn, its visible units ``[B, K]``, and the positions ``[B, S]`` that the decoder sees.

        The row-major positions are those of the visible units, in the encoder's order, then those to predict,
        ascending. All indices are computed where ``keep`` lies and then sent to the clip's device.
        """
        shape = (clip.shape[0], self.num_mask_units(tuple(clip.shape[2:])))
        if keep is None:
            mask = random_keep(*shape, self.arch.mask_ratio, generator=generator, device=clip.device)
            count = num_visible(shape[1], self.arch.mask_ratio)
        elif torch.compiler.is_compiling() and decode is None:
            # A graph has a fixed number of tokens: that of mask_ratio, which the device checks while it runs.
            mask, count = torch.as_tensor(keep), num_visible(shape[1], self.arch.mask_ratio)
            torch._assert_async((mask.sum(dim=1) == count).all(), f"compiled, keep must show {count} mask units a row")
        else:
            mask = torch.as_tensor(keep)
            count = count_of(mask, shape, "keep")
        if count == shape[1]:
            raise RequestError("keep shows every mask unit: an MAE needs hidden ones to predict")
        chosen, predicted = ~mask, shape[1] - count
        if decode is not None:
            chosen = moved(torch.as_tensor(decode), mask.device)
            predicted = count_of(chosen, shape, "decode", apart_from=mask)
        visible = unit_ids(mask, count)
        positions = torch.arange(math.prod(grid), device=mask.device).view(1, -1, 1)
        table = unroll(positions, grid, self.arch.final_strides)[0, :, :, 0]  # [M, T]
        hidden = table[unit_ids(chosen, predicted)].flatten(1).sort(dim=1).values
        places = torch.cat([table[visible].flatten(1), hidden], dim=1)
        return mask, moved(visible, clip.device), moved(places, clip.device)


def _gather(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[-1]))


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation of each patch, ``[..., 1]``."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def _normalized(patches: Tensor) -> Tensor:
    """Each patch to mean 0 and variance 1, in fp32."""
    mean, std = _statistics(patches.float())
    return (patches.float() - mean) / std


def _init_weights(module: nn.Module) -> None:
    """Xavier-uniform weights, biases 0 (reference package); the patch filters as one matrix."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.zeros_(module.bias)
