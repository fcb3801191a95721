"""What a recipe's data section comes to: lists of videos, checked, the model's input facts, the loader."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList, card_of, list_videos
from hiera_video.data.loader import ClipLoader
from hiera_video.data.reading.files import is_address
from hiera_video.data.reading.shards import parse_member
from hiera_video.data.sampling import sampler_of
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.unroll import Size
from hiera_video.spec import Augment, ClipSpec
from hiera_video.tasks.evaluate.metrics import match_classes
from hiera_video.training.optimization import Plan
from hiera_video.training.recipe import Data, Run


@dataclass(frozen=True)
class Lists:
    """The videos to learn from (None: clips are generated), and those to validate on, where there are any."""

    train: VideoList | None
    val: VideoList | None


@dataclass(frozen=True)
class ReadBefore:
    """What :func:`own_recipe` has read, for the run that follows; it is tied to the recipe object.

    ``model`` is None where the run starts from new weights; ``notes`` say what was chosen, and why.
    """

    lists: Lists
    model: Hiera | None
    notes: list[str]


def lists_of(data: Data) -> Lists:
    """Reads the lists of a run.

    Args:
        data: Names them. Without ``val`` a card's own validation split is taken, or a share of the training videos.

    Returns:
        Both lists.

    Raises:
        RequestError: A list cannot be read.
    """
    train, source = None, data.val
    if data.train is not None:
        train = list_videos(data.train, root=data.root, split=data.train_split, fold=data.fold, images=data.images)
        card = card_of(data.train)
        if source is None and card is not None and data.val_split in card.splits:
            source = data.train
    if source is None:
        return Lists(train, None) if train is None or not data.hold_out else _held_out(train, data.hold_out)
    return Lists(train, list_videos(source, root=data.root, split=data.val_split, fold=data.fold, images=data.images))


def _held_out(videos: VideoList, share: float) -> Lists:
    """Takes a share of each class's files away, to validate on; none where a class would have nothing to learn from."""
    files = np.unique([videos.path(index) for index in range(len(videos))], return_inverse=True)[1]
    firsts = np.unique(files, return_index=True)[1]  # of each file its first video, by which it counts to a class
    kinds = videos.labels[firsts] if videos.labels.ndim == 1 else np.zeros(len(firsts), dtype=np.int64)
    judged = np.zeros(len(firsts), dtype=bool)
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        count = min(max(1, round(share * len(of_kind))), len(of_kind) - 1)
        judged[of_kind[(np.arange(count) * len(of_kind)) // max(1, count)]] = True  # spread over the list
    train, val = videos.subset(~judged[files]), videos.subset(judged[files])
    whole = (videos.labels >= 0).all() and len(np.unique(train.labels)) == len(np.unique(videos.labels))
    if train.labels.ndim == 2:
        whole = bool((train.labels.any(axis=0) >= videos.labels.any(axis=0)).all())
    return Lists(train, val) if whole and len(val) else Lists(videos, None)


def check_files(lists: Lists, data: Data) -> None:
    """Refuses a list of which no file is there.

    Args:
        lists: The lists of the run. Of a whole one a single file is looked for.
        data: Where they come from.

    Raises:
        RequestError: None of a list's files is there.
    """
    for field, source, videos in (("train", data.train, lists.train), ("val", data.val or data.train, lists.val)):
        if videos is not None and not any(map(_is_there, _paths(videos))):
            remedy = "check the paths in it" if data.root is None else f"check data.root {data.root}"
            raise RequestError(
                f"data.{field} {source}: none of {len(videos)} videos is there, the first of them {videos.path(0)}; "
                f"{remedy}"
            )


def _paths(videos: VideoList) -> Iterator[str]:
    return (videos.path(index) for index in range(len(videos)))


def _is_there(path: str) -> bool:
    """Of an address: not asked."""
    if os.path.exists(path) or is_address(path):
        return True
    member = parse_member(path)
    return member is not None and (is_address(member.shard) or os.path.exists(member.shard))


def labelled(lists: Lists, data: Data) -> Lists:
    """Lists to fine-tune with: every training video has a label, every class has videos.

    Args:
        lists: The lists of the run; there are training videos.
        data: Where they come from.

    Returns:
        The lists, validation numbered by the classes of training.

    Raises:
        RequestError: A label or a class is missing, or the lists do not fit each other.
    """
    train, val = lists.train, lists.val
    assert train is not None
    if (train.labels < 0).any():
        raise RequestError(
            f"{data.train}: {(train.labels < 0).sum()} videos have no label; fine-tuning needs one for each"
        )
    counts = (
        (train.labels > 0).sum(axis=0)
        if train.labels.ndim == 2
        else np.bincount(train.labels, minlength=len(train.classes))
    )
    if empty := [name for name, count in zip(train.classes, counts, strict=True) if not count]:
        raise RequestError(
            f"{data.train} has no videos of the class {empty[0]!r}"
            f"{f' and {len(empty) - 1} more' if len(empty) > 1 else ''}: add some, or take the class away"
        )
    if len(train.classes) < 2:
        raise RequestError(f"{data.train} has the class {train.classes[0]!r} alone: two are needed to tell apart")
    if val is None:
        return lists
    for name in val.classes:
        if name not in train.classes:
            nearest = difflib.get_close_matches(name, train.classes, n=1, cutoff=0.0)
            raise RequestError(
                f"{data.val or data.train} has the class {name!r}, which {data.train} lacks; its nearest is "
                f"{nearest[0]!r}"
            )
    return Lists(train, judging(val, train.classes, data))


def judging(val: VideoList, classes: list[str], data: Data) -> VideoList:
    """A validation list numbered by the classes of training.

    Args:
        val: The list as it was read.
        classes: The classes of training, in order.
        data: Where the list comes from.

    Returns:
        The same videos.

    Raises:
        RequestError: The classes do not fit, or no video has a label: the best model could never be told.
    """
    if not (val.labels >= 0).any() or (val.labels.ndim == 2 and not val.labels.any()):
        raise RequestError(
            f"data.val {data.val or data.train}: no video has a label, so the best model cannot be told: name a list "
            "with labels, or leave --val out"
        )
    return val if val.classes == classes else match_classes(val, classes, len(classes))


def spec_of(spec: ClipSpec, data: Data) -> ClipSpec:
    """The input facts of a run.

    Args:
        spec: Those of the starting model.
        data: What the recipe says of them.

    Returns:
        ``spec``, changed.
    """
    names = ("num_frames", "frame_stride", "target_fps", "resize", "antialias", "pixel_aspect")
    return spec.replace(**{name: value for name in names if (value := getattr(data, name)) is not None})


def input_size_of(data: Data, own: Size) -> Size:
    """The input size of a run.

    Args:
        data: What the recipe says of it.
        own: That of the starting model: (T, H, W) or (H, W).

    Returns:
        (T, H, W) or (H, W).
    """
    space = own[-2:] if data.size is None else (data.size, data.size)
    if len(own) == 2:
        return space
    return (own[0] if data.num_frames is None else data.num_frames, *space)


def clip_loader(
    videos: VideoList,
    spec: ClipSpec,
    data: Data,
    augment: Augment,
    run: Run,
    plan: Plan,
    accelerator: Accelerator,
    *,
    several_clips: bool,
) -> ClipLoader:
    """The batches of this process.

    Args:
        videos: The training list.
        spec: The model's input facts.
        data: The recipe's data section.
        augment: How clips are varied.
        run: Gives ``batch_size`` and ``seed``.
        plan: Gives ``accumulate``.
        accelerator: The run's processes.
        several_clips: ``data.repeats`` are clips of one decode (MAE); else augmentations of one clip (fine-tuning).

    Returns:
        The loader.
    """
    dataset = ClipDataset(
        videos,
        spec,
        augment=augment,
        sample=sampler_of(data.sampling, spec, random=True),
        num_clips=data.repeats if several_clips else 1,
        num_augments=1 if several_clips else data.repeats,
        seed=run.seed,
        decode=data.decode,
        fps=data.fps,
        time_limit=data.time_limit,
    )
    return ClipLoader(
        dataset,
        run.batch_size,
        num_workers=data.num_workers,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        accumulate=plan.accumulate,
    )
