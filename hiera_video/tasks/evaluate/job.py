"""Evaluate a classifier on a list of videos by the published protocol: each video once, in any number of processes."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from hiera_video.data.lists.video_list import VideoList, card_of, list_videos
from hiera_video.data.sampling import sampler_of
from hiera_video.data.views import load_ahead, segments_of
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.io import weights_of
from hiera_video.models.hiera import WITHOUT_CLASSES, Hiera
from hiera_video.models.zoo import BUILT_IN, from_pretrained
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import Scored, Scorer, score_views
from hiera_video.tasks.evaluate.class_scores import ClassScore, class_scores, interval_method, missing_classes
from hiera_video.tasks.evaluate.metrics import Scores, is_right, match_classes, put_together
from hiera_video.tasks.evaluate.pictures import draw_pictures
from hiera_video.tasks.evaluate.score_table import append, facts_of_parts, open_part, read_parts, to_line, write_results
from hiera_video.tasks.records import Results
from hiera_video.training.devices import compiled, kept_precision, pick_device, pick_precision, width_of
from hiera_video.training.recipe import Evaluation, check

log = logging.getLogger("hiera_video")

#: Bad videos and classes without a video that are named on the screen.
MAX_NAMED, MAX_MISSING = 10, 5
#: A top-1 below this share, with at least so many classes, is more likely a wrong order than a bad model.
SUSPICIOUS, MANY_CLASSES = 0.01, 100


@dataclass(frozen=True)
class Job:
    """What one evaluation is, settled before any video is read; ``videos`` are numbered as the model's outputs."""

    recipe: Evaluation
    model: Hiera
    videos: VideoList
    views: str
    sampling: str
    state: PartialState
    device: torch.device
    precision: torch.dtype
    run: Callable[[torch.Tensor], torch.Tensor] | None

    @property
    def scorer(self) -> Scorer:
        multi_label = self.model.multi_label or self.videos.labels.ndim == 2
        return Scorer(self.model, self.model.spec, self.device, self.precision, multi_label, self.run)

    def facts(self) -> dict[str, Any]:
        """What the scores of a video depend on: those of another run cannot be mixed with this one's."""
        places = hashlib.blake2b(digest_size=8)
        for part in (self.videos.starts, self.videos.ends, self.videos.offsets):
            places.update(part.tobytes())
        places.update(self.videos.buffer)
        return {
            "format": "hiera-video evaluate 1",
            "weights": weights_of(self.model),
            "list": places.hexdigest(),
            "views": self.views,
            "sampling": self.sampling,
            "fps": self.recipe.data.fps,
            "decode": self.recipe.data.decode,
            "clip": self.model.spec.to_dict(),
            "precision": _name(self.precision),
            "several_labels": self.scorer.multi_label,
        }


def evaluate(recipe: Evaluation) -> Results[ClassScore]:
    """Score the videos of a list, and count.

    With ``run.output`` scores are kept as they come, so that the same command goes on where it was stopped, and at the
    end scores.parquet, classes.csv, confused.csv, result.json and, as far as they can be drawn, confusion.png,
    reliability.png and worst_videos.png are written there.

    Args:
        recipe: The videos, the model and how to run.

    Returns:
        The total first, then each class; none in other processes than the main one.

    Raises:
        RequestError: For a recipe that means nothing, classes that the model lacks, or no compiler.
        WeightsError: Where the weights cannot be had or do not fit.
        OutputError: Where ``run.output`` cannot be written.
    """
    job = settle(recipe)
    data, state, videos = recipe.data, job.state, job.videos
    if state.is_main_process:
        where = f"{state.num_processes} x {job.device.type}" if state.num_processes > 1 else str(job.device)
        kind = f"{job.views} views" if job.sampling == "dense" else f"{job.views} views of segments"
        start, precision = recipe.model.start or BUILT_IN, _name(job.precision)
        log.info("%d videos of %s, %s, %s on %s in %s", len(videos), data.source, kind, start, where, precision)
    several = videos.labels.ndim == 2
    num_listed = int(videos.labels.any(axis=0).sum()) if several else len(np.unique(videos.labels))
    return Results(1 + num_listed if state.is_main_process else 0, _run(job))


