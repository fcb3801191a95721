"""Dataset cards: what ``datasets/NAME.yaml`` says of a dataset."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from hiera_video.errors import RequestError
from hiera_video.files import find

#: In place of a list of classes: the names that torchvision carries.
TORCHVISION = ("torchvision:kinetics400", "torchvision:imagenet1k")
TYPES: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "list[str]": list}
FORMATS = ("kinetics", "ssv2", "ucf101", "hmdb51", "list", "images")


@dataclass(frozen=True)
class Sampling:
    """How clips are cut by convention: ``dense``, or one frame of each ``segments``; test views clips x crops."""

    rule: Literal["dense", "segments"] = "dense"
    num_frames: int = 16
    frame_stride: float = 4
    target_fps: float = 30
    views: str = "5x3"
    flip: bool = True

    @property
    def span(self) -> float:
        """Seconds that a video needs to fill a clip; segments fill theirs from any."""
        return self.num_frames * self.frame_stride / self.target_fps if self.rule == "dense" else 0.0


@dataclass(frozen=True)
class Split:
    """Where one split's annotations and videos are below the root: of each the first of several places that is there.

    ``{fold}`` stands for the fold's number. ``listed``: published number of videos in the annotations, one for each
    fold where there are folds; ``files``: how many of them could be had. ``unlabelled``: labels may be absent.
    """

    folder: list[str]
    annotations: list[str] = field(default_factory=list)
    listed: int | list[int] | None = None
    files: int | None = None
    unlabelled: bool = False


@dataclass(frozen=True)
class Card:
    """What a dataset is: the fields of ``datasets/NAME.yaml``.

    ``format``: which reader takes its annotations; "images" needs none: a folder of pictures for each class.
    ``classes``: the names in the order of their numbers, or one of :data:`TORCHVISION` for the names that torchvision
    carries, or None: the sorted labels of the training list.
    """

    name: str
    format: Literal["kinetics", "ssv2", "ucf101", "hmdb51", "list", "images"]
    num_classes: int
    splits: dict[str, Split]
    layout: str
    source: str
    licence: str
    sampling: Sampling = Sampling()
    classes: list[str] | str | None = None
    folds: int = 1
    notes: list[str] = field(default_factory=list)


def load_card(source: str | os.PathLike[str]) -> Card:
    """The card of this name or file. Raises :class:`RequestError`, for an unknown field with the nearest name."""
    import yaml

    file = find("datasets", source)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{file} is no readable YAML: {' '.join(str(error).split())}") from error
    splits = values.get("splits") if isinstance(values, dict) else None
    if not isinstance(splits, dict) or not splits:
        raise RequestError(f"{file} is no dataset card: expected name, format, num_classes, splits, ...")
    values["splits"] = {name: _fields(Split, split, f"{file}, splits.{name}") for name, split in splits.items()}
    values["sampling"] = _fields(Sampling, values.get("sampling", {}), f"{file}, sampling")
    card: Card = _fields(Card, values, os.fspath(file))
    for value, legal, name in ((card.format, FORMATS, "format"), (card.sampling.rule, ("dense", "segments"), "rule")):
        if value not in legal:
            raise RequestError(f"{file}: {name} is {value!r}, but can be one of {', '.join(legal)}")
    if isinstance(card.classes, list) and not all(isinstance(one, str) for one in card.classes):
        raise RequestError(f"{file}: classes hold something else than text: put yes, no and numbers in quotes")
    if isinstance(card.classes, str) and card.classes not in TORCHVISION:
        raise RequestError(f"{file}: classes are {card.classes!r}, but can be a list or {' or '.join(TORCHVISION)}")
    for name, split in card.splits.items():
        if isinstance(split.listed, list) and len(split.listed) != card.folds:
            raise RequestError(f"{file}: splits.{name}.listed has {len(split.listed)} numbers for {card.folds} folds")
    return card


def _fields(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from a mapping that has all it needs and nothing else."""
    if not isinstance(values, dict):
        raise RequestError(f"{where}: found {values!r}, but expected fields with values")
    known = {one.name: one for one in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise RequestError(f"{where}: there is no field {name!r}; {hint}")
    for name, one in known.items():
        if name not in values and one.default is one.default_factory is dataclasses.MISSING:
            raise RequestError(f"{where}: the field {name} is missing")
        wanted = TYPES.get(str(one.type))
        if wanted and name in values and not isinstance(values[name], wanted):
            raise RequestError(f"{where}: {name} is {values[name]!r}, but must be {one.type}")
    return kind(**values)
