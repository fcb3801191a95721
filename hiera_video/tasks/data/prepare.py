"""Turn a copy of Kinetics, as CVDF's downloads leave it, into lists of the videos that can be used.

Below the output folder there are then

    train.csv, ...        path,label; absolute paths, in the order of the official list (path,labels where unlabelled)
    left_out.csv          split,path,label,kind,detail of each video that is listed but cannot be used
    kept_with_faults.csv  the same of each video that is used though it is short (its last frame repeats) or damaged
    report.json           the counts, and the classes of which no video is left
    check.jsonl, hashes.jsonl   what is known of the files: killed and started again, a run goes on from there
"""

from __future__ import annotations

import hashlib
import json
import logging
import operator
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hiera_video.data.lists.cards import Card, Split, load_card
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.errors import HieraVideoError, OutputError, RequestError
from hiera_video.files import alone, check_output, files_below, names, replacing, write_csv
from hiera_video.tasks.data.check import (
    Checked,
    Decode,
    check_videos,
    default_workers,
    read_lines_of,
    read_report,
    size_of,
)
from hiera_video.tasks.records import FlatRecord, Results

log = logging.getLogger("hiera_video")

#: What ``data check`` calls a problem -> the kind in the lists; from good to bad.
KINDS = {None: "", "short": "too short", "damaged": "partly broken", "unreadable": "broken", "missing": "missing"}
#: A video that is in several splits stays in the first of these: what is tested must not be learned.
FIRST = ("val", "test", "train")
SPLITS = ["train", "val", "test"]
LEAVE_OUT = ("short", "damaged")
COLUMNS = ("split", "path", "label", "kind", "detail")


@dataclass(frozen=True)
class SplitCount(FlatRecord):
    """How many videos one split lists, and how many of them are what.

    ``usable`` videos are in the list that was written. ``published_listed`` and ``published_files`` are the card's
    numbers of videos in the official list and of files that could be had, None where it has none. ``absent_classes``
    have no usable video.
    """

    split: str
    listed: int
    usable: int
    missing: int
    broken: int
    partly_broken: int
    too_short: int
    duplicate: int
    published_listed: int | None
    published_files: int | None
    absent_classes: list[str]

    @property
    def error(self) -> str | None:
        """One sentence where a video is missing or cannot be read whole."""
        bad = self.missing + self.broken + self.partly_broken
        return f"{bad} of {self.listed} videos of {self.split} are missing or cannot be read whole" if bad else None

    def rows(self) -> list[dict[str, Any]]:
        """One flat row, without the absent classes."""
        return [{name: value for name, value in self.to_dict().items() if name != "absent_classes"}]


@dataclass(frozen=True)
class Row:
    """One row of an official list; ``kind``: what is wrong with its video, or nothing."""

    split: str
    path: str
    label: str
    kind: str
    detail: str
    usable: bool


@dataclass(frozen=True)
class _Task:
    root: Path
    output: Path
    card: Card
    splits: tuple[str, ...]
    decode: Decode
    num_workers: int
    time_limit: float
    leave_out: tuple[str, ...]

    @property
    def report(self) -> Path:
        return self.output / "check.jsonl"


def prepare(
    root: str,
    *,
    output: Path,
    dataset: str = "kinetics400",
    splits: list[str] = SPLITS,
    decode: Decode = "ends",
    num_workers: int | None = None,
    time_limit: float = 60.0,
    leave_out: list[str] = [],  # noqa: B006  # nobody changes it
) -> Results[SplitCount]:
    """Write lists of the videos of Kinetics that can be used, and a reason for each of the others.

    ``root`` holds annotations/{train,val,test}.csv, the videos flat in train/, val/, test/ or in class folders, and
    maybe replacement/: a file there stands in for one of the same name that is absent, or that cannot be read whole.
    A duplicate has the same bytes as another usable video of the splits that are prepared together: the first stays,
    and one of val or test before one of train. Killed and started again, the job goes on.

    Args:
        root: The folder with annotations/ and the videos.
        output: The folder that the lists, the reasons and the report go to.
        dataset: kinetics400, kinetics600 or kinetics700.
        splits: Which of train, val and test are prepared.
        decode: index reads a file's index alone, ends decodes the first and last frames, all every frame.
        num_workers: Files that are read at the same time. Default: one for each core.
        time_limit: Seconds after which a decoder is given up.
        leave_out: short leaves out videos that are shorter than a clip, damaged those of which a part is broken.

    Returns:
        One count for each split.

    Raises:
        RequestError: The request is wrong, or an official list is not there or cannot be read.
        OutputError: The output cannot be written.
    """
    possible = [name for name in names("datasets") if load_card(name).format == "kinetics"]
    for option, values, legal in (
        ("dataset", [dataset], possible),
        ("splits", splits, SPLITS),
        ("leave_out", leave_out, LEAVE_OUT),
    ):
        for value in values:
            if value not in legal:
                raise RequestError(f"{option} is {value!r}, but can be one of {', '.join(legal)}")
    if not os.path.isdir(root):
        raise RequestError(f"there is no folder {root}: root holds annotations/ and the videos")
    task = _Task(
        Path(os.path.abspath(root)),  # the report and the lists hold whole paths
        Path(os.path.abspath(output)),
        load_card(dataset),
        tuple(dict.fromkeys(splits)),
        decode,
        default_workers(num_workers),
        time_limit,
        tuple(dict.fromkeys(leave_out)),
    )
    return Results(len(task.splits), _counts(task, official_lists(task)))


