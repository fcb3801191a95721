"""From files to scores: the one way of classify, the page, evaluate, and fine-tuning's validation.

load_ahead(segments)          threads and their children read and decode      data/views.py
score_views(model, loaded)    batches of clips of several inputs, one batch under way   -> Scored, in order
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiera_video.data.views import Loaded
from hiera_video.spec import ClipSpec


@dataclass(frozen=True)
class Scored:
    """The scores of one input.

    ``index`` is its number; ``scores`` float32 [K], the mean over its views, or None where nothing could be
    read; ``error``: None, or one sentence about what could not be read; ``duration`` in seconds, 0 for an image, None
    where nothing could be read; ``frames`` uint8 [T, h, w, 3] of its middle view, where they are asked for.
    """

    index: int
    scores: NDArray[np.float32] | None
    error: str | None
    duration: float | None = None
    frames: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Scorer:
    """A model with all that makes scores of clips.

    ``model`` gives logits [B, K] of normalised clips; it lies on ``device`` and computes in ``dtype``. ``multi_label``:
    a clip may have any number of classes.
    """

    model: nn.Module
    spec: ClipSpec
    device: torch.device
    dtype: torch.dtype
    multi_label: bool = False

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> Tensor:
        """uint8 [B, C, T, h, w] -> scores float32 [B, K] on the device."""
        clip = self.spec.model_input(self.spec.normalize(clips.to(self.device)))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(clip)
        return scores_of(logits, multi_label=self.multi_label)


def scores_of(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Scores of logits.

    Args:
        logits: [B, K], of any dtype.
        multi_label: Whether classes exclude each other (softmax) or not (sigmoid).

    Returns:
        float32 [B, K], from 0 to 1.
    """
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=-1)


def score_views(
    scorer: Scorer, loaded: Iterable[Loaded], *, batch_size: int = 8, keep_frames: bool = False
) -> Iterator[Scored]:
    """The scores of each input, the mean over its views; nothing is left out or replaced.

    The model is in evaluation mode meanwhile, and afterwards in the mode that it had.

    Args:
        scorer: The model.
        loaded: Inputs with their views, such as :func:`hiera_video.data.views.load_ahead` yields.
        batch_size: Clips, of several inputs, that go through the model at once.
        keep_frames: Whether to give the frames of the middle view too.

    Yields:
        One :class:`Scored` for each input, in their order, as soon as the last of its clips is through.
    """
    modes = [(module, module.training) for module in scorer.model.modules()]
    scorer.model.eval()
    try:
        yield from _stream(scorer, loaded, batch_size, keep_frames)
    finally:
        for module, training in modes:  # frozen ones may differ from the rest
            module.training = training


def score_clips(scorer: Scorer, clips: Tensor, batch_size: int = 8) -> NDArray[np.float32]:
    """The scores of each clip.

    Args:
        scorer: The model.
        clips: uint8 [N, C, T, h, w].
        batch_size: Clips that go through the model at once.

    Returns:
        float32 [N, K].
    """
    parts = list(_scores(scorer, clips.split(batch_size)))
    return np.concatenate(parts)


def _stream(scorer: Scorer, loaded: Iterable[Loaded], batch_size: int, keep_frames: bool) -> Iterator[Scored]:
    waiting: deque[tuple[int, Scored]] = deque()  # number of clips, and all but their scores

    def clips() -> Iterator[Tensor]:
        for item in loaded:
            views = item.views
            if views is None:
                waiting.append((0, Scored(item.segment.index, None, item.error)))
                continue
            frames = views.middle() if keep_frames else None
            scored = Scored(item.segment.index, None, item.error, round(views.duration, 6), frames)
            waiting.append((len(views.times), scored))
            yield views.to(scorer.device).clips

    rows = np.empty((0, 0), dtype=np.float32)
    for new in _scores(scorer, _batches(clips(), batch_size)):
        rows = np.concatenate([rows, new]) if len(rows) else new
        while waiting and waiting[0][0] <= len(rows):
            count, scored = waiting.popleft()
            yield replace(scored, scores=rows[:count].mean(axis=0)) if count else scored
            rows = rows[count:]
    for _, scored in waiting:  # nothing of these could be read
        yield scored


def _scores(scorer: Scorer, batches: Iterable[Tensor]) -> Iterator[NDArray[np.float32]]:
    """float32 [B, K] of each batch; a batch is waited for when the next one is under way."""
    running: Tensor | None = None
    for batch in batches:
        launched = scorer(batch)
        if running is not None:
            yield running.cpu().numpy()
        running = launched
    if running is not None:
        yield running.cpu().numpy()


def _batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same clips, ``size`` at a time; the last batch may be smaller."""
    rest: list[Tensor] = []
    for part in parts:
        rest.append(part)
        if sum(map(len, rest)) >= size:
            *whole, last = torch.cat(rest).split(size)
            yield from whole
            rest = [last]
    if rest:
        yield torch.cat(rest)
