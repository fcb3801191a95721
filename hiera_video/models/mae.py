"""Masked-autoencoder pretraining (paper, section 4 and appendix A; MAE: arXiv 2111.06377, 2205.09113).

The encoder sees the visible mask units alone; its stages are fused, mask tokens take the hidden places, a plain
decoder predicts the normalised pixels of the hidden ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.errors import RequestError
from hiera_video.models.hiera import Architecture, HieraTrunk
from hiera_video.models.layers import CONVOLUTIONS, Block, resize_positions
from hiera_video.models.unroll import Size, reroll, scatter_units, unit_size, units
from hiera_video.spec import ClipSpec


@dataclass(frozen=True, kw_only=True)
class MAEArchitecture(Architecture):
    """An encoder that does not pool into its last stage, so that its weights fit the classifier, and a decoder.

    ``decoder_num_heads`` is 16 in the reference package; the paper says 8 for video. Weights have the same shapes.
    """

    q_pool: int = 2
    mask_ratio: float = 0.9
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16


class MAEOutput(NamedTuple):
    """``loss``: scalar, mean squared error on hidden positions. ``prediction`` and ``target``: ``[B, P, patch]`` of
    the P hidden positions (or of all) in row-major order. ``keep``: boolean ``[B, num_mask_units]``.
    """

    loss: Tensor
    prediction: Tensor
    target: Tensor
    keep: Tensor


class HieraMAE(HieraTrunk):
    """Encoder and decoder of the pretext task."""

    arch: MAEArchitecture

    def __init__(self, arch: MAEArchitecture, spec: ClipSpec | None = None) -> None:
        super().__init__(arch, spec)
        decoder = arch.decoder_embed_dim
        # What is left of the strides after the encoder's poolings: the unit's size in final tokens.
        self.final_strides = arch.strides[arch.q_pool :]
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
            Block(
                decoder,
                decoder,
                arch.decoder_num_heads,
                q_stride=None,
                local=False,
                mlp_ratio=arch.mlp_ratio,
                drop_path_rate=0.0,
                hidden_act=arch.hidden_act,
                layer_norm_eps=arch.layer_norm_eps,
                qkv_bias=arch.qkv_bias,
            )
            for _ in range(arch.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=arch.layer_norm_eps)
        self.patch_side = arch.patch_stride[-1] * arch.q_stride[-1] ** arch.q_pool
        self.decoder_pred = nn.Linear(decoder, self.patch_side ** min(2, len(arch.q_stride)) * arch.in_chans)
        self.apply(_init_weights)
        for parameter in self.parameters(recurse=False):  # position embeddings and the mask token
            nn.init.trunc_normal_(parameter, std=0.02)

    def final_grid(self, size: Size) -> Size:
        """The grid of tokens that the decoder works on, for an input of ``size`` pixels."""
        return units(self.arch.token_grid(size), self.arch.strides[: self.arch.q_pool])

    def forward(
        self,
        clip: Tensor,
        keep: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        all_positions: bool = False,
    ) -> MAEOutput:
        """Normalised clip ``[B, C, *size]`` -> loss, predictions and targets of the hidden positions.

        ``keep`` (boolean ``[B, num_mask_units]``, True = visible) is drawn with ``generator`` where it is not given.
        ``all_positions`` predicts the visible ones too, for pictures; the loss is the same.
        """
        if keep is None:
            count = self.num_mask_units(tuple(clip.shape[2:]))
            keep = random_keep(clip.shape[0], count, self.arch.mask_ratio, generator=generator, device=clip.device)
        ids = self.keep_ids(clip, keep)
        assert ids is not None
        grid = self.final_grid(tuple(clip.shape[2:]))
        decoded = self.decode(self.encode(clip, ids), ids, grid)
        hidden = self._hidden_positions(keep, grid, num_hidden=keep.shape[1] - ids.shape[1])
        target = self.target(clip)
        if all_positions:
            prediction, target = self.decoder_pred(decoded), _normalized(target)
            loss = _loss(_gather(prediction, hidden), _gather(target, hidden))
        else:
            prediction = self.decoder_pred(_gather(decoded, hidden))
            target = _normalized(_gather(target, hidden))
            loss = _loss(prediction, target)
        return MAEOutput(loss, prediction, target, keep)

    def encode(self, clip: Tensor, ids: Tensor) -> Tensor:
        """The fused and normalised tokens of the visible mask units ``ids``: ``[B, K, T, C]``."""
        stages = list(self.stages(clip, ids))
        fused = stages[-1].tokens
        for head, stage in zip(self.multi_scale_fusion_heads, stages[: self.arch.q_pool], strict=False):
            unit = unit_size(stage.strides, len(stage.grid))
            maps = reroll(stage.tokens.flatten(0, 1).unsqueeze(1), unit, stage.strides)
            merged = head(maps.movedim(-1, 1)).flatten(2).transpose(1, 2)
            fused = fused + merged.view_as(fused)
        return self.encoder_norm(fused)

    def decode(self, latent: Tensor, ids: Tensor, grid: Size) -> Tensor:
        """Encoded ``[B, K, T, C]`` -> decoded tokens of every position, row-major ``[B, N, decoder_embed_dim]``."""
        visible = self.decoder_embed(latent)
        num_units = math.prod(units(grid, self.final_strides))
        hidden = self.mask_token.to(visible.dtype).unsqueeze(1).expand(visible.shape[0], num_units, *visible.shape[2:])
        tokens = reroll(scatter_units(visible, ids, hidden), grid, self.final_strides).flatten(1, -2)
        tokens = (tokens + self._decoder_positions(grid)).unsqueeze(1)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens.squeeze(1))

    def target(self, clip: Tensor) -> Tensor:
        """Pixels of every position, ``[B, N, patch]``: of the first frame of each temporal patch, for video.

        Pixels lie (row, column, channel) in a video's patch and (channel, row, column) in an image's, as in the
        published weights.
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

    def _decoder_positions(self, grid: Size) -> Tensor:
        trained = self.final_grid(self.arch.input_size)
        unit = unit_size(self.final_strides, len(grid))
        window = unit if self.position_resize == "window" else (1,) * len(grid)
        return resize_positions(self.decoder_pos_embed, trained, grid, window)

    def _hidden_positions(self, keep: Tensor, grid: Size, *, num_hidden: int) -> Tensor:
        """Row-major indices of the hidden positions, int64 ``[B, P]``, ascending, without asking the device."""
        per_unit = math.prod(grid) // keep.shape[1]
        seen = keep[:, :, None, None].expand(-1, -1, per_unit, 1).to(torch.uint8)
        order = reroll(seen, grid, self.final_strides).flatten(1).argsort(dim=1, stable=True)
        return order[:, : num_hidden * per_unit]


def random_keep(
    batch: int,
    num_mask_units: int,
    mask_ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Boolean ``[batch, num_mask_units]`` with ``int(num_mask_units * (1 - mask_ratio))`` True in each row, at random.

    Raises :class:`RequestError` where that leaves no visible or no hidden unit.
    """
    count = int(num_mask_units * (1 - mask_ratio))
    if not 0 < count < num_mask_units:
        raise RequestError(f"mask_ratio {mask_ratio} leaves {count} of {num_mask_units} mask units visible")
    drawn_on = device if generator is None else generator.device
    order = torch.rand(batch, num_mask_units, generator=generator, device=drawn_on).argsort(dim=1).to(device)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :count], True)


def _gather(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[-1]))


def _normalized(target: Tensor) -> Tensor:
    """Each patch to mean 0 and (unbiased) variance 1, in fp32."""
    target = target.float()
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


def _loss(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.float() - target).square().mean()


def _init_weights(module: nn.Module) -> None:
    """Xavier-uniform weights, biases 0 (reference package); the patch filters as one matrix."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.zeros_(module.bias)
