"""Kinetics as CVDF's downloads leave it -> lists of the videos that can be used, and a reason for each of the others.

    python scripts/prepare_kinetics.py /data/k400 --output lists/k400
    hiera-video finetune --config finetune_k400_base --train lists/k400/train.csv --val lists/k400/val.csv

ROOT holds annotations/{train,val,test}.csv, the videos flat in train/, val/, test/ or in class folders, and maybe
replacement/: a file there stands in for one of the same name that is absent, or that cannot be read whole. Below DIR:

    train.csv, ...        path,label; absolute paths, in the order of the official list (path,labels where unlabelled)
    left_out.csv          split,path,label,kind,detail of what is listed but not usable
    kept_with_faults.csv  the same of what is usable but short (its last frame repeats) or damaged: see --leave-out
    report.json           the counts that are printed, and the classes of which no video is left
    check.jsonl, hashes.jsonl   what is known of the files; killed and started again, a run goes on from there

A duplicate has the same bytes as another usable video of the splits that are prepared together: the first stays, and
one of val or test before one of train. Exit code 1: a video is missing or cannot be read whole; the rest is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from hiera_video.data.lists.cards import Split, load_card
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.errors import HieraVideoError, OutputError, RequestError
from hiera_video.files import alone, check_output, replacing, write_csv
from hiera_video.tasks.data.check import LEVELS, Checked, Decode, check_videos, read_report

#: What ``data check`` finds -> the kind in the lists; from bad to worse.
KINDS = {None: "", "short": "too short", "damaged": "partly broken", "unreadable": "broken", "missing": "missing"}
#: Where a video is in two splits, it stays in the first of these: what is tested must not be learned.
FIRST = ("val", "test", "train")
COLUMNS = ("split", "path", "label", "kind", "detail")


@dataclass(frozen=True)
class Options:
    """The command line."""

    root: Path
    output: Path
    dataset: str
    splits: list[str]
    decode: Decode
    num_workers: int
    time_limit: float
    leave_out: list[str]

    @property
    def report(self) -> Path:
        return self.output / "check.jsonl"


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
class Counts:
    """Of one split: the rows of its list, and how many of them are what. None: the card has no such number."""

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

    @classmethod
    def of(cls, split: str, rows: list[Row], classes: list[str], published: Split) -> Counts:
        kinds = Counter(row.kind for row in rows)
        there = {row.label for row in rows if row.usable}
        return cls(
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
            absent_classes=[name for name in classes if name not in there] if any(row.label for row in rows) else [],
        )


@dataclass(frozen=True)
class Hashed:
    """One line of ``hashes.jsonl``; ``size`` in bytes."""

    path: str
    size: int
    digest: str


def prepare(options: Options) -> list[Counts]:
    """Writes everything below ``options.output``. Raises :class:`HieraVideoError`."""
    lists = official_lists(options)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.output} cannot be made: {error.strerror or error}") from error
    check_output(options.report)
    with alone(options.output, "manifests"):
        for pattern in (".*.csv.[0-9]*", ".*.json*.[0-9]*"):
            for half in options.output.glob(pattern):  # of a run that was killed while it wrote
                half.unlink()
        forget_changed(options.report)
        for split in lists:
            print(f"{split}: {len(lists[split])} videos are listed", file=sys.stderr)
            check_files(options, lists[split])
            lists[split] = with_replacements(lists[split], options)
        checked = read_report(options.report)
        paths = dict.fromkeys(videos.path(index) for videos in lists.values() for index in range(len(videos)))
        readable = [checked[path] for path in paths if checked[path].problem not in ("missing", "unreadable")]
        digests = hash_files(readable, options.output / "hashes.jsonl", options.num_workers)
        rows = judge(lists, checked, digests, options.leave_out)
        return write(rows, lists, options)


def official_lists(options: Options) -> dict[str, VideoList]:
    """What each split lists: all are read before hours go into the first."""
    if not options.root.is_dir():
        raise RequestError(f"there is no folder {options.root}: ROOT holds annotations/ and the videos")
    card = load_card(options.dataset)
    places = {(options.root / place).parent for split in card.splits.values() for place in split.annotations}
    if options.output.resolve() in {place.resolve() for place in places}:
        raise RequestError(f"--output {options.output} is where official lists lie, of the same names: name another")
    return {split: list_videos(options.dataset, root=options.root, split=split) for split in options.splits}


# --- files ------------------------------------------------------------------------------------------------------------


def forget_changed(report: Path) -> None:
    """Takes out of a report the files that have another size now, or are gone: they are checked again."""
    known = read_report(report)
    kept = [one for one in known.values() if size_of(one.path) == one.size]
    if len(kept) < len(known):
        with replacing(report) as temporary:
            temporary.write_text("".join(f"{one.to_json()}\n" for one in kept), encoding="utf-8")


def size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def check_files(options: Options, videos: VideoList) -> None:
    """Checks what is not in the report yet."""
    counts = check_videos(
        videos,
        card=load_card(options.dataset),
        decode=options.decode,
        num_workers=options.num_workers,
        time_limit=options.time_limit,
        report=options.report,
    )
    for _ in counts:
        pass


def with_replacements(videos: VideoList, options: Options) -> VideoList:
    """The list with a file below replacement/ in place of a bad one of the same name, where it is better.

    :func:`list_videos` takes them only where the file is absent, but CVDF offers them for files that are broken.
    """
    spares = {name: os.path.join(at, name) for at, _, names in os.walk(options.root / "replacement") for name in names}
    checked = read_report(options.report)
    paths = [videos.path(index) for index in range(len(videos))]
    bad = [path for path in paths if checked[path].problem in ("unreadable", "damaged")]
    spare = {path: spares[os.path.basename(path)] for path in bad if os.path.basename(path) in spares}
    if not spare:
        return videos
    check_files(options, VideoList.make(spare.values(), [-1] * len(spare), []))
    checked, worse = read_report(options.report), list(KINDS).index
    better = {old: new for old, new in spare.items() if worse(checked[new].problem) < worse(checked[old].problem)}
    return VideoList.make([better.get(path, path) for path in paths], videos.labels, videos.classes)


def hash_files(checked: Collection[Checked], state: Path, num_workers: int) -> dict[str, str]:
    """A digest of each file that has the size of another, by path; those in ``state`` are not read again."""
    sizes = Counter(one.size for one in checked)
    shared = [(one.path, one.size or 0) for one in checked if sizes[one.size] > 1]
    known = read_hashes(state)
    found = {path: known[path].digest for path, size in shared if path in known and known[path].size == size}
    todo = [(path, size) for path, size in shared if path not in found]
    bar = tqdm(total=len(shared), initial=len(found), unit="file", desc="compare", disable=None, file=sys.stderr)
    with bar, state.open("a", encoding="utf-8") as lines, ThreadPoolExecutor(num_workers) as pool:
        try:
            for (path, size), digest in zip(todo, pool.map(digest_of, [path for path, _ in todo]), strict=True):
                if digest is None:
                    tqdm.write(f"{path} cannot be read to its end and is compared with none", file=sys.stderr)
                else:
                    found[path] = digest
                    print(json.dumps(asdict(Hashed(path, size, digest))), file=lines, flush=True)
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)  # else an interrupt would wait for all of them
    return found


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


def read_hashes(state: Path) -> dict[str, Hashed]:
    """The files in ``hashes.jsonl`` by path; half a line at its end, as a killed run leaves it, is cut off."""
    if not state.exists():
        return {}
    whole, newline, half = state.read_bytes().rpartition(b"\n")
    found = {}
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            hashed = Hashed(**json.loads(line))
        except (ValueError, TypeError):
            raise RequestError(f"{state}, line {number} is none of this script's: delete the file") from None
        found[hashed.path] = hashed
    if half:
        os.truncate(state, len(whole) + len(newline))
    return found


# --- rows -------------------------------------------------------------------------------------------------------------


def judge(
    lists: dict[str, VideoList], checked: dict[str, Checked], digests: dict[str, str], leave_out: Collection[str]
) -> dict[str, list[Row]]:
    """All rows, by split. Of those with the same content, the first in the order of :data:`FIRST` stays."""
    found: dict[str, list[Row]] = {split: [] for split in lists}
    stays: dict[str, Row] = {}
    for split in sorted(lists, key=FIRST.index):
        videos = lists[split]
        for index in range(len(videos)):
            path, label = videos.path(index), label_of(videos, index)
            one, content = checked[path], digests.get(path, path)
            if one.problem in ("missing", "unreadable", *leave_out):
                row = Row(split, path, label, KINDS[one.problem], one.reason or "", usable=False)
            elif content in stays:
                twin = stays[content]
                what = "it is listed before" if twin.path == path else f"it has the content of {twin.path}"
                detail = f"{what}, which stays in {twin.split}" + (f" as {twin.label!r}" if twin.label else "")
                row = Row(split, path, label, "duplicate", detail, usable=False)
            else:
                row = stays[content] = Row(split, path, label, KINDS[one.problem], one.reason or "", usable=True)
            found[split].append(row)
    return found


def label_of(videos: VideoList, index: int) -> str:
    number = int(np.asarray(videos.label(index)))
    return videos.classes[number] if number >= 0 else ""


def write(rows: dict[str, list[Row]], lists: dict[str, VideoList], options: Options) -> list[Counts]:
    """The manifests, the reasons and the report, each under a temporary name first."""
    card, counts = load_card(options.dataset), []
    for split, some in rows.items():
        # A row may be without a label only where it may have several.
        header = ("path", "label" if any(row.label for row in some) else "labels")
        write_csv(options.output / f"{split}.csv", [header, *((row.path, row.label) for row in some if row.usable)])
        counts.append(Counts.of(split, some, lists[split].classes, card.splits[split]))
    faults = [row for some in rows.values() for row in some if row.kind]
    for name, usable in (("left_out.csv", False), ("kept_with_faults.csv", True)):
        lines = [[getattr(row, column) for column in COLUMNS] for row in faults if row.usable == usable]
        write_csv(options.output / name, [COLUMNS, *lines])
    facts = {
        "dataset": card.name,
        "root": os.fspath(options.root),
        "decode": options.decode,
        "leave_out": options.leave_out,
        "splits": [asdict(one) for one in counts],
    }
    with replacing(options.output / "report.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return counts


# --- the command line -------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(fail(message))


def fail(message: str) -> int:
    print(f"prepare_kinetics.py: {message}", file=sys.stderr)
    return 2


def parse(argv: Sequence[str] | None) -> Options:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with annotations/ and the videos")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the lists go")
    names = ("kinetics400", "kinetics600", "kinetics700")
    parser.add_argument("--dataset", choices=names, default=names[0], help="default: %(default)s")
    splits = ("train", "val", "test")
    parser.add_argument("--splits", nargs="+", choices=splits, default=[*splits], help="default: all three")
    text = "how much of a file is decoded, as in `hiera-video data check`; default: %(default)s"
    parser.add_argument("--decode", choices=LEVELS, default="ends", help=text)
    text = "files that are read at the same time; default: one for each core"
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, metavar="N", help=text)
    text = "seconds after which a decoder is given up; default: %(default)s"
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help=text)
    text = "leave out videos shorter than a clip, or those of which a part cannot be read"
    parser.add_argument("--leave-out", nargs="+", choices=("short", "damaged"), default=[], help=text)
    given = vars(parser.parse_args(argv))
    for name in ("root", "output"):  # the report and the lists hold whole paths
        given[name] = Path(os.path.abspath(given[name]))
    return Options(**given)


def as_table(counts: list[Counts]) -> str:
    """A line for each split, in columns."""
    names = [name for name in asdict(counts[0]) if name != "absent_classes"]
    lines = [[name.replace("_", " ") for name in names]]
    for one in counts:
        lines.append(["-" if getattr(one, name) is None else str(getattr(one, name)) for name in names])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    options = parse(argv)
    try:
        counts = prepare(options)
    except HieraVideoError as error:
        return fail(str(error))
    except OSError as error:  # a full disk
        return fail(f"{error.filename or options.output} cannot be read or written: {error.strerror or error}")
    except KeyboardInterrupt:
        print("prepare_kinetics.py: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(as_table(counts))
    for one in counts:
        if one.absent_classes:
            some = ", ".join(one.absent_classes[:3]) + (", ..." if len(one.absent_classes) > 3 else "")
            print(f"{one.split}: {len(one.absent_classes)} classes have no usable video: {some}", file=sys.stderr)
    print(f"the lists, left_out.csv and report.json are in {options.output}", file=sys.stderr)
    return 1 if any(one.missing + one.broken + one.partly_broken for one in counts) else 0


if __name__ == "__main__":
    logging.getLogger("hiera_video").setLevel(logging.ERROR)  # its warnings stand in the table and in left_out.csv
    sys.exit(main())
