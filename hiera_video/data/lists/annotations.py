"""Annotation files as the datasets ship them, read into one form: :class:`Entries`.

The readers say what a file says: paths as written and labels as texts. Numbers for the labels, and folders in front of
the paths, come in :mod:`hiera_video.data.lists.video_list`. A file that is not what its reader expects raises
:class:`RequestError` with its name, the line, and what was expected; a video that is not there is no error here.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hiera_video.data.reading.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension
from hiera_video.errors import RequestError

#: Columns of the official Kinetics files; training lists of Kinetics-400 have ``is_cc`` too.
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
PATH_COLUMNS = ("path", "file")
LABEL_COLUMNS = ("label", "labels")


@dataclass
class Entries:
    """N videos or segments in parallel lists, as one annotation file has them.

    ``paths``: as written, relative to ``folder``. ``labels``: the texts of each one's labels, none where it is
    unlabelled. ``lines``: where each stands in ``file`` (0: in no line). ``starts``, ``ends``: seconds, or empty for
    whole videos. ``several``: a video may have any number of labels. ``classes``: their order where the format itself
    gives one.
    """

    file: str
    folder: str = ""
    paths: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    several: bool = False
    classes: list[str] | None = None

    def add(self, line: int, path: str, labels: list[str]) -> None:
        self.paths.append(path)
        self.labels.append(labels)
        self.lines.append(line)


def wrong(file: str | os.PathLike[str], line: int, found: object, expected: str) -> RequestError:
    """The error for a line that is not what it should be."""
    text = found if isinstance(found, str) else json.dumps(found)
    shown = repr(text if len(text) <= 80 else f"{text[:77]}...") if text else "nothing"
    where = f"{os.fspath(file)}, line {line}" if line else os.fspath(file)
    return RequestError(f"{where}: found {shown}, but expected {expected}")


# --- Kinetics ---------------------------------------------------------------------------------------------------------


def read_kinetics(file: str | os.PathLike[str], split: str, *, unlabelled: bool = False) -> Entries:
    """An official CSV: ``label,youtube_id,time_start,time_end,split[,is_cc]``, with paths ``ID_SSSSSS_EEEEEE.mp4``.

    A file that holds several splits gives the rows of ``split``. ``unlabelled``: a file without the column ``label``
    (the old test lists) is accepted.
    """
    columns = columns_of(file)
    needed = KINETICS_COLUMNS[1:4] if unlabelled else KINETICS_COLUMNS[:4]
    absent = [name for name in needed if name not in columns]
    if absent == ["label"]:
        raise wrong(file, 1, ",".join(columns), "a column label: only a test split's list may be without")
    if absent:
        raise wrong(file, 1, ",".join(columns), f"the columns {','.join(KINETICS_COLUMNS)}")
    rows = [(line, dict(zip(columns, row, strict=False)), len(row)) for line, row in _rows(file, ",", start=2)]
    several = len({row.get("split") for _, row, _ in rows}) > 1
    entries = Entries(os.fspath(file))
    for line, row, count in rows:
        if count != len(columns):
            raise wrong(file, line, ",".join(row.values()), f"{len(columns)} fields: {','.join(columns)}")
        if several and _split(row["split"]) != _split(split):
            continue
        identity, start, end = (row[name].strip() for name in KINETICS_COLUMNS[1:4])
        if not re.fullmatch(r"[\w-]{11}", identity, re.ASCII):
            raise wrong(file, line, identity, "a youtube_id of 11 letters, digits, - or _")
        if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
            raise wrong(file, line, f"{start},{end}", "time_start and time_end in whole seconds, the start first")
        label = [row["label"].strip()] if "label" in row else []
        if label == [""]:
            raise wrong(file, line, ",".join(row.values()), "a label in the column label")
        entries.add(line, f"{identity}_{int(start):06d}_{int(end):06d}.mp4", label)
    return entries


def _split(name: str) -> str:
    """Kinetics calls one split by three names."""
    return "val" if name.strip() in ("val", "validate", "validation") else name.strip()


# --- lists and tables -------------------------------------------------------------------------------------------------


def read_list(file: str | os.PathLike[str], folder: str) -> Entries:
    """SlowFast's and VideoMAE's lists: ``path label`` in each line, with a blank, comma or tab between.

    Which of them it is, the whole file decides; a line is split at its last one, since paths hold blanks and commas.
    A path may stand in double quotes. Several labels are ``label;label``, by number or by name.
    """
    lines = [(number, line.strip()) for number, line in enumerate(_lines(file), start=1) if line.strip()]
    separator = _separator([line for _, line in lines])
    entries = Entries(os.fspath(file), folder)
    for number, line in lines:
        path, label = _halves(line, separator)
        if not path or not _can_be_label(label, separator):
            between = {" ": "a blank", ",": "a comma", "\t": "a tab"}[separator]
            raise wrong(file, number, line, f"a path and its label with {between} between them")
        entries.add(number, path, _split_labels(label))
        entries.several |= ";" in label
    return entries


def _separator(lines: Sequence[str]) -> str:
    """Of tab, comma and blank the first after whose last place every line has numbers; else the first after which
    most lines have what can be a label; else a blank.
    """
    ends = {one: [_halves(line, one)[1] for line in lines if one in line] for one in "\t, "}
    for separator, labels in ends.items():
        if len(labels) == len(lines) and all(re.fullmatch(r"[\d; ]*\d", label) for label in labels):
            return separator
    for separator, labels in ends.items():
        if 2 * sum(_can_be_label(label, separator) for label in labels) > len(lines):
            return separator
    return " "


def _halves(line: str, separator: str) -> tuple[str, str]:
    """What stands before and after the last separator; either may be quoted as in CSV."""
    if '"' in line:
        fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        return separator.join(fields[:-1]).strip(), fields[-1].strip()
    path, _, label = line.rpartition(separator)
    return path.strip(), label.strip()


def _can_be_label(text: str, separator: str) -> bool:
    """Not where the text is the end of a path: that of a file, or after a blank in a folder's name."""
    return bool(text) and not re.search(r"\.[A-Za-z]\w{1,3}$", text) and not (separator == " " and "/" in text)


