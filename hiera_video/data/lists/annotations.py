"""Annotation files as the datasets ship them, read into one form: :class:`Entries`.

The readers say what a file says: paths as written and labels as texts. Numbers for the labels, and folders in front of
the paths, come in :mod:`hiera_video.data.lists.video_list`. A file that is not what its reader expects raises
:class:`RequestError` with its name, the line, and what was expected; a video that is not there is no error here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hiera_video.data.lists import tables
from hiera_video.data.lists.tables import Header, header_of, is_media, read_lines, rows_below, wrong
from hiera_video.errors import RequestError

#: Columns of the official Kinetics files; training lists of Kinetics-400 have ``is_cc`` too.
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
#: A split -> the names that it goes by in a table.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation"),
    "test": ("test", "testing"),
}


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


# --- Kinetics ---------------------------------------------------------------------------------------------------------


def read_kinetics(file: str | os.PathLike[str], split: str, *, unlabelled: bool = False) -> Entries:
    """An official CSV: ``label,youtube_id,time_start,time_end,split[,is_cc]``, with paths ``ID_SSSSSS_EEEEEE.mp4``.

    Args:
        file: The CSV.
        split: Of a file that holds several splits, the rows of this one are taken.
        unlabelled: A file without the column ``label`` (the old test lists) is accepted.

    Returns:
        The videos, without a folder.

    Raises:
        RequestError: A column is not there, or a line is not what it should be.
    """
    lines = read_lines(file)
    header = header_of(lines) or Header(lines[0], 1, lines[0].lower().split(","), ",")
    columns = header.columns
    needed = KINETICS_COLUMNS[1:4] if unlabelled else KINETICS_COLUMNS[:4]
    absent = [name for name in needed if name not in columns]
    if absent == ["label"]:
        raise wrong(file, 1, header.text, "a column label: only a test split's list may be without")
    if absent:
        raise wrong(file, 1, header.text, f"the columns {','.join(KINETICS_COLUMNS)}")
    rows = [(line, dict(zip(columns, row, strict=True))) for line, row in rows_below(file, lines, header)]
    several = len({row.get("split") for _, row in rows}) > 1
    entries = Entries(os.fspath(file))
    for line, row in rows:
        if several and _split(row["split"]) != _split(split):
            continue
        identity, start, end = (row[name] for name in KINETICS_COLUMNS[1:4])
        if not re.fullmatch(r"[\w-]{11}", identity, re.ASCII):
            raise wrong(file, line, identity, "a youtube_id of 11 letters, digits, - or _")
        if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
            raise wrong(file, line, f"{start},{end}", "time_start and time_end in whole seconds, the start first")
        label = [row["label"]] if "label" in row else []
        if label == [""]:
            raise wrong(file, line, ",".join(row.values()), "a label in the column label")
        entries.add(line, f"{identity}_{int(start):06d}_{int(end):06d}.mp4", label)
    return entries


def _split(name: str) -> str:
    """Splits go by several names."""
    name = name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if name in names), name)


# --- lists and tables -------------------------------------------------------------------------------------------------


def read_list(file: str | os.PathLike[str], folder: str) -> Entries:
    """SlowFast's and VideoMAE's lists: ``path label`` in each line, with a blank, comma, tab or semicolon between.

    Which of them it is, the whole file decides; a line is split at its last one, since paths hold blanks and commas.
    Path and label may stand in double quotes. Several labels are ``label;label``, by number or by name.

    Args:
        file: The list.
        folder: What its paths are relative to.

    Returns:
        The videos.

    Raises:
        RequestError: A line is no path and label, or the first line names columns.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(file), start=1) if line.strip()]
    separator = _separator([line for _, line in lines])
    entries = Entries(os.fspath(file), folder)
    for number, line in lines:
        path, label = _halves(line, separator)
        fields = not is_media(path) and separator in path and any(map(is_media, path.split(separator)))
        if not path or not _can_be_label(label, separator) or fields:
            between = tables.DELIMITERS[separator]
            columns = "; with more fields, a first line that names the columns" if fields else ""
            raise wrong(file, number, line, f"a path and its label with {between} between them{columns}")
        entries.add(number, path, _split_labels(label) if separator != ";" else [label])
        entries.several |= ";" in label
    _refuse_header(entries, lines[0][1])
    return entries


def _refuse_header(entries: Entries, text: str) -> None:
    """Raises :class:`RequestError` where the first path is the name of a column, as far as can be told."""
    first, rest = entries.paths[0], entries.paths[1:]
    if is_media(first) or "://" in first or os.path.exists(os.path.join(entries.folder, first)):
        return
    num_media = sum(map(is_media, rest))
    if 2 * num_media > len(rest) or not (num_media or re.search(r"[/\\]|\.\w{1,5}$", first)):
        expected = "a video with its extension, or the columns path,label"
        raise wrong(entries.file, entries.lines[0], text, expected)


def _separator(lines: Sequence[str]) -> str:
    """Of tab, comma, semicolon and blank the first after whose last place every line has numbers; else the first after
    which most lines have what can be a label; else a blank. A semicolon comes after a video: "a.mp4 3;1" has a blank.
    """
    halves = {separator: [_halves(line, separator) for line in lines if separator in line] for separator in "\t,; "}
    halves[";"] = [(path, label) for path, label in halves[";"] if is_media(path)]
    for separator, pairs in halves.items():
        if len(pairs) == len(lines) and all(re.fullmatch(r"[\d; ]*\d", label) for _, label in pairs):
            return separator
    for separator, pairs in halves.items():
        if 2 * sum(_can_be_label(label, separator) for _, label in pairs) > len(lines):
            return separator
    return " "


