"""transformers' classes around the one model of this package: arguments, outputs and losses, and no block of their own.

``pixel_values`` are ``[B, C, H, W]`` for images and ``[B, T, C, H, W]`` for video, float, normalised.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization

from hiera_video.errors import RequestError, SizeError
from hiera_video.hf.configuration import HieraConfig
from hiera_video.hf.outputs import (
    AutoencoderTrunk,
    HieraForImageClassificationOutput,
    HieraForPreTrainingOutput,
    HieraForVideoClassificationOutput,
    HieraModelOutput,
    PoolingTrunk,
    Trunk,
    Walk,
    Watch,
)
from hiera_video.hf.pretrained import PLACES, read_foreign
from hiera_video.hf.processing import image_processor
from hiera_video.models.checkpoints.build import default_spec
from hiera_video.models.checkpoints.formats import State
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MAEOutput
from hiera_video.models.masks import num_visible, unit_ids
from hiera_video.models.trunk import HieraTrunk
from hiera_video.models.unroll import as_sequence, reroll

#: Arguments of ``save_pretrained`` that say where to upload to.
PUSHED = ("push_to_hub", "repo_id", "commit_message", "private", "token", "revision", "create_pr")


class HieraPreTrainedModel(PreTrainedModel):
    """What all models share: where weights come from and how new ones start.

    Args:
        config: The configuration.
    """

    config: HieraConfig
    config_class = HieraConfig
    base_model_prefix = "hiera"
    main_input_name = "pixel_values"
    input_modalities = ["video", "image"]  # noqa: RUF012  # transformers' own form
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    #: The loss is the mean over the batch, whatever ``num_items_in_batch`` the Trainer knows.
    accepts_loss_kwargs = False
    #: Where the trunk is.
    _inside = "hiera.trunk."
    _no_split_modules = ["CheckpointedBlock"]  # noqa: RUF012  # transformers' own form

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, and of more forms.

        Args:
            pretrained_model_name_or_path: As in transformers, or what
                :func:`hiera_video.hf.pretrained.read_foreign` reads.
            model_args: As in transformers.
            config: As in transformers.
            kwargs: As in transformers.

        Returns:
            The model in evaluation mode.

        Raises:
            HieraVideoError: As in :func:`hiera_video.from_pretrained`.
        """
        name = pretrained_model_name_or_path
        hub: dict[str, Any] = {key: kwargs[key] for key in PLACES if kwargs.get(key) is not None}
        foreign = None if name is None else read_foreign(os.fspath(name), mae=cls is HieraForPreTraining, **hub)
        if foreign is None or name is None:
            return super().from_pretrained(name, *model_args, config=config, **kwargs)
        state, values = foreign
        rest = {key: value for key, value in kwargs.items() if key not in PLACES}
        if not isinstance(config, HieraConfig):
            aside = {key: rest.pop(key) for key in ("dtype", "torch_dtype") if key in rest}
            config, rest = HieraConfig.from_dict(values, return_unused_kwargs=True, **rest)
            rest |= aside
        found = super().from_pretrained(None, *model_args, config=config, state_dict=cls.named(state), **rest)
        model = found[0] if isinstance(found, tuple) else found
        model.name_or_path = model.config._name_or_path = os.fspath(name)
        return found

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """As in transformers; of an image classifier with its image processor, as ``AutoImageProcessor`` reads it.

        Args:
            save_directory: The folder.
            kwargs: As in transformers.
        """
        super().save_pretrained(save_directory, **kwargs)
        if isinstance(self, HieraForImageClassification):
            spec = self.config.facts().spec or default_spec(self.config.encoder())
            hub = {key: value for key, value in kwargs.items() if key in PUSHED}
            image_processor(spec).save_pretrained(save_directory, **hub)

    @classmethod
    def named(cls, state: State) -> State:
        """Renames tensors.

        Args:
            state: Tensors under our names.

        Returns:
            The same tensors under this class's names.
        """
        return {_named(key, cls._inside): value for key, value in state.items()}

    def _init_weights(self, module: nn.Module) -> None:
        """As transformers starts its Hiera; not as ours, whose head starts near 0."""
        std = self.config.initializer_range
        if isinstance(module, HieraTrunk):
            for parameter in module.parameters(recurse=False):  # position embeddings and the mask token
                initialization.trunc_normal_(parameter, std=std)
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            initialization.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                initialization.constant_(module.bias, std)
        elif isinstance(module, nn.LayerNorm):
            initialization.constant_(module.bias, std)
            initialization.constant_(module.weight, self.config.layer_norm_init)

    def _wants(self, attentions: bool | None, hidden: bool | None, return_dict: bool | None) -> tuple[Watch, bool]:
        """What is to be shown, and whether in a dict. Missing values come from the config."""
        config = self.config
        # Attention in windows that are no mask units has one way alone.
        explicit = config._attn_implementation == "eager" and config.windows is None
        hidden = config.output_hidden_states if hidden is None else hidden
        attentions = config.output_attentions if attentions is None else attentions
        watch = Watch(bool(hidden), bool(attentions), explicit)
        return watch, bool(config.return_dict if return_dict is None else return_dict)

    def _clip(self, pixel_values: Tensor | None, interpolate: bool | None) -> Tensor:
        """``pixel_values`` as our models take them: video ``[B, C, T, H, W]``."""
        if pixel_values is None:
            raise RequestError("You have to specify pixel_values")
        trained = self.config.input_size
        if pixel_values.ndim != len(trained) + 2:
            names = {2: "[batch, channels, height, width]", 3: "[batch, frames, channels, height, width]"}
            raise RequestError(
                f"pixel_values of this model are {names.get(len(trained), '[batch, channels, length]')}, "
                f"not of shape {list(pixel_values.shape)}"
            )
        clip = pixel_values.transpose(1, 2) if len(trained) == 3 else pixel_values
        size = tuple(clip.shape[2:])
        if size != trained and not interpolate and self.config.head != "stages":  # that trunk takes any size
            given, expected = ("x".join(map(str, axes)) for axes in (size, trained))
            raise SizeError(f"pixel_values are {given}, the model's {expected}; pass interpolate_pos_encoding=True")
        return clip


