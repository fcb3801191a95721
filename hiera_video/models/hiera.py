"""Hiera (Ryali et al., ICML 2023, arXiv 2306.00989): the classifier of video, images and sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture
from hiera_video.models.checkpoints.saving import Layout, save_pretrained
from hiera_video.models.heads import SEE_STAGES, AttentiveHead, Head, ReadoutHead, token_statistics
from hiera_video.models.layers import init_weights
from hiera_video.models.masks import Mask
from hiera_video.models.timm_form import pretrained_cfg, taken
from hiera_video.models.trunk import HieraTrunk
from hiera_video.models.unroll import Size, StageTokens
from hiera_video.spec import ClipSpec

#: Said of a model that gives features alone, such as the general built-in one, where a classifier is asked for.
WITHOUT_CLASSES = "the model has no classes: extract features with it, or start from it (hiera-video finetune --model)"


class Hiera(HieraTrunk):
    """The classifier: logits from what ``arch.head`` names, as published from the normalised mean of the last stage's
    tokens (paper, section 3).

    Args:
        arch: The architecture.
        spec: What a clip is. Default: :class:`hiera_video.ClipSpec` with the architecture's number of frames.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, arch: Architecture, spec: ClipSpec | None = None) -> None:
        super().__init__(arch, spec)
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=arch.layer_norm_eps)
        self.head = self._new_head()
        self._init_trunk(bias=0.02)
        self._scale_head()
        # These travel with the weights: class names, test views (the papers' where nothing else is said), licence.
        self.labels: list[str] | None = None
        self.views = "5x3" if len(arch.input_size) == 3 else "1x1"
        self.license: str | None = None
        #: Whether a clip may have any number of classes: scores are then the sigmoid of the logits, not the softmax.
        self.multi_label = False
        #: Whether weights were loaded that had no head for these classes, so that it starts untrained.
        self.new_head = False

    def _new_head(self) -> Head:
        arch = self.arch
        if arch.head == "attentive":
            return AttentiveHead(self.num_features, arch.heads[-1], arch.num_classes, arch.head_dropout)
        if arch.head == "readout":
            seen = arch.num_statistics + self.num_features
            return ReadoutHead(seen, arch.readout_dim, arch.num_classes, arch.head_dropout)
        return Head(self.head_features, arch.num_classes, arch.head_dropout)

    def _scale_head(self) -> None:
        with torch.no_grad():
            for parameter in self.head.projection.parameters():
                parameter.mul_(self.arch.head_init_scale)

    @property
    def head_features(self) -> int:
        """Channels of the embedding that the head's linear layer sees."""
        arch = self.arch
        return {"stages": arch.num_statistics, "readout": arch.readout_dim}.get(arch.head, self.num_features)

    @property
    def clip_size(self) -> Size:
        """The size of what :meth:`forward` takes by default: ``arch.input_size``; where the head sees stages, whose
        trunk takes the clip in parts, that of ``spec``.
        """
        size = self.arch.input_size
        if self.arch.head != "stages":
            return size
        return (self.spec.num_frames, *self.spec.size) if len(size) == 3 else self.spec.size

    @property
    def num_classes(self) -> int:
        """Logits; 0 for a model without a head."""
        return self.arch.num_classes

    @property
    def head_hidden_size(self) -> int:
        """As timm calls :attr:`head_features`."""
        return self.head_features

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's facts about the model (:func:`hiera_video.models.timm_form.pretrained_cfg`)."""
        return pretrained_cfg(self.arch, self.spec, self.license)

    default_cfg = pretrained_cfg

    def save_pretrained(self, folder: str | Path, layout: Layout = "ours") -> Path:
        """:func:`hiera_video.save_pretrained` of this model.

        Args:
            folder: Where to.
            layout: "ours" or "timm".

        Returns:
            The folder.

        Raises:
            RequestError, OutputError: As there.
        """
        return save_pretrained(self, folder, layout=layout)

    def get_classifier(self) -> nn.Module:
        """The layer that gives logits, as in timm.

        Returns:
            A linear layer; without classes an identity.
        """
        return self.head.projection

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks behind the last of the stages asked for, as timm's nets of features do.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Whether to drop the norm.
            prune_head: Whether to drop the head.

        Returns:
            The stages, from 0. Only :meth:`forward_intermediates` of these can be called then.

        Raises:
            RequestError: There is no such stage.
        """
        chosen = taken(self.arch, indices)
        self.blocks = self.blocks[: sum(self.arch.stages[: chosen[-1] + 1])]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.arch, self.head = replace(self.arch, num_classes=0, head="linear"), Head(self.num_features, 0, 0.0)
        return chosen

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, **head: Any) -> None:
        """Makes a new head, started as in training; what was said of the old one's classes is dropped. A readout, which
        is made with the trunk, stays.

        Args:
            num_classes: Classes of the new head. With 0 there is none, and :meth:`forward` gives the embedding, as in
                timm: ``[B, C]``, where the head sees stages ``[B, arch.num_statistics]``.
            global_pool: timm's name of the pooling: "avg", which is the only one, or None.
            head: ``head``, ``head_stages``, ``head_strides``, ``readout_dim`` of :class:`hiera_video.Architecture`, for
                another kind.

        Raises:
            RequestError: A value of ``head`` cannot be, or the pooling is another.
        """
        if global_pool not in (None, "avg"):
            raise RequestError(f"global_pool {global_pool!r} must be avg: tokens of Hiera are averaged")
        self.arch = replace(self.arch, num_classes=num_classes, **head)
        new = self._new_head().train(self.training)
        new.apply(lambda module: init_weights(module, bias=0.02))
        if isinstance(new, ReadoutHead) and isinstance(self.head, ReadoutHead):
            new.readout.load_state_dict(self.head.readout.state_dict())
        weight = self.patch_embed.proj.weight
        self.head = new.to(weight.device, weight.dtype)
        self._scale_head()
        self.labels, self.multi_label = None, False

    def statistics(self, clip: Tensor, strides: Size | None = None) -> Tensor:
        """Statistics of the tokens of ``arch.head_stages``, at several speeds of the same clip.

        At each speed the clip is taken apart into clips as long as the trunk's own, and their statistics averaged.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
            strides: Frames from one to the next at each speed. Default: ``arch.head_strides``.

        Returns:
            float32 ``[B, C']``, for the default ``[B, arch.num_statistics]``: by speed and stage mean, standard
            deviation and maximum over all places and times, then those of the differences from one time to the next.

        Raises:
            SizeError: The clip's size does not fit the model.
        """
        if clip.ndim == 4:
            return self.statistics_of(self.stages(clip))
        looks = []
        for stride in strides or self.arch.head_strides:
            parts, count = self.parts(clip, stride)
            looks.append(self.statistics_of(self.stages(parts)).unflatten(0, (-1, count)).mean(dim=1))
        return torch.cat(looks, dim=-1)

    def parts(self, clip: Tensor, stride: int) -> tuple[Tensor, int]:
        """A video clip at one speed, taken apart into clips as long as the trunk's own; a rest is left out.

        Args:
            clip: ``[B, C, T, H, W]``.
            stride: Frames from one to the next.

        Returns:
            ``[B * count, C, T', H, W]``, the parts of each clip in their order, and ``count``.
        """
        part = clip[:, :, ::stride]
        length = min(self.arch.input_size[0], part.shape[2])
        count = part.shape[2] // length
        return part[:, :, : count * length].unflatten(2, (count, length)).transpose(1, 2).flatten(0, 1), count

    def statistics_of(self, stages: Iterable[StageTokens]) -> Tensor:
        """Statistics of ``arch.head_stages`` from a walk, of which no more is computed than is seen.

        Args:
            stages: What each stage leaves (:meth:`stages`).

        Returns:
            float32 ``[B, C']``, those of all stages seen side by side.
        """
        wanted = self.arch.head_stages
        walk = zip(range(1, max(wanted) + 1), stages, strict=False)
        seen = {stage: token_statistics(tokens) for stage, tokens in walk if stage in wanted}
        return torch.cat([seen[stage] for stage in wanted], dim=-1)

    def embedding(self, clip: Tensor) -> Tensor:
        """What the head's linear layer sees of clips.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).

        Returns:
            ``[B, head_features]``.

        Raises:
            SizeError: The clip's size does not fit the model.
        """
        if self.arch.head == "stages":
            return self.statistics(clip)
        return self.embedding_of(self.stages(clip))

    def embedding_of(self, stages: Iterable[StageTokens]) -> Tensor:
        """The embedding of clips whose walk through the stages was made already.

        Args:
            stages: What each stage leaves (:meth:`stages`), all of them.

        Returns:
            ``[B, head_features]``; of a head of stages, which sees clips at several speeds, there is none.

        Raises:
            RequestError: The model has a head of stages.
        """
        wanted, seen = self.arch.head_stages, {}
        for stage, last in enumerate(stages, start=1):
            if self.arch.head == "readout" and stage in wanted:
                seen[stage] = token_statistics(last)
        if not isinstance(self.head, ReadoutHead):
            return self.forward_head(last.tokens, pre_logits=True)
        mean = self.norm(last.tokens.flatten(1, -2).mean(dim=1)).float()
        return self.head.readout(torch.cat([*(seen[stage] for stage in wanted), mean], dim=-1))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Answers from the last stage's tokens.

        Args:
            tokens: ``[B, ..., C]`` in any order.
            pre_logits: Whether to stop before the head.

        Returns:
            Logits ``[B, num_classes]``; with ``pre_logits`` the embedding ``[B, C]`` that the linear layer sees: the
            normalised mean of the tokens, or what the query of an attentive head gathers from them.

        Raises:
            RequestError: The head sees earlier stages, not these tokens.
        """
        if self.arch.head in SEE_STAGES:
            raise RequestError("this model's head sees statistics of stages, not the last tokens: call the whole model")
        tokens = tokens.flatten(1, -2)
        if isinstance(self.head, AttentiveHead):
            embedding = self.head.pool(self.norm(tokens))
        else:
            embedding = self.norm(tokens.mean(dim=1))
        return embedding if pre_logits else self.head(embedding)

    def forward(self, clip: Tensor, keep: Mask | None = None) -> Tensor:
        """Classifies clips.

        Args:
            clip: Normalised float ``[B, C, T, H, W]`` (images ``[B, C, H, W]``).
            keep: Boolean ``[B, num_mask_units]``: True where a mask unit is seen. Default: all are.

        Returns:
            Logits ``[B, num_classes]``, in training and in evaluation alike.

        Raises:
            SizeError, RequestError: The clip's size does not fit the model, ``keep`` does not fit the clip, or the
                head sees statistics of stages, which are those of whole clips.
        """
        if self.arch.head in SEE_STAGES:
            if keep is not None:
                raise RequestError("a head on the statistics of stages sees whole clips: leave keep out")
            return self.head(self.embedding(clip))
        *_, last = self.stages(clip, self.keep_ids(clip, keep))
        return self.forward_head(last.tokens)
