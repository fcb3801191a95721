"""Evaluate a classifier on a list of videos by the published protocol: each video once, in any number of processes."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hiera_video.data.dataset import Sampler
from hiera_video.data.lists.video_list import VideoList, card_of, list_videos
from hiera_video.data.sampling import segment_clips
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.io import weights_of
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import BUILT_IN, from_pretrained
from hiera_video.spec import ClipSpec, parse_views
from hiera_video.tasks.classify.pipeline import (
    ClassScore,
    Scored,
    Scores,
    class_scores,
    gather,
    match_classes,
    merge,
    put_together,
    score_videos,
)
from hiera_video.tasks.evaluate.score_table import (
    append,
    open_part,
    read_parts,
    to_line,
    write_results,
)
from hiera_video.tasks.records import Results
from hiera_video.training.devices import pick_device, pick_precision
from hiera_video.training.recipe import Evaluation, check

if TYPE_CHECKING:
    from accelerate import PartialState

log = logging.getLogger("hiera_video")

#: Bad videos that are named on the screen.
MAX_NAMED = 10
#: A top-1 below this share, with at least so many classes, is more likely a wrong order than a bad model (RECIPES 5).
SUSPICIOUS, MANY_CLASSES = 0.01, 100


@dataclass(frozen=True)
class _Job:
    """What one evaluation is, settled before any video is read; ``videos`` are numbered as the model's outputs."""

    recipe: Evaluation
    model: Hiera
    videos: VideoList
    views: str
    sampling: str
    state: PartialState
    device: torch.device
    precision: torch.dtype

    @property
    def sample(self) -> Sampler | None:
        num_clips, _ = parse_views(self.views)
        return partial(_segments, self.model.spec, num_clips) if self.sampling == "segments" else None

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
            "several_labels": self.videos.labels.ndim == 2,
        }


