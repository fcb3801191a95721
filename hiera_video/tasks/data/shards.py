"""Copy videos into tar shards: a few large files to copy and to read, not a quarter of a million.

A shard is a plain tar, which webdataset reads too: for each video, or segment of one, KEY.json and the video.
``index.csv`` beside the shards is a table whose paths say where in a shard each video lies: name it, its folder, or its
address on a server that answers range requests wherever a list of videos is asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.data.reading.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, is_address
from hiera_video.data.reading.recode import X264
from hiera_video.data.reading.shards import is_member, rows_of, write_index
from hiera_video.errors import OutputError, RequestError
from hiera_video.files import alone, replacing, write_csv
from hiera_video.tasks.data.check import default_workers, size_of
from hiera_video.tasks.data.one_shard import Made, Settings, Shard, make_shard, row_of
from hiera_video.tasks.records import FlatRecord, Results

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class ShardReport(FlatRecord):
    """What went into shards: the fields of their ``report.json``.

    ``seconds`` of video; sizes in bytes of the originals and of what is in the shards; differences in mean grey
    levels, of 255, between originals and what was coded anew (None: copies); ``damaged``: why, by path.
    """

    shards: int
    videos: int
    left_out: int
    frames: int
    seconds: float
    bytes_before: int
    bytes_after: int
    grey_difference_mean: float | None
    grey_difference_worst: float | None
    worst_path: str | None
    damaged: dict[str, str]

    @property
    def error(self) -> str | None:
        """One sentence where a video could not be read."""
        count = self.videos + self.left_out
        return f"{self.left_out} of {count} videos cannot be read: see left_out.csv" if self.left_out else None

    def rows(self) -> list[dict[str, Any]]:
        """One flat row; of damaged videos their number."""
        return [self.to_dict() | {"damaged": len(self.damaged)}]


@dataclass(frozen=True)
class Indexed(FlatRecord):
    """What an index lists: ``videos`` in ``shards``, in the file ``index``."""

    videos: int
    shards: int
    index: str
    error: str | None = None


# --- all shards -------------------------------------------------------------------------------------------------------


def shards(
    source: str,
    *,
    output: Path,
    root: Path | None = None,
    split: str = "train",
    fold: int = 1,
    images: bool = False,
    short_side: int | None = None,
    keyframe_interval: int | None = None,
    crf: int = 23,
    shard_size: str = "1GB",
    num_workers: int | None = None,
) -> Results[ShardReport]:
    """Write the videos of a list into tar shards with an index, as they are or coded anew (H.264).

    Coded anew, a training clip costs the decoding of fewer and smaller pictures: upright, without sound, each frame at
    its time; the result is decoded again and compared. A video that cannot be read is listed in ``left_out.csv``.
    Killed and started again, the job goes on by whole shards.

    Args:
        source: A card (kinetics400, ucf101, a YAML file), a folder of class folders, an annotation file, or shards.
        output: A folder for this split's shards alone.
        root: The folder that paths are relative to. Default: that of the annotation file.
        split: train, val or test.
        fold: Which of the published folds, where there are some.
        images: Class folders hold pictures, which are copied.
        short_side: Shrink larger videos to this many pixels.
        keyframe_interval: Frames from one keyframe to the next. Default: those of the file, or 16 with short_side.
        crf: x264's quality, from 0 (best) to 51.
        shard_size: Videos in a shard (1000), or bytes of originals (1GB, 500MB).
        num_workers: Shards that are made at the same time. Default: one for each core.

    Returns:
        One report.

    Raises:
        RequestError: The request is wrong, or the folder was begun with another one.
        OutputError: The output cannot be written.
    """
    if keyframe_interval is None and short_side is not None:
        keyframe_interval = 16
    num_workers = default_workers(num_workers)
    least = {
        "short_side": (short_side, 16),
        "keyframe_interval": (keyframe_interval, 1),
        "num_workers": (num_workers, 1),
    }
    for name, (value, lowest) in least.items():
        if value is not None and value < lowest:
            raise RequestError(f"{name} is {value}, but is at least {lowest}")
    if not 0 <= crf <= 51:
        raise RequestError(f"crf is {crf}, but is from 0 (best) to 51")
    videos = list_videos(source, root=root, split=split, fold=fold, images=images)
    settings = Settings(digest_of(videos), split, shard_size, short_side, keyframe_interval, crf, X264, [])
    return Results(1, _reports(Path(output), settings, videos, num_workers))


def _reports(output: Path, settings: Settings, videos: VideoList, num_workers: int) -> Iterator[ShardReport]:
    """Writes what is missing of the shards, then the index and the report."""
    try:
        (output / ".parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made: {error.strerror or error}") from error
    with alone(output, "shards"):
        settings = agreed(output, settings, videos)
        for half in output.rglob(".*.*.[0-9]*"):  # of a run that was killed
            half.unlink(missing_ok=True)
        parts = []
        for number, (first, stop) in enumerate(itertools.pairwise([*settings.bounds, len(videos)])):
            name = f"{settings.split}-{number:06d}"
            tar, part = output / f"{name}.tar", output / ".parts" / f"{name}.json"
            parts.append(Shard(tar, part, first, videos.subset(slice(first, stop)), settings, os.getpid()))
        write_shards([shard for shard in parts if not (shard.tar.exists() and shard.part.exists())], num_workers)
        report = finish(output, videos, parts)
    yield report


def digest_of(videos: VideoList) -> str:
    digest = hashlib.sha256("\n".join(videos.classes).encode("utf-8", "surrogateescape"))
    for part in (videos.buffer, videos.offsets, videos.labels, videos.starts, videos.ends):
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()


def agreed(output: Path, settings: Settings, videos: VideoList) -> Settings:
    """The settings with which the folder was begun. Raises :class:`RequestError` where these are others."""
    file = output / "shards.json"
    if not file.exists():
        if any(output.glob("*.tar")):
            raise RequestError(
                f"{output} holds shards that `hiera-video data shards` did not make: name another folder"
            )
        settings = replace(settings, bounds=bounds_of(videos, settings.shard_size))
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        return settings
    try:
        begun = Settings(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise RequestError(f"{file} is none of `hiera-video data shards`: name another folder") from None
    for field in fields(Settings):
        old, new = getattr(begun, field.name), getattr(settings, field.name)
        if field.name != "bounds" and old != new:
            what = "another list of videos" if field.name == "videos" else f"{field.name} {old}, not {new}"
            raise RequestError(f"{output} was begun with {what}: name another folder, or delete this one")
    return begun


def bounds_of(videos: VideoList, shard_size: str) -> list[int]:
    """Where each shard begins: after a number of videos, or of bytes of the originals."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})?", shard_size)
    size = float(match[1]) * UNITS[match[2] or "KB"] if match is not None else 0
    if match is not None and match[2] is None and match[1].isdecimal() and int(match[1]) > 0:
        return list(range(0, len(videos), int(match[1])))
    if match is None or match[2] is None or size < 1:
        raise RequestError(f"shard_size is {shard_size!r}, but is a number of videos (1000) or of bytes (1GB)")
    paths = [videos.path(index) for index in range(len(videos))]
    if any(is_address(path) and not is_member(path) for path in paths):
        raise RequestError("the sizes of files at addresses are not known: give shard_size as a number of videos")
    before = np.cumsum([0, *(size_of(path) or 0 for path in paths[:-1])]) // size  # 0: it will be left out
    return [0, *(1 + np.flatnonzero(np.diff(before))).tolist()]


