"""What the models return, under transformers' names, and how a walk through our trunk is turned into it.

transformers keeps unrolled tokens as ``[B, T * M, C]``, the places within a mask unit slowest; ours are
``[B, M, T, C]``. Hidden states and attentions that are asked for lie on the way to the answer, so that gradients reach
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import ModelOutput

from hiera_video.models.hiera import Hiera
from hiera_video.models.layers import Block
from hiera_video.models.mae import HieraMAE
from hiera_video.models.masks import Mask
from hiera_video.models.trunk import HieraTrunk
from hiera_video.models.unroll import StageTokens, as_sequence, from_sequence, reroll, reroll_units


@dataclass
class HieraModelOutput(ModelOutput):
    """What :class:`hiera_video.hf.HieraModel` gives.

    Args:
        last_hidden_state: ``[B, N, C]``, unrolled (row-major where every stage change pools).
        pooler_output: Its normalised mean, ``[B, C]``.
        bool_masked_pos: In MAE mode, boolean ``[B, num_mask_units]``, True where visible.
        ids_restore: In MAE mode, the rank of each unit's noise, int64 ``[B, num_mask_units]``.
        hidden_states: With ``output_hidden_states``, the embedding and each stage, ``[B, N, C]``, unrolled.
        attentions: With ``output_attentions``, each stage's last block, ``[B, heads, windows, queries, keys]``.
        reshaped_hidden_states: The hidden states as maps ``[B, (T,) H, W, C]``, or of the visible mask units
            ``[B, K, (t,) h, w, C]``.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    bool_masked_pos: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class HieraForPreTrainingOutput(ModelOutput):
    """What :class:`hiera_video.hf.HieraForPreTraining` gives; what is not listed is as in :class:`HieraModelOutput`.

    Args:
        loss: Mean squared error on the hidden positions.
        logits: The pixels predicted at every position of the decoder's grid, ``[B, N, patch]``, row-major.
        bool_masked_pos: Boolean ``[B, N]`` over the same positions, True where visible.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    bool_masked_pos: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class HieraForImageClassificationOutput(ImageClassifierOutput):
    """``loss`` where labels are given, ``logits`` ``[B, num_labels]``; the rest as in :class:`HieraModelOutput`."""

    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class HieraForVideoClassificationOutput(HieraForImageClassificationOutput):
    """The same for clips."""


class Walk(NamedTuple):
    """What a walk through the stages leaves.

    Args:
        tokens: Of the last stage, unrolled ``[B, M, T, C]``.
        pooled: What a pooling trunk makes of the stages, ``[B, C]``.
        hidden_states: As in :class:`HieraModelOutput`, and so the rest.
        attentions: With ``output_attentions``.
        reshaped_hidden_states: With ``output_hidden_states``.
    """

    tokens: Tensor
    pooled: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    reshaped_hidden_states: tuple[Tensor, ...] | None


class Watch:
    """Looks on while a trunk walks its stages: what it shows is what the trunk goes on with.

    Args:
        hidden: Whether to show hidden states.
        attentions: Whether to show attentions.
        explicit: Whether attention goes by products of its own though nobody looks ("eager").
    """

    def __init__(self, hidden: bool, attentions: bool, explicit: bool = False) -> None:
        self.sequences: list[Tensor] = []
        self.stages: list[StageTokens] = []
        self.weights: list[Tensor] | None = [] if attentions or explicit else None
        self.hidden, self.attentions = hidden, attentions

    def arguments(self) -> dict[str, Any]:
        """What :meth:`hiera_video.models.trunk.HieraTrunk.stages` is to be given."""
        return {"attentions": self.weights, "through": self._keep if self.hidden else None}

    def _keep(self, stage: StageTokens) -> Tensor:
        sequence = as_sequence(stage.tokens)
        self.sequences.append(sequence)
        self.stages.append(stage)
        return from_sequence(sequence, stage.tokens.shape[1])

    def shown(self, trunk: HieraTrunk, *, by_unit: bool) -> dict[str, tuple[Tensor, ...] | None]:
        """The three last fields of :class:`Walk`.

        Args:
            trunk: The trunk that walked.
            by_unit: Whether each mask unit is a map of its own.

        Returns:
            The fields by name.
        """
        put = reroll_units if by_unit else reroll
        ends = [sum(trunk.arch.stages[: stage + 1]) - 1 for stage in range(len(trunk.arch.stages))]
        shown = self.weights if self.attentions else None
        return {
            "hidden_states": tuple(self.sequences) if self.hidden else None,
            "attentions": None if shown is None else tuple(shown[end] for end in ends),
            "reshaped_hidden_states": tuple(put(*stage) for stage in self.stages) if self.hidden else None,
        }


def _walk(trunk: HieraTrunk, clip: Tensor, ids: Tensor | None, watch: Watch) -> Walk:
    stages, pooled = list(trunk.stages(clip, ids, **watch.arguments())), None
    if isinstance(trunk, Hiera):
        pooled = trunk.statistics(clip) if trunk.arch.head == "stages" else trunk.embedding_of(stages)
    return Walk(stages[-1].tokens, pooled, **watch.shown(trunk, by_unit=ids is not None))


class CheckpointedBlock(GradientCheckpointingLayer, Block):
    """A block that is computed again in the backward pass where transformers says so."""


# With ``watch`` the forward is the walk itself, of clips [B, C, *size] and visible units [B, K], since accelerate puts
# parameters in place for the forward of the module that owns them. Without, it is what it is in our own form.


class Trunk(HieraTrunk):
    """The trunk alone."""

    block = CheckpointedBlock

    def forward(self, clip: Tensor, *, watch: Watch, ids: Tensor | None = None) -> Walk:
        return _walk(self, clip, ids, watch)


class PoolingTrunk(Hiera):
    """The trunk with its pooling."""

    block = CheckpointedBlock

    def forward(self, clip: Tensor, *args: Any, watch: Watch | None = None, ids: Tensor | None = None) -> Any:
        return super().forward(clip, *args) if watch is None else _walk(self, clip, ids, watch)


class AutoencoderTrunk(HieraMAE):
    """The trunk with its decoder."""

    block = CheckpointedBlock

    def forward(
        self, clip: Tensor, keep: Mask | None = None, watch: Watch | None = None, ids: Tensor | None = None, **how: Any
    ) -> Any:
        if watch is None or keep is not None:
            return super().forward(clip, keep, **how, **({} if watch is None else watch.arguments()))
        return _walk(self, clip, ids, watch)
