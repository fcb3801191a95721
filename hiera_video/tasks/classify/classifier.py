"""From files to scores, the one way of classify, the page, evaluate and fine-tuning's validation; and VideoClassifier.

load_ahead(segments) has threads and their children read and decode; score_views(scorer, loaded) takes batches of clips
of several inputs, one batch under way, and gives each input's scores in order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiera_video.data.memory import Input, input_name
from hiera_video.data.reading.child_process import IsolatedReader, isolated_reader
from hiera_video.data.reading.files import find_inputs
from hiera_video.data.views import Loaded, Segment, load_ahead, load_segment
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.models.hiera import WITHOUT_CLASSES, Hiera
from hiera_video.models.masks import moved
from hiera_video.models.zoo import BUILT_IN, from_pretrained
from hiera_video.spec import ClipSpec, parse_views
from hiera_video.tasks.records import Results
from hiera_video.training.devices import (
    Precision,
    in_batches,
    in_lanes,
    lane_size,
    pick_device,
    pick_precision,
    refuse_name,
    width_of,
)


@dataclass(frozen=True)
class Scored:
    """The scores of one input.

    ``index`` is its number; ``scores`` float32 [K], the mean over its views, or None where nothing could be
    read; ``error``: None, or one sentence about what could not be read; ``duration`` in seconds, 0 for an image, None
    where nothing could be read; ``frames`` uint8 [T, h, w, 3]: the ``pictures`` of its views, where they have them.
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
    a clip may have any number of classes. ``run``: the model compiled, or None.
    """

    model: nn.Module
    spec: ClipSpec
    device: torch.device
    dtype: torch.dtype
    multi_label: bool = False
    run: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> Tensor:
        """uint8 [B, C, T, h, w] -> scores float32 [B, K] on the device."""
        clip = self.spec.model_input(self.spec.normalize(moved(clips, self.device)))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = (self.run or self.model)(clip)
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


def score_views(scorer: Scorer, loaded: Iterable[Loaded], *, batch_size: int = 8) -> Iterator[Scored]:
    """The scores of each input, the mean over its views; nothing is left out or replaced.

    The model is in evaluation mode meanwhile, and afterwards in the mode that it had.

    Args:
        scorer: The model.
        loaded: Inputs with their views, such as :func:`hiera_video.data.views.load_ahead` yields.
        batch_size: Clips, of several inputs, that go through the model at once.

    Yields:
        One :class:`Scored` for each input, in their order, as soon as the last of its clips is through.
    """
    modes = [(module, module.training) for module in scorer.model.modules()]
    scorer.model.eval()
    try:
        yield from _stream(scorer, loaded, batch_size)
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
    return np.concatenate(list(_scores(scorer, clips.split(lane_size(batch_size, scorer.device, scorer.spec)))))


def _stream(scorer: Scorer, loaded: Iterable[Loaded], batch_size: int) -> Iterator[Scored]:
    waiting: deque[tuple[int, Scored]] = deque()  # number of clips, and all but their scores

    def clips() -> Iterator[Tensor]:
        for item in loaded:
            views = item.views
            if views is None:
                waiting.append((0, Scored(item.segment.index, None, item.error)))
                continue
            frames = None if views.pictures is None else views.shown(len(views.rows) // 2)
            scored = Scored(item.segment.index, None, item.error, round(views.duration, 6), frames)
            waiting.append((len(views.times), scored))
            yield views.to(scorer.device).clips

    rows = np.empty((0, 0), dtype=np.float32)
    for new in _scores(scorer, in_batches(clips(), lane_size(batch_size, scorer.device, scorer.spec))):
        rows = np.concatenate([rows, new]) if len(rows) else new
        while waiting and waiting[0][0] <= len(rows):
            count, scored = waiting.popleft()
            yield replace(scored, scores=rows[:count].mean(axis=0)) if count else scored
            rows = rows[count:]
    for _, scored in waiting:  # nothing of these could be read
        yield scored


def _scores(scorer: Scorer, batches: Iterable[Tensor]) -> Iterator[NDArray[np.float32]]:
    """float32 [B, K] of each batch; while one is waited for or put together, the other computes."""
    return in_lanes(lambda batch: scorer(batch).cpu().numpy(), batches)


@dataclass(frozen=True)
class Score:
    """One class and its score from 0 to 1, averaged over the views: softmax, or sigmoid of a multi-label model."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one input: the best classes first, or an ``error``, or both where only a part was read."""

    input: str
    """The path or address, or what stands for an input in memory, such as ``<16 frames>``."""
    duration: float | None
    """Seconds; 0 for an image, None where nothing could be read."""
    predictions: list[Score]
    """The best classes first."""
    error: str | None = None
    """One sentence about what could not be read."""
    frames: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """uint8 ``[T, H, W, 3]``, kept only where a picture is asked for: what the model sees of the middle clip (an image
    has one frame), at the input's own resolution, the short side at most 288 pixels."""

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON.

        Returns:
            ``{"input", "duration", "predictions": [{"label", "index", "score"}], "error"}``.
        """
        scores = [vars(score) for score in self.predictions]
        return {"input": self.input, **self._when(), "predictions": scores, "error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """The form for tables.

        Returns:
            A flat row per class; one row with the error where there is no class.
        """
        shared = {"input": self.input, **self._when()}
        rows = [shared | {"rank": rank} | vars(score) for rank, score in enumerate(self.predictions, start=1)]
        empty = shared | {"rank": None, "label": None, "index": None, "score": None}
        return [row | {"error": self.error} for row in rows or [empty]]

    def text(self) -> str:
        """The form for people.

        Returns:
            A line with the input and, where it has one, its duration; then one for each class, or the error.
        """
        length = f"  ({self.duration:.2f} s)" if self.duration else ""
        error = [f"  error: {self.error}"] if self.error else []
        return "\n".join([self.input + length, *self._scored(), *error])

    def _when(self) -> dict[str, float | None]:
        return {"duration": self.duration}

    def _scored(self) -> list[str]:
        return [f"  {score.score:6.1%}  {score.label}" for score in self.predictions]


def best_classes(scores: NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[Score]:
    """The classes with the highest scores.

    Args:
        scores: float32 [K].
        labels: The names of the K classes.
        top_k: How many to name, at most K.

    Returns:
        The best first; of equal ones that with the lower number.
    """
    best = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return [Score(labels[index], index, float(scores[index])) for index in best]


class VideoClassifier:
    """A classifier that takes files, bytes, open files and frames.

    Args:
        model: The classifier; it is moved, and set to evaluation mode.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto (bf16 on a GPU that has it, and on a CPU that is faster in it, else fp32), fp32, bf16 or fp16.

    Raises:
        RequestError: For a device or precision that is not there, and a name in place of a model.

    >>> classifier = VideoClassifier.from_pretrained()  # doctest: +SKIP
    >>> classifier("clip.mp4").predictions[0].label  # doctest: +SKIP
    'pan_left'
    """

    def __init__(self, model: Hiera, *, device: str = "auto", precision: Precision = "auto") -> None:
        refuse_name(model, "VideoClassifier")
        if not model.arch.num_classes:
            raise RequestError(WITHOUT_CLASSES)
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.precision = pick_precision(precision, self.device, width=width_of(model.arch.dims))
        self.labels = model.labels or [f"class_{index}" for index in range(model.arch.num_classes)]
        self._idle: list[IsolatedReader] = []  # between two calls: starting a child takes as long as reading a clip

    @classmethod
    def from_pretrained(
        cls, model: str | Path = BUILT_IN, *, device: str = "auto", precision: Precision = "auto", **kwargs: Any
    ) -> VideoClassifier:
        """Load a model.

        Args:
            model: A name, path or hub id, as :func:`hiera_video.from_pretrained` reads.
            device: As for the class, like precision.
            precision: fp32, bf16, fp16 or auto.
            kwargs: The other arguments of :func:`hiera_video.from_pretrained`.

        Returns:
            The classifier.

        Raises:
            RequestError: For an unknown model, and as for the class.
            WeightsError: Where the weights cannot be had or do not fit.
        """
        return cls(from_pretrained(model, **kwargs), device=device, precision=precision)

    @property
    def scorer(self) -> Scorer:
        """The model with all that makes scores of clips."""
        return Scorer(self.model, self.model.spec, self.device, self.precision, self.model.multi_label)

    def __call__(
        self, source: Input, *, top_k: int = 5, views: str | None = None, fps: float | None = None
    ) -> Prediction:
        """Classify one input.

        Args:
            source: A video or image file, an http(s) address, bytes, an open binary file, frames uint8 [T, H, W, 3] (a
                tensor may be [T, 3, H, W] too), or a list of PIL pictures.
            top_k: How many classes to name.
            views: "clips x crops" that scores are averaged over, such as "5x3"; default: the model's own.
            fps: Frames a second of frames, pictures, or a folder of pictures.

        Returns:
            The best classes first; ``error`` is set where only a part could be read.

        Raises:
            UnreadableVideo: Where nothing of it can be read.
            RequestError: For options that mean nothing, an input of another kind, or frames without ``fps``.
        """
        num_clips, num_crops = self._check(top_k, views)
        reader = self._idle.pop() if self._idle else isolated_reader(time_limit=60)
        how: dict[str, Any] = {"num_clips": num_clips, "num_crops": num_crops, "fps": fps, "num_threads": 0}
        loaded = load_segment(Segment(source, 0), reader, spec=self.model.spec, **how)
        self._idle += [reader] if reader else []  # after an exception it may be in the middle of an answer
        (scored,) = score_views(self.scorer, [loaded])
        if scored.scores is None:
            raise UnreadableVideo(scored.error)
        return self._prediction(source, scored, top_k)

    def stream(
        self,
        inputs: Sequence[Input],
        *,
        top_k: int = 5,
        views: str | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        keep_frames: bool = False,
        fps: float | None = None,
    ) -> Results[Prediction]:
        """Classify many inputs; what cannot be read is answered by its ``error``.

        Args:
            inputs: Files, folders, globs and http(s) addresses, and all else that a call takes.
            top_k: How many classes to name.
            views: "clips x crops" that scores are averaged over, such as "5x3"; default: the model's own.
            batch_size: Clips, of several inputs, that go through the model at once.
            num_workers: Threads that read ahead, each with a child process that decodes.
            keep_frames: Whether to give the frames of each input's middle clip too.
            fps: Frames a second of frames, pictures, or folders of pictures.

        Returns:
            The answers in the order of the inputs, each computed when it is asked for.

        Raises:
            RequestError: For options that mean nothing.
        """
        num_clips, num_crops = self._check(top_k, views)
        if batch_size < 1:
            raise RequestError(f"batch_size is {batch_size}, but is at least 1")
        files: list[tuple[Input, str | None]] = []
        for source in inputs:
            is_path = isinstance(source, (str, os.PathLike))
            files += find_inputs([os.fspath(source)]) if is_path else [(source, None)]  # type: ignore[arg-type]
        num_threads = max(1, (os.cpu_count() or 1) // max(1, min(num_workers, len(files))))
        how: dict[str, Any] = {"num_workers": num_workers, "num_threads": num_threads, "fps": fps}
        how["keep_pictures"] = "middle" if keep_frames else "none"
        segments = (Segment(source, index, error=error) for index, (source, error) in enumerate(files))
        loaded = load_ahead(segments, self.model.spec, num_clips, num_crops, **how)
        scored = score_views(self.scorer, loaded, batch_size=batch_size)
        return Results(len(files), (self._prediction(files[item.index][0], item, top_k) for item in scored))

    def scores(self, clips: Tensor, batch_size: int = 8) -> Tensor:
        """The scores of clips.

        Args:
            clips: uint8 ``[N, C, T, H, W]``.
            batch_size: Clips that go through the model at once.

        Returns:
            float32 ``[N, num_classes]`` on the CPU: softmax, or sigmoid of a multi-label model.
        """
        return torch.from_numpy(score_clips(self.scorer, clips, batch_size))

    def _check(self, top_k: int, views: str | None) -> tuple[int, int]:
        """Clips and crops. Raises :class:`RequestError`."""
        if top_k < 1:
            raise RequestError(f"top_k is {top_k}, but is at least 1")
        return parse_views(views or self.model.views)

    def _prediction(self, source: Input, scored: Scored, top_k: int) -> Prediction:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else input_name(source)
        best = [] if scored.scores is None else best_classes(scored.scores, self.labels, top_k)
        return Prediction(name, scored.duration, best, scored.error, scored.frames)