def settle(recipe: Evaluation) -> Job:
    """Reads the list and the model.

    Args:
        recipe: The videos, the model and how to run.

    Returns:
        All that an evaluation is decided by.

    Raises:
        RequestError: For a recipe that means nothing, or classes that the model lacks.
        WeightsError: Where the weights cannot be had or do not fit.
    """
    check(recipe)
    data, start = recipe.data, recipe.model.start or BUILT_IN
    state, device = _processes(recipe.run.device)
    source = str(data.source)
    card = card_of(source)
    listed = list_videos(source, root=data.root, split=data.split, fold=data.fold, images=data.images)
    with state.local_main_process_first():  # one of them downloads
        model = from_pretrained(start).to(device)
    if not model.arch.num_classes:
        raise RequestError(WITHOUT_CLASSES)
    before = {} if recipe.run.output is None else facts_of_parts(Path(recipe.run.output) / "parts")
    asked = kept_precision(recipe.run.precision, before.get("precision"))
    precision = pick_precision(asked, device, width=width_of(model.arch.dims))
    if data.pixel_aspect is not None:
        model.spec = model.spec.replace(pixel_aspect=data.pixel_aspect)
    videos = match_classes(listed, model.labels, model.arch.num_classes)
    views = data.views or (model.views if card is None else card.sampling.views)
    sampling = data.sampling or ("dense" if card is None else card.sampling.rule)
    run = compiled(model, device) if recipe.run.compile else None
    return Job(recipe, model, videos, views, sampling, state, device, precision, run)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _processes(name: str) -> tuple[PartialState, torch.device]:
    """All processes that were started together, and the device of this one."""
    # Without cpu=True accelerate takes each of several processes on a machine without a GPU for the only one. Only
    # gathering at the end waits for others, but then for as long as their last videos take.
    cpu = name == "cpu" or (name == "auto" and pick_device(name).type == "cpu")
    state = PartialState(cpu=cpu, timeout=timedelta(days=1))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise RequestError(
            f"{started} processes were started (WORLD_SIZE) and {state.num_processes} found: start them by torchrun, "
            "and name run.device cpu where there is no GPU"
        )
    if started == 1:
        return state, pick_device(name)
    if name not in ("auto", state.device.type):
        raise RequestError(f"run.device is {name!r}, but {started} processes take auto, cpu or cuda")
    return state, state.device


def _run(job: Job) -> Iterator[ClassScore]:
    """Scores what is left of the list, gathers the scores of all processes, writes and yields."""
    recipe, videos, state, began = job.recipe, job.videos, job.state, time.monotonic()
    output = None if recipe.run.output is None else Path(recipe.run.output)
    facts = {} if output is None else job.facts()
    before, left = _agree(state, videos, None if output is None else output / "parts", facts)
    if done := len(videos) - len(left):
        log.info("%s holds scores of %d of %d videos: going on from there", output, done, len(videos))
    with ExitStack() as stack:
        part = None
        if output is not None:
            part = stack.enter_context(open_part(output / "parts" / f"rank{state.process_index:04d}.jsonl", facts))
        data, (num_clips, num_crops) = recipe.data, parse_views(job.views)
        loaded = load_ahead(
            segments_of(videos, left[state.process_index :: state.num_processes]),
            job.model.spec,
            num_clips,
            num_crops,
            num_workers=data.num_workers,
            time_limit=data.time_limit,
            sample=sampler_of(job.sampling, job.model.spec, num_clips),
            fps=data.fps,
            decode=data.decode,
        )
        scored = score_views(job.scorer, loaded, batch_size=recipe.run.batch_size)
        mine = list(_watched(job, scored, len(left), part))
    every = [*before, *gather_object(mine)]
    if not state.is_main_process:
        return
    scores = put_together(every, len(videos.classes))
    figures = class_scores(scores, videos)
    _say(figures[0], scores, videos)
    if output is not None:
        cost = {"videos": len(left), "seconds": round(time.monotonic() - began, 3), "processes": state.num_processes}
        facts = {"model": recipe.model.start or BUILT_IN, **facts, "cost": {**cost, "device": str(job.device)}}
        write_results(output, videos, scores, figures, {**facts, "recipe": asdict(recipe)})
        how = {"num_workers": data.num_workers, "time_limit": data.time_limit, "fps": data.fps}
        draw_pictures(output, videos, scores, **how)
        log.info("figures, scores and pictures are in %s: result.json, classes.csv, confusion.png and more", output)
    yield from figures


