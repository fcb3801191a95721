"""Fine-tune a classifier on labelled videos: by a published recipe, or on one's own folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from hiera_video.cells import cells
from hiera_video.data.lists.video_list import VideoList
from hiera_video.models.hiera import Hiera
from hiera_video.tasks.evaluate.metrics import Scores, metrics
from hiera_video.tasks.train.classifier import ClassStep, balanced_weights, starting_classifier, train_classifier
from hiera_video.tasks.train.data import Lists, ReadBefore, check_files, clip_loader, labelled, lists_of
from hiera_video.tasks.train.fitted_head import fit_head
from hiera_video.tasks.train.generated import train_on_generated
from hiera_video.tasks.train.head_alone import head_alone, with_linear_head
from hiera_video.tasks.train.report import write_report
from hiera_video.tasks.train.teacher import TaughtStep, WithTeacher, new_heads, student_of, teacher_of
from hiera_video.training.accelerator import prepare, start_accelerator
from hiera_video.training.checkpointing import latest
from hiera_video.training.metrics import Metrics
from hiera_video.training.optimization import param_groups
from hiera_video.training.recipe import Finetuning
from hiera_video.training.run_folder import open_run

log = logging.getLogger("hiera_video")


def finetune(recipe: Finetuning, *, teacher: Callable[[Tensor], Tensor] | None = None) -> Iterator[Metrics]:
    """Fine-tunes a classifier by a recipe; figures come as the run goes on.

    Args:
        recipe: Of :func:`~hiera_video.load_recipe` or :func:`~hiera_video.own_recipe`. Without ``run.output`` the run
            is in ``runs/NAME-DATE``, NAME being that of the training videos; the log says where.
        teacher: In place of ``loss.teacher`` a function: clips float32 [B, C, T, h, w] in [0, 1] -> features [B, D].

    Yields:
        Means of training, figures of validation, and at the end a record of kind "done".

    Raises:
        RequestError: The recipe and its lists make no run.
        UnreadableVideo: No video can be read.
        WeightsError: The starting model cannot be had.
        OutputError: The run's folder cannot be written.
        TrainingStopped: The loss is not finite or explodes, or too many videos cannot be read.
    """
    data, run = recipe.data, recipe.run
    accelerator = start_accelerator(run)
    if data.generate is not None:
        yield from train_on_generated(recipe, accelerator)
        return
    # What own_recipe has read, once: a second run with the same recipe reads again.
    read: ReadBefore = vars(recipe).pop("_read", None) or ReadBefore(lists_of(data), None, [])
    check_files(read.lists, data)
    lists = labelled(read.lists, data)
    train = lists.train
    assert train is not None
    who = teacher_of(teacher, recipe, accelerator.device)
    with open_run(recipe, len(train), accelerator, read.notes) as (recipe, plan):
        models = [model := starting_classifier(recipe, train.classes, read.model)]
        if recipe.model.head == "best":
            models += with_linear_head(recipe, train.classes, read.model)
        del read  # its weights
        model.multi_label = train.labels.ndim == 2
        model.freeze_stages(recipe.model.freeze_stages)
        if not plan.steps:
            yield from head_alone(recipe, models, lists, accelerator)
            return
        if recipe.model.fit_head and latest(Path(str(recipe.run.output))) is None:
            _fit_first(model, train, recipe, accelerator)
        prepare(model, run)
        weights = balanced_weights(train).to(accelerator.device) if recipe.loss.class_weights == "balanced" else None
        classify = ClassStep(recipe.loss, model.spec, len(train.classes), run.seed, accelerator.device, weights)
        trained = model if who is None else WithTeacher(model, who, accelerator.device)
        yield from train_classifier(
            recipe,
            plan,
            accelerator,
            trained=trained,
            groups=param_groups(model, recipe.optim) + new_heads(trained),
            step=classify if who is None else TaughtStep(classify, who, recipe.loss.teacher_weight),
            loader=clip_loader(train, model.spec, data, recipe.augment, run, plan, accelerator, several_clips=False),
            num_videos=len(train),
            val=lists.val,
            classifier_of=student_of,
            report=lambda scores: _report(recipe, lists, scores, accelerator),
        )


def _fit_first(model: Hiera, train: VideoList, recipe: Finetuning, accelerator: Accelerator) -> None:
    scores = fit_head(model, train, recipe, accelerator).scores
    if len(scores.index):
        log.info("the head alone, by cross-validation: %s", cells(metrics(scores, train)))


def _report(recipe: Finetuning, lists: Lists, scores: Scores, accelerator: Accelerator) -> None:
    train, val = lists.train, lists.val
    assert train is not None and val is not None
    words = f"Trained for {recipe.run.duration} from {recipe.model.start}; the best of all validations is kept. "
    words += f"Judged on the {len(val)} videos of {recipe.data.val or recipe.data.train}."
    if accelerator.is_main_process:
        write_report(recipe, train=train, judged=val, scores=scores, words=words)
