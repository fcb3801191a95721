"""The configuration: transformers' field names for Hiera, and the few facts of ours that they have no name for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture, MAEArchitecture, encoder_fields
from hiera_video.models.checkpoints.formats import CONFIG_NAMES, IMAGE_FORM, Facts, describe
from hiera_video.models.unroll import Size

#: Fields that follow the number of dimensions where they are not given: as published, of images or video.
SHAPE = ("q_stride", "mask_unit_size", "patch_kernel", "patch_stride", "patch_padding")
DECODER_FIELDS = ("decoder_hidden_size", "decoder_depth", "decoder_num_heads")


class HieraConfig(BackboneConfigMixin, PreTrainedConfig):
    """Fields and defaults of transformers' ``HieraConfig``, for images and, with ``image_size`` (T, H, W), for video.

    Sizes have an entry for each axis; those left out are the published ones of images or video. Beside transformers'
    own fields there are these:

    Args:
        sep_pos_embed: Whether time and space have position embeddings of their own. Default: in video.
        qkv_bias: Whether queries, keys and values have a bias.
        head_dropout: Dropout before the head.
        head_init_scale: What a new head's weights are multiplied by.
        head: What the logits are made of: linear, attentive, stages, readout, as in :class:`hiera_video.Architecture`.
        head_stages: The stages whose statistics a head of stages or a readout sees.
        head_strides: At which speeds it sees a clip.
        readout_dim: Channels of the embedding that a readout makes.
        abs_win_pos_embed: Whether positions are absolute-window embeddings, as in :class:`hiera_video.Architecture`.
        global_pos_size: The grid of their background.
        pos_antialias: Whether it is resized by the antialiased bicubic.
        layer_scale: What the factors on each branch start at.
        expand_proj: Whether the shortcut of a stage change is projected.
        windows: Tokens along each side of an attention window, by stage.
        global_blocks: Blocks that attend to everything.
        position_resize: How ``interpolate_pos_encoding`` does it: "plain", as transformers, or "window".
        clip: What a clip is, :class:`hiera_video.ClipSpec` as a dict.
        views: Test views, clips x crops.
        license: The licence of the weights.
    """

    model_type = "hiera_video"

    embed_dim: int = 96
    image_size: int | list[int] | tuple[int, ...] = (224, 224)
    patch_size: list[int] | tuple[int, ...] | None = None
    patch_stride: list[int] | tuple[int, ...] | None = None
    patch_padding: list[int] | tuple[int, ...] | None = None
    mlp_ratio: float = 4.0
    depths: list[int] | tuple[int, ...] = (2, 3, 16, 3)
    num_heads: list[int] | tuple[int, ...] = (1, 2, 4, 8)
    embed_dim_multiplier: float = 2.0
    num_query_pool: int = 3
    query_stride: list[int] | tuple[int, ...] | None = None
    masked_unit_size: list[int] | tuple[int, ...] | None = None
    masked_unit_attention: list[bool] | tuple[bool, ...] = (True, True, False, False)
    drop_path_rate: float = 0.0
    num_channels: int = 3
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_init: float = 1.0
    layer_norm_eps: float = 1e-6
    decoder_hidden_size: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    normalize_pixel_loss: bool | None = True
    mask_ratio: float = 0.6
    sep_pos_embed: bool | None = None
    qkv_bias: bool = True
    head_dropout: float = 0.0
    head_init_scale: float = 0.001
    head: str = "linear"
    head_stages: list[int] | tuple[int, ...] = (1, 2)
    head_strides: list[int] | tuple[int, ...] = (1,)
    readout_dim: int = 256
    abs_win_pos_embed: bool = False
    global_pos_size: list[int] | tuple[int, ...] = ()
    pos_antialias: bool = False
    layer_scale: float | None = None
    expand_proj: bool = True
    windows: list[int] | tuple[int, ...] | None = None
    global_blocks: list[int] | tuple[int, ...] = ()
    position_resize: str = "plain"
    clip: dict[str, Any] | None = None
    views: str | None = None
    license: str | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)  # a file of transformers' own may say "hiera"
        size = self.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        published = vars(Architecture()) if len(self.image_size) == 3 else IMAGE_FORM
        for ours in SHAPE:
            if getattr(self, CONFIG_NAMES[ours]) is None:
                setattr(self, CONFIG_NAMES[ours], published[ours])
        self.hidden_size = int(self.embed_dim * self.embed_dim_multiplier ** (len(self.depths) - 1))
        self.stage_names = ["stem", *(f"stage{stage}" for stage in range(1, len(self.depths) + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, 1 for images: what the video-classification pipeline asks for."""
        return self.input_size[0] if len(self.input_size) == 3 else 1

    @property
    def input_size(self) -> Size:
        """``image_size`` as our models have it."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def facts(self) -> Facts:
        """What our models call all this.

        Returns:
            The architecture (an MAE's where there are decoder fields) and all else that travels with weights.

        Raises:
            WeightsError: This model cannot have such values.
        """
        return describe({**self.to_dict(), "model_type": self.model_type}, "this HieraConfig")

    def encoder(self, num_classes: int = 0) -> Architecture:
        """The architecture without a decoder; ``num_query_pool`` is taken as it is.

        Args:
            num_classes: Classes of the head.

        Returns:
            The architecture.

        Raises:
            WeightsError: This model cannot have such values.
        """
        return Architecture(**encoder_fields(self._architecture()) | {"num_classes": num_classes})

    def autoencoder(self) -> MAEArchitecture:
        """The architecture with its decoder.

        Returns:
            The architecture.

        Raises:
            RequestError: The decoder's fields are missing.
            WeightsError: This model cannot have such values.
        """
        if missing := [name for name in DECODER_FIELDS if getattr(self, name) is None]:
            raise RequestError(f"pretraining needs {', '.join(missing)} in its HieraConfig")
        arch = self._architecture()
        assert isinstance(arch, MAEArchitecture)
        return arch

    def _architecture(self) -> Architecture:
        arch = self.facts().arch
        assert arch is not None
        return arch


def config_values(arch: Architecture, facts: Facts) -> dict[str, Any]:
    """Arguments of :class:`HieraConfig` for one of our models.

    Args:
        arch: The model's architecture.
        facts: What else travels with its weights; their own ``arch`` is not looked at.

    Returns:
        Values by transformers' names.
    """
    values: dict[str, Any] = {theirs: getattr(arch, ours) for ours, theirs in CONFIG_NAMES.items()}
    values |= {
        "image_size": arch.input_size,
        "num_heads": arch.heads,
        "clip": facts.spec.to_dict() if facts.spec else None,
        "views": facts.views,
        "license": facts.license,
        "position_resize": facts.position_resize or "window",
    }
    if isinstance(arch, MAEArchitecture):
        decoder = (arch.decoder_embed_dim, arch.decoder_depth, arch.decoder_num_heads)
        return values | dict(zip(DECODER_FIELDS, decoder, strict=True)) | {"mask_ratio": arch.mask_ratio}
    labels = facts.labels or [f"LABEL_{index}" for index in range(arch.num_classes)]
    if facts.multi_label:
        values["problem_type"] = "multi_label_classification"
    return values | {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