def official_lists(task: _Task) -> dict[str, VideoList]:
    """What each split lists: all lists are read before hours go into the first."""
    places = {(task.root / place).parent for split in task.card.splits.values() for place in split.annotations}
    if task.output.resolve() in {place.resolve() for place in places}:
        raise RequestError(f"output {task.output} is where official lists lie, of the same names: name another folder")
    return {split: list_videos(task.card.name, root=task.root, split=split) for split in task.splits}


def _counts(task: _Task, lists: dict[str, VideoList]) -> Iterator[SplitCount]:
    """Checks and compares the files, writes everything, and then gives the counts."""
    try:
        task.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{task.output} cannot be made: {error.strerror or error}") from error
    check_output(task.report)
    try:
        with alone(task.output, "manifests"):
            counts = _write_all(task, lists)
    except HieraVideoError:
        raise
    except OSError as error:  # a full disk
        place = error.filename or task.output
        raise OutputError(f"{place} cannot be read or written: {error.strerror or error}") from error
    for count in counts:
        if count.absent_classes:
            some = ", ".join(count.absent_classes[:3]) + (", ..." if len(count.absent_classes) > 3 else "")
            log.warning("%s: %d classes have no usable video: %s", count.split, len(count.absent_classes), some)
    log.info("the lists, left_out.csv and report.json are in %s", task.output)
    yield from counts


def _write_all(task: _Task, lists: dict[str, VideoList]) -> list[SplitCount]:
    for pattern in (".*.csv.[0-9]*", ".*.json*.[0-9]*"):
        for half in task.output.glob(pattern):  # of a run that was killed while it wrote
            half.unlink()
    forget_changed(task.report)
    for split in lists:
        log.info("%s: %d videos are listed", split, len(lists[split]))
        check_files(task, lists[split])
        lists[split] = with_replacements(lists[split], task)
    checked = read_report(task.report)
    paths = dict.fromkeys(videos.path(index) for videos in lists.values() for index in range(len(videos)))
    readable = [checked[path] for path in paths if checked[path].problem not in ("missing", "unreadable")]
    digests = hash_files(readable, task.output / "hashes.jsonl", task.num_workers)
    return write(judge(lists, checked, digests, task.leave_out), lists, task)


# --- files ------------------------------------------------------------------------------------------------------------


def forget_changed(report: Path) -> None:
    """Takes the files that have another size now, or are gone, out of a report: they are checked again."""
    checked = read_report(report).values()
    kept = [file for file in checked if size_of(file.path) == file.size]
    if len(kept) < len(checked):
        with replacing(report) as temporary:
            temporary.write_text("".join(f"{file.to_json()}\n" for file in kept), encoding="utf-8")


def check_files(task: _Task, videos: VideoList) -> None:
    """Checks what is not in the report yet."""
    counts = check_videos(
        videos,
        card=task.card,
        decode=task.decode,
        num_workers=task.num_workers,
        time_limit=task.time_limit,
        report=task.report,
    )
    for _ in counts:
        pass


def with_replacements(videos: VideoList, task: _Task) -> VideoList:
    """The list with a file below replacement/ in place of a broken one of the same name, where it is better.

    :func:`list_videos` takes them only where the file is absent, but CVDF offers them for files that are broken.
    """
    spares = {os.path.basename(path): path for path in files_below(os.fspath(task.root / "replacement"))}
    checked = read_report(task.report)
    paths = [videos.path(index) for index in range(len(videos))]
    bad = [path for path in paths if checked[path].problem in ("unreadable", "damaged")]
    spare = {path: spares[os.path.basename(path)] for path in bad if os.path.basename(path) in spares}
    if not spare:
        return videos
    check_files(task, VideoList.make(spare.values(), [-1] * len(spare), []))
    checked, badness = read_report(task.report), list(KINDS).index
    better = {old: new for old, new in spare.items() if badness(checked[new].problem) < badness(checked[old].problem)}
    return VideoList.make([better.get(path, path) for path in paths], videos.labels, videos.classes)


