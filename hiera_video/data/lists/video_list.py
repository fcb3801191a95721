"""Which videos there are and what their labels mean: dataset cards and annotation files -> one :class:`VideoList`.

:func:`list_videos` reads them all. The readers of the files' formats are in :mod:`hiera_video.data.lists.annotations`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiera_video import files
from hiera_video.data.lists import annotations as formats
from hiera_video.data.lists.annotations import Entries, plain
from hiera_video.data.lists.cards import TORCHVISION, Card, load_card
from hiera_video.data.lists.exports import read_export
from hiera_video.data.lists.folders import class_folders, place_kinetics, read_folders, subfolders
from hiera_video.data.lists.tables import header_of, read_lines, wrong
from hiera_video.data.reading.files import is_address, local_file
from hiera_video.data.reading.shards import below_address, find_index, is_member
from hiera_video.errors import RequestError, UnreadableVideo

log = logging.getLogger("hiera_video")

IMAGENET = TORCHVISION[1]
#: A list without names of classes has as many as its greatest number says; beyond this it is no class.
MAX_CLASSES = 100_000


@dataclass(frozen=True, eq=False)
class VideoList:
    """N videos, or segments of videos, in flat arrays: worker processes share them without copies."""

    classes: list[str]
    """Names of the classes by number."""
    labels: NDArray[Any]
    """int64 [N], -1 where unlabelled; or float32 [N, num_classes] of zeros and ones, where a video has any number of
    labels."""
    starts: NDArray[np.float64]
    """float64 [N]: seconds after the file's first frame at which each begins, 0 for a whole video."""
    ends: NDArray[np.float64]
    """float64 [N]: seconds at which each ends, inf for a whole video."""
    buffer: bytes = field(repr=False)
    """All paths, one after the other: see :meth:`path`."""
    offsets: NDArray[np.int64] = field(repr=False)
    """int64 [N + 1]: where each path begins in ``buffer``, and where the last one ends."""

    @classmethod
    def make(
        cls,
        paths: Iterable[str],
        labels: ArrayLike,
        classes: Sequence[str],
        *,
        starts: ArrayLike | None = None,
        ends: ArrayLike | None = None,
    ) -> VideoList:
        """The list of these paths, in this order.

        Args:
            paths: Of N files, or their http(s) addresses.
            labels: As the field of this name.
            classes: Names of the classes by number.
            starts: float64 [N], seconds; None: all 0.
            ends: float64 [N], seconds; None: all inf.

        Returns:
            The list.

        Raises:
            RequestError: The parts have not the same length, or a label or a time is not legal.
        """
        names = [os.fsencode(path) for path in paths]
        offsets = np.zeros(len(names) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        found = np.asarray(labels)
        found = found.astype(np.float32 if found.ndim == 2 else np.int64)
        if found.shape not in ((len(names),), (len(names), len(classes))):
            raise RequestError(
                f"labels have shape {found.shape}, but {len(names)} videos and {len(classes)} classes need "
                f"({len(names)},) or ({len(names)}, {len(classes)})"
            )
        least, most = (-1, len(classes) - 1) if found.ndim == 1 else (0, 1)
        if found.size and not (found.min() >= least and found.max() <= most):
            raise RequestError(f"labels are from {found.min()} to {found.max()}, but must be from {least} to {most}")
        first = np.zeros(len(names)) if starts is None else np.asarray(starts, dtype=np.float64)
        last = np.full(len(names), np.inf) if ends is None else np.asarray(ends, dtype=np.float64)
        if first.shape != (len(names),) or last.shape != first.shape or not np.all((first >= 0) & (first < last)):
            raise RequestError("starts and ends must be one each for every video, in seconds, with 0 <= start < end")
        return cls(list(classes), found, first, last, b"".join(names), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def path(self, index: int) -> str:
        """The file or address of one video.

        Args:
            index: Of the video; a negative one counts from the end.

        Returns:
            Its path.
        """
        index = range(len(self))[index]  # from the end too; IndexError
        return os.fsdecode(self.buffer[self.offsets[index] : self.offsets[index + 1]])

    def label(self, index: int) -> int | NDArray[np.float32]:
        """What one video shows, as a number or numbers.

        Args:
            index: Of the video.

        Returns:
            The number of its class, -1 where it is unlabelled, or float32 [num_classes] of zeros and ones.
        """
        return int(self.labels[index]) if self.labels.ndim == 1 else self.labels[index]

    def class_names(self, index: int) -> list[str]:
        """What one video shows, in words.

        Args:
            index: Of the video.

        Returns:
            The names of its classes; none where it is unlabelled.
        """
        label = self.label(index)
        numbers = np.flatnonzero(label).tolist() if isinstance(label, np.ndarray) else [label] if label >= 0 else []
        return [self.classes[number] for number in numbers]

    def subset(self, indices: Sequence[int] | NDArray[Any] | slice) -> VideoList:
        """Some of the videos, with the same classes.

        Args:
            indices: Of the videos, in the order in which they are wanted; or a mask, bool [N], that is true for them.

        Returns:
            A list of these videos alone.
        """
        kept = np.arange(len(self))[indices if isinstance(indices, (slice, np.ndarray)) else list(indices)]
        paths = (self.path(index) for index in kept.tolist())
        return self.make(paths, self.labels[kept], self.classes, starts=self.starts[kept], ends=self.ends[kept])


# --- reading ----------------------------------------------------------------------------------------------------------


def list_videos(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    fold: int = 1,
    classes: Sequence[str] | None = None,
    images: bool = False,
) -> VideoList:
    """The videos of a dataset, whether the files are there or not.

    Where a card's published number of videos differs, a warning is logged.

    Args:
        source: A card's name or YAML file; a folder with one folder for each class (or with train, val, test of such),
            or with videos alone, which have no labels;
            an annotation file (.csv, .txt, .tsv; .json of SSv2; an export of Label Studio, CVAT, VIA 3 or COCO-style
            JSON), also by its http(s) address; or a folder of tar shards with an index.csv.
        root: Where the dataset lies, or what a file's paths are relative to. Default: the folder of the file.
        split: train, val or test, where the source has several.
        fold: Which of a card's published folds, from 1 on.
        classes: Their order. Default: the card's, the format's own, or the sorted labels.
        images: Class folders hold pictures, not videos; a card or an annotation file says so by itself.

    Returns:
        The videos, with their labels as numbers.

    Raises:
        RequestError: There is no such source, split or fold, a file is not what its format says, or a label is unknown.
    """
    source = find_index(os.fspath(source), split) or source
    card, place = card_of(source), os.fspath(root or os.path.dirname(source) or ".")
    if card is not None:
        if root is None and not files.is_path(source):
            raise RequestError(f"where is {card.name}? Name its folder as root")
        entries = _entries_of_card(card, place, split, fold)
        classes = classes or _classes_of_card(card, entries, place, fold)
    elif os.path.isdir(source):
        entries = class_folders(os.fspath(source), split, images=images)
    elif os.path.isfile(source):
        entries = _read_file(source, split, place)
    elif is_address(os.fspath(source)):
        entries = _fetch_file(os.fspath(source), split, place)
    else:
        nearest = difflib.get_close_matches(os.fspath(source), files.names("datasets"), n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"cards: {', '.join(files.names('datasets'))}"
        raise RequestError(f"there is no file, folder or card {os.fspath(source)!r}; {hint}")
    if not entries.paths:
        what = "picture" if images else "video (pictures need images)"
        raise RequestError(f"{entries.file} lists no {what} of the split {split}")
    if not classes and is_member(entries.paths[0]):
        classes = _shard_classes(os.fspath(source))
    labels, names = _numbered(entries, list(classes) if classes else entries.classes)
    join = below_address if is_address(entries.folder) else os.path.join
    # ":/" first: to take a quarter of a million paths apart as addresses would cost a second.
    paths = (path if ":/" in path and is_address(path) else join(entries.folder, path) for path in entries.paths)
    return VideoList.make(paths, labels, names, starts=entries.starts or None, ends=entries.ends or None)


def card_of(source: str | os.PathLike[str]) -> Card | None:
    """The card that a source names, if it names one: by its YAML file, or by a name alone."""
    path = os.fspath(source)
    named = not files.is_path(path) and path in files.names("datasets")
    return load_card(path) if named or path.endswith((".yaml", ".yml")) else None


def _entries_of_card(card: Card, root: str, split: str, fold: int) -> Entries:
    if split not in card.splits:
        raise RequestError(f"{card.name} has no split {split!r}; it has {', '.join(card.splits)}")
    if not 1 <= fold <= card.folds:
        raise RequestError(f"fold is {fold}, but {card.name} has folds 1 to {card.folds}")
    part = card.splits[split]
    published = part.listed
    file = _first(root, part.annotations, fold)
    folder = _first(root, part.folder, fold) or os.path.join(root, part.folder[0])
    if card.format == "images":
        entries = _picture_folders(root, card, folder)
    elif file is None and card.format == "kinetics" and card.classes and os.path.isdir(folder):
        entries, published = class_folders(folder, split), part.files
    elif file is None:
        places = " or ".join(place.format(fold=fold) for place in part.annotations)
        raise RequestError(f"{root} has no annotations of {card.name}, split {split}: expected {places} in it")
    elif card.format == "kinetics":
        entries = formats.read_kinetics(file, split, unlabelled=part.unlabelled)
        place_kinetics(entries, folder, os.path.join(root, "replacement"))
    elif card.format == "ssv2":
        entries = formats.read_ssv2(file, folder, unlabelled=part.unlabelled)
    elif card.format == "ucf101":
        entries = formats.read_ucf101(file, folder)
    elif card.format == "hmdb51":
        entries = formats.read_hmdb51(file, split, fold, folder)
    else:
        entries = _read_file(file, split, folder)
    original = published[fold - 1] if isinstance(published, list) else published
    if original not in (None, len(entries.paths)):
        here = len(entries.paths)
        log.warning("%s, split %s: %d videos are listed here, %d in the original", card.name, split, here, original)
    return entries


def _read_file(file: str | os.PathLike[str], split: str, folder: str) -> Entries:
    """A file whose format its name and what it holds tell. Its videos are in ``folder``."""
    path = Path(file)
    if path.suffix.lower() in (".json", ".xml", ".zip"):
        export = read_export(path, folder)
        return formats.read_ssv2(path, folder) if export is None else export.entries()
    if re.fullmatch(r"(train|test)list\d+\.txt", path.name) and (path.parent / "classInd.txt").is_file():
        return formats.read_ucf101(path, folder)
    if re.fullmatch(r".+_test_split\d\.txt", path.name):
        raise RequestError(f"{path} is HMDB51's split file of one class: name the card hmdb51 and its root instead")
    header = header_of(read_lines(path))
    if header is not None and "youtube_id" in header.columns:
        entries = formats.read_kinetics(path, split)
        place_kinetics(entries, folder, os.path.join(folder, "replacement"))
        return entries
    return formats.read_table(path, folder, split) if header is not None else formats.read_list(path, folder)


def _fetch_file(address: str, split: str, folder: str) -> Entries:
    """:func:`_read_file` of a file at an address. It is asked for once."""
    try:
        with local_file(address) as file:
            try:
                entries = _read_file(file, split, folder)
            except RequestError as error:
                raise RequestError(str(error).replace(file, address)) from None
    except UnreadableVideo as error:
        raise RequestError(str(error)) from error
    entries.file = address
    return entries


def _shard_classes(index: str) -> list[str] | None:
    """The order of the classes of shards: the lines of classes.txt beside their index, where there is one."""
    place = f"{os.path.dirname(index)}/classes.txt"
    try:
        with local_file(place) as file:
            text = Path(file).read_text(encoding="utf-8", errors="surrogateescape")
            return [name for name in text.split("\n") if name]
    except UnreadableVideo as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError) or getattr(cause, "code", None) in (404, 410):
            return None
        raise RequestError(str(error)) from error


def _classes_of_card(card: Card, entries: Entries, root: str, fold: int) -> list[str]:
    """The names by number, checked against the card's number of classes."""
    if isinstance(card.classes, str):
        classes = files.labels_of(card.classes.partition(":")[2])
    elif isinstance(card.classes, list):
        classes = card.classes
    elif entries.classes is not None:
        classes = entries.classes
    else:
        training = _first(root, card.splits["train"].annotations, fold) if "train" in card.splits else None
        known = entries
        if training is not None and training != entries.file:
            known = (
                formats.read_kinetics(training, "train")
                if card.format == "kinetics"
                else _read_file(training, "train", root)
            )
        classes = sorted({label for labels in known.labels for label in labels})
        if all(label.isdecimal() for label in classes):
            classes = [str(number) for number in range(card.num_classes)]
    if len(classes) != card.num_classes:
        raise RequestError(f"{entries.file} has {len(classes)} classes, but {card.name} has {card.num_classes}")
    return classes


def _first(root: str, places: Sequence[str], fold: int) -> str | None:
    """The first of several places below the root that is there."""
    paths = [os.path.normpath(os.path.join(root, place.format(fold=fold))) for place in places]
    return next((path for path in paths if os.path.exists(path)), None)


def _picture_folders(root: str, card: Card, folder: str) -> Entries:
    """The pictures of one split; its classes are the training split's folders, where these are there."""
    if not os.path.isdir(folder):
        raise RequestError(f"{root} has no pictures of {card.name}: expected the folder {folder}")
    entries = read_folders(folder, images=True)
    training = _first(root, card.splits["train"].folder, 1) if "train" in card.splits else None
    if training is not None:
        entries.classes = sorted(subfolders(training))
    return _with_names(entries, card) if card.classes == IMAGENET else entries


def _with_names(entries: Entries, card: Card) -> Entries:
    """ImageNet's folders are numbers in WordNet; sorted, they are in the order of the published names."""
    folders = entries.classes or []
    for folder in folders:
        if not re.fullmatch(r"n\d{8}", folder):
            raise wrong(entries.file, 0, folder, "folders named by WordNet's numbers, such as n01440764")
    if len(folders) != card.num_classes:
        raise RequestError(f"{entries.file} has {len(folders)} classes, but {card.name} has {card.num_classes}")
    names = dict(zip(folders, files.labels_of("imagenet1k"), strict=True))
    _refuse_unknown(entries, set(names), f"one of {len(names)} classes", folders)
    entries.labels = [[names[label] for label in labels] for labels in entries.labels]
    return entries


def _numbered(entries: Entries, classes: list[str] | None) -> tuple[NDArray[Any], list[str]]:
    """Labels as in :class:`VideoList`, and the classes.

    Texts are names of classes, as they stand or as folder names have them; else, when all are numbers, numbers.
    """
    texts = {label for labels in entries.labels for label in labels}
    numeric = all(text.isdecimal() for text in texts)
    if classes is None and numeric:
        count = 1 + max((int(text) for text in texts), default=-1)
        classes = [str(number) for number in range(min(count, MAX_CLASSES))]
    elif classes is None:
        named = {text for text in texts if not text.isdecimal()}
        if 2 * len(named) < len(texts):
            _refuse_unknown(entries, texts - named, "a number, as other lines have")
        _refuse_unknown(entries, named, "a name, as other lines have")
        classes = sorted(texts)
    if numeric and not texts <= set(classes):
        numbers = {text: int(text) for text in texts if int(text) < len(classes)}
        _refuse_unknown(entries, set(numbers), f"a number from 0 to {len(classes) - 1}")
    else:
        numbers = {name: number for number, name in enumerate(classes)}
        likeness = Counter(map(plain, classes))
        loose = {plain(name): number for name, number in numbers.items() if likeness[plain(name)] == 1}
        numbers |= {text: loose[plain(text)] for text in texts - set(numbers) if plain(text) in loose}
        _refuse_unknown(entries, set(numbers), f"one of {len(classes)} classes", classes)
    if not entries.several:
        return np.array([numbers[labels[0]] if labels else -1 for labels in entries.labels], dtype=np.int64), classes
    table = np.zeros((len(entries.paths), len(classes)), dtype=np.float32)
    for row, labels in zip(table, entries.labels, strict=True):
        row[[numbers[label] for label in labels]] = 1
    return table, classes


def _refuse_unknown(entries: Entries, known: set[str], expected: str, classes: Sequence[str] = ()) -> None:
    """Raises :class:`RequestError` for the first label that is not known, with the nearest class."""
    for line, labels in zip(entries.lines, entries.labels, strict=True):
        for label in labels:
            if label not in known:
                nearest = difflib.get_close_matches(label, classes, n=1)
                hint = f", such as {nearest[0]!r}" if nearest else ""
                raise wrong(entries.file, line, label, expected + hint)
