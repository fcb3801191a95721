"""A recipe for one's own videos, from how many there are. Every choice here is ours: docs/results/own_videos.md."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from hiera_video.data.camera_motion.generator import LABELS
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import BUILT_IN, GENERAL, KINETICS, from_pretrained, list_models
from hiera_video.spec import FINETUNE, Augment
from hiera_video.tasks.features.extractor import FRAMES, SIDE, STEP_S, STRIDES
from hiera_video.tasks.train.classifier import best_figure
from hiera_video.tasks.train.data import Lists, ReadBefore, lists_of
from hiera_video.tasks.train.report import class_lines
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
    Defaults(200, 10, 1, 1e-3, 0.0, 0.0, (0.0, 0.0)),  # after a fitted head: the last stage alone
    Defaults(2_000, 30, 2, 5e-4, 0.1, 0.5, (0.2, 0.0)),
    Defaults(20_000, 40, 2, 5e-4, 0.2, 0.5, (0.8, 1.0)),
    Defaults(100_000, 25, 2, 4e-4, 0.2, 0.3, (0.8, 1.0)),
    Defaults(float("inf"), 75, 2, 8e-4, 0.2, 0.3, (0.8, 1.0)),  # Hiera Tab 11b, B
)

#: Where the built-in model or an MAE of its width is the start, and there are fewer videos than this, a head on the
#: statistics of stages is fitted, and nothing trained. It sees the clips of ``extract --features statistics``.
FITTED_BELOW = 2_000
#: The share of files that a run which trains is judged on where there is no --val.
HOLD_OUT = 0.1
#: Channels of the first stage of a model that counts as small.
NARROW = 64


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
    stub = {name: value for name, value in changes.items() if name.startswith("data.")}
    blank = Finetuning(
        model=FinetuneModel(start=changes.get("model.start", GENERAL)),
        optim=Optim(lr=1.0, lr_videos=1),
        run=Run(duration="1pass", videos_per_step=1, batch_size=1),
    )
    data = load_recipe(Finetuning, base=blank, changes=stub).data
    lists = lists_of(data)
    videos = lists.train
    assert videos is not None
    start, why = _start(changes, videos)
    blank = replace(blank, model=replace(blank.model, start=start))
    model = None if start in list_models() else from_pretrained(start)
    seconds, fps = _look(videos)
    if model is not None and len(videos) < FITTED_BELOW and _takes_stages(model, changes):
        base = _fitted_head(blank, videos, data, fps)
    else:
        if lists.val is None and "data.hold_out" not in changes:
            data = replace(data, hold_out=HOLD_OUT)
            lists = lists_of(data)
            videos = lists.train
            assert videos is not None
        shorter = model is not None and seconds < model.spec.span  # most of HMDB51's videos are
        stride = model.spec.frame_stride / 2 if model is not None and shorter else None
        base = _by_size(blank, videos, replace(data, frame_stride=data.frame_stride or stride), model)
        if changes.get("model.head") == "attentive":  # it has no closed form
            base = replace(base, model=replace(base.model, fit_head=False))
    if (videos.labels >= 0).all() and best_figure(videos) == "macro":
        base = replace(base, loss=replace(base.loss, class_weights="balanced"))
    recipe = load_recipe(Finetuning, base=base, changes=changes)
    notes = [f"{len(videos)} videos of {len(videos.classes)} classes. Model: {start} ({why})"]
    notes += _notes(recipe, lists, data)
    vars(recipe)["_read"] = ReadBefore(lists, model, notes)  # no field: it is of this object, not of its values
    return recipe


def _start(changes: Mapping[str, str], videos: VideoList) -> tuple[str, str]:
    """The starting model, and why it is that."""
    if "model.start" in changes:
        return changes["model.start"], "as asked"
    if torch.cuda.is_available():
        return KINETICS, "the best start for small sets that a GPU trains well"
    if sorted(videos.classes) == sorted(LABELS):
        return BUILT_IN, "it names these very classes already"
    return GENERAL, f"there is no GPU here, and it is small; with one, or with patience, take {KINETICS}"


def _notes(recipe: Finetuning, lists: Lists, given: Data) -> list[str]:
    """The plan in words."""
    videos, model = lists.train, recipe.model
    assert videos is not None
    if fitted := model.head in ("stages", "best"):
        plan = "two heads are fitted, one on the first stages, one on the last; the better is kept, nothing is trained"
    elif model.fit_head:
        plan = f"a head is fitted in closed form, then the last stage trains for {recipe.run.duration}"
    else:
        plan = f"all of the model trains for {recipe.run.duration}"
    notes = [f"{plan}; mirrored clips: {'yes' if recipe.augment.flip else 'no, a class has a direction'}"]
    notes += class_lines(videos) if (videos.labels >= 0).all() else []
    if recipe.data.frame_stride != given.frame_stride and not fitted:
        notes.append(f"most videos are shorter than the model's clip: frame_stride {recipe.data.frame_stride:g}")
    if lists.val is None:
        without = "the head is judged by cross-validation"
        blind = "the last weights are kept, and nothing tells how good they are"
        notes.append(f"there is no --val: {without if fitted else blind}")
    elif recipe.data.val is None and recipe.data.hold_out:
        count = len(lists.val)
        notes.append(f"there is no --val: {count} videos are held out to judge by, of files that are not learned from")
    return notes


def _takes_stages(model: Hiera, changes: Mapping[str, str]) -> bool:
    """Whether a head on the statistics of stages is the start's best: it is small, and nothing asked for is against."""
    small = model.arch.embed_dim < NARROW and len(model.arch.input_size) == 3
    trained = changes.get("run.duration", "0pass") != "0pass" or "loss.teacher" in changes
    return small and not trained and changes.get("model.head") in (None, "stages", "best")


def _mirrors(videos: VideoList) -> bool:
    """Whether no class has a direction that a mirror turns round."""
    return not any(DIRECTIONS.search(name.lower().replace("_", " ")) for name in videos.classes)


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
    augment = FINETUNE if _mirrors(videos) else replace(FINETUNE, flip=0.0)
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


def _fitted_head(blank: Finetuning, videos: VideoList, data: Data, fps: float) -> Finetuning:
    # Differences in time are a part of what the head sees: steps of a whole number of frames are all alike.
    clip = replace(
        data,
        num_frames=data.num_frames or FRAMES,
        frame_stride=data.frame_stride or max(1, round(fps * STEP_S)),
        target_fps=data.target_fps or round(fps, 3),
        size=data.size or SIDE,
        views="3x1",
    )
    return replace(
        blank,
        data=clip,
        augment=Augment(crop_area=(1.0, 1.0), flip=0.5 if _mirrors(videos) else 0.0, num_ops=0, erasing=0.0),
        model=replace(blank.model, head="best", head_strides=STRIDES, fit_head=True, views="3x1"),
        run=replace(blank.run, duration="0pass"),
    )


def _look(videos: VideoList) -> tuple[float, float]:
    """Seconds and frames a second of most videos, by 20 that are spread over the list; where none opens, nan and 30."""
    seconds, rates = [], []
    for index in np.unique(np.linspace(0, len(videos) - 1, 20).astype(int)).tolist():
        try:
            with open_video(videos.path(index)) as video:
                seconds.append(min(video.duration, float(videos.ends[index])) - float(videos.starts[index]))
                rates.append(video.fps)
        except UnreadableVideo:
            continue
    return (median(seconds), median(rates)) if seconds else (float("nan"), 30.0)
