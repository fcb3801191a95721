"""Attention within mask units or over all tokens, by the fused kernels or in view.

Tokens are unrolled, ``[B, M, T, C]`` (:mod:`hiera_video.models.unroll`): M mask units of T tokens each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models.unroll import Size, as_sequence, from_sequence, pool

#: Windows that CUDA's attention kernels take at once (pytorch issue 146704): an axis of their grid. The published
#: video models have 392 for each clip.
MOST_WINDOWS = 65535


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of many windows; those above :data:`MOST_WINDOWS` in turns.

    Args:
        query: ``[W, heads, T, C]``.
        key: ``[W, heads, S, C]``.
        value: Of the same shape.

    Returns:
        ``[W, heads, T, C]``.
    """
    # An exported graph takes any number: the comparison would limit its batches.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()  # torch 2.6 has no is_exporting
    if exporting or len(query) <= MOST_WINDOWS:
        return F.scaled_dot_product_attention(query, key, value)
    parts = zip(*(part.split(MOST_WINDOWS) for part in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


class MaskUnitAttention(nn.Module):
    """Attention within each mask unit or over all tokens, whose queries may be max-pooled (paper, section 3).

    Mask units are folded into the batch: the fused kernels take four dimensions, and with five fall back to the
    slow one (6.6 times slower for the base video model's global attention on a CPU).

    Args:
        dim: Channels of the tokens.
        dim_out: Channels of what comes out.
        heads: Attention heads.
        q_stride: The pooling of the queries, or None.
        local: Whether attention stays within mask units.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(
        self, dim: int, dim_out: int, heads: int, *, q_stride: Size | None, local: bool, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.heads, self.q_stride, self.local = heads, q_stride, local
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)

    def project(self, tokens: Tensor) -> list[Tensor]:
        """Makes queries, keys and values.

        Args:
            tokens: Unrolled ``[B, M, T, dim]``.

        Returns:
            The three as ``[B * M, heads, T, dim_out / heads]``, in global attention ``[B, heads, M * T, dim_out /
            heads]``; pooled queries have a smaller T.
        """
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        if self.q_stride is not None:
            query = pool(query, self.q_stride)
        windows = (part.flatten(0, 1) if self.local else part.flatten(1, 2) for part in (query, key, value))
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in windows]

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.project(tokens)
        mixed = attend(query, key, value).transpose(1, 2)
        return self.proj(mixed.reshape(*tokens.shape[:2], -1, self.proj.in_features))

    def in_view(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same by products of its own, through the attention itself: the slow path, for those who ask to see it.

        Args:
            tokens: Unrolled ``[B, M, T, dim]``.

        Returns:
            What :meth:`forward` gives, and the attention that it was made with, ``[B, heads, windows, queries, keys]``
            after the softmax. Windows are the mask units, or one for all tokens; tokens are unrolled, among all
            tokens with the mask unit fastest, as transformers has them.
        """
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        if self.q_stride is not None:
            query = pool(query, self.q_stride)
        parts = [part.flatten(0, 1) if self.local else as_sequence(part) for part in (query, key, value)]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = scores.softmax(dim=-1).unflatten(0, (len(tokens), -1)).transpose(1, 2)
        mixed = (weights.transpose(1, 2).flatten(0, 1) @ value).transpose(1, 2).flatten(2)
        batch, units = tokens.shape[:2]
        mixed = mixed.unflatten(0, (batch, units)) if self.local else from_sequence(mixed, units)
        return self.proj(mixed), weights