def _halves(line: str, separator: str) -> tuple[str, str]:
    """What stands before and after the last separator; either may be quoted as in CSV."""
    quoted = r'"((?:[^"]|"")*)"'
    path, _, label = line.rpartition(separator)
    if label.rstrip().endswith('"') and (match := re.search(rf"{re.escape(separator)}\s*{quoted}\s*$", line)):
        path, label = line[: match.start()], match[1].replace('""', '"')
    if match := re.fullmatch(quoted, path.strip()):
        path = match[1].replace('""', '"')
    return path.strip(), label.strip()


def _can_be_label(text: str, separator: str) -> bool:
    """Not where the text is the end of a path: that of a file, or after a blank in a folder's name."""
    ends = any(re.search(r"\.[A-Za-z]\w{1,3}$", part.strip()) for part in text.split(";"))
    return bool(text) and not ends and not (separator == " " and "/" in text)


def _split_labels(text: str) -> list[str]:
    return list(dict.fromkeys(label.strip() for label in text.split(";") if label.strip()))


def read_table(file: str | os.PathLike[str], folder: str, split: str = "train") -> Entries:
    """A table whose first line names its columns, in any order, with tabs, commas, semicolons or bars between.

    ``path`` and ``label``; or ``labels`` for several, as ``label;label``, none if empty; and, for segments, ``start``
    and ``end`` in seconds after the first frame, an empty ``end`` being that of the video. Usual other names, such as
    ``video`` and ``class``, are understood (:data:`hiera_video.data.lists.tables.PATHS`). Of a column ``split`` that
    names several splits, the rows of ``split`` are taken. Other columns are passed over.

    Args:
        file: The table.
        folder: What its paths are relative to.
        split: train, val or test, where the table has a column for it.

    Returns:
        The videos or segments.

    Raises:
        RequestError: A column is not there or two could be meant, or a line is not what it should be.
    """
    lines = read_lines(file)
    header = header_of(lines)
    path, label, start, end, several = _columns(file, header, lines)
    assert header is not None
    rows = list(rows_below(file, lines, header))
    place = next((header.columns.index(name) for name in ("split", "subset") if name in header.columns), None)
    splits = {_split(row[place]) for _, row in rows} if place is not None else set()
    chosen = _split(split) if len(splits) > 1 and splits <= {"train", "val", "test"} else None
    entries = Entries(os.fspath(file), folder, several=several)
    for line, row in rows:
        if not row[path] or not (several or row[label]):
            raise wrong(file, line, ",".join(row), f"a {header.columns[path]} and a {header.columns[label]}")
        if place is not None and chosen is not None and _split(row[place]) != chosen:
            continue
        entries.add(line, row[path], _split_labels(row[label]) if several else [row[label]])
        if start is not None and end is not None:
            first, last = _seconds(row[start]), _seconds(row[end] or "inf")
            if first is None or last is None or not 0 <= first < last or first == float("inf"):
                raise wrong(file, line, f"{row[start]},{row[end]}", "start and end in seconds, 0 <= start < end")
            entries.starts.append(first)
            entries.ends.append(last)
    return entries


def _columns(
    file: str | os.PathLike[str], header: Header | None, lines: Sequence[str]
) -> tuple[int, int, int | None, int | None, bool]:
    """Where path, label, start and end are in a table, and whether a video may have several labels."""
    expected = "the columns path,label or path,labels or path,start,end,label"
    if header is None:
        raise wrong(file, 1, lines[0], expected)
    path, label = header.column(file, tables.PATHS, "paths"), header.column(file, tables.LABELS, "labels")
    start, end = header.column(file, tables.STARTS, "starts"), header.column(file, tables.ENDS, "ends")
    times = [name for name in header.columns if re.search(r"(^|_)(start|end|begin|stop)(_|$)", name)]
    if path is None or label is None or (start is None) != (end is None) or (start is None and times):
        raise wrong(file, header.line, header.text, expected)
    if header.delimiter == " ":
        raise wrong(file, header.line, header.text, f"{expected}, with commas or tabs between them")
    return path, label, start, end, header.columns[label] in tables.SEVERAL.split()


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
    text = "\n".join(read_lines(file))
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
    text = "\n".join(read_lines(file))
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
    for line, text in enumerate(read_lines(classes_file), start=1):
        number, _, name = text.strip().partition(" ")
        if text.strip() and (number != str(len(classes) + 1) or not name):
            raise wrong(classes_file, line, text, f"number and class: '{len(classes) + 1} NameOfClass'")
        classes += [name] if name else []
    numbers = {name: str(number) for number, name in enumerate(classes, start=1)}
    entries = Entries(os.fspath(file), folder, classes=classes)
    for line, text in enumerate(read_lines(file), start=1):
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
        for line, text in enumerate(read_lines(file), start=1):
            path, _, number = text.strip().rpartition(" ")
            if text.strip() and (not path or number not in ("0", "1", "2")):
                raise wrong(file, line, text, "'file.avi N' with N of 0 (unused), 1 (train) or 2 (test)")
            if number == wanted:
                entries.add(0, f"{label}/{path.strip()}", [label])
    return entries


# --- what all have in common ------------------------------------------------------------------------------------------


def plain(label: str) -> str:
    """A label without what folder names leave out or replace: brackets, quotes, underscores, capitals.

    Args:
        label: The name of a class or of its folder.

    Returns:
        The text by which both are compared.
    """
    return " ".join(re.sub(r"[()\[\]\"']", "", label).replace("_", " ").casefold().split())