class HieraModel(HieraPreTrainedModel):
    """The encoder and, where it pools, the normalised mean of its tokens.

    Args:
        config: The configuration.
        add_pooling_layer: Whether to pool.
        is_mae: Whether mask units are hidden.
    """

    _inside = "trunk."

    def __init__(self, config: HieraConfig, add_pooling_layer: bool = True, is_mae: bool = False) -> None:
        super().__init__(config)
        self.is_mae = is_mae
        spec = config.facts().spec
        self.trunk: HieraTrunk
        if add_pooling_layer:
            self.trunk = PoolingTrunk(config.encoder(), spec)
        elif is_mae and config.decoder_depth is not None:
            self.trunk = AutoencoderTrunk(config.autoencoder(), spec)
        else:
            self.trunk = Trunk(config.encoder(), spec)
        self.trunk.position_resize = config.position_resize
        self.num_features = self.trunk.num_features
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.patch_embed

    def masking(self, clip: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chooses which mask units are visible: those of the lowest noise.

        Args:
            clip: Clips ``[B, C, *size]``.
            noise: Float ``[B, num_mask_units]``. Default: drawn from torch's global generator, as transformers does.

        Returns:
            ``keep``, boolean ``[B, num_mask_units]``, and the rank of each unit's noise, int64 of the same shape.

        Raises:
            SizeError: Mask units do not divide the clip's size.
        """
        num_units = self.trunk.num_mask_units(tuple(clip.shape[2:]))
        if noise is None:
            noise = torch.rand(len(clip), num_units, device=clip.device)
        ids_restore = noise.argsort(dim=1).argsort(dim=1).to(clip.device)
        return ids_restore < num_visible(num_units, self.config.mask_ratio), ids_restore

    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> HieraModelOutput | tuple[Any, ...]:
        """``noise`` ``[B, num_mask_units]`` decides, in MAE mode, which units are visible. ``kwargs`` are ignored."""
        watch, as_dict = self._wants(output_attentions, output_hidden_states, return_dict)
        clip = self._clip(pixel_values, interpolate_pos_encoding)
        ids, keep, ids_restore = None, None, None
        if self.is_mae:
            keep, ids_restore = self.masking(clip, noise)
            ids = unit_ids(keep, num_visible(keep.shape[1], self.config.mask_ratio))
        walk: Walk = self.trunk(clip, ids=ids, watch=watch)
        output = HieraModelOutput(
            last_hidden_state=as_sequence(walk.tokens),
            pooler_output=walk.pooled,
            bool_masked_pos=keep,
            ids_restore=ids_restore,
            hidden_states=walk.hidden_states,
            attentions=walk.attentions,
            reshaped_hidden_states=walk.reshaped_hidden_states,
        )
        return output if as_dict else output.to_tuple()


class HieraForPreTraining(HieraPreTrainedModel):
    """The masked autoencoder; the configuration needs the decoder's fields."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__(config)
        config.autoencoder()
        self.hiera = HieraModel(config, add_pooling_layer=False, is_mae=True)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> HieraForPreTrainingOutput | tuple[Any, ...]:
        """As in :class:`HieraModel`; the loss is over the hidden positions, normalised per patch if so configured."""
        watch, as_dict = self._wants(output_attentions, output_hidden_states, return_dict)
        clip = self._clip(pixel_values, interpolate_pos_encoding)
        size, trunk = tuple(clip.shape[2:]), self.hiera.trunk
        assert isinstance(trunk, AutoencoderTrunk)
        keep, ids_restore = self.hiera.masking(clip, noise)
        out: MAEOutput = trunk(clip, keep, all_positions=True, watch=watch)
        grid = trunk.final_grid(size)
        seen = keep[:, :, None, None].expand(-1, -1, math.prod(grid) // keep.shape[1], 1)
        visible = reroll(seen, grid, trunk.arch.final_strides).flatten(1)
        loss = out.loss
        if not self.config.normalize_pixel_loss:
            loss = (out.prediction.float() - trunk.target(clip).float())[~visible].square().mean()
        output = HieraForPreTrainingOutput(
            loss=loss,
            logits=out.prediction,
            bool_masked_pos=visible,
            ids_restore=ids_restore,
            **watch.shown(trunk, by_unit=True),
        )
        return output if as_dict else output.to_tuple()


class _Classifier(HieraPreTrainedModel):
    """Encoder, pooling and a linear layer."""

    _output: type[HieraForImageClassificationOutput]
    _dims: int

    def __init__(self, config: HieraConfig) -> None:
        super().__init__(config)
        if len(config.input_size) != self._dims:
            raise RequestError(
                f"{type(self).__name__} needs an image_size of {self._dims} numbers in its HieraConfig, "
                f"not {config.input_size}"
            )
        self.num_labels = config.num_labels or 0
        self.hiera = HieraModel(config)
        trunk = self.hiera.trunk
        features = trunk.head_features if isinstance(trunk, Hiera) else trunk.num_features
        self.classifier = nn.Linear(features, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> HieraForImageClassificationOutput | tuple[Any, ...]:
        """Logits; with ``labels`` the loss that ``config.problem_type`` names, or labels and ``num_labels`` decide:
        regression (``num_labels`` 1), single-label (int64 ``[B]``), multi-label (float ``[B, num_labels]``).
        """
        pooled = self.hiera(
            pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
        )
        head: Any = self.hiera.trunk.head  # without classes a head is its dropout, and an attentive one's query
        logits = self.classifier(head.dropout(pooled.pooler_output))
        output = self._output(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=pooled.hidden_states,
            attentions=pooled.attentions,
            reshaped_hidden_states=pooled.reshaped_hidden_states,
        )
        return output if self._wants(None, None, return_dict)[1] else output.to_tuple()


class HieraForImageClassification(_Classifier):
    """The classifier of images."""

    _output = HieraForImageClassificationOutput
    _dims = 2


class HieraForVideoClassification(_Classifier):
    """The classifier of clips."""

    _output = HieraForVideoClassificationOutput
    _dims = 3


def _named(key: str, inside: str) -> str:
    if key.startswith("head.projection."):
        return key.replace("head.projection.", "classifier.")
    return key if key.startswith("hidden_states_norms.") else inside + key
