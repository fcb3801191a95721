"""Dataset cards: what ``datasets/NAME.yaml`` says of a dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import yaml

from hiera_video import fields
from hiera_video.errors import RequestError
from hiera_video.fields import Count, CountOrZero, Positive
from hiera_video.files import find
from hiera_video.spec import Views

#: In place of a list of classes: the names that torchvision carries.
TORCHVISION = ("torchvision:kinetics400", "torchvision:imagenet1k")


@dataclass(frozen=True)
class Sampling:
    """How published results cut clips from the videos of this dataset."""

    rule: Literal["dense", "segments"] = "dense"
    """How a clip's frames are taken: dense, at equal steps of time, or one from each of equal parts of the video."""
    num_frames: Count = 16
    """Frames of a clip."""
    frame_stride: Positive = 4
    """Frames from one frame of the clip to the next, in a video of target_fps."""
    target_fps: Positive = 30
    """Frames per second that frame_stride counts in."""
    views: Views = "5x3"
    """Clips x crops of a video in the test."""
    flip: bool = True
    """Whether training may mirror a video; false where classes have directions."""

    @property
    def span(self) -> float:
        """Seconds that a video needs to fill a clip; segments fill theirs from any."""
        return self.num_frames * self.frame_stride / self.target_fps if self.rule == "dense" else 0.0


@dataclass(frozen=True)
class Split:
    """One split: where its annotations and videos are, below the root."""

    folder: list[str]
    """Places of the videos; the first that is there is taken."""
    annotations: list[str] = field(default_factory=list)
    """Places of the annotation file or folder, likewise; {fold} stands for the fold's number."""
    listed: CountOrZero | list[int] | None = None
    """Published number of videos in the annotations, or a list with one for each fold."""
    files: CountOrZero | None = None
    """How many of them can be had."""
    unlabelled: bool = False
    """Whether labels may be absent."""


@dataclass(frozen=True)
class Card:
    """What a dataset is: the fields of ``datasets/NAME.yaml``."""

    name: str
    """The name of the dataset, which is also that of the file."""
    format: Literal["kinetics", "ssv2", "ucf101", "hmdb51", "list", "images"]
    """Which reader takes its annotations; list is path and label in a text file, images a folder for each class."""
    num_classes: Count
    """How many classes there are."""
    splits: dict[str, Split]
    """The splits by name: train, val, test."""
    layout: str
    """The folders and files below the root, in words."""
    source: str
    """Where it can be had."""
    licence: str
    """The licence of annotations and videos, as far as known."""
    sampling: Sampling = Sampling()
    """How published results cut clips from it."""
    classes: list[str] | str | None = None
    """Names in the order of their numbers; or torchvision:kinetics400 or torchvision:imagenet1k, for the names that
    torchvision carries; null: the sorted labels of the training list."""
    folds: Count = 1
    """How many published folds there are."""
    notes: list[str] = field(default_factory=list)
    """What a user should know before using it."""


def load_card(source: str | os.PathLike[str]) -> Card:
    """The card of a dataset.

    Args:
        source: The name of a card that ships, or the path of a YAML file.

    Returns:
        The card, checked.

    Raises:
        RequestError: One sentence that names the file and the field; for an unknown name the nearest.
    """
    file = find("datasets", source)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date of the 45th is a ValueError
        raise RequestError(f"{file} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("splits"), dict):
        raise RequestError(f"{file} is no dataset card: expected name, format, num_classes, splits, ...")
    if isinstance(values.get("classes"), list) and not all(isinstance(name, str) for name in values["classes"]):
        raise RequestError(f"{file}: classes hold something else than text: put yes, no and numbers in quotes")
    card = fields.from_mapping(Card, values, where=f"{file}: ")
    if isinstance(card.classes, str) and card.classes not in TORCHVISION:
        raise RequestError(f"{file}: classes are {card.classes!r}, but can be a list or {' or '.join(TORCHVISION)}")
    for name, split in card.splits.items():
        if isinstance(split.listed, list) and len(split.listed) != card.folds:
            raise RequestError(f"{file}: splits.{name}.listed has {len(split.listed)} numbers for {card.folds} folds")
    return card
