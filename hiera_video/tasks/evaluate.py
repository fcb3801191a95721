"""Evaluate a classifier on a list of videos by the published protocol: each video once, in any number of processes.

Top to bottom: videos to scores, scores to figures, the job, the parts that a killed run goes on from, the files.
"""

from __future__ import annotations

import base64
import csv
import difflib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from hiera_video.data.annotations import plain
from hiera_video.data.dataset import Sampler
from hiera_video.data.lists import VideoList, card_of, list_videos
from hiera_video.data.loader import test_views
from hiera_video.data.sampling import segment_clips
from hiera_video.errors import OutputError, RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import from_pretrained
from hiera_video.outputs import replacing
from hiera_video.spec import ClipSpec
from hiera_video.tasks.classify import BUILT_IN, autocast, parse_views, pick_device, pick_precision
from hiera_video.tasks.results import Results
from hiera_video.training.recipe import Evaluation, check

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

log = logging.getLogger("hiera_video")

#: Bad videos that are named on the screen.
MAX_NAMED = 10
#: A top-1 below this share, with at least so many classes, is more likely a wrong order than a bad model (RECIPES 5).
SUSPICIOUS, MANY_CLASSES = 0.01, 100


@dataclass(frozen=True)
class Scores:
    """``index`` int64 [n], ascending, of the videos that could be read, and ``scores`` float32 [n, K] of each.

    ``errors``: one sentence by index, for each video that could not be read (it is not in ``index``), or only in part.
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float32]
    errors: dict[int, str]


@dataclass(frozen=True)
class Scored:
    """One video: its scores float32 [K], or None, and an error or None."""

    index: int
    scores: NDArray[np.float32] | None
    error: str | None


def score_videos(
    model: nn.Module,
    videos: VideoList,
    spec: ClipSpec,
    *,
    num_clips: int,
    num_crops: int,
    rank: int = 0,
    num_processes: int = 1,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 8,
    num_workers: int = 2,
    sample: Sampler | None = None,
    fps: float | None = None,
    time_limit: float = 60,
    progress: Callable[[int], None] | None = None,
    indices: Sequence[int] | None = None,
    each: Callable[[Scored], None] | None = None,
) -> Scores:
    """The scores of videos ``rank``, ``rank + num_processes``, ... (of ``indices``): the mean over views of softmax,
    or of sigmoid where the list has several labels for a video. Nothing is replaced.

    ``model``, on ``device``, gives logits [B, K] of normalised clips; it computes in ``dtype``, and in evaluation mode.
    ``batch_size`` clips, of several videos, go through it at once. ``each`` gets every video as soon as it is done,
    and ``progress`` their number since the last call; ``sample`` and ``fps`` are those of :func:`load_views`.
    """
    todo = list(range(len(videos)) if indices is None else indices)[rank::num_processes]
    views = test_views(
        videos,
        spec,
        num_clips,
        num_crops,
        sample=sample,
        fps=fps,
        num_workers=num_workers,
        device=device,
        time_limit=time_limit,
        indices=todo,
    )
    arch = getattr(model, "arch", None)
    is_image = spec.num_frames == 1 if arch is None else len(arch.input_size) == 2

    def forward(clips: Tensor) -> Tensor:
        with torch.inference_mode():
            with autocast(device, dtype):
                logits = model(spec.normalize(clips[:, :, 0] if is_image else clips)).float()
            return logits.sigmoid() if videos.labels.ndim == 2 else logits.softmax(dim=-1)

    found = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for one in _stream(views, forward, batch_size) if todo else ():  # no workers are started for nothing
            found.append(one)
            if each is not None:
                each(one)
            if progress is not None:
                progress(1)
    finally:
        for module, training in modes:  # frozen ones may differ from the rest
            module.training = training
    return put_together(found, len(videos.classes))


def _stream(views: Iterable[dict[str, Any]], forward: Callable[[Tensor], Tensor], batch_size: int) -> Iterator[Scored]:
    """Each video in turn, as soon as the last of its clips has been through the model."""
    waiting: deque[tuple[int, int, str | None]] = deque()  # index, number of clips, error

    def clips() -> Iterator[Tensor]:
        for one in views:
            waiting.append((one["index"], 0 if one["clips"] is None else len(one["clips"]), one["error"]))
            if one["clips"] is not None:
                yield one["clips"]

    def scores() -> Iterator[Tensor]:
        running: Tensor | None = None
        for batch in _batches(clips(), batch_size):
            launched = forward(batch)
            if running is not None:  # a batch is waited for when the next one is under way
                yield running
            running = launched
        if running is not None:
            yield running

    rows = np.empty((0, 0), dtype=np.float32)
    for part in scores():
        new = part.cpu().numpy()
        rows = np.concatenate([rows, new]) if len(rows) else new
        while waiting and waiting[0][1] <= len(rows):
            index, count, error = waiting.popleft()
            yield Scored(index, rows[:count].mean(axis=0) if count else None, error)
            rows = rows[count:]
    for index, _, error in waiting:  # nothing of these could be read
        yield Scored(index, None, error)


def _batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same clips, ``size`` at a time; the last batch may be smaller."""
    rest: list[Tensor] = []
    for part in parts:
        rest.append(part)
        if sum(map(len, rest)) >= size:
            *whole, last = torch.cat(rest).split(size)
            yield from whole
            rest = [last]
    if rest:
        yield torch.cat(rest)


