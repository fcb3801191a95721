"""A recipe for one's own videos, from how many there are. Every choice here is ours."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import BUILT_IN, KINETICS, from_pretrained, list_models
from hiera_video.spec import FINETUNE
from hiera_video.tasks.train.data import ReadBefore, lists_of
from hiera_video.training.recipe import Data, FinetuneModel, Finetuning, Loss, Optim, Run
from hiera_video.training.recipe_file import load_recipe

#: Names of classes that are not the same in a mirror.
DIRECTIONS = re.compile(r"(?<![a-z])(left|right|leftwards?|rightwards?|(counter|anti)?-?clockwise|cw|ccw)(?![a-z])")


@dataclass(frozen=True)
class Defaults:
    """What a number of videos suggests: of the rows that it is ``below``, the first.

    ``lr`` is for 256 clips a step; ``mixing``: alphas of MixUp and CutMix, where classes and batch allow them.
    """

    below: float
    passes: int
    repeats: int
    lr: float
    drop_path_rate: float
    head_dropout: float
    mixing: tuple[float, float]


TABLE = (
    Defaults(200, 10, 1, 1e-3, 0.0, 0.0, (0.0, 0.0)),  # after a linear head on features: the last stage alone
    Defaults(2_000, 30, 2, 5e-4, 0.1, 0.5, (0.2, 0.0)),
    Defaults(20_000, 40, 2, 5e-4, 0.2, 0.5, (0.8, 1.0)),
    Defaults(100_000, 25, 2, 4e-4, 0.2, 0.3, (0.8, 1.0)),
    Defaults(float("inf"), 75, 2, 8e-4, 0.2, 0.3, (0.8, 1.0)),  # Hiera Tab 11b, B
)


def own_recipe(changes: Mapping[str, str]) -> Finetuning:
    """The recipe for one's own videos. The run's log says which model it takes and why, and what else was chosen.

    Args:
        changes: Fields by dotted name, as text: ``data.train`` and, where there are any, ``data.val`` name the videos;
            the rest changes what is chosen here.

    Returns:
        A recipe for :func:`~hiera_video.finetune`, which does not read the lists and the weights again.

    Raises:
        RequestError: There are no videos, or a value is wrong.
        WeightsError: The starting model cannot be had.
    """
    if "data.train" not in changes:
        raise RequestError(
            "nothing to learn from: name your videos (--train FOLDER --val FOLDER) or a recipe (--config)"
        )
    start, why = changes.get("model.start"), "as asked"
    if start is None:
        start, why = (KINETICS, "the best start for small sets that a GPU trains well")
        if not torch.cuda.is_available():
            start, why = BUILT_IN, f"there is no GPU here, and it is small; with one, or with patience, take {KINETICS}"
    stub = {name: value for name, value in changes.items() if name.startswith("data.")}
    blank = Finetuning(
        model=FinetuneModel(start=start),
        optim=Optim(lr=1.0, lr_videos=1),
        run=Run(duration="1pass", videos_per_step=1, batch_size=1),
    )
    data = load_recipe(Finetuning, base=blank, changes=stub).data
    lists = lists_of(data)
    videos = lists.train
    assert videos is not None
    model = None if start in list_models() else from_pretrained(start)
    stride = data.frame_stride or _shorter_stride(videos, model)
    base = _by_size(blank, videos, replace(data, frame_stride=stride), model)
    recipe = load_recipe(Finetuning, base=base, changes=changes)
    duration = recipe.run.duration
    if recipe.model.fit_head:
        duration += ", of the last stage alone, after a linear head on features"
    notes = [
        f"{len(videos)} videos of {len(videos.classes)} classes. Model: {start} ({why}). Duration {duration}, flip "
        f"{recipe.augment.flip:g}"
    ]
    if stride != data.frame_stride and model is not None:
        notes.append(
            f"most videos are shorter than the model's clip of {model.spec.span:.2f} s: frame_stride {stride:g}"
        )
    if lists.val is None:
        notes.append("there is no --val: the last weights are kept, and nothing tells how good they are")
    vars(recipe)["_read"] = ReadBefore(lists, model, notes)  # no field: it is of this object, not of its values
    return recipe


def _by_size(blank: Finetuning, videos: VideoList, data: Data, model: Hiera | None) -> Finetuning:
    row = next(row for row in TABLE if len(videos) < row.below)
    few = row is TABLE[0]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    clips = 16 if few else 64
    batch_size = max(1, min(8 // row.repeats, clips // row.repeats // world, len(videos) // world))
    at_once = batch_size * world
    videos_per_step = at_once * max(1, min(clips // row.repeats, len(videos)) // at_once)
    mixes = len(videos.classes) >= 10 and batch_size * row.repeats >= 8
    mixup, cutmix = row.mixing if mixes else (0.0, 0.0)
    directed = any(DIRECTIONS.search(name.lower().replace("_", " ")) for name in videos.classes)
    augment = replace(FINETUNE, flip=0.0) if directed else FINETUNE
    if few:
        augment = replace(augment, crop_area=(0.5, 1.0), num_ops=0, erasing=0.0)
    return replace(
        blank,
        data=replace(data, repeats=row.repeats),
        augment=augment,
        model=replace(
            blank.model,
            drop_path_rate=row.drop_path_rate,
            head_dropout=row.head_dropout,
            freeze_stages=len(model.arch.stages) - 1 if few and model is not None else 0,
            fit_head=few and model is not None,  # features of new weights say nothing
        ),
        loss=Loss(label_smoothing=0.1, mixup=mixup, cutmix=cutmix),
        optim=Optim(
            lr=row.lr,
            lr_videos=256 // row.repeats,
            layer_decay=0.875 if re.search("large|huge", blank.model.start) else 0.8,
            warmup="10%",
            end_lr=1e-6,
            clip_norm=5.0,
        ),
        run=Run(
            duration=f"{row.passes}pass",
            videos_per_step=videos_per_step,
            batch_size=batch_size,
            save_every="10%",
            evaluate_every="10%",
        ),
    )


def _shorter_stride(videos: VideoList, model: Hiera | None) -> float | None:
    """Half the model's stride where most videos are shorter than its clip (HMDB51's are); None: the model's own."""
    spans = []
    for index in np.unique(np.linspace(0, len(videos) - 1, 20).astype(int)).tolist():
        try:
            with open_video(videos.path(index)) as video:
                spans.append(min(video.duration, float(videos.ends[index])) - float(videos.starts[index]))
        except UnreadableVideo:
            continue
    if not spans or model is None or median(spans) >= model.spec.span:
        return None
    return model.spec.frame_stride / 2
