"""Check a dataset before a week of training: which videos are missing, broken or too short, for each class."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from hiera_video.data.lists.cards import Card
from hiera_video.data.lists.video_list import VideoList, card_of, list_videos
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_address
from hiera_video.data.reading.shards import parse_member
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.files import check_output
from hiera_video.spec import ClipSpec
from hiera_video.tasks.records import FlatRecord, Results

log = logging.getLogger("hiera_video")

T = TypeVar("T")
Decode = Literal["index", "ends", "all"]
LEVELS = ("index", "ends", "all")
#: What may be wrong with a video; a short one is usable.
PROBLEMS = ("missing", "unreadable", "damaged", "short")
#: Durations are sums of a container's whole milliseconds.
ROUNDING_S = 1e-3
#: Frames that are in memory at once where all are decoded, and bad videos that are named on the screen.
CHUNK, MAX_NAMED = 8, 10


@dataclass(frozen=True)
class ClassCount(FlatRecord):
    """How many videos of a class are listed, and what each of them is: the five other numbers add up to it.

    ``missing``: there is no file; ``unreadable``: nothing can be decoded; ``damaged``: a part cannot; ``short``:
    shorter than a clip, so that its last frame will be repeated; ``fine``: the rest.
    """

    name: str
    listed: int
    fine: int
    missing: int
    unreadable: int
    damaged: int
    short: int

    @property
    def error(self) -> str | None:
        """One sentence where anything is missing or bad."""
        bad = self.missing + self.unreadable + self.damaged
        of_which = "" if self.name == "all" else f" of {self.name}"
        return f"{bad} of {self.listed} videos{of_which} are missing or cannot be read whole" if bad else None

    def to_dict(self) -> dict[str, Any]:
        """``{"class", "listed", "fine", "missing", "unreadable", "damaged", "short", "error"}``."""
        counts = asdict(self)
        return {"class": counts.pop("name"), **counts, "error": self.error}


@dataclass(frozen=True)
class Checked:
    """One line of a report: a file, what is wrong with it or None, and why; ``duration`` in seconds, size in pixels.

    ``height`` and ``width`` are known where frames were decoded. ``size`` in bytes. None:
    not found out.
    """

    path: str
    class_: str
    problem: str | None
    reason: str | None
    duration: float | None
    frames: int | None
    height: int | None
    width: int | None
    size: int | None
    decode: str

    def to_json(self) -> str:
        """One line, the fields in this order, ``class_`` as "class"."""
        return json.dumps({name.rstrip("_"): value for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, line: bytes) -> Checked:
        """The inverse of :meth:`to_json`. Raises ValueError for any other text."""
        try:
            values = json.loads(line)
            checked = cls(class_=values.pop("class"), **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(line) from error
        if checked.decode not in LEVELS or checked.problem not in (None, *PROBLEMS):
            raise ValueError(line)
        return checked


def check(
    source: str,
    *,
    root: Path | None = None,
    split: str = "train",
    fold: int = 1,
    decode: Decode = "ends",
    num_workers: int | None = None,
    time_limit: float = 60.0,
    report: Path | None = None,
) -> Results[ClassCount]:
    """Count the videos of a dataset that are there, missing, unreadable, damaged or too short, for each class.

    Args:
        source: A card (kinetics400, ucf101, a YAML file), a folder of class folders, or an annotation file.
        root: The folder of the dataset, which paths are relative to. Default: that of the annotation file.
        split: train, val or test.
        fold: Which of the published folds, where there are some.
        decode: index reads the file's index alone, ends decodes the first and last frames, all every frame.
        num_workers: Files that are read at the same time. Default: one for each core.
        time_limit: Seconds after which a decoder is given up.
        report: A .jsonl file that gets a line for each checked file; a second run goes on where it ends.
    """
    videos = list_videos(source, root=root, split=split, fold=fold)
    options: dict[str, Any] = {"decode": decode, "num_workers": num_workers, "time_limit": time_limit}
    return check_videos(videos, card=card_of(source), report=report, **options)


def check_videos(
    videos: VideoList,
    *,
    card: Card | None = None,
    decode: Decode = "ends",
    num_workers: int | None = None,
    time_limit: float = 60.0,
    report: Path | None = None,
) -> Results[ClassCount]:
    """:func:`check` of a list that is there; a clip is as long as ``card`` says. Raises :class:`RequestError`."""
    num_workers = default_workers(num_workers)
    if decode not in LEVELS:
        raise RequestError(f"decode is {decode!r}, but can be one of {', '.join(LEVELS)}")
    if num_workers < 1:
        raise RequestError(f"num_workers is {num_workers}, but is at least 1")
    if not time_limit > 0:
        raise RequestError(f"time_limit is {time_limit}, but is a number of seconds above 0")
    reported: dict[str, Checked] = {}
    if report is not None:
        check_output(report)
        reported = read_report(report)
    files: dict[str, int] = {}  # path -> the first of its entries
    for index in range(len(videos)):
        files.setdefault(videos.path(index), index)
    checked = {path: reported[path] for path in files if path in reported and _still_holds(reported[path], decode)}
    span = ClipSpec().span if card is None else card.sampling.span
    work = partial(check_file, decode=decode, span=span)
    counts = _counts(videos, files, checked, work, num_workers, time_limit, report, span)
    unlabelled = videos.labels.ndim == 1 and bool((videos.labels < 0).any())
    return Results(len(videos.classes) + unlabelled + 1, counts)


def default_workers(num_workers: int | None) -> int:
    """The number that was asked for, or one for each core."""
    return num_workers if num_workers is not None else os.cpu_count() or 1


def _counts(
    videos: VideoList,
    files: dict[str, int],
    checked: dict[str, Checked],
    work: Callable[[str, str, IsolatedReader], Checked],
    num_workers: int,
    time_limit: float,
    report: Path | None,
    span: float,
) -> Iterator[ClassCount]:
    """Checks what is not in ``checked`` yet, then counts."""
    todo = ((path, ";".join(videos.class_names(index))) for path, index in files.items() if path not in checked)
    num_bad = sum(file.problem in PROBLEMS[:3] for file in checked.values())
    with ExitStack() as stack:
        lines = stack.enter_context(report.open("a", encoding="utf-8")) if report is not None else None
        bar = tqdm(total=len(files), initial=len(checked), unit="file", disable=None, file=sys.stderr)
        stack.enter_context(bar)
        for file in _as_they_come(work, todo, num_workers, time_limit):
            checked[file.path] = file
            num_bad += file.problem in PROBLEMS[:3]
            if lines is not None:
                print(file.to_json(), file=lines, flush=True)
            bar.set_postfix(bad=num_bad, refresh=False)
            bar.update()
    _name_the_bad(checked.values(), report)
    yield from _per_class(videos, checked, span)


def check_file(path: str, class_: str, reader: IsolatedReader, decode: str, span: float) -> Checked:
    """One file, as far as ``decode`` says. ``span``: seconds of one clip."""
    facts: dict[str, Any] = dict.fromkeys(("problem", "reason", "duration", "frames", "height", "width"))
    size = size_of(path)
    if size is None and not is_address(path):
        facts.update(problem="missing", reason="there is no such file")
        return Checked(path, class_, size=None, decode=decode, **facts)
    try:
        with reader.open(path, num_threads=1) as video:
            facts.update(duration=round(video.duration, 6), frames=len(video))
            ends = np.array([0, len(video) - 1])
            rows = np.array_split(np.arange(len(video)), -(-len(video) // CHUNK)) if decode == "all" else [ends]
            for frames in video.stream(rows) if decode != "index" else ():
                facts.update(height=frames.pixels.shape[1], width=frames.pixels.shape[2])
            if video.error is not None:
                facts.update(problem="damaged", reason=video.error)
            elif video.duration < span - ROUNDING_S:
                facts.update(problem="short", reason=f"it lasts {video.duration:.2f} s, a clip {span:.2f} s")
    except (UnreadableVideo, RuntimeError) as error:  # the second: a decoder's behaviour that nobody foresaw
        facts.update(problem="unreadable", reason=str(error).strip().splitlines()[-1])
    return Checked(path, class_, size=size, decode=decode, **facts)


def read_report(report: Path) -> dict[str, Checked]:
    """The files in a report, by path, each as its last line says.

    Args:
        report: The .jsonl file of a check; it need not be there.

    Returns:
        What is known of each file.

    Raises:
        RequestError: The file is no such report; it is left as it is.
    """
    expected = "a line of data check's report: name another file"
    return {checked.path: checked for checked in read_lines_of(report, Checked.from_json, expected)}


def read_lines_of(file: Path, parse: Callable[[bytes], T], expected: str) -> list[T]:
    """The lines of a .jsonl file that a job goes on writing, each an object that begins with its path.

    Half a line at the end, as a killed run leaves it, is cut off.

    Args:
        file: The path of the file; it need not be there.
        parse: Makes a record of a line, or raises ValueError or TypeError.
        expected: What a line should be, and the remedy.

    Returns:
        The records, in the order of the lines.

    Raises:
        RequestError: A line is something else; the file is left as it is.
    """
    if not file.exists():
        return []
    whole, _, half = file.read_bytes().rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            records.append(parse(line))
        except (ValueError, TypeError, KeyError):
            found = f"{file}, line {number}: found {line[:60].decode(errors='replace')!r}"
            raise RequestError(f"{found}, but expected {expected}") from None
    if half:
        start = b'{"path": "'
        if half[: len(start)] != start[: len(half)]:
            found = f"{file}, last line: found {half[:60].decode(errors='replace')!r}"
            raise RequestError(f"{found}, but expected {expected}")
        os.truncate(file, len(whole) + bool(whole))
    return records


def _still_holds(checked: Checked, decode: str) -> bool:
    """Whether a file need not be checked again: a bad one that has changed since must be, and one seen less closely."""
    if LEVELS.index(checked.decode) < LEVELS.index(decode) and checked.problem not in ("missing", "unreadable"):
        return False
    return checked.problem in (None, "short") or is_address(checked.path) or size_of(checked.path) == checked.size


def size_of(path: str) -> int | None:
    """The size of a file; of one in a shard, how much is there: a shard that was cut off may be copied again later.

    Args:
        path: A path, or a file in a shard.

    Returns:
        Bytes, or None where there is no such file.
    """
    member = parse_member(path)
    try:
        if member is not None:
            return max(0, min(member.end, os.stat(member.shard).st_size) - member.offset)
        return os.stat(path).st_size
    except OSError:
        return None


def _as_they_come(
    work: Callable[[str, str, IsolatedReader], Checked],
    todo: Iterator[tuple[str, str]],
    num_workers: int,
    time_limit: float,
) -> Iterator[Checked]:
    """Results in the order in which they are ready; few wait, however many there are to do."""
    with ExitStack() as stack:
        free = [stack.enter_context(IsolatedReader(time_limit=time_limit)) for _ in range(num_workers)]
        pool = stack.enter_context(ThreadPoolExecutor(num_workers))
        stack.callback(pool.shutdown, cancel_futures=True)
        running: dict[Future[Checked], IsolatedReader] = {}
        while True:
            running |= {pool.submit(work, *file, free[-1]): free.pop() for file in islice(todo, len(free))}
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                free.append(running.pop(future))
                yield future.result()


def _per_class(videos: VideoList, checked: dict[str, Checked], span: float) -> Iterator[ClassCount]:
    """A count for each class, of unlabelled videos if there are some, and of all."""
    codes = np.array([_code(videos, index, checked, span) for index in range(len(videos))])
    if videos.labels.ndim == 1:
        groups = [(name, videos.labels == number) for number, name in enumerate(videos.classes)]
        groups += [("(no label)", videos.labels < 0)] if (videos.labels < 0).any() else []
    else:
        groups = [(name, videos.labels[:, number] > 0) for number, name in enumerate(videos.classes)]
    for name, mask in [*groups, ("all", np.ones(len(videos), dtype=bool))]:
        fine, missing, unreadable, damaged, short = np.bincount(codes[mask], minlength=5).tolist()
        yield ClassCount(name, int(mask.sum()), fine, missing, unreadable, damaged, short)


def _code(videos: VideoList, index: int, checked: dict[str, Checked], span: float) -> int:
    """0 for a fine video or segment, else 1 + its place in PROBLEMS."""
    file = checked[videos.path(index)]
    if file.problem in PROBLEMS[:3]:
        return 1 + PROBLEMS.index(file.problem)
    start, end = float(videos.starts[index]), float(videos.ends[index])
    seconds = min(end, file.duration or 0.0) - start
    if seconds <= 0:
        log.warning("%s ends before the segment from %g to %g s", file.path, start, end)
        return 1 + PROBLEMS.index("unreadable")
    return 1 + PROBLEMS.index("short") if seconds < span - ROUNDING_S else 0


def _name_the_bad(found: Iterable[Checked], report: Path | None) -> None:
    bad = [one for one in found if one.problem in PROBLEMS[:3]]
    for one in bad[:MAX_NAMED]:
        named = "" if one.path in str(one.reason) else f"{one.path}: "
        log.warning("%s: %s%s", one.problem, named, one.reason)
    if len(bad) > MAX_NAMED:
        where = f"{report} lists them" if report is not None else "--report FILE.jsonl lists them"
        log.warning("and %d more; %s", len(bad) - MAX_NAMED, where)
