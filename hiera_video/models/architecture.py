"""What an architecture is, of the classifier and of the MAE, and which input sizes it takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

from hiera_video.errors import RequestError
from hiera_video.models.heads import HEADS, SEE_STAGES
from hiera_video.models.layers import ACTIVATIONS
from hiera_video.models.unroll import Size, token_grid, unit_size, units


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Constructor fields by their published names; the defaults are base 16x224 (paper, Table 1; reference package).

    Sizes are (time, height, width), (height, width) or (length,), one entry for each axis.

    Raises:
        RequestError: The fields contradict each other.
    """

    input_size: Size = (16, 224, 224)
    """Frames and pixels of a clip."""
    in_chans: int = 3
    """Channels of the pixels."""
    embed_dim: int = 96
    """Channels of the first stage."""
    num_heads: int = 1
    """Attention heads of the first stage."""
    num_classes: int = 400
    """Logits; 0 for a model without a head."""
    stages: Size = (2, 3, 16, 3)
    """Blocks of each stage."""
    q_pool: int = 3
    """How many of the stage changes pool."""
    q_stride: Size = (1, 2, 2)
    """The pooling of a stage change, in tokens."""
    mask_unit_size: Size = (1, 8, 8)
    """Tokens of a mask unit: what all stage changes together could pool away."""
    mask_unit_attn: tuple[bool, ...] = (True, True, False, False)
    """For each stage, whether attention stays within mask units."""
    dim_mul: float = 2.0
    """Growth of the channels at a stage change."""
    head_mul: float = 2.0
    """Growth of the attention heads at a stage change."""
    patch_kernel: Size = (3, 7, 7)
    """Size of a patch in frames and pixels."""
    patch_stride: Size = (2, 4, 4)
    """From one patch to the next, in frames and pixels."""
    patch_padding: Size = (1, 3, 3)
    """Zeros before and behind each axis."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP over its channels."""
    drop_path_rate: float = 0.0
    """Probability that the last block's branch is dropped; it grows linearly from 0 over the blocks."""
    head_dropout: float = 0.0
    """Dropout before the head."""
    head_init_scale: float = 0.001
    """What a new head's weights are multiplied by."""
    sep_pos_embed: bool = True
    """Whether space and time have position embeddings of their own, which are added."""
    hidden_act: str = "gelu"
    """The activation in the MLP, by transformers' names."""
    layer_norm_eps: float = 1e-6
    """Added to the variance in every norm."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    abs_win_pos_embed: bool = False
    """Whether the position embedding (in space, where time has its own) is that of a place within a mask unit, which
    repeats, plus a coarse background, resized to the clip (arXiv 2311.05613): one model then takes any size."""
    global_pos_size: Size = ()
    """The grid of that background."""
    pos_antialias: bool = False
    """Whether resizing it is torch's antialiased bicubic (timm), not the plain one (SAM 2)."""
    layer_scale: float | None = None
    """What the learned factors on each branch start at (arXiv 2103.17239); None: there are none."""
    expand_proj: bool = True
    """Whether the shortcut of a stage change is projected, or made of maximum and mean over the pooling window."""
    windows: Size | None = None
    """Tokens along each side of an attention window, by stage; None: mask units, and everything where mask_unit_attn is
    off. Where a size is no multiple, maps are padded."""
    global_blocks: Size = ()
    """Blocks, counted from 0, whose attention sees everything whatever windows says."""
    head: str = "linear"
    """What the logits are made of: linear (the normalised mean of the last stage's tokens), attentive (what a learned
    query gathers from them), stages (statistics of the tokens of head_stages), or readout (a projection of both the
    statistics and the mean)."""
    head_stages: Size = (1, 2)
    """The stages, counted from 1, whose statistics a head of stages or a readout sees."""
    head_strides: Size = (1,)
    """At which speeds a head of stages sees a clip: every frame, every second one, ..."""
    readout_dim: int = 256
    """Channels of the embedding that a readout makes."""

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
        spaces = dims - self.sep_pos_embed
        if self.abs_win_pos_embed and len(self.global_pos_size) != spaces:
            raise RequestError(f"global_pos_size {self.global_pos_size} must have {spaces} numbers, one per axis")
        if self.windows is not None and len(self.windows) != len(self.stages):
            raise RequestError(f"windows {self.windows} must have {len(self.stages)} numbers, one per stage")
        if not self.expand_proj and self.dim_mul != 2:
            raise RequestError("without expand_proj the channels double at a stage change: dim_mul must be 2")
        if self.hidden_act not in ACTIVATIONS:
            raise RequestError(f"hidden_act {self.hidden_act!r} must be one of {', '.join(ACTIVATIONS)}")
        if self.head not in HEADS:
            raise RequestError(f"head {self.head!r} must be one of {', '.join(HEADS)}")
        if not self.head_stages or not set(self.head_stages) <= set(range(1, len(self.stages) + 1)):
            raise RequestError(f"head_stages {self.head_stages} must be stages from 1 to {len(self.stages)}")
        if not self.head_strides or min(self.head_strides) < 1:
            raise RequestError(f"head_strides {self.head_strides} must be numbers of frames, at least 1")
        if self.head in SEE_STAGES and dims == 1:
            raise RequestError(f"a head of {self.head} sees images and videos, not sequences")
        if self.head == "readout" and self.head_strides != (1,):
            raise RequestError(f"head_strides {self.head_strides} are for a head of stages: a readout sees every frame")
        if self.readout_dim < 1:
            raise RequestError(f"readout_dim {self.readout_dim} must be at least 1")
        for stage, (dim, heads) in enumerate(zip(self.dims, self.heads, strict=True), start=1):
            if heads < 1 or dim % heads:
                raise RequestError(f"stage {stage} has {dim} channels, which {heads} attention heads do not divide")

    @property
    def strides(self) -> tuple[Size, ...]:
        """The strides that tokens are unrolled by: one for each stage change, pooled or not."""
        return (self.q_stride,) * (len(self.stages) - 1)

    @property
    def block_options(self) -> dict[str, Any]:
        """What all blocks have alike, as arguments of :class:`hiera_video.models.layers.Block`."""
        names = ("mlp_ratio", "hidden_act", "layer_norm_eps", "qkv_bias", "layer_scale", "expand_proj")
        return {name: getattr(self, name) for name in names}

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage: those of the stage before times ``dim_mul``, rounded down."""
        return tuple(accumulate(self.stages[1:], lambda dim, _: int(dim * self.dim_mul), initial=self.embed_dim))

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage: those of the stage before times ``head_mul``, rounded down."""
        return tuple(accumulate(self.stages[1:], lambda heads, _: int(heads * self.head_mul), initial=self.num_heads))

    @property
    def num_statistics(self) -> int:
        """Channels that :meth:`hiera_video.Hiera.statistics` gives: 6 for each channel of a stage, of images 3."""
        channels = sum(self.dims[stage - 1] for stage in self.head_stages)
        return 6 * channels * len(self.head_strides) if len(self.input_size) == 3 else 3 * channels

    def token_grid(self, size: Size) -> Size:
        """The token grid of stage 1, as :func:`hiera_video.models.unroll.token_grid` has it.

        Args:
            size: The input's size in pixels (frames).

        Returns:
            Tokens along each axis.

        Raises:
            SizeError: Mask units do not divide ``size``. The nearest sizes that fit are named.
        """
        return token_grid(size, self.patch_stride, self.mask_unit_size)


