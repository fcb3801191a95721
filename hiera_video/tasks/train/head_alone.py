"""A run of which the fitted head is all: nothing is trained after it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from hiera_video.cells import cells
from hiera_video.data.lists.video_list import VideoList
from hiera_video.files import replacing
from hiera_video.models.heads import HEADS
from hiera_video.models.hiera import Hiera
from hiera_video.tasks.evaluate.metrics import Scores, metrics
from hiera_video.tasks.train.classifier import best_figure, validation_scores
from hiera_video.tasks.train.data import Lists
from hiera_video.tasks.train.fitted_head import fit_head
from hiera_video.tasks.train.report import write_report
from hiera_video.training.accelerator import export
from hiera_video.training.metrics import Metrics, read_metrics
from hiera_video.training.recipe import Finetuning

log = logging.getLogger("hiera_video")


def with_linear_head(recipe: Finetuning) -> Finetuning:
    """The other candidate of ``model.head`` best: a head on the embedding of clips as the starting model has them.

    Args:
        recipe: Of the run.

    Returns:
        A recipe that differs in its head and its clips.
    """
    own = replace(recipe.data, num_frames=None, frame_stride=None, target_fps=None, size=None, resize=None)
    return replace(recipe, data=own, model=replace(recipe.model, head="linear"))


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
        OutputError: The folder cannot be written.
    """
    train, output = lists.train, Path(str(recipe.run.output))
    assert train is not None
    before = [record for record in read_metrics(output / "metrics.jsonl") if record["kind"] in ("val", "done")]
    if before and before[-1]["kind"] == "done" and (output / "model.safetensors").is_file():
        for record in before:
            yield Metrics(record.pop("kind"), record.pop("step"), record.pop("passes"), record)
        return
    model, scores = _best(models, train, recipe, accelerator)
    if lists.val is not None:
        judged, how = lists.val, f"Judged on the {len(lists.val)} videos of {recipe.data.val or recipe.data.train}."
        scores = validation_scores(model, videos=judged, recipe=recipe, accelerator=accelerator)
    else:
        judged, how = train, "Judged by cross-validation: each video by a head that was fitted without its recording."
    export(model, run=recipe.run, accelerator=accelerator)
    figures, best = metrics(scores, judged), best_figure(judged)
    records = [Metrics("val", 0, 0.0, figures), Metrics("done", 0, 0.0, {f"best_{best}": figures[best]})]
    if accelerator.is_main_process:
        if len(scores.index):
            log.info("%s", how)
        else:
            log.warning("nothing tells how good the head is: a class lies in one recording alone, or nothing was read")
        for error in list(scores.errors.values())[:10]:
            log.warning("%s", error)
        trained = f"The head alone was fitted, to the {len(train)} videos of {recipe.data.train}."
        write_report(output, model=model, train=train, judged=judged, scores=scores, how=how, trained=trained)
        with replacing(output / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records))
    yield from records


def _best(models: list[Hiera], train: VideoList, recipe: Finetuning, accelerator: Accelerator) -> tuple[Hiera, Scores]:
    """The model with the best fitted head, and the scores of cross-validation."""
    best, value, groups = None, float("-inf"), None
    for model in models:
        model.multi_label = train.labels.ndim == 2
        scores, groups = fit_head(model, train, recipe, accelerator, groups)
        figures = metrics(scores, train)
        if accelerator.is_main_process and len(models) > 1:
            log.info("a head on %s, by cross-validation: %s", HEADS[model.arch.head], cells(figures))
        if best is None or figures[best_figure(train)] > value:
            best, value = (model, scores), figures[best_figure(train)]
    assert best is not None
    return best