def put_together(found: Sequence[Scored], num_classes: int) -> Scores:
    """Of a video that was scored twice, the later scores."""
    rows = {one.index: one.scores for one in found if one.scores is not None}
    scores = np.stack([rows[one] for one in sorted(rows)]) if rows else np.empty((0, num_classes), dtype=np.float32)
    errors = {one.index: one.error for one in found if one.error is not None}
    return Scores(np.array(sorted(rows), dtype=np.int64), scores, dict(sorted(errors.items())))


def gather(scores: Scores, accelerator: Accelerator | PartialState | None = None) -> Scores:
    """The scores of all processes, in each of them, sorted by index and nothing twice."""
    parts = [scores]
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    return merge(parts)


def merge(parts: Sequence[Scores]) -> Scores:
    """Of a video that is in several, the first scores."""
    filled = [part for part in parts if len(part.index)] or parts[:1]
    index, first = np.unique(np.concatenate([part.index for part in filled]), return_index=True)
    scores = np.concatenate([part.scores for part in filled])[first]
    errors = {number: error for part in reversed(parts) for number, error in part.errors.items()}
    return Scores(index, scores, dict(sorted(errors.items())))


# --- figures ----------------------------------------------------------------------------------------------------------


def metrics(scores: Scores, videos: VideoList) -> dict[str, float]:
    """``{"top1", "top5", "videos", "listed"}``, or ``{"map", ...}`` where a video has several labels.

    Shares from 0 to 1, nan where nothing counts; ``videos`` were readable and labelled, ``listed`` is all of them.
    ``top5`` of fewer than five classes looks at all. ``map``: the mean of the average precision of each class that a
    readable video has.
    """
    values, labels = counted(scores, videos)
    if labels.ndim == 2:
        each = _average_precision(values, labels)
        figures = {"map": float(np.nanmean(each)) if labels.any() else float("nan")}
    else:
        figures = {name: _accuracy(values, labels, k) for name, k in (("top1", 1), ("top5", 5))}
    return {**figures, "videos": float(len(values)), "listed": float(len(videos))}


def counted(scores: Scores, videos: VideoList) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scores and labels of the readable videos that have labels."""
    labels = videos.labels[scores.index]
    known = labels >= 0 if labels.ndim == 1 else np.ones(len(labels), dtype=bool)
    return scores.scores[known], labels[known]


def _accuracy(values: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    from torchmetrics.functional.classification import multiclass_accuracy  # takes five seconds to import

    num_classes = values.shape[1]
    if not len(values) or num_classes < 2:  # torchmetrics wants two
        return 1.0 if len(values) else float("nan")
    preds, target = torch.from_numpy(values), torch.from_numpy(labels)
    return float(multiclass_accuracy(preds, target, num_classes, average="micro", top_k=min(k, num_classes)))


def _average_precision(values: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each class, float64 [K]; nan where no video has it, which torchmetrics would count as 0."""
    from torchmetrics.functional.classification import binary_average_precision

    each = np.full(labels.shape[1], np.nan)
    for number in np.flatnonzero(labels.any(axis=0)):
        truth = torch.from_numpy(labels[:, number]).long()
        each[number] = float(binary_average_precision(torch.from_numpy(values[:, number]), truth))
    return each


