"""The parts of Hiera: patch embedding, position embeddings, block.

Blocks work on unrolled tokens ``[B, M, T, C]`` (:mod:`hiera_video.models.unroll`): M mask units of T tokens each.
State-dict keys are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models.attention import MaskUnitAttention
from hiera_video.models.unroll import Size, pool

#: ``hidden_act`` by transformers' names.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
}


class _WindowConvolution(nn.Module):
    """Lets a convolution also take windows that bring their margins along, so that it must not pad them.

    The kernel is read in the convolution's own forward: there the hooks of accelerate have put it on its device.
    """

    def forward(self, input: Tensor, padded: bool = False) -> Tensor:
        conv: Any = self  # torch types the three convolutions apart
        return CONVOLVE[input.ndim - 2](input, conv.weight, conv.bias, conv.stride, 0 if padded else conv.padding)


class PatchConv1d(_WindowConvolution, nn.Conv1d):
    """The convolution of sequences."""


class PatchConv2d(_WindowConvolution, nn.Conv2d):
    """The convolution of images."""


class PatchConv3d(_WindowConvolution, nn.Conv3d):
    """The convolution of video."""


#: Convolutions by the number of axes, as modules and as functions.
CONVOLUTIONS: dict[int, type[nn.Module]] = {1: PatchConv1d, 2: PatchConv2d, 3: PatchConv3d}
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class PatchEmbed(nn.Module):
    """Overlapping patch convolution of all tokens, or of the visible mask units' alone (paper, Table 1 and section 3).

    Args:
        in_chans: Channels of the pixels.
        embed_dim: Channels of the tokens.
        kernel: Size of a patch in pixels (frames), one for each axis.
        stride: Pixels (frames) from one patch to the next, for each axis.
        padding: Zeros before and behind each axis.
    """

    def __init__(self, in_chans: int, embed_dim: int, kernel: Size, stride: Size, padding: Size) -> None:
        super().__init__()
        # Any: torch types the arguments of Conv1d, 2d and 3d apart.
        self.proj: Any = CONVOLUTIONS[len(kernel)](in_chans, embed_dim, kernel, stride, padding)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeds the whole clip.

        Args:
            pixels: Float ``[B, C, *size]``.

        Returns:
            Tokens ``[B, N, embed_dim]`` in row-major order.
        """
        return self.proj(pixels).flatten(2).transpose(1, 2)

    def grid(self, size: Size) -> Size:
        """How many patches an input has.

        Args:
            size: Of the input in pixels (frames), one number for each axis.

        Returns:
            Patches along each axis.
        """
        conv = self.proj
        facts = zip(size, conv.padding, conv.kernel_size, conv.stride, strict=True)
        return tuple((n + 2 * padding - kernel) // stride + 1 for n, padding, kernel, stride in facts)

    def visible_units(self, pixels: Tensor, keep_ids: Tensor, units: Size) -> Tensor:
        """Embeds the visible mask units alone.

        Pixels of hidden units are zeroed first: the kernel overlaps them, and nothing may leak. The tokens equal the
        convolution of the zeroed clip, but only the visible units and their margins are convolved.

        Args:
            pixels: Float ``[B, C, *size]``.
            keep_ids: The visible units, int64 ``[B, K]``.
            units: The grid of mask units.

        Returns:
            Tokens ``[B, K, T, embed_dim]``, row-major inside each unit.
        """
        batch, conv = pixels.shape[0], self.proj
        hidden = torch.zeros(batch, math.prod(units), dtype=pixels.dtype, device=pixels.device)
        mask = hidden.scatter(1, keep_ids, 1.0).view(batch, 1, *units)
        windows = pixels * F.interpolate(mask, size=pixels.shape[2:])
        windows = F.pad(windows, [margin for padding in reversed(conv.padding) for margin in (padding, padding)])
        places: list[Tensor] = []
        rest = keep_ids  # by hand: torch.unravel_index copies the sizes to the device and waits for it
        for count in reversed(units):
            places.insert(0, rest % count)
            rest = rest // count
        for axis, count in enumerate(units):
            step = pixels.shape[2 + axis] // count
            windows = windows.unfold(2 + axis, step + conv.kernel_size[axis] - conv.stride[axis], step)
        rows = torch.arange(batch, device=pixels.device)[:, None]
        picked: Any = (rows, slice(None), *places)
        windows = windows[picked]  # [B, K, C, *window]
        tokens = conv(windows.flatten(0, 1), padded=True)
        return tokens.flatten(2).transpose(1, 2).unflatten(0, (batch, -1))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382).

    Args:
        rate: The probability that a sample's residual branch is dropped, in training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = branch.new_empty(branch.shape[0], *(1,) * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * kept / (1 - self.rate)


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


