"""Why an answer: where and when in a video the evidence for a label lies, as arrays, a picture or a film."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from hiera_video.data.memory import Input
from hiera_video.data.reading.child_process import IsolatedReader, isolated_reader
from hiera_video.data.reading.files import find_inputs
from hiera_video.data.views import Loaded, Segment, Views, load_segment
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.models.evidence import METHODS, Method, token_evidence
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import Prediction, VideoClassifier, best_classes, score_clips
from hiera_video.tasks.records import Results
from hiera_video.visual.evidence import EvidenceRow, draw_evidence, write_evidence
from hiera_video.visual.strips import MAX_ROWS

log = logging.getLogger("hiera_video")


@dataclass(frozen=True)
class Explanation:
    """Where and when in one clip of an input the evidence for a label lies."""

    label: str
    """The class that is explained."""
    index: int
    """Its number among the model's classes."""
    score: float
    """Its score from 0 to 1, averaged over the views."""
    logit: float
    """Its logit in the clip that is shown, the one of the views in which its score is highest."""
    method: str
    """"shares", "head_shares", "gradcam" or "rollout"."""
    evidence: NDArray[np.float32]
    """float32 ``[T', H', W']`` (of an image model ``[H', W']``): a value for each cell of the clip's evenly divided
    time, height and width. Shares add up to the logit."""
    frames: NDArray[np.uint8]
    """uint8 ``[T, h, w, 3]``: what the model sees of the clip, at the file's own resolution (of an image one frame)."""
    times: NDArray[np.float64]
    """float64 ``[T]``: the seconds at which its frames are shown; of an image zeros."""

    def over_frames(self) -> NDArray[np.float32]:
        """The evidence, interpolated to every pixel.

        Returns:
            float32 ``[T, h, w]``.
        """
        cells = torch.from_numpy(self.evidence)
        cells = cells[None] if cells.ndim == 2 else cells
        smooth = F.interpolate(cells[None, None], size=self.frames.shape[:3], mode="trilinear")
        pixels: NDArray[np.float32] = smooth[0, 0].numpy()
        return pixels


def explain(
    classifier: VideoClassifier,
    source: Input,
    *,
    label: str | None = None,
    by: Method = "shares",
    views: str | None = None,
    fps: float | None = None,
) -> Explanation:
    """Says where and when in a video or image the evidence for a label lies.

    Args:
        classifier: What answered.
        source: As :class:`hiera_video.VideoClassifier` takes.
        label: The class. Default: the best one.
        by: How (:func:`hiera_video.token_evidence`).
        views: "clips x crops" that are scored; that clip is explained in which the class's score is highest.
        fps: Frames a second of frames, pictures, or a folder of pictures.

    Returns:
        The evidence, with the frames that it lies in.

    Raises:
        UnreadableVideo: Where nothing of it can be read.
        RequestError: The model has no such class, or there is no such method.
    """
    index = class_index(classifier, label)
    with isolated_reader(time_limit=60) or nullcontext() as reader:
        loaded = _loaded(classifier, Segment(source, 0), reader, views, fps)
    if loaded.views is None:
        raise UnreadableVideo(loaded.error)
    return explain_views(classifier, loaded.views, score_clips(classifier.scorer, loaded.views.clips), index, by)


def class_index(classifier: VideoClassifier, label: str | None) -> int | None:
    """The number of a class.

    Args:
        classifier: Whose classes.
        label: Its name; None: none.

    Returns:
        The number, or None.

    Raises:
        RequestError: There is no such class; the nearest is named.
    """
    if label is None or label in classifier.labels:
        return None if label is None else classifier.labels.index(label)
    nearest = difflib.get_close_matches(label, classifier.labels, n=1, cutoff=0.0)[0]
    raise RequestError(f"the model has no class {label!r}; its nearest is {nearest!r}")


def _loaded(
    classifier: VideoClassifier, segment: Segment, reader: IsolatedReader | None, views: str | None, fps: float | None
) -> Loaded:
    num_clips, num_crops = parse_views(views or classifier.model.views)
    how: dict[str, Any] = {"num_clips": num_clips, "num_crops": num_crops, "fps": fps, "num_threads": 0}
    return load_segment(segment, reader, spec=classifier.model.spec, **how, keep_pictures="all")


def explain_views(
    classifier: VideoClassifier,
    views: Views,
    scores: NDArray[np.float32],
    index: int | None = None,
    by: Method = "shares",
) -> Explanation:
    """The evidence for a class in that clip of an input in which its score is highest.

    Args:
        classifier: What answered.
        views: The input's views, with the pictures of all clips; of several crops of a clip the middle one is shown.
        scores: Of each view, float32 ``[V, K]``.
        index: The class. Default: the best one.
        by: How.

    Returns:
        The evidence.

    Raises:
        RequestError: There is no such method.
    """
    means, num_crops = scores.mean(axis=0), len(views.corners)
    index = int(means.argmax()) if index is None else index
    clip = int(scores[num_crops // 2 :: num_crops, index].argmax())
    view, spec = clip * num_crops + num_crops // 2, classifier.model.spec
    pixels = spec.model_input(spec.normalize(views.clip(view)[None].to(classifier.device)))
    found, frames = token_evidence(classifier.model, pixels, index, by), views.shown(clip)
    evidence: NDArray[np.float32] = found.maps[0].cpu().numpy()
    which = classifier.labels[index], index, float(means[index]), float(found.logits[0])
    return Explanation(*which, found.method, evidence, frames, views.times[view][: len(frames)])


def explained(
    classifier: VideoClassifier,
    inputs: list[str],
    target: Path,
    *,
    label: str | None,
    by: Method,
    top_k: int,
    views: str | None,
    keep_frames: bool,
) -> Results[Prediction]:
    """Classifies inputs and shows why: a picture with a row for each of them, or a film of one.

    Args:
        classifier: What answers.
        inputs: As :func:`hiera_video.classify` takes.
        target: A .png, or for one input an .mp4.
        label: The class to explain. Default: of each input its best.
        by: How.
        top_k: How many classes to name.
        views: "clips x crops" that scores are averaged over.
        keep_frames: Whether to give the frames of the middle clip too.

    Returns:
        The answers; the file is written behind the last.

    Raises:
        RequestError: The model has no such class, or there is no such method.
    """
    index = class_index(classifier, label)
    files = find_inputs(inputs)

    def answers() -> Iterator[Prediction]:
        rows: list[EvidenceRow] = []
        with isolated_reader(time_limit=60) or nullcontext() as reader:
            for source, error in files:
                loaded = _loaded(classifier, Segment(source, 0, error=error), reader, views, None)
                if loaded.views is None:
                    yield Prediction(source, None, [], loaded.error)
                    continue
                scores = score_clips(classifier.scorer, loaded.views.clips)
                if len(rows) < MAX_ROWS:
                    why = explain_views(classifier, loaded.views, scores, index, by)
                    title = f"{Path(source).name}: {why.label} {why.score:.0%}"
                    rows.append(EvidenceRow(title, why.frames, why.over_frames(), why.times))
                best = best_classes(scores.mean(axis=0), classifier.labels, top_k)
                frames = loaded.views.shown(len(loaded.views.rows) // 2) if keep_frames else None
                yield Prediction(source, round(loaded.views.duration, 6), best, loaded.error, frames)
        if not rows:
            return
        if target.suffix == ".mp4":
            write_evidence(rows[0], target)
        else:
            draw_evidence(rows, target, METHODS[by])
        log.info("%s shows where the evidence lies: %s", target, METHODS[by])

    return Results(len(files), answers())