def write_shards(todo: list[Shard], num_workers: int) -> None:
    """Each is one process's work. Raises :class:`OutputError`."""
    bar = tqdm(total=len(todo), unit="shard", disable=None, file=sys.stderr)
    with bar, ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork")) as pool:
        running = [pool.submit(make_shard, shard) for shard in todo]
        try:
            for done in as_completed(running):
                done.result()
                bar.update()
        except BrokenProcessPool as error:
            raise OutputError("a process that made a shard was killed: the same command goes on") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def finish(output: Path, videos: VideoList, parts: list[Shard]) -> ShardReport:
    """Writes the index and the report of whole shards."""
    made = [Made(**entry) for shard in parts for entry in json.loads(shard.part.read_text(encoding="utf-8"))]
    kept = [entry for entry in made if entry.member is not None]
    left_out = [(entry.path, str(entry.reason)) for entry in made if entry.member is None]
    measured = [(entry.difference, entry.path) for entry in kept if entry.difference is not None]
    worst, worst_path = max(measured, default=(None, None))
    report = ShardReport(
        shards=len(parts),
        videos=len(kept),
        left_out=len(left_out),
        frames=sum(entry.frames for entry in kept),
        seconds=round(sum(entry.seconds for entry in kept), 3),
        bytes_before=sum(entry.bytes_before for entry in kept),
        bytes_after=sum(entry.bytes_after for entry in kept),
        grey_difference_mean=float(np.mean([value for value, _ in measured])) if measured else None,
        grey_difference_worst=worst,
        worst_path=worst_path,
        damaged={entry.path: entry.damaged for entry in kept if entry.damaged is not None},
    )
    write_csv(output / "left_out.csv", [("path", "reason"), *left_out])
    for name, text in (
        ("report.json", json.dumps(asdict(report), indent=2)),
        ("classes.txt", "\n".join(videos.classes)),
    ):
        with replacing(output / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
    write_index(output / "index.csv", [row_of(videos, entry.number, str(entry.member)) for entry in kept])
    return report


# --- the index of shards that others wrote ----------------------------------------------------------------------------


def index(folder: str) -> Results[Indexed]:
    """Write index.csv beside the tar shards of a folder, so that it can be named as a list of videos.

    A video's label is in the file of its name that ends in .json ("label" or "labels"), .cls or .txt.

    Args:
        folder: The folder with the .tar files.

    Returns:
        What is listed now, and where.

    Raises:
        RequestError: There are no shards, one is not whole, or a video has no label.
        OutputError: The index cannot be written.
    """
    return Results(1, _indexed(Path(folder)))


def _indexed(folder: Path) -> Iterator[Indexed]:
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise RequestError(f"{folder} has no .tar files: name the folder of the shards")
    extensions = [*sorted(VIDEO_EXTENSIONS), *sorted(IMAGE_EXTENSIONS)]
    rows = [row for tar in tqdm(tars, unit="shard", disable=None, file=sys.stderr) for row in rows_of(tar, extensions)]
    bare = [row for row in rows if not row.labels and not row.several]
    if not rows or 0 < len(bare) < len(rows):
        what = f"{bare[0].path} has no label" if rows else f"{folder} has shards without videos"
        raise RequestError(f"{what}: expected KEY.mp4 beside KEY.json, KEY.cls or KEY.txt with its label")
    if bare:
        rows = [replace(row, several=True) for row in rows]
    write_index(folder / "index.csv", rows)
    yield Indexed(len(rows), len(tars), os.fspath(folder / "index.csv"))
