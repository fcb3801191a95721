"""What the parts of a job cost here: its own readers, model and steps, run for some seconds on some of its files.

calibrate(job, request) -> Calibration, with a Part for whatever the job does again and again: a training step, a video
that is scored, a window. Nothing is written but to a temporary folder.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.sampling import keyed_rng, sampler_of
from hiera_video.data.views import load_ahead, segments_of
from hiera_video.data.windows import CROPS, Decoded, read_ahead
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.zoo import GENERAL
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import Scored, Scorer, score_views
from hiera_video.tasks.evaluate.class_scores import class_scores
from hiera_video.tasks.evaluate.job import settle
from hiera_video.tasks.evaluate.metrics import Scores, put_together
from hiera_video.tasks.evaluate.pictures import draw_pictures
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.tasks.features.feature_table import read_done
from hiera_video.tasks.features.inputs import Inputs, Todo
from hiera_video.tasks.features.job import how_of, parse_part
from hiera_video.tasks.features.linear_layer import solve
from hiera_video.tasks.plan.measure import (
    Looked,
    Meter,
    Pace,
    Part,
    clock,
    core_seconds,
    counting,
    look,
    model_seconds,
    others_memory,
    own_memory,
    pace,
    since_start,
)
from hiera_video.tasks.train.classifier import starting_classifier
from hiera_video.tasks.train.data import Lists, ReadBefore, check_files, clip_loader, labelled, lists_of
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.fitted_head import FOLDS, NUM_CLIPS, head_views, seen_in
from hiera_video.tasks.train.head_alone import with_linear_head
from hiera_video.tasks.train.pretrain import NUM_VALIDATED, Masking, pretrain, starting_mae
from hiera_video.tasks.train.report import write_report
from hiera_video.training.accelerator import start_accelerator
from hiera_video.training.devices import in_lanes, pick_precision
from hiera_video.training.optimization import Plan, plan_run
from hiera_video.training.recipe import Evaluation, Finetuning, Pretraining

#: Videos that are judged in a short run, and those that a head is fitted to.
FEW, FITTED = 8, 64
#: More steps than are made.
ENDLESS = "1000000000st"


@dataclass
class Calibration:
    """A job's ``parts``; its ``steps``; ``ready``: seconds from this process's start until it
    could begin; ``files`` that are read, each
    list with how often; ``memory``: the most bytes of all its processes; ``workers``: processes that decode.
    """

    device: torch.device
    precision: torch.dtype
    workers: int
    ready: float
    steps: int = 0
    parts: list[Part] = field(default_factory=list)
    files: list[tuple[Looked, float]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    memory: float = 0.0


def calibrate(job: str, request: Any, *, seconds: float, run_model: bool) -> Calibration:
    """Measures what a job's parts cost.

    Args:
        job: pretrain, finetune, evaluate or extract.
        request: Its recipe; of extract its arguments by name.
        seconds: For all measurements together, start-up aside; a slow step takes as long as it takes.
        run_model: Whether the model runs here; else files are read and FLOPs counted alone.

    Returns:
        The costs.

    Raises:
        RequestError: The job would be refused.
        UnreadableVideo: No file can be read.
        WeightsError: The model cannot be had.
    """
    how: dict[str, Any] = {
        "extract": _extraction,
        "evaluate": _evaluation,
        "finetune": _training,
        "pretrain": _training,
    }
    log, level = logging.getLogger("hiera_video"), logging.getLogger("hiera_video").level
    try:
        with TemporaryDirectory() as folder:
            log.setLevel(logging.WARNING)  # what short runs say of themselves
            return how[job](request, seconds, run_model, Path(folder))
    finally:
        log.setLevel(level)


# --- jobs -------------------------------------------------------------------------------------------------------------


def _extraction(values: dict[str, Any], seconds: float, run_model: bool, folder: Path) -> Calibration:
    if values["engine"] != "local":
        raise RequestError("plan runs on this machine: leave --engine ray out")
    share, name = parse_part(values["part"]), values["model"] or GENERAL
    extractor = FeatureExtractor.from_pretrained(name, device=values["device"], precision=values["precision"])
    asked = (values["window"], values["hop"], values["crop"], batch := values["batch_size"])
    how = (values["dtype"], values["format"], values["layout"], share)
    walk, facts, _ = how_of(extractor, name, values["features"], asked, *how)
    todo = Todo(Inputs(values["inputs"]), *read_done(Path(values["output"]), walk.crop), share)
    plan = Calibration(extractor.device, extractor.precision, values["num_workers"], since_start())
    if not len(todo):
        raise RequestError("there is nothing to extract: all inputs are done, or none can be read")
    plan.paths = [path for path, _ in todo]
    looked = look(plan.paths, walk)
    looked.bad |= dict(todo.bad)
    plan.files = [(looked, 1.0)]
    rows, names = round(looked.windows * len(CROPS[walk.crop])), facts["features"]
    reading = {"num_workers": plan.workers, "time_limit": values["time_limit"]}

    def load() -> Iterator[Decoded]:
        return read_ahead(((plan.paths[number], 0) for number in itertools.cycle(looked.good)), walk, **reading)

    def units(item: Decoded) -> int:
        return 0 if item.windows is None else len(item.windows) * len(item.windows.crops)

    def compute(items: Iterator[Decoded]) -> Iterator[object]:
        return extractor.stream((item.windows for item in items if item.windows is not None), names, batch)

    def one(item: Decoded) -> tuple[Callable[[], object], int]:
        assert item.windows is not None
        return partial(extractor.features, item.windows.views.to(extractor.device).clips[:1], names), 1

    meter = Meter(extractor.device, 0.8 * seconds, run_model)
    plan.parts = [meter.part("window", rows, load, units, compute, one)]
    plan.steps, plan.memory = -(-rows // batch), own_memory() + max(meter.memory)
    return plan


def _evaluation(recipe: Evaluation, seconds: float, run_model: bool, folder: Path) -> Calibration:
    job, data = settle(recipe), recipe.data
    plan = Calibration(job.device, job.precision, data.num_workers, since_start())
    looked = _listed(plan, job.videos, 1.0, data.fps)
    meter = Meter(job.device, 0.8 * seconds, run_model)
    how = (job.views, job.sampling, data.decode)
    part = _scoring(meter, job.scorer, job.videos, looked, recipe.run.batch_size, how, data)
    ending = 0.0
    if recipe.run.output is not None and run_model:
        began, scores = clock(), _guessed(job.videos)
        class_scores(scores, job.videos)
        reading = {"num_workers": data.num_workers, "time_limit": data.time_limit, "fps": data.fps}
        draw_pictures(folder, job.videos, scores, **reading)
        ending = clock() - began
    plan.parts = [replace(part, once=part.once + ending)]
    plan.steps = -(-len(job.videos) * int(np.prod(parse_views(job.views))) // recipe.run.batch_size)
    plan.memory = own_memory() + max(meter.memory)
    return plan


def _listed(plan: Calibration, videos: VideoList, times: float, fps: float | None) -> Looked:
    """Looks at the files of a list, which is read so many times."""
    paths = [videos.path(index) for index in range(len(videos))]
    looked = look(paths, fps=fps)
    plan.paths += paths
    plan.files.append((looked, times))
    return looked


def _scoring(
    meter: Meter, scorer: Scorer, videos: VideoList, looked: Looked, batch: int, how: tuple[str, str, Any], data: Any
) -> Part:
    """A video that is scored; ``how``: views, sampling and decode."""
    views, sampling, decode = how
    clips, crops = parse_views(views)
    options = {"sample": sampler_of(sampling, scorer.spec, clips), "fps": data.fps, "decode": decode}
    options |= {"num_workers": data.num_workers, "time_limit": data.time_limit}
    return meter.part(
        "video to score",
        len(videos),
        lambda: load_ahead(segments_of(videos, itertools.cycle(looked.good)), scorer.spec, clips, crops, **options),
        lambda loaded: int(loaded.views is not None),
        partial(score_views, scorer, batch_size=batch),
        lambda loaded: (partial(scorer, loaded.views.clips[:1]), 1 / (clips * crops)),
    )


def _guessed(videos: VideoList) -> Scores:
    """Scores of some videos, most of them wrong."""
    some = np.unique(np.linspace(0, len(videos) - 1, FITTED).round().astype(int)).tolist()
    guesses = keyed_rng(0).random((len(some), len(videos.classes))).astype(np.float32)
    guesses /= guesses.sum(axis=1, keepdims=True)
    return put_together((Scored(i, row, None) for i, row in zip(some, guesses, strict=True)), len(videos.classes))


# --- training ---------------------------------------------------------------------------------------------------------


def _training(recipe: Finetuning | Pretraining, seconds: float, run_model: bool, folder: Path) -> Calibration:
    data, run = recipe.data, recipe.run
    if data.generate is not None or data.train is None:
        raise RequestError("plan measures the reading of videos: name them as data.train, without data.generate")
    accelerator = start_accelerator(run)
    read = vars(recipe).get("_read")
    lists = read.lists if read else lists_of(data)
    check_files(lists, data)
    lists = labelled(lists, data) if isinstance(recipe, Finetuning) else lists
    train, val = lists.train, lists.val
    assert train is not None
    steps = plan_run(recipe.optim, run, num_videos=len(train), repeats=data.repeats, num_processes=1)
    dtype = pick_precision(run.precision, accelerator.device)
    plan = Calibration(accelerator.device, dtype, data.num_workers, since_start(), steps.steps)
    passes = steps.steps * steps.videos_per_step / len(train)
    judged = -(-steps.steps // steps.evaluate_every) if val is not None else 0
    heads = list[Hiera]()
    if isinstance(recipe, Finetuning) and recipe.model.fit_head:
        heads = [starting_classifier(recipe, train.classes)]
        heads += with_linear_head(recipe, train.classes, None) if recipe.model.head == "best" else []
        judged += val is not None
    plan.ready = since_start()
    looked = _listed(plan, train, passes + len(heads), data.fps)
    meter = Meter(accelerator.device, seconds * (0.3 if steps.steps else 0.4), run_model)
    plan.parts = [_head(meter, head, recipe, train, looked, accelerator) for head in heads]
    if steps.steps:
        plan.parts.append(_steps(recipe, steps, Lists(train, val), judged, accelerator, meter, folder))
    if val is not None:
        seen = _listed(plan, val, judged, data.fps)
        if isinstance(recipe, Finetuning):
            model = heads[0] if heads else starting_classifier(recipe, train.classes)
            scorer = Scorer(model.to(plan.device), model.spec, plan.device, dtype, train.labels.ndim == 2)
            how = (data.views, data.sampling, "exact")
            part = _scoring(meter, scorer, val, seen, max(1, run.batch_size * data.repeats), how, data)
            once = part.once if heads and not steps.steps else 0.0  # else in the short run's
            few = min(FEW, len(val))
            plan.parts.append(replace(part, count=judged * (len(val) - (few if steps.steps else 0)), once=once))
    if isinstance(recipe, Finetuning) and not steps.steps and run_model:
        began, made = clock(), val or train
        own = replace(recipe, run=replace(run, output=str(folder)))
        write_report(own, train=train, judged=made, scores=_guessed(made), words="")
        plan.parts[-1] = replace(plan.parts[-1], once=plan.parts[-1].once + clock() - began)
    plan.memory = own_memory() + max(meter.memory, default=0)
    return plan


def _head(meter: Meter, model: Hiera, recipe: Any, train: VideoList, looked: Looked, accelerator: Accelerator) -> Part:
    """A video that a head is fitted to, and, once, the fit: of all, and of the parts of the cross-validation."""
    model.to(accelerator.device).eval()
    see = partial(seen_in, model, recipe, accelerator)
    clips = NUM_CLIPS * (2 if recipe.augment.flip else 1)
    part = meter.part(
        f"video for a head ({model.arch.head})",
        len(train),
        lambda: head_views(model, train, itertools.cycle(looked.good), recipe, accelerator),
        lambda answer: int(answer["clips"] is not None),
        partial(in_lanes, see),
        lambda answer: (partial(see, answer), 1),
    )
    if not meter.run_model:
        return part
    some = np.unique(np.linspace(0, len(train) - 1, FITTED).round().astype(int))
    values = torch.randn(len(some) * clips, model.head_features)
    began = clock()
    solve(values, train.labels[some].repeat(clips, axis=0), len(train.classes))
    once = part.once + (clock() - began) * FOLDS * len(train) / len(some)
    return replace(part, once=once)


@dataclass(frozen=True)
class _Brief:
    """A run of two steps: seconds of its start, a step, an evaluation, a picture, a checkpoint; a step's FLOPs."""

    start: float
    step: Pace
    evaluation: float
    picture: float
    checkpoint: float
    flops: float


