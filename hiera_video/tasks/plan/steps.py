"""What a training costs here: its steps, and the features that a head is fitted to."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hiera_video.data.lists.video_list import VideoList
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.tasks.classify.classifier import Scorer
from hiera_video.tasks.features.linear_layer import solve
from hiera_video.tasks.plan.measure import Costs, Part, clock, counting, pace, since_start
from hiera_video.tasks.plan.scoring import scoring
from hiera_video.tasks.train.classifier import starting_classifier
from hiera_video.tasks.train.data import check_files, clip_loader, labelled, lists_of
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.fitted_head import FOLDS, NUM_CLIPS, head_views, seen_in
from hiera_video.tasks.train.head_alone import with_linear_head
from hiera_video.tasks.train.pretrain import Masking, pretrain, starting_mae
from hiera_video.training.accelerator import start_accelerator
from hiera_video.training.devices import in_lanes, pick_precision
from hiera_video.training.optimization import Plan, plan_run
from hiera_video.training.recipe import Finetuning, Pretraining

#: Videos whose features a head is fitted to for the time that takes.
FITTED = 64
#: More steps than are made.
ENDLESS = "1000000000st"


def training(recipe: Any, seconds: float, run_model: bool) -> Costs:
    """Measures the parts of a training, by its own readers, model and steps on some of its files.

    Args:
        recipe: Of pre-training or fine-tuning.
        seconds: For all measurements together, start-up aside; a slow step takes as long as it takes.
        run_model: Whether the model runs here; else files are read and FLOPs counted alone.

    Returns:
        The costs.

    Raises:
        RequestError: The job would be refused.
        UnreadableVideo: No file can be read.
        WeightsError: The model cannot be had.
    """

    data, run, is_mae = recipe.data, recipe.run, isinstance(recipe, Pretraining)
    if data.train is None:
        raise RequestError("plan measures the reading of videos: name them as data.train (--train)")
    accelerator = start_accelerator(run)
    lists = vars(recipe)["_read"].lists if "_read" in vars(recipe) else lists_of(data)
    check_files(lists, data)
    train, val = (read := lists if is_mae else labelled(lists, data)).train, read.val
    assert train is not None
    plan = plan_run(recipe.optim, run, num_videos=len(train), repeats=data.repeats, num_processes=1)
    dtype = pick_precision(run.precision, accelerator.device)
    costs = Costs(accelerator.device, dtype, data.num_workers, seconds, run_model, since_start(), plan.steps)
    heads = 0 if is_mae or not recipe.model.fit_head else 2 if recipe.model.head == "best" else 1
    passes = plan.steps * plan.videos_per_step / len(train)
    good, _ = costs.look([train.path(index) for index in range(len(train))], passes + heads)
    if heads:
        costs.parts += _heads(costs, recipe, train, good, accelerator)
    if plan.steps:
        costs.parts.append(_steps(costs, recipe, plan, train, accelerator))
    if val is not None and not is_mae:
        model = starting_classifier(recipe, train.classes).to(costs.device)
        scorer = Scorer(model, model.spec, costs.device, dtype, train.labels.ndim == 2)
        times = -(-plan.steps // plan.evaluate_every) + bool(heads)
        how = {
            "views": data.views,
            "sampling": data.sampling,
            "decode": "exact",
            "batch": run.batch_size * data.repeats,
        }
        costs.parts.append(scoring(costs, scorer, val, times, data, 0.3, **how))
    return costs


def _heads(
    costs: Costs, recipe: Finetuning, train: VideoList, good: list[int], accelerator: Accelerator
) -> Iterator[Part]:
    """A video that a head is fitted to and, once, the fit: to all, and to the parts of the cross-validation."""
    models = [starting_classifier(recipe, train.classes)]
    models += with_linear_head(recipe, train.classes, None) if recipe.model.head == "best" else []
    for model in models:
        see = partial(seen_in, model.to(costs.device).eval(), recipe, accelerator)
        part = costs.part(
            f"video for a head ({model.arch.head})",
            len(train),
            partial(head_views, model, train, itertools.cycle(good), recipe, accelerator),
            lambda answer: int(answer["clips"] is not None),
            partial(in_lanes, see),
            see,
            share=0.7 / len(models),
        )
        some = np.unique(np.linspace(0, len(train) - 1, FITTED).round().astype(int))
        rows = NUM_CLIPS * (2 if recipe.augment.flip else 1)
        values, labels = torch.randn(len(some) * rows, model.head_features), train.labels[some].repeat(rows, axis=0)
        began = clock()
        solve(values[:, :2], labels, len(train.classes))  # what is imported for it
        warm = clock()
        solve(values, labels, len(train.classes))
        yield replace(part, once=part.once + warm - began + (clock() - warm) * FOLDS * len(train) / len(some))


def _steps(costs: Costs, recipe: Any, plan: Plan, train: VideoList, accelerator: Accelerator) -> Part:
    """A step of training and, once, what comes before the first."""
    is_mae, both, waits = isinstance(recipe, Pretraining), None, list[float]()
    if costs.run_model:
        with TemporaryDirectory() as folder, closing(_run(recipe, Path(folder), waits)) as steps:
            both = pace(steps, 0.5 * costs.seconds)
            costs.hold()
    model = starting_mae(recipe) if is_mae else starting_classifier(recipe, train.classes)
    flops = _flops_of_a_clip(model, recipe) * plan.clips_per_step
    how = (train, model.spec, recipe.data, recipe.augment, recipe.run, plan, accelerator)
    with closing(clip_loader(*how, several_clips=is_mae)) as loader:
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        decoding = plan.accumulate * pace((1 for _ in batches), 0.2 * costs.seconds).cores
        costs.hold()
    if both is None:
        return Part("step", plan.steps, 0.0, decoding, 0.0, flops)
    model_s = costs.model_seconds(both, decoding, sum(waits) / len(waits))
    return Part("step", plan.steps, both.each, decoding, model_s, flops, both.start)


def _run(recipe: Any, folder: Path, waits: list[float]) -> Generator[int, None, None]:
    """Steps of the recipe that learn nothing; ``waits`` get the share of each in which it waited for data."""
    run = replace(recipe.run, output=str(folder), duration=ENDLESS, tracker=None, log_every="1st", evaluate_every="1st")
    run = replace(run, save_every=ENDLESS, picture_every=ENDLESS)
    optim = replace(recipe.optim, lr=1e-12, warmup="0%", explosion_factor=None)
    data = replace(recipe.data, val=None, val_split="-", hold_out=0.0)
    model = replace(recipe.model, fit_head=False) if isinstance(recipe, Finetuning) else recipe.model
    job: Any = pretrain if isinstance(recipe, Pretraining) else finetune
    for record in job(replace(recipe, run=run, optim=optim, data=data, model=model)):
        waits.append(record.values["data_wait"])
        yield 1


def _flops_of_a_clip(model: Hiera | HieraMAE, recipe: Any) -> int:
    """Of a step on one clip, by a model without values; a teacher's are not counted."""
    with torch.device("meta"):
        twin: Any = type(model)(model.arch, model.spec).train()  # type: ignore[arg-type]
        clip = torch.empty(1, model.arch.in_chans, *model.arch.input_size)
    with counting() as counter:
        if isinstance(model, HieraMAE):
            masking = Masking(0, model.num_mask_units(), model.arch.mask_ratio, recipe.model.decode_ratio)
            twin(clip, **masking.draw([(0, 0, 0)])).loss.backward()
        else:
            twin.freeze_stages(recipe.model.freeze_stages)
            twin(clip).sum().backward()
    return int(counter.get_total_flops())