@dataclass(frozen=True)
class ClassScore:
    """The figures of a class, of "all", or of videos with "(no label)", which are scored and not counted.

    ``videos`` of the ``listed`` ones were readable and counted. ``values``: ``top1`` and ``top5``, or ``map`` (of a
    class: its average precision); None where nothing counts.
    """

    name: str
    listed: int
    videos: int
    values: dict[str, float | None]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """``{"class", "listed", "videos", "top1", "top5", "error"}``, or ``map`` instead of the two."""
        values = {name: None if value is None else round(value, 6) for name, value in self.values.items()}
        return {"class": self.name, "listed": self.listed, "videos": self.videos, **values, "error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]


def class_scores(scores: Scores, videos: VideoList) -> list[ClassScore]:
    """The total first, then each class that is listed, then the videos without label if there are some."""
    total = metrics(scores, videos)
    num_listed, num_videos = int(total.pop("listed")), int(total.pop("videos"))
    known = {name: None if np.isnan(value) else value for name, value in total.items()}
    found = [ClassScore("all", num_listed, num_videos, known, _error(scores, videos))]
    values, labels = counted(scores, videos)
    num_classes = len(videos.classes)
    if labels.ndim == 2:
        listed, counts = videos.labels.sum(axis=0), labels.sum(axis=0)
        each = {"map": _average_precision(values, labels)}
    else:
        listed = np.bincount(videos.labels[videos.labels >= 0], minlength=num_classes)
        counts = np.bincount(labels, minlength=num_classes)
        best = torch.from_numpy(values).topk(min(5, num_classes)).indices.numpy() == labels[:, np.newaxis]
        hits = {"top1": best[:, :1].any(axis=1), "top5": best.any(axis=1)}
        right = {name: np.bincount(labels[hit], minlength=num_classes) for name, hit in hits.items()}
        each = {name: number / np.maximum(counts, 1) for name, number in right.items()}
    for number in np.flatnonzero(listed).tolist():
        figures = {name: float(value[number]) if counts[number] else None for name, value in each.items()}
        found.append(ClassScore(videos.classes[number], int(listed[number]), int(counts[number]), figures))
    if num_unlabelled := int((videos.labels < 0).sum()):
        found.append(ClassScore("(no label)", num_unlabelled, 0, dict.fromkeys(known)))
    return found


def _error(scores: Scores, videos: VideoList) -> str | None:
    """One sentence where videos could not be read, or only in part."""
    read = set(scores.index.tolist())
    missing = sum(index not in read for index in scores.errors)
    damaged = len(scores.errors) - missing
    if missing == len(videos):
        return f"none of {missing} videos could be read; the first: {next(iter(scores.errors.values()))}"
    texts = [f"{missing} of {len(videos)} videos could not be read"] if missing else []
    texts += [f"{damaged} of {len(videos)} videos could be read only in part"] if damaged else []
    return " and ".join(texts) or None


def match_classes(videos: VideoList, labels: Sequence[str] | None, num_classes: int) -> VideoList:
    """``videos`` with classes and labels numbered as the outputs of a model with these ``labels``, if it has names.

    By name where they are known to the model, in any order; else by number, where either side has only numbers (or
    ImageNet's n01440764) and the counts agree. Says in one log line what differs. Raises :class:`RequestError`.
    """
    names, known = videos.classes, list(labels or ())
    if names == known:
        return videos
    used = set(np.flatnonzero(videos.labels.any(axis=0)) if videos.labels.ndim == 2 else videos.labels)
    likeness = Counter(map(plain, known))
    numbers = {plain(name): number for number, name in enumerate(known) if likeness[plain(name)] == 1}
    numbers |= {name: number for number, name in enumerate(known)}
    places = np.array([numbers.get(name, numbers.get(plain(name), -1)) for name in names])
    unknown = [name for number, name in enumerate(names) if number in used and places[number] < 0]
    if unknown and known and not _numbers_only(names) and not _numbers_only(known):
        nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)[0]
        raise RequestError(
            f"the videos to evaluate have the class {unknown[0]!r}, which the model lacks; its nearest is {nearest!r}"
        )
    if unknown or not known:
        if len(names) > num_classes or (len(names) < num_classes and not all(map(str.isdecimal, names))):
            raise RequestError(
                f"the list has {len(names)} classes and the model {num_classes} of other names or none, so that "
                "which is which cannot be told: name the classes as the model does, or list all of them"
            )
        unnamed = "list" if known and not _numbers_only(known) else "model"
        log.info("classes are matched by number: the %s has no names for them", unnamed)
        places = np.arange(len(names))
        if not known or _numbers_only(known):
            known = [*names, *map(str, range(len(names), num_classes))]
    elif sorted(places.tolist()) != list(range(num_classes)):
        log.info("%d of the model's %d classes are listed: matched by name", (places >= 0).sum(), num_classes)
    elif places.tolist() != list(range(num_classes)):
        log.info("the list has the model's %d classes in another order: matched by name", num_classes)
    if videos.labels.ndim == 1:
        return replace(videos, classes=known, labels=np.where(videos.labels < 0, -1, places[videos.labels]))
    table = np.zeros((len(videos), num_classes), dtype=np.float32)
    table[:, places[places >= 0]] = videos.labels[:, places >= 0]
    return replace(videos, classes=known, labels=table)