def _steps(
    recipe: Any, plan: Plan, lists: Lists, judged: int, accelerator: Accelerator, meter: Meter, folder: Path
) -> Part:
    """A step of training and, once, start-up, evaluations, pictures and checkpoints."""
    train, is_mae = lists.train, isinstance(recipe, Pretraining)
    assert train is not None
    job: Any = pretrain if is_mae else finetune
    brief, waits = None, list[float]()
    if meter.run_model:
        brief = _brief(job, recipe, lists, folder)
    model = starting_mae(recipe) if is_mae else starting_classifier(recipe, train.classes)
    flops = _flops_of_a_clip(model, recipe) * plan.clips_per_step if brief is None else brief.flops
    how = (train, model.spec, recipe.data, recipe.augment, recipe.run, plan, accelerator)
    loader = clip_loader(*how, several_clips=is_mae)
    with closing(loader):
        alone = pace((1 for _ in itertools.chain.from_iterable(itertools.repeat(loader))), meter.seconds)
        held = others_memory()
    decoding = alone.cores * plan.accumulate
    if brief is None:
        meter.memory.append(held)
        return Part("step", plan.steps, 0.0, decoding, 0.0, flops)
    both = brief.step
    if both.each < meter.seconds / 3:
        run = job(_shortened(recipe, folder / "long", ENDLESS))
        with closing(run):
            both = pace((_noted(waits, record.values["data_wait"]) for record in run), meter.seconds)
            held = max(held, others_memory())
    meter.memory[:] = [held + max(meter.memory, default=0)]
    saves, pictures = -(-plan.steps // plan.save_every), -(-plan.steps // plan.picture_every)
    once = brief.start + judged * brief.evaluation + pictures * brief.picture + saves * brief.checkpoint
    model_s = model_seconds(meter.device, both, decoding, sum(waits) / max(1, len(waits)))
    return Part("step", plan.steps, both.each, decoding, model_s, flops, once)


def _noted(values: list[float], value: float) -> int:
    """Keeps a value, and counts it."""
    values.append(value)
    return 1


def _shortened(recipe: Any, folder: Path, duration: str) -> Any:
    """The same recipe for some steps that learn nothing, without validation."""
    run = replace(recipe.run, output=str(folder), duration=duration, tracker=None, log_every="1st")
    run = replace(run, evaluate_every="1st", save_every=ENDLESS, picture_every=ENDLESS)
    optim = replace(recipe.optim, lr=1e-12, warmup="0%", explosion_factor=None)
    data = replace(recipe.data, val=None, val_split="-", hold_out=0.0)
    model = replace(recipe.model, fit_head=False) if isinstance(recipe, Finetuning) else recipe.model
    return replace(recipe, run=run, optim=optim, data=data, model=model)


def _brief(job: Any, recipe: Any, lists: Lists, folder: Path) -> _Brief:
    """Makes two steps, each judged on a few videos, and the end of a run."""
    brief, val = _shortened(recipe, folder / "brief", "2st"), lists.val
    few = None if val is None else val.subset(np.unique(np.linspace(0, len(val) - 1, FEW).round().astype(int)))
    share = 1.0
    if isinstance(recipe, Finetuning):
        vars(brief)["_read"] = ReadBefore(Lists(lists.train, few), None, [])
    elif few is not None and val is not None:
        rows = [f"{os.path.abspath(few.path(index))},video" for index in range(len(few))]
        (folder / "val.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
        brief = replace(brief, data=replace(brief.data, val=str(folder / "val.csv")))
        share = min(NUM_VALIDATED, len(val)) / len(few)
    began, at = clock(), dict[tuple[str, int], tuple[float, float]]()
    run = job(brief)
    with counting() as counter:
        for record in itertools.islice(run, 1):
            at[record.kind, record.step] = clock(), core_seconds()
    for record in run:
        at[record.kind, record.step] = clock(), core_seconds()
    (first, _), (second, cores) = at["train", 1], at["train", 2]
    before, cores_before = at.get(("val", 1), at["train", 1])
    judged, judged_last = at.get(("val", 2), at["train", 2])[0], before - first
    step = Pace(second - before, cores - cores_before, 0.0, second - before)
    picture = max(0.0, judged - second - judged_last) if isinstance(recipe, Pretraining) else 0.0
    return _Brief(
        start=max(0.0, first - began - step.each),
        step=step,
        evaluation=judged_last * share,
        picture=picture,
        checkpoint=at["done", 2][0] - judged,
        flops=counter.get_total_flops(),
    )


def _flops_of_a_clip(model: Any, recipe: Any) -> float:
    """Of a step on one clip, without the model being run."""
    if recipe.loss.teacher is not None:
        raise RequestError("plan cannot count a teacher's FLOPs for another GPU: leave --gpu or --teacher out")
    with torch.device("meta"):
        twin: Any = type(model)(model.arch, model.spec).train()
        clip = torch.empty(1, model.arch.in_chans, *model.arch.input_size)
    twin.set_grad_checkpointing(recipe.run.grad_checkpointing)
    with counting() as counter:
        if isinstance(model, HieraMAE):
            masking = Masking(0, model.num_mask_units(), model.arch.mask_ratio, recipe.model.decode_ratio)
            twin(clip, **masking.draw([(0, 0, 0)])).loss.backward()
        else:
            twin.freeze_stages(recipe.model.freeze_stages)
            twin(clip).sum().backward()
    return counter.get_total_flops()
