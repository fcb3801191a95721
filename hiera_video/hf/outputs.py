"""What the models return, under transformers' names, and how a walk through our trunk is turned into it.

transformers keeps unrolled tokens as ``[B, T * M, C]``, the places within a mask unit slowest; ours are
``[B, M, T, C]``. Nothing is computed a second time but attention, which the fused kernels do not give.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import ModelOutput

from hiera_video.models.trunk import HieraTrunk
from hiera_video.models.unroll import Size, reroll, reroll_units, units


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


@dataclass
class Walk:
    """What blocks were given and gave during one walk, while it was watched: unrolled ``[B, M, T, C]``."""

    trunk: HieraTrunk
    embedding: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def hidden_states(self) -> tuple[Tensor, ...]:
        """The embedding and each stage, ``[B, N, C]``."""
        return tuple(as_sequence(tokens) for tokens in (*self.embedding, *self.outputs))

    def maps(self, size: Size, *, by_unit: bool) -> tuple[Tensor, ...]:
        """The embedding and each stage as maps.

        Args:
            size: The input's size in pixels (frames).
            by_unit: Whether each mask unit is a map of its own.

        Returns:
            For each ``[B, *grid, C]``; with ``by_unit`` ``[B, K, *unit, C]``.
        """
        arch, put = self.trunk.arch, reroll_units if by_unit else reroll
        grid, pools = arch.token_grid(size), [0, *(min(stage, arch.q_pool) for stage in range(len(arch.stages)))]
        together = zip((*self.embedding, *self.outputs), pools, strict=True)
        return tuple(put(tokens, units(grid, arch.strides[:done]), arch.strides[done:]) for tokens, done in together)

    def attentions(self) -> tuple[Tensor, ...]:
        """Of each stage's last block, ``[B, heads, windows, queries, keys]`` after the softmax."""
        attentions = []
        for tokens, block in zip(self.inputs, last_blocks(self.trunk), strict=True):
            weights = block.attn.weights(block.norm1(tokens)).transpose(1, 2)
            if not block.attn.local:
                for axis in (-1, -2):
                    split = weights.unflatten(axis, (tokens.shape[1], -1))
                    weights = split.transpose(axis, axis - 1).flatten(axis - 1, axis)
            attentions.append(weights)
        return tuple(attentions)


@contextmanager
def watched(trunk: HieraTrunk, *, enabled: bool) -> Iterator[Walk]:
    """Looks on while a trunk walks its stages.

    Args:
        trunk: The trunk.
        enabled: Whether anything is kept.

    Yields:
        What was seen, once the walk is over.
    """
    walk = Walk(trunk)
    with ExitStack() as hooks:
        if enabled:
            first = trunk.blocks[0].register_forward_pre_hook(lambda _, args: walk.embedding.append(args[0]))
            hooks.callback(first.remove)
            for block in last_blocks(trunk):
                before = block.register_forward_pre_hook(lambda _, args: walk.inputs.append(args[0]))
                after = block.register_forward_hook(lambda _, args, output: walk.outputs.append(output))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        yield walk


def last_blocks(trunk: HieraTrunk) -> list[Any]:
    """The last block of each stage."""
    stages = trunk.arch.stages
    return [trunk.blocks[sum(stages[: stage + 1]) - 1] for stage in range(len(stages))]


def as_sequence(tokens: Tensor) -> Tensor:
    """Ours ``[B, M, T, C]`` -> transformers' ``[B, T * M, C]``."""
    return tokens.transpose(1, 2).flatten(1, 2)