def _split_labels(text: str) -> list[str]:
    return list(dict.fromkeys(label.strip() for label in text.split(";") if label.strip()))


def read_table(file: str | os.PathLike[str], folder: str) -> Entries:
    """A table whose first line names its columns, with commas or tabs: ``path`` (or ``file``) and ``label``; or
    ``labels`` for several, as ``label;label``, none if empty; and, for segments, ``start`` and ``end`` in seconds
    after the first frame, an empty ``end`` being that of the video. Other columns are passed over.
    """
    header, columns = _lines(file)[0], columns_of(file)
    path, label = _column(columns, PATH_COLUMNS), _column(columns, LABEL_COLUMNS)
    start, end = _column(columns, ("start",)), _column(columns, ("end",))
    if path is None or label is None or (start is None) != (end is None):
        raise wrong(file, 1, header, "the columns path,label or path,labels or path,start,end,label")
    entries = Entries(os.fspath(file), folder, several=columns[label] == "labels")
    for line, row in _rows(file, "\t" if "\t" in header else ",", start=2):
        if len(row) != len(columns):
            raise wrong(file, line, ",".join(row), f"{len(columns)} fields: {','.join(columns)}")
        if not row[path].strip() or not (entries.several or row[label].strip()):
            raise wrong(file, line, ",".join(row), f"a {columns[path]} and a {columns[label]}")
        entries.add(line, row[path].strip(), _split_labels(row[label]) if entries.several else [row[label].strip()])
        if start is not None and end is not None:
            first, last = _seconds(row[start]), _seconds(row[end] or "inf")
            if first is None or last is None or not 0 <= first < last or first == float("inf"):
                raise wrong(file, line, f"{row[start]},{row[end]}", "start and end in seconds, 0 <= start < end")
            entries.starts.append(first)
            entries.ends.append(last)
    return entries


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# --- Something-Something v2 -------------------------------------------------------------------------------------------

LABEL_FILES = ("something-something-v2-labels.json", "labels.json")