def hash_files(checked: Collection[Checked], state: Path, num_workers: int) -> dict[str, str]:
    """A digest of each file that has the size of another, by path; files in ``state`` are not read again."""
    sizes = Counter(file.size for file in checked)
    shared = [(file.path, file.size or 0) for file in checked if sizes[file.size] > 1]
    expected = "a line that data prepare wrote: delete the file"
    before = dict(read_lines_of(state, _hashed, expected))
    digests = {path: before[path][1] for path, size in shared if path in before and before[path][0] == size}
    todo = [(path, size) for path, size in shared if path not in digests]
    bar = tqdm(total=len(shared), initial=len(digests), unit="file", desc="compare", disable=None, file=sys.stderr)
    with bar, state.open("a", encoding="utf-8") as lines, ThreadPoolExecutor(num_workers) as pool:
        try:
            for (path, size), digest in zip(todo, pool.map(digest_of, [path for path, _ in todo]), strict=True):
                if digest is None:
                    log.warning("%s cannot be read to its end and is compared with none", path)
                else:
                    digests[path] = digest
                    print(json.dumps({"path": path, "size": size, "digest": digest}), file=lines, flush=True)
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)  # else an interrupt would wait for all of them
    return digests


def _hashed(line: bytes) -> tuple[str, tuple[int, str]]:
    """Path, size in bytes, and digest, of a line of ``hashes.jsonl``."""
    path, *size_and_digest = operator.itemgetter("path", "size", "digest")(json.loads(line))
    return path, tuple(size_and_digest)


def digest_of(path: str) -> str | None:
    """blake2b of the bytes of a file, or None where they cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except OSError:
        return None
    return digest.hexdigest()


# --- rows -------------------------------------------------------------------------------------------------------------


def judge(
    lists: dict[str, VideoList], checked: dict[str, Checked], digests: dict[str, str], leave_out: Collection[str]
) -> dict[str, list[Row]]:
    """All rows, by split. Of those with the same content, the first in the order of :data:`FIRST` stays."""
    rows: dict[str, list[Row]] = {split: [] for split in lists}
    stays: dict[str, Row] = {}
    for split in sorted(lists, key=FIRST.index):
        videos = lists[split]
        for index in range(len(videos)):
            path, label = videos.path(index), "".join(videos.class_names(index))
            file, content = checked[path], digests.get(path, path)
            kind, detail, usable = KINDS[file.problem], file.reason or "", True
            if file.problem in ("missing", "unreadable", *leave_out):
                usable = False
            elif content in stays:
                twin = stays[content]
                what = "it is listed before" if twin.path == path else f"it has the content of {twin.path}"
                detail = f"{what}, which stays in {twin.split}" + (f" as {twin.label!r}" if twin.label else "")
                kind, usable = "duplicate", False
            row = Row(split, path, label, kind, detail, usable)
            if usable:
                stays[content] = row
            rows[split].append(row)
    return rows


def write(rows: dict[str, list[Row]], lists: dict[str, VideoList], task: _Task) -> list[SplitCount]:
    """The lists, the reasons and the report, each under a temporary name first."""
    counts = []
    for split, some in rows.items():
        # A row may be without a label only where it may have several.
        header = ("path", "label" if any(row.label for row in some) else "labels")
        write_csv(task.output / f"{split}.csv", [header, *((row.path, row.label) for row in some if row.usable)])
        counts.append(count_rows(split, some, lists[split].classes, task.card.splits[split]))
    faults = [row for some in rows.values() for row in some if row.kind]
    for name, usable in (("left_out.csv", False), ("kept_with_faults.csv", True)):
        lines = [[getattr(row, column) for column in COLUMNS] for row in faults if row.usable == usable]
        write_csv(task.output / name, [COLUMNS, *lines])
    facts = {
        "dataset": task.card.name,
        "root": os.fspath(task.root),
        "decode": task.decode,
        "leave_out": task.leave_out,
        "splits": [asdict(count) for count in counts],
    }
    with replacing(task.output / "report.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return counts


def count_rows(split: str, rows: list[Row], classes: list[str], published: Split) -> SplitCount:
    """The numbers of one split's rows beside the published ones."""
    kinds = Counter(row.kind for row in rows)
    present = {row.label for row in rows if row.usable}
    return SplitCount(
        split,
        listed=len(rows),
        usable=sum(row.usable for row in rows),
        missing=kinds["missing"],
        broken=kinds["broken"],
        partly_broken=kinds["partly broken"],
        too_short=kinds["too short"],
        duplicate=kinds["duplicate"],
        published_listed=published.listed if isinstance(published.listed, int) else None,
        published_files=published.files,
        absent_classes=[name for name in classes if name not in present] if any(row.label for row in rows) else [],
    )