def evaluate(recipe: Evaluation) -> Results[ClassScore]:
    """Score videos and count: the total first, then each class; in the main process alone, where there are several.

    With ``run.output`` scores are kept as they come, so that the same command goes on where it was stopped, and at the
    end scores.parquet, classes.csv, confusion.png and result.json are written there.
    """
    check(recipe)
    data, start = recipe.data, recipe.model.start or BUILT_IN
    state, device = _processes(recipe.run.device)
    precision = pick_precision(recipe.run.precision, device)
    source = str(data.source)
    card = card_of(source)
    listed = list_videos(source, root=data.root, split=data.split, fold=data.fold, images=data.images)
    with state.local_main_process_first():  # one of them downloads
        model = from_pretrained(start).to(device)
    if data.pixel_aspect is not None:
        model.spec = model.spec.replace(pixel_aspect=data.pixel_aspect)
    videos = match_classes(listed, model.labels, model.arch.num_classes)
    views = data.views or (model.views if card is None else card.sampling.views)
    sampling = data.sampling or ("dense" if card is None else card.sampling.rule)
    job = _Job(recipe, model, videos, views, sampling, state, device, precision)
    if state.is_main_process:
        where = f"{state.num_processes} x {device.type}" if state.num_processes > 1 else str(device)
        kind = f"{views} views" if sampling == "dense" else f"{views} views of segments"
        log.info("%d videos of %s, %s, %s on %s in %s", len(videos), source, kind, start, where, _name(precision))
    several = videos.labels.ndim == 2
    num_listed = int(videos.labels.any(axis=0).sum()) if several else len(np.unique(videos.labels))
    return Results(1 + num_listed if state.is_main_process else 0, _run(job))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _segments(
    spec: ClipSpec, num_clips: int, times: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """A :data:`Sampler` for the test: nothing is drawn."""
    return segment_clips(times, spec, num_clips=num_clips)


def _processes(name: str) -> tuple[PartialState, torch.device]:
    """All processes that were started together, and the device of this one."""
    from accelerate import PartialState

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


def _run(job: _Job) -> Iterator[ClassScore]:
    """Scores what is left of the list, tells the other processes' scores, writes, yields."""
    recipe, videos, state, began = job.recipe, job.videos, job.state, time.monotonic()
    output = None if recipe.run.output is None else Path(recipe.run.output)
    facts = {} if output is None else job.facts()
    before, left = _agree(state, videos, None if output is None else output / "parts", facts)
    if len(before.index):
        log.info("%s holds scores of %d of %d videos: going on from there", output, len(before.index), len(videos))
    with ExitStack() as stack:
        part = None
        if output is not None:
            part = stack.enter_context(open_part(output / "parts" / f"rank{state.process_index:04d}.jsonl", facts))
        each = stack.enter_context(_Watch(job, len(left), part))
        num_clips, num_crops = parse_views(job.views)
        scores = score_videos(
            job.model,
            videos,
            job.model.spec,
            num_clips=num_clips,
            num_crops=num_crops,
            rank=state.process_index,
            num_processes=state.num_processes,
            device=job.device,
            dtype=job.precision,
            batch_size=recipe.run.batch_size,
            num_workers=recipe.data.num_workers,
            sample=job.sample,
            fps=recipe.data.fps,
            decode=recipe.data.decode,
            time_limit=recipe.data.time_limit,
            indices=left,
            each=each,
        )
    scores = merge([gather(scores, state), before])
    if not state.is_main_process:
        return
    found = class_scores(scores, videos)
    _say(found[0], scores, videos)
    if output is not None:
        cost = {"videos": len(left), "seconds": round(time.monotonic() - began, 3), "processes": state.num_processes}
        facts = {"model": recipe.model.start or BUILT_IN, **facts, "cost": {**cost, "device": str(job.device)}}
        write_results(output, videos, scores, found, {**facts, "recipe": asdict(recipe)})
    yield from found


def _agree(
    state: PartialState, videos: VideoList, parts: Path | None, facts: dict[str, Any]
) -> tuple[Scores, list[int]]:
    """What was scored before (known to the main process), and what is left: it decides for all, as others may begin to
    write parts while it reads.
    """
    kept: list[Scored] = []
    refusal = None
    if state.is_main_process and parts is not None:
        try:
            kept = list(read_parts(parts, facts))
        except RequestError as error:  # told to all, or they would wait
            refusal = str(error)
    before = put_together(kept, len(videos.classes))
    left = np.setdiff1d(np.arange(len(videos)), before.index).tolist()
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        left, refusal = broadcast_object_list([left, refusal])
    if refusal is not None:
        raise RequestError(refusal)
    return before, left


class _Watch:
    """Called with each video as it is done: keeps it, and shows progress in the main process."""

    def __init__(self, job: _Job, num_left: int, part: BinaryIO | None) -> None:
        self._job, self._part = job, part
        self._right, self._labelled, self._bad = 0, 0, 0
        hidden = None if job.state.is_main_process else True
        self._num_left, total = num_left, len(job.videos)
        self._bar = tqdm(total=total, initial=total - num_left, unit="video", disable=hidden, file=sys.stderr)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, one: Scored) -> None:
        videos = self._job.videos
        if one.scores is not None and not np.isfinite(one.scores).all():
            raise RequestError(
                f"the model's scores of {videos.path(one.index)} are not finite in {_name(self._job.precision)}: "
                "take run.precision fp32, or other weights"
            )
        if self._part is not None:
            append(self._part, to_line(one))
        self._bad += one.scores is None
        if one.scores is not None and videos.labels.ndim == 1 and videos.labels[one.index] >= 0:
            self._labelled += 1
            self._right += int(one.scores.argmax()) == videos.label(one.index)
        shown = {"top1": f"{self._right / self._labelled:.1%}"} if self._labelled else {}
        self._bar.set_postfix({**shown, "bad": self._bad}, refresh=False)
        done = min(self._job.state.num_processes, self._num_left)  # the other processes are about as far
        self._num_left -= done
        self._bar.update(done)


def _say(total: ClassScore, scores: Scores, videos: VideoList) -> None:
    """What the figures alone do not tell: which videos are bad, and what looks wrong."""
    for index, error in list(scores.errors.items())[:MAX_NAMED]:
        path = videos.path(index)
        log.warning("%s", error if path in error else f"{path}: {error}")
    if len(scores.errors) > MAX_NAMED:
        log.warning("and %d more; with run.output, scores.parquet lists them", len(scores.errors) - MAX_NAMED)
    if total.error is not None:
        log.warning("%s", total.error)
    top1 = total.values.get("top1")
    if top1 is not None and top1 < SUSPICIOUS and len(videos.classes) >= MANY_CLASSES:
        log.warning(
            "top-1 is %.2f %% of %d classes: their order in the list may not be the model's, which looks like this",
            100 * top1,
            len(videos.classes),
        )