def _numbers_only(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\d+|n\d{8}", name) for name in names)


# --- the job ----------------------------------------------------------------------------------------------------------


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
        arch = repr((self.model.arch, self.model.position_resize)).encode()
        weights, places = hashlib.blake2b(arch, digest_size=8), hashlib.blake2b(digest_size=8)
        for name, tensor in self.model.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        for part in (self.videos.starts, self.videos.ends, self.videos.offsets):
            places.update(part.tobytes())
        places.update(self.videos.buffer)
        return {
            "format": "hiera-video evaluate 1",
            "weights": weights.hexdigest(),
            "list": places.hexdigest(),
            "views": self.views,
            "sampling": self.sampling,
            "fps": self.recipe.data.fps,
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
    if data.decode != "exact":
        raise RequestError(f"data.decode is {data.decode!r}, but an evaluation shows what was asked for: leave exact")
    state, device = _processes(recipe.run.device)
    precision = pick_precision(recipe.run.precision, device)
    source = str(data.source)
    card = card_of(source)
    listed = list_videos(source, root=data.root, split=data.split, fold=data.fold, images=data.images)
    with state.local_main_process_first():  # one of them downloads
        model = from_pretrained(start).to(device)
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


# --- parts ------------------------------------------------------------------------------------------------------------


def to_line(one: Scored) -> bytes:
    """One line of JSON; the scores bit by bit, as base64 of little-endian float32."""
    scores = None if one.scores is None else base64.b64encode(one.scores.astype("<f4").tobytes()).decode()
    return json.dumps({"index": one.index, "scores": scores, "error": one.error}).encode() + b"\n"


def from_line(line: bytes) -> Scored:
    """The inverse of :func:`to_line`. Raises ValueError for any other text."""
    try:
        values = json.loads(line)
        scores = values["scores"]
        row = None if scores is None else np.frombuffer(base64.b64decode(scores), dtype="<f4").astype(np.float32)
        return Scored(int(values["index"]), row, values["error"])
    except (TypeError, KeyError) as error:
        raise ValueError(line) from error


def read_parts(folder: Path, facts: dict[str, Any]) -> Iterator[Scored]:
    """What earlier runs scored, of any number of processes. A line without its end, as a killed run leaves it, does
    not count, nor does a video that could not be read: it is tried again.

    Raises :class:`RequestError` where they evaluated something else.
    """
    for path in sorted(folder.glob("rank*.jsonl")):
        with path.open("rb") as lines:
            header = next(lines, b"")
            if header.endswith(b"\n"):
                _check_header(header, facts, folder)
            for line in lines:
                with suppress(ValueError):  # after a crash of the machine; that video is scored again
                    one = from_line(line)
                    if one.scores is not None:
                        yield one


def _check_header(header: bytes, facts: dict[str, Any], folder: Path) -> None:
    """Raises :class:`RequestError` unless parts with this first line belong to a run of these facts."""
    try:
        found = dict(json.loads(header))
    except (ValueError, TypeError):
        found = {}
    for name, here in facts.items():
        there = found.get(name)
        if there != here:
            raise RequestError(
                f"{folder} holds scores of another evaluation ({name} was {there}, is now {here}): name another "
                "run.output, or delete that folder"
            )


def append(part: BinaryIO, line: bytes) -> None:
    """In one write: what is in the file survives the end of this process. Raises :class:`OutputError`."""
    try:
        written = part.write(line)
    except OSError as error:
        raise OutputError(f"{part.name} cannot be written: {error.strerror or error}") from error
    if written != len(line):
        raise OutputError(f"{part.name} cannot be written: the disk is full")


def open_part(path: Path, facts: dict[str, Any]) -> BinaryIO:
    """A part to append lines to, half a line at its end cut off. Raises as :func:`read_parts`, :class:`OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115  # the caller closes it
        file.seek(0)
        content = file.read()
        length = content.rfind(b"\n") + 1
        file.truncate(length)
        if length:
            _check_header(content[: content.index(b"\n")], facts, path.parent)
        else:
            append(file, json.dumps(facts).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return file


# --- files ------------------------------------------------------------------------------------------------------------


def write_results(
    output: Path, videos: VideoList, scores: Scores, found: Sequence[ClassScore], facts: dict[str, Any]
) -> None:
    """scores.parquet, classes.csv, confusion.png (where a video has one label) and result.json, each whole or not."""
    import pyarrow.parquet as pq

    with replacing(output / "scores.parquet") as temporary:
        pq.write_table(_table(scores, videos), temporary)
    with replacing(output / "classes.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(found[0].to_dict()))
        writer.writeheader()
        writer.writerows(one.to_dict() for one in found[1:])
    values, labels = counted(scores, videos)
    if labels.ndim == 1 and len(labels):
        from hiera_video.visual.confusion import draw_confusion

        matrix = np.zeros((len(videos.classes),) * 2, dtype=np.int64)
        np.add.at(matrix, (labels, values.argmax(axis=1)), 1)
        shown = np.flatnonzero(matrix.any(axis=0) | matrix.any(axis=1))
        draw_confusion(matrix[np.ix_(shown, shown)], [videos.classes[one] for one in shown], output / "confusion.png")
    result = {name: value for name, value in found[0].to_dict().items() if name != "class"}
    result["bad"] = [{"path": videos.path(index), "error": error} for index, error in scores.errors.items()]
    result |= facts
    with replacing(output / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _table(scores: Scores, videos: VideoList) -> Any:
    """A row for each listed video, in the list's order; null where nothing was read, and for a label that is absent."""
    import pyarrow as pa

    names = np.array(videos.classes, dtype=object)
    place = np.full(len(videos), -1)
    place[scores.index] = np.arange(len(scores.index))
    absent = place < 0
    best = np.zeros(len(videos), dtype=np.int64)
    best[scores.index] = scores.scores.argmax(axis=1)
    top = np.zeros(len(videos), dtype=np.float32)
    top[scores.index] = scores.scores.max(axis=1)
    offsets = np.concatenate([[0], np.cumsum(~absent)]).astype(np.int32) * scores.scores.shape[1]
    if videos.labels.ndim == 2:
        label: Any = [np.flatnonzero(row).tolist() for row in videos.labels]
        label_name: Any = [[videos.classes[number] for number in row] for row in label]
    else:
        label = pa.array(videos.labels, pa.int64())
        label_name = pa.array(names[videos.labels], pa.string(), mask=videos.labels < 0)
    return pa.table(
        {
            "path": [os.fsencode(videos.path(index)).decode("utf-8", "replace") for index in range(len(videos))],
            "label": label,
            "label_name": label_name,
            "prediction": pa.array(best, pa.int64(), mask=absent),
            "prediction_name": pa.array(names[best], pa.string(), mask=absent),
            "score": pa.array(top, pa.float32(), mask=absent),
            "error": pa.array([scores.errors.get(index) for index in range(len(videos))], pa.string()),
            "scores": pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(scores.scores.ravel(), pa.float32()), mask=pa.array(absent)
            ),
        },
        metadata={"classes": json.dumps(videos.classes)},
    )
