"""A run of which the fitted head is all: nothing is trained after it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from hiera_video.cells import cells
from hiera_video.data.lists.video_list import VideoList
from hiera_video.files import replacing
from hiera_video.models.heads import HEADS
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import from_pretrained
from hiera_video.tasks.evaluate.metrics import metrics
from hiera_video.tasks.train.classifier import best_figure, starting_classifier, validation_scores
from hiera_video.tasks.train.data import Lists
from hiera_video.tasks.train.fitted_head import FittedHead, fit_head
from hiera_video.tasks.train.report import write_report
from hiera_video.training.accelerator import export
from hiera_video.training.bad_videos import list_bad, too_many_bad
from hiera_video.training.metrics import Metrics, read_metrics
from hiera_video.training.recipe import Finetuning

log = logging.getLogger("hiera_video")


def with_linear_head(recipe: Finetuning, classes: list[str], read: Hiera | None) -> list[Hiera]:
    """The other candidate of ``model.head`` best: a head on the embedding of clips as the starting model has them, a
    readout where it has one.

    Args:
        recipe: Of the run.
        classes: Its classes.
        read: As in :func:`starting_classifier`.

    Returns:
        The model; none where the start has a head on stages itself, and so no clips of its trunk's size.

    Raises:
        RequestError: The model does not fit the recipe.
        WeightsError: The checkpoint cannot be had.
    """
    own = replace(recipe.data, num_frames=None, frame_stride=None, target_fps=None, size=None, resize=None)
    read = from_pretrained(recipe.model.start) if read is None else read
    kind: Literal["linear"] | None = None if read.arch.head == "readout" else "linear"
    linear = replace(recipe, data=own, model=replace(recipe.model, head=kind))
    model = starting_classifier(linear, classes, read)
    fits = (model.spec.num_frames, *model.spec.size) == model.arch.input_size
    return [model] if fits else []


def head_alone(recipe: Finetuning, models: list[Hiera], lists: Lists, accelerator: Accelerator) -> Iterator[Metrics]:
    """Fits a head to all training videos, judges it, and writes the model and its report.

    Without validation videos it is judged by cross-validation: each video by a head that was fitted without its
    recording. A run that is done already is not repeated.

    Args:
        recipe: Of the run, with its ``run.output``.
        models: Starting classifiers; of several, the one with the best head by cross-validation is kept, or the first
            where there is nothing to tell by.
        lists: What to learn from, and to validate on.
        accelerator: The run's processes.

    Yields:
        The figures, of kind "val" at step 0, and a record of kind "done".

    Raises:
        UnreadableVideo: No video can be read.
        TrainingStopped: Too many videos cannot be read.
        OutputError: The folder cannot be written.
    """
    train, output = lists.train, Path(str(recipe.run.output))
    assert train is not None
    before = [record for record in read_metrics(output / "metrics.jsonl") if record["kind"] in ("val", "done")]
    if before and before[-1]["kind"] == "done" and (output / "model.safetensors").is_file():
        for record in before:
            yield Metrics(record.pop("kind"), record.pop("step"), record.pop("passes"), record)
        return
    model, fitted = _best(models, train, recipe, accelerator)
    stopped = too_many_bad(fitted.problems, len(train), recipe.data.max_bad_share)
    if accelerator.is_main_process:
        list_bad(fitted.problems, output)
    if stopped is not None:
        raise stopped
    if lists.val is None:
        judged, scores = train, fitted.scores
        how = "Judged by cross-validation: each video by a head that was fitted without its recording."
    else:
        judged, how = lists.val, f"Judged on the {len(lists.val)} videos of {recipe.data.val or recipe.data.train}."
        scores = validation_scores(model, videos=judged, recipe=recipe, accelerator=accelerator)
    export(model, run=recipe.run, accelerator=accelerator)
    records = [Metrics("done", 0, 0.0, {})]
    if len(scores.index):
        figures, best = metrics(scores, judged), best_figure(judged)
        records = [Metrics("val", 0, 0.0, figures), Metrics("done", 0, 0.0, {f"best_{best}": figures[best]})]
    else:
        how = "Nothing tells how good it is: a class is of one recording alone, or no validation video could be read."
    if accelerator.is_main_process:
        words = (
            f"A head on {HEADS[model.arch.head]} was fitted to the {len(train)} videos of {recipe.data.train}. {how}"
        )
        log.log(logging.INFO if len(scores.index) else logging.WARNING, "%s", words)
        write_report(recipe, train=train, judged=judged, scores=scores, words=words)
        with replacing(output / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records))
    yield from records


def _best(
    models: list[Hiera], train: VideoList, recipe: Finetuning, accelerator: Accelerator
) -> tuple[Hiera, FittedHead]:
    """The model with the best fitted head by cross-validation."""
    best: tuple[Hiera, FittedHead] | None = None
    value, recording = float("-inf"), None
    for model in models:
        model.multi_label = train.labels.ndim == 2
        fitted = fit_head(model, train, recipe, accelerator, recording)
        recording = fitted.recording
        figures = metrics(fitted.scores, train)
        if accelerator.is_main_process and len(models) > 1 and len(fitted.scores.index):
            log.info("a head on %s, by cross-validation: %s", HEADS[model.arch.head], cells(figures))
        if best is None or figures[best_figure(train)] > value:
            best, value = (model, fitted), figures[best_figure(train)]
    assert best is not None
    return best