@dataclass(frozen=True, kw_only=True)
class MAEArchitecture(Architecture):
    """An encoder that does not pool into its last stage, so that its weights fit the classifier, and a decoder.

    Raises:
        RequestError: The fields contradict each other.
    """

    q_pool: int = 2
    """How many of the stage changes pool: the last one does not."""
    mask_ratio: float = 0.9
    """The part of the mask units that is hidden (paper, section 4: 0.9 for video, 0.6 for images)."""
    decoder_embed_dim: int = 512
    """Channels of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_num_heads: int = 16
    """Attention heads of the decoder: 16 in the reference package, 8 for video in the paper; shapes are the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_num_heads < 1 or self.decoder_embed_dim % self.decoder_num_heads:
            raise RequestError(
                f"the decoder has {self.decoder_embed_dim} channels, which {self.decoder_num_heads} attention heads "
                "do not divide"
            )
        if not 0 <= self.mask_ratio < 1:
            raise RequestError(f"mask_ratio {self.mask_ratio} must be at least 0 and less than 1")

    @property
    def final_strides(self) -> tuple[Size, ...]:
        """What is left of the strides after the encoder's poolings: they make up a mask unit of final tokens."""
        return self.strides[self.q_pool :]

    def final_grid(self, size: Size) -> Size:
        """The grid of tokens that the decoder works on.

        Args:
            size: The input's size in pixels (frames).

        Returns:
            Tokens along each axis.

        Raises:
            SizeError: Mask units do not divide ``size``.
        """
        return units(self.token_grid(size), self.strides[: self.q_pool])

    def final_window(self, way: str) -> Size:
        """The part of the final grid whose phase is kept when the decoder's position table is resized.

        Args:
            way: "window" or "plain", as in :func:`hiera_video.from_pretrained`.

        Returns:
            Tokens along each axis; ones for "plain".
        """
        dims = len(self.q_stride)
        return unit_size(self.final_strides, dims) if way == "window" else (1,) * dims


def encoder_fields(arch: Architecture) -> dict[str, Any]:
    """The fields of a classifier's architecture.

    Args:
        arch: An architecture of either kind.

    Returns:
        Values by name; the decoder's fields are left out.
    """
    return {field.name: getattr(arch, field.name) for field in fields(Architecture)}


def classifier_form(arch: Architecture) -> Architecture:
    """The classifier that an MAE's encoder fits: it pools once more, and pooling has no weights (paper, section 4).

    Args:
        arch: An architecture of either kind; a classifier's stays as it is.

    Returns:
        The classifier's architecture.
    """
    if not isinstance(arch, MAEArchitecture):
        return arch
    return Architecture(**encoder_fields(arch) | {"q_pool": len(arch.stages) - 1})


def mae_form(arch: Architecture, **decoder: int) -> MAEArchitecture:
    """The MAE around a classifier's encoder; mask ratio 0.9 for video, 0.6 for images (paper, section 4).

    Args:
        arch: An architecture of either kind; an MAE's stays as it is.
        decoder: Fields of :class:`MAEArchitecture`.

    Returns:
        The MAE's architecture.
    """
    if isinstance(arch, MAEArchitecture):
        return arch
    mask_ratio = 0.6 if len(arch.input_size) == 2 else 0.9
    encoder = vars(arch) | {"q_pool": max(len(arch.stages) - 2, 0)}
    return MAEArchitecture(**{**encoder, "mask_ratio": mask_ratio, **decoder})