class Block(nn.Module):
    """A transformer block; the first of a stage changes the width and may pool, on the shortcut too."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        *,
        q_stride: Size | None = None,
        local: bool,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
        hidden_act: str,
        layer_norm_eps: float,
        qkv_bias: bool,
        layer_scale: float | None = None,
        expand_proj: bool = True,
    ) -> None:
        super().__init__()
        self.q_stride, self.widens = q_stride, dim != dim_out
        self.norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attn = MaskUnitAttention(dim, dim_out, heads, q_stride=q_stride, local=local, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim_out, eps=layer_norm_eps)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio), hidden_act)
        self.drop_path = DropPath(drop_path_rate)
        self.proj = nn.Linear(dim, dim_out) if self.widens and expand_proj else None
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim_out, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim_out, layer_scale)

    def forward(self, tokens: Tensor, in_view: bool = False) -> Any:
        """Attention and MLP.

        Args:
            tokens: Unrolled ``[B, M, T, C]``.
            in_view: Whether to give the attention too.

        Returns:
            Tokens ``[B, M, T', C']``; with ``in_view`` these and :meth:`MaskUnitAttention.in_view`'s attention.
        """
        normed = self.norm1(tokens)
        if not in_view:
            return self.second_half(self.shortcut(tokens, normed, pool), self.attn(normed))
        mixed, weights = self.attn.in_view(normed)
        return self.second_half(self.shortcut(tokens, normed, pool), mixed), weights

    def shortcut(self, tokens: Tensor, normed: Tensor, pooling: Callable[..., Tensor]) -> Tensor:
        """What goes past the attention: as wide and as pooled as what comes out of it.

        Args:
            tokens: Of the block before.
            normed: The same, normalised.
            pooling: ``pooling(tokens, stride, mean=False)``, for their order.

        Returns:
            Tokens of the block's own width.
        """
        if self.widens and self.proj is None:
            if self.q_stride is None:
                return torch.cat([tokens, tokens], dim=-1)
            return torch.cat([pooling(tokens, self.q_stride), pooling(tokens, self.q_stride, mean=True)], dim=-1)
        wide = tokens if self.proj is None else self.proj(normed)
        return wide if self.q_stride is None else pooling(wide, self.q_stride)

    def second_half(self, shortcut: Tensor, mixed: Tensor) -> Tensor:
        """Adds attention and MLP.

        Args:
            shortcut: Of :meth:`shortcut`.
            mixed: What attention gives, of the same shape.

        Returns:
            The block's output.
        """
        tokens = shortcut + self.drop_path(self.ls1(mixed))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


def resize_positions(table: Tensor, old: Size, new: Size, window: Size, *, antialias: bool = False) -> Tensor:
    """Resizes a table of position embeddings: the last two axes together (bicubic), a single axis linearly.

    Args:
        table: ``[1, prod(old), C]``, row-major.
        old: The grid that it was made for.
        new: The grid wanted.
        window: The part of the grid whose phase is kept; it divides both grids. With the mask unit, each place within
            a unit is interpolated over units alone: plain interpolation shifts the phases that mask-unit attention
            has learned, which is known to hurt (arXiv 2311.05613). A window of ones is the plain way.
        antialias: Whether bicubic is torch's antialiased one, as timm resizes backgrounds.

    Returns:
        ``[1, prod(new), C]``, of the table's dtype.
    """
    if old == new:
        return table
    dims, channels = len(old), table.shape[-1]
    split = [n for size, part in zip(old, window, strict=True) for n in (size // part, part)]
    phases = [2 * axis + 1 for axis in range(dims)]
    axes = [2 * axis for axis in range(dims)]
    # [phases, C, *units]: interpolation sees phases as a batch.
    units = table.view(*split, channels).permute(*phases, 2 * dims, *axes)
    lead = units.shape[:dims]
    units = units.flatten(0, dims - 1).float()
    sizes = [size // part for size, part in zip(new, window, strict=True)]
    if dims == 3 and units.shape[2] != sizes[0]:
        flat = units.flatten(3).flatten(0, 1).transpose(1, 2)
        flat = F.interpolate(flat, size=sizes[0], mode="linear", align_corners=False)
        units = flat.transpose(1, 2).reshape(*units.shape[:2], sizes[0], *units.shape[3:])
    if dims == 1:
        units = F.interpolate(units, size=sizes, mode="linear", align_corners=False)
    elif list(units.shape[-2:]) != sizes[-2:]:
        frames = units.transpose(1, 2).flatten(0, 1) if dims == 3 else units
        frames = F.interpolate(frames, size=sizes[-2:], mode="bicubic", align_corners=False, antialias=antialias)
        units = frames.unflatten(0, (-1, sizes[0])).transpose(1, 2) if dims == 3 else frames
    units = units.unflatten(0, lead)
    merged = [position for axis in range(dims) for position in (dims + 1 + axis, axis)]
    return units.permute(*merged, dims).reshape(1, math.prod(new), channels).to(table.dtype)


def window_positions(background: Tensor, window: Tensor, grid: Size, antialias: bool) -> Tensor:
    """Makes an absolute-window embedding (arXiv 2311.05613, section 4): a background, resized, and a window, tiled.

    Args:
        background: ``[1, C, *size]``.
        window: ``[1, C, *mask unit]``.
        grid: The grid wanted.
        antialias: As in :func:`resize_positions`.

    Returns:
        ``[1, prod(grid), C]``, row-major.
    """
    table, size = background.flatten(2).transpose(1, 2), tuple(background.shape[2:])
    resized = resize_positions(table, size, grid, (1,) * len(grid), antialias=antialias)
    tiled = window.tile([-(-n // w) for n, w in zip(grid, window.shape[2:], strict=True)])
    for axis, side in enumerate(grid, start=2):
        tiled = tiled.narrow(axis, 0, side)
    return resized + tiled.flatten(2).transpose(1, 2)


def init_weights(module: nn.Module, bias: float) -> None:
    """Starts a classifier's layer: weights truncated normal of std 0.02, as in the reference package.

    Args:
        module: The layer. The patch convolution keeps torch's own bias.
        bias: What biases of linear layers and norms start at.
    """
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.constant_(module.bias, bias)
