"""Folders of videos or pictures, one for each class, and the links in them."""

from __future__ import annotations

import logging
import os
from collections import Counter

from hiera_video.data.lists.annotations import Entries, plain
from hiera_video.data.reading.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension
from hiera_video.errors import RequestError
from hiera_video.files import files_below

log = logging.getLogger("hiera_video")

#: A folder with folders of these names alone holds splits, not classes.
SPLITS = ("train", "val", "valid", "validate", "validation", "test")


def read_folders(folder: str | os.PathLike[str], *, images: bool = False) -> Entries:
    """The videos below class folders, sorted by name; each folder is searched to its depths, links are followed.

    Files that are passed over (hidden ones, and those that are no videos) are counted in one line of the log.

    Args:
        folder: Holds one folder for each class.
        images: The files are pictures, not videos.

    Returns:
        Paths below ``folder``, each with its class; the classes are the folders' names, sorted.
    """
    extensions = IMAGE_EXTENSIONS if images else VIDEO_EXTENSIONS
    classes = sorted(subfolders(folder))
    entries = Entries(os.fspath(folder), classes=classes)
    others: Counter[str] = Counter()
    for name in classes:
        for path in files_below(os.path.join(folder, name)):
            if os.path.basename(path).startswith("."):
                others["hidden"] += 1
            elif extension(path) in extensions:
                entries.add(0, path, [name])
            else:
                others[extension(path) or "no extension"] += 1
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        kinds += ", ..." if len(others) > 5 else ""
        level = logging.INFO if set(others) == {"hidden"} else logging.WARNING
        what = "pictures" if images else "videos"
        log.log(level, "%s: %d files are passed over as no %s (%s)", os.fspath(folder), others.total(), what, kinds)
    return entries


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in a folder, and of links to folders, hidden ones apart.

    Args:
        folder: The path of a folder.

    Returns:
        The names, in no order.
    """
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def class_folders(folder: str, split: str, *, images: bool = False) -> Entries:
    """The videos of one folder per class, or of one split of such.

    Args:
        folder: Holds one folder for each class; or a folder for each split (train, val, test) that does; or videos
            alone, which are then without labels.
        split: Which of the splits, where there are some.
        images: The files are pictures, not videos.

    Returns:
        The videos; the order of the classes is that of the training split.

    Raises:
        RequestError: There are no class folders, or not this split.
    """
    names = subfolders(folder)
    if names and set(names) <= set(SPLITS):
        if split not in names:
            raise RequestError(f"{folder} has no split {split!r}; it has {', '.join(sorted(names))}")
        entries = read_folders(os.path.join(folder, split), images=images)
        if "train" in names:
            entries.classes = sorted(subfolders(os.path.join(folder, "train")))
        return entries
    if not names:
        if any(name.endswith(".tar") for name in os.listdir(folder)):
            raise RequestError(f"{folder} has shards but no index.csv: `hiera-video data index {folder}` makes it")
        extensions = IMAGE_EXTENSIONS if images else VIDEO_EXTENSIONS
        files = sorted(name for name in os.listdir(folder) if extension(name) in extensions and name[0] != ".")
        if not files:
            raise RequestError(f"{folder} has no folders in it: expected one for each class, with its videos")
        paths = [os.path.join(folder, name) for name in files]
        return Entries(folder, paths=paths, labels=[[] for _ in paths], lines=[0] * len(paths))
    return read_folders(folder, images=images)


def place_kinetics(entries: Entries, folder: str, replacement: str) -> None:
    """Puts each file's folder in front of its name.

    That is the folder of its class if it is there (named as the label, with underscores for blanks, or without brackets
    and quotes), else ``folder`` itself; where neither has the file, any folder below ``replacement`` that has.

    Args:
        entries: The videos of an official list, by name; their paths are changed.
        folder: Of the split.
        replacement: CVDF's remedy for broken files; it need not be there.
    """
    found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    flat = {name for name in found if name.endswith(".mp4")}
    # Nothing is asked of single files: a list has a quarter of a million, and they may lie on a network.
    of_class: dict[str, list[str]] = {}
    for name in found:
        if name not in flat and os.path.isdir(os.path.join(folder, name)):
            of_class.setdefault(plain(name), []).append(os.path.join(folder, name))
    spare = {os.path.basename(path): os.path.dirname(path) for path in files_below(replacement)}
    listed: dict[str, set[str]] = {}
    homes: dict[str, list[str]] = {}
    for number, name in enumerate(entries.paths):
        label = "".join(entries.labels[number])
        if label not in homes:
            homes[label] = of_class.get(plain(label), [])
            listed.update({home: set(os.listdir(home)) for home in homes[label]})
        home = next((home for home in homes[label] if name in listed[home]), None)
        if home is None and name not in flat:
            home = spare.get(name) or next(iter(homes[label]), None)
        entries.paths[number] = os.path.join(home or folder, name)
