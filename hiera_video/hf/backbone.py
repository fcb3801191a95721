"""transformers' backbone around our trunk: maps for detectors and segmenters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from hiera_video.hf.configuration import HieraConfig
from hiera_video.hf.models import HieraPreTrainedModel
from hiera_video.hf.outputs import Trunk, Walk


class HieraBackbone(BackboneMixin, HieraPreTrainedModel):
    """Maps of the stages in ``config.out_features``, each normalised: ``[B, C, (T,) H, W]``.

    They are :class:`HieraModel`'s ``reshaped_hidden_states``. Those of transformers' own backbone are not: it never
    unrolls its tokens, so that mask units and pooling windows are made of the wrong ones.
    """

    _inside = "trunk."

    def __init__(self, config: HieraConfig) -> None:
        super().__init__(config)
        arch = config.encoder()
        self.num_features = [arch.embed_dim, *arch.dims]
        self.trunk = Trunk(arch, config.facts().spec)
        self.trunk.position_resize = config.position_resize
        widths = zip(self.out_features, self.channels, strict=True)
        self.hidden_states_norms = nn.ModuleDict({stage: nn.LayerNorm(channels) for stage, channels in widths})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.patch_embed

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """``feature_maps`` as above; ``hidden_states`` and ``attentions`` as in :class:`HieraModelOutput`."""
        watch, as_dict = self._wants(output_attentions, output_hidden_states, return_dict)
        hidden, watch.hidden = watch.hidden, True  # maps are made of them
        walk: Walk = self.trunk(self._clip(pixel_values, interpolate_pos_encoding), watch=watch)
        assert walk.reshaped_hidden_states is not None
        maps = dict(zip(self.stage_names, walk.reshaped_hidden_states, strict=True))
        output = BackboneOutput(
            feature_maps=tuple(
                self.hidden_states_norms[stage](maps[stage]).movedim(-1, 1).contiguous() for stage in self.out_features
            ),
            hidden_states=walk.hidden_states if hidden else None,
            attentions=walk.attentions,
        )
        return output if as_dict else output.to_tuple()