def _agree(
    state: PartialState, videos: VideoList, parts: Path | None, facts: dict[str, Any]
) -> tuple[list[Scored], list[int]]:
    """What was scored before (for the main process), and the numbers of the videos that are left.

    The main process reads the parts, decides, and broadcasts: others may begin to write parts while it reads.
    """
    kept: list[Scored] = []
    refusal = None
    if state.is_main_process and parts is not None:
        try:
            kept = list(read_parts(parts, facts))
        except RequestError as error:  # told to all, or they would wait
            refusal = str(error)
    left = sorted(set(range(len(videos))) - {video.index for video in kept})
    left, refusal = broadcast_object_list([left, refusal])
    if refusal is not None:
        raise RequestError(refusal)
    return kept, left


def _watched(job: Job, scored: Iterable[Scored], num_left: int, part: BinaryIO | None) -> Iterator[Scored]:
    """Passes each video on as it is done: keeps it in ``part``, and shows progress in the main process."""
    videos, right, labelled, bad = job.videos, 0, 0, 0
    hidden = None if job.state.is_main_process else True
    total = len(videos)
    with tqdm(total=total, initial=total - num_left, unit="video", disable=hidden, file=sys.stderr) as bar:
        for video in scored:
            if video.scores is not None and not np.isfinite(video.scores).all():
                raise RequestError(
                    f"the model's scores of {videos.path(video.index)} are not finite in {_name(job.precision)}: "
                    "take run.precision fp32, or other weights"
                )
            if part is not None:
                append(part, to_line(video))
            bad += video.scores is None
            if video.scores is not None and videos.labels.ndim == 1 and videos.labels[video.index] >= 0:
                labelled += 1
                right += bool(is_right(video.scores[np.newaxis], videos.labels[[video.index]], 1)[0])
            shown = {"top1": f"{right / labelled:.1%}"} if labelled else {}
            bar.set_postfix({**shown, "bad": bad}, refresh=False)
            bar.update(min(job.state.num_processes, total - bar.n))  # the other processes are about as far
            yield video


def _say(total: ClassScore, scores: Scores, videos: VideoList) -> None:
    """What the figures alone do not tell: which videos are bad, and what looks wrong."""
    for index, error in list(scores.errors.items())[:MAX_NAMED]:
        path = videos.path(index)
        log.warning("%s", error if path in error else f"{path}: {error}")
    if len(scores.errors) > MAX_NAMED:
        log.warning("and %d more; with run.output, scores.parquet lists them", len(scores.errors) - MAX_NAMED)
    if total.error is not None:
        log.warning("%s", total.error)
    if missing := missing_classes(videos):
        named = ", ".join(missing[:MAX_MISSING]) + (", ..." if len(missing) > MAX_MISSING else "")
        text = "%d of the model's %d classes have no video in the list, so that no figure is about them: %s"
        log.warning(text, len(missing), len(videos.classes), named)
    if total.intervals:
        log.info("intervals: %s", interval_method(scores, videos))
    top1 = total.values.get("top1")
    if top1 is not None and top1 < SUSPICIOUS and len(videos.classes) >= MANY_CLASSES:
        log.warning(
            "top-1 is %.2f %% of %d classes: their order in the list may not be the model's, which looks like this",
            100 * top1,
            len(videos.classes),
        )