def read_ssv2(file: str | os.PathLike[str], folder: str, *, unlabelled: bool = False) -> Entries:
    """``[{"id", "template", ...}, ...]`` with the numbers of the templates in a labels file beside it; ``ID.webm``.

    Templates say ``[something]``; the labels file has them without brackets, and its numbers as texts.
    """
    path = Path(file)
    labels_file = next((path.parent / name for name in LABEL_FILES if (path.parent / name).is_file()), None)
    if labels_file is None:
        raise RequestError(f"{path.parent} has no labels file beside {path.name}: expected {' or '.join(LABEL_FILES)}")
    entries = Entries(os.fspath(file), folder, classes=_ssv2_classes(labels_file))
    known = set(entries.classes or ())
    for line, item in _json_items(file):
        identity, template = (item.get("id"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not identity or not isinstance(template, str if not unlabelled else (str, type(None))):
            raise wrong(file, line, item, f"an item with id{'' if unlabelled else ' and template'}")
        label = template.replace("[", "").replace("]", "") if template is not None else None
        if label is not None and label not in known:
            raise wrong(file, line, label, f"a template of {labels_file.name}")
        entries.add(line, f"{identity}.webm", [label] if label is not None else [])
    return entries


def _ssv2_classes(file: Path) -> list[str]:
    """Template (no brackets) by number."""
    expected = 'a map from each template to its number: {"Holding something": "0", ...}'
    text = "\n".join(_lines(file))
    try:
        numbers = json.loads(text)
    except json.JSONDecodeError as error:
        raise wrong(
            file, error.lineno, text.split("\n")[error.lineno - 1].strip(), f"{expected} ({error.msg})"
        ) from None
    if not isinstance(numbers, dict):
        raise wrong(file, 1, numbers, expected)
    missing = set(map(str, range(len(numbers)))) - set(map(str, numbers.values()))
    for name, number in numbers.items():
        if missing and not (str(number).isdecimal() and int(number) < len(numbers)):
            line = text.count("\n", 0, text.find(json.dumps(name))) + 1
            raise wrong(file, line, f"{name}: {number}", f"a number from 0 to {len(numbers) - 1}")
    if missing:
        raise wrong(file, 1, numbers, f"each number from 0 to {len(numbers) - 1} once, but {min(missing)} is not there")
    return sorted(numbers, key=lambda name: int(numbers[name]))


def _json_items(file: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """(line, item) of a JSON list, without reading it twice to find a line."""
    expected = 'a JSON list of {"id": ..., "template": ...}'
    text = "\n".join(_lines(file))
    decoder, between = json.JSONDecoder(), re.compile(r"\s*([\[\],]?)\s*")
    line, counted, position, before = 1, 0, 0, "["
    while True:
        match = between.match(text, position)
        assert match is not None  # the pattern matches nothing too
        line, counted = line + text.count("\n", counted, match.end()), match.end()
        if match[1] == "]" and position:
            return
        if match[1] != before:
            raise wrong(file, line, text[counted:].partition("\n")[0], expected)
        try:
            item, position = decoder.raw_decode(text, match.end())
        except json.JSONDecodeError as error:
            if text[match.end() :].strip() == "]" and before == "[":
                return
            found = text.split("\n")[error.lineno - 1].strip()
            raise wrong(file, error.lineno, found, f"{expected} ({error.msg})") from None
        yield line, item
        before = ","


# --- UCF101 and HMDB51 ------------------------------------------------------------------------------------------------


def read_ucf101(file: str | os.PathLike[str], folder: str) -> Entries:
    """``trainlist01.txt`` (``Class/file.avi 1``) or ``testlist01.txt`` (no number), with classInd.txt beside it.

    The class is the folder; a number that says otherwise is refused (they count from 1).
    """
    classes_file = Path(file).with_name("classInd.txt")
    classes: list[str] = []
    for line, text in enumerate(_lines(classes_file), start=1):
        number, _, name = text.strip().partition(" ")
        if text.strip() and (number != str(len(classes) + 1) or not name):
            raise wrong(classes_file, line, text, f"number and class: '{len(classes) + 1} NameOfClass'")
        classes += [name] if name else []
    numbers = {name: str(number) for number, name in enumerate(classes, start=1)}
    entries = Entries(os.fspath(file), folder, classes=classes)
    for line, text in enumerate(_lines(file), start=1):
        path, _, number = text.strip().rpartition(" ")
        if not number.isdecimal():
            path, number = text.strip(), ""
        label = path.rpartition("/")[0]
        if text.strip() and (label not in numbers or number not in ("", numbers[label])):
            raise wrong(file, line, text, f"'Class/file.avi N' or 'Class/file.avi', Class and N as in {classes_file}")
        if text.strip():
            entries.add(line, path, [label])
    return entries


def read_hmdb51(splits: str | os.PathLike[str], split: str, fold: int, folder: str) -> Entries:
    """``<class>_test_split<fold>.txt`` of each class: ``file.avi 0|1|2``, where 1 is train, 2 test and 0 unused.

    File names hold blanks and odd characters: a line is split at its last blank.
    """
    wanted, suffix = {"train": "1", "test": "2"}[split], f"_test_split{fold}.txt"
    files = sorted(name for name in os.listdir(splits) if name.endswith(suffix))
    if not files:
        raise RequestError(f"{os.fspath(splits)} has no split files: expected <class>{suffix} for each class")
    classes = [name[: -len(suffix)] for name in files]
    entries = Entries(os.fspath(splits), folder, classes=classes)
    for name, label in zip(files, classes, strict=True):
        file = os.path.join(splits, name)
        for line, text in enumerate(_lines(file), start=1):
            path, _, number = text.strip().rpartition(" ")
            if text.strip() and (not path or number not in ("0", "1", "2")):
                raise wrong(file, line, text, "'file.avi N' with N of 0 (unused), 1 (train) or 2 (test)")
            if number == wanted:
                entries.add(0, f"{label}/{path.strip()}", [label])
    return entries


# --- what all have in common ------------------------------------------------------------------------------------------


def read_folders(folder: str | os.PathLike[str], *, images: bool = False) -> Entries:
    """One folder per class, sorted by name; each is searched to its depths for videos (or for pictures), hidden files
    apart.
    """
    wanted = IMAGE_EXTENSIONS if images else VIDEO_EXTENSIONS
    classes = sorted(subfolders(folder))
    entries = Entries(os.fspath(folder), classes=classes)
    for name in classes:
        for where, folders, files in os.walk(os.path.join(folder, name)):
            folders[:] = sorted(one for one in folders if not one.startswith("."))
            for file in sorted(files):
                if extension(file) in wanted and not file.startswith("."):
                    entries.add(0, os.path.join(where, file), [name])
    return entries


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in a folder, hidden ones apart."""
    with os.scandir(folder) as found:
        return [one.name for one in found if not one.name.startswith(".") and one.is_dir()]


def plain(label: str) -> str:
    """A label without what folder names leave out or replace: brackets, quotes, underscores, capitals."""
    return " ".join(re.sub(r"[()\[\]\"']", "", label).replace("_", " ").casefold().split())


def _lines(file: str | os.PathLike[str]) -> list[str]:
    """All lines, at least one. Bytes that are no UTF-8 are kept: file names may hold any."""
    try:
        text = Path(file).read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise RequestError(f"{os.fspath(file)} cannot be read ({error.strerror}): check the path") from error
    if not text.strip():
        raise RequestError(f"{os.fspath(file)} is empty: expected one line for each video")
    return text.replace("\r\n", "\n").split("\n")


def _rows(file: str | os.PathLike[str], separator: str, *, start: int) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each line from ``start`` on that is not empty, quoted fields unquoted."""
    rows = csv.reader(_lines(file)[start - 1 :], delimiter=separator)
    try:
        for row in rows:
            if any(map(str.strip, row)):
                yield rows.line_num + start - 1, row
    except csv.Error as error:
        raise wrong(file, rows.line_num + start - 1, str(error), f"fields with {separator!r} between them") from None


def columns_of(file: str | os.PathLike[str]) -> list[str]:
    """The fields of the first line, in lower case: the names of columns where it is a table's."""
    header = _lines(file)[0]
    return [name.strip(' "').lower() for name in header.split("\t" if "\t" in header else ",")]


def _column(columns: list[str], names: tuple[str, ...]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)
