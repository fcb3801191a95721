"""A head in closed form: features of the training videos once, judged by cross-validation, then fitted to all of them.

features_of: videos -> what the head sees of each clip (head_views, seen_in); fit_head: that -> a linear layer, and the
scores that videos get from heads which were fitted without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from hiera_video.data.dataset import Problem
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.sampling import sampler_of
from hiera_video.data.views import test_views
from hiera_video.errors import UnreadableVideo
from hiera_video.models.hiera import Hiera
from hiera_video.tasks.classify.classifier import Scored, scores_of
from hiera_video.tasks.evaluate.metrics import Scores, put_together
from hiera_video.tasks.features.linear_layer import Layer, solve, temperature_of
from hiera_video.tasks.features.recordings import recordings
from hiera_video.training.devices import in_lanes
from hiera_video.training.recipe import Finetuning

#: Clips of a video that features are computed of, one crop each, and the most parts of the cross-validation. Ours.
NUM_CLIPS, FOLDS = 3, 5


@dataclass(frozen=True)
class Features:
    """What the head sees of clips: ``values`` float32 [N, C] of the videos ``index`` int64 [N], ascending; ``mirrored``
    bool [N]; ``problems``: the videos that could not be read, or only in part.
    """

    values: Tensor
    index: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    problems: list[Problem]


@dataclass(frozen=True)
class FittedHead:
    """What fitting came to.

    ``scores`` of each readable video by a head that was fitted without its recording; none where a class is of one
    recording alone, so that there is nothing to judge by. ``recording`` of each readable video by its index.
    ``problems``: the videos that could not be read, or only in part.
    """

    scores: Scores
    recording: dict[int, int]
    problems: list[Problem]


def features_of(model: Hiera, videos: VideoList, recipe: Finetuning, accelerator: Accelerator) -> Features:
    """What the model's head sees of clips spread over each video and, where the recipe mirrors clips, of their mirrors.

    Args:
        model: On the accelerator's device, in evaluation mode.
        videos: The training list. The processes share it.
        recipe: Gives the reading of files, and ``augment.flip``.
        accelerator: The run's processes.

    Returns:
        The features; in each process all.

    Raises:
        UnreadableVideo: No video can be read.
    """
    indices = list(range(accelerator.process_index, len(videos), accelerator.num_processes))
    answers = head_views(model, videos, indices, recipe, accelerator)
    mine: list[tuple[int, bool, Tensor]] = []
    bad: list[Problem] = []
    silent = None if accelerator.is_main_process else True
    bar = tqdm(answers, total=len(indices), unit="video", desc="features for the head", disable=silent)
    for rows in in_lanes(partial(seen_in, model, recipe, accelerator), _told(bar, bad)):
        mine += rows
    every: list[tuple[int, bool, Tensor]] = gather_object(mine)
    if not every:
        raise UnreadableVideo(f"none of {len(videos)} videos can be read, the first of them {videos.path(0)}")
    every.sort(key=lambda row: row[:2])
    numbers, mirrors = np.array([row[0] for row in every]), np.array([row[1] for row in every])
    return Features(torch.stack([row[2] for row in every]), numbers, mirrors, gather_object(bad))


def head_views(
    model: Hiera, videos: VideoList, indices: Iterable[int], recipe: Finetuning, accelerator: Accelerator
) -> Iterator[dict[str, Any]]:
    """The clips that features are computed of.

    Args:
        model: Gives the input facts.
        videos: The training list.
        indices: Numbers of the videos to read.
        recipe: Gives the reading of files.
        accelerator: Gives the device.

    Returns:
        What :func:`hiera_video.data.views.test_views` yields.
    """
    data = recipe.data
    return test_views(
        videos,
        model.spec,
        NUM_CLIPS,
        1,
        sample=sampler_of(data.sampling, model.spec),
        fps=data.fps,
        num_workers=data.num_workers,
        device=accelerator.device,
        time_limit=data.time_limit,
        indices=indices,
    )


@torch.no_grad()
def seen_in(
    model: Hiera, recipe: Finetuning, accelerator: Accelerator, answer: dict[str, Any]
) -> list[tuple[int, bool, Tensor]]:
    """What the model's head sees of the clips of one video.

    Args:
        model: On the accelerator's device, in evaluation mode.
        recipe: Gives ``augment.flip``.
        accelerator: Gives the precision.
        answer: Of :func:`head_views`.

    Returns:
        For each clip, and each mirrored one, the video's number, whether it is mirrored, and float32 [C].
    """
    if answer["clips"] is None:
        return []
    clips = model.spec.model_input(model.spec.normalize(answer["clips"]))
    rows: list[tuple[int, bool, Tensor]] = []
    for mirrored in (False, True) if recipe.augment.flip else (False,):
        with accelerator.autocast():
            seen = model.embedding(clips.flip(-1) if mirrored else clips)
        rows += [(answer["index"], mirrored, row) for row in seen.float().cpu()]
    return rows


def _told(answers: Iterable[dict[str, Any]], bad: list[Problem]) -> Iterator[dict[str, Any]]:
    """The same answers; what could not be read, or only in part, is added to ``bad``."""
    for answer in answers:
        if answer["error"] is not None:
            bad.append(Problem(answer["path"], answer["error"], replaced=answer["clips"] is None))
        yield answer


def fit_head(
    model: Hiera,
    videos: VideoList,
    recipe: Finetuning,
    accelerator: Accelerator,
    recording: dict[int, int] | None = None,
) -> FittedHead:
    """Fits the linear layer of a model's head, in place, to features that are computed once.

    It is a linear discriminant analysis with shrinkage (Ledoit and Wolf 2004), in which every class counts alike; where
    videos have several labels, a logistic regression for each class. A head that knows these very classes already
    (``new_head`` is off) is moved from where it is, and no further than the videos ask. What is one recording
    (:func:`recordings`) is learned from or judged, never both. The same head comes out in every process.

    Args:
        model: Moved to the accelerator's device, in evaluation mode.
        videos: The training list.
        recipe: As in :func:`features_of`.
        accelerator: The run's processes.
        recording: The recording of each video by its index, where it is known. Default: its file and, where the head
            sees statistics, which are alike for copies alone, what is like it.

    Returns:
        The scores of cross-validation, the recordings, and what could not be read.

    Raises:
        UnreadableVideo: No video can be read.
    """
    model.to(accelerator.device).eval()
    features = features_of(model, videos, recipe, accelerator)
    if recording is None:
        recording = _recordings(features, videos, model.arch.head == "stages")
    head = model.head.projection
    assert isinstance(head, nn.Linear)
    known = None if model.new_head else (head.weight.detach().float().cpu(), head.bias.detach().float().cpu())
    weight, bias, scores = _fitted(features, videos, recording, known)
    model.new_head = False
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return FittedHead(scores, recording, features.problems)


def _recordings(features: Features, videos: VideoList, look: bool) -> dict[int, int]:
    """The recording of each readable video, by its index."""
    present, clip_of = np.unique(features.index, return_inverse=True)
    paths = [videos.path(index) for index in present.tolist()]
    numbers = np.unique(np.asarray(paths), return_inverse=True)[1]
    if look:
        plain = ~features.mirrored
        sums = np.zeros((len(present), features.values.shape[1]))
        np.add.at(sums, clip_of[plain], features.values.numpy()[plain])
        numbers = recordings(numbers, sums / np.bincount(clip_of[plain])[:, np.newaxis])
    return dict(zip(present.tolist(), numbers.tolist(), strict=True))


def _fitted(
    features: Features, videos: VideoList, recording: dict[int, int], known: Layer | None
) -> tuple[Tensor, Tensor, Scores]:
    """The layer fitted to all videos, weight [K, C] and bias [K], and the scores of cross-validation."""
    several = videos.labels.ndim == 2
    present, clip_of = np.unique(features.index, return_inverse=True)
    labels = videos.labels[present]
    plain = features.values[torch.from_numpy(~features.mirrored)]
    of_plain = clip_of[~features.mirrored]
    # A video that only the second look at the list could read is a recording of its own.
    group = np.array([recording.get(index, -1 - index) for index in present.tolist()])
    logits = np.full((len(plain), len(videos.classes)), np.nan, dtype=np.float32)
    for learned, judged in _splits(labels, group):
        rows = np.isin(clip_of, learned)
        some, of_some = features.values[torch.from_numpy(rows)], labels[clip_of[rows]]
        weight, bias = solve(some, of_some, len(videos.classes), known)
        rows = np.isin(of_plain, judged)
        logits[rows] = F.linear(plain[torch.from_numpy(rows)], weight, bias).numpy()
    weight, bias = solve(features.values, labels[clip_of], len(videos.classes), known)
    judged = ~np.isnan(logits[:, 0])
    temperature = 1.0
    if judged.any() and not several:
        temperature = temperature_of(torch.from_numpy(logits[judged]), torch.from_numpy(labels[of_plain[judged]]))
    values = scores_of(torch.from_numpy(logits / temperature), multi_label=several).numpy()
    scored = [
        Scored(int(index), values[of_plain == row].mean(axis=0), None)
        for row, index in enumerate(present)
        if judged[of_plain == row].all()
    ]
    return weight / temperature, bias / temperature, put_together(scored, len(videos.classes))


#: Rows to learn from, rows to judge.
Split: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]


def _splits(labels: NDArray[np.generic], groups: NDArray[np.int64]) -> list[Split]:
    """Videos to learn from and to judge, several times; none where a class lies in one recording alone."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if labels.ndim == 2:
        parts = min(FOLDS, len(np.unique(groups)))
        return list(GroupKFold(parts).split(labels, groups=groups)) if parts > 1 else []
    fewest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if fewest < 2:
        return []
    return list(StratifiedGroupKFold(min(FOLDS, fewest)).split(labels, labels, groups))
