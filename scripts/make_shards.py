"""Tar shards for sets of the size of Kinetics: a few large files to copy and to read, not a quarter of a million.

    python scripts/make_shards.py make kinetics400 --root /data/k400 --output /data/shards/train --short-side 256
    python scripts/make_shards.py index /data/others_shards

``make`` takes what ``list_videos`` reads. A shard is a plain tar, which webdataset reads too: for each video, or
segment of one, KEY.json and the video. ``index.csv`` beside the shards is a table whose paths say where in a shard each
video lies. Name it, its folder, or its address on a server that answers range requests wherever a list of videos is
asked for: ``list_videos("/data/shards", split="train")``, ``data.train`` of a recipe, ``hiera-video data check``.

Files are copied as they are, or with ``--short-side`` or ``--keyframe-interval`` coded anew (H.264, upright, no sound,
each frame at its time): a training clip then costs the decoding of fewer and smaller pictures. What is coded anew is
decoded again and compared. A video that cannot be read is listed in ``left_out.csv``. A killed run goes on by whole
shards. ``index`` makes the index of shards that others made, with the labels in a video's .json ("label" or "labels"),
.cls or .txt. Exit code 1: something was left out.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    extension,
    is_address,
    is_image,
    local_file,
)
from hiera_video.data.reading.reader import open_video
from hiera_video.data.reading.recode import X264, recode
from hiera_video.data.reading.shards import (
    Row,
    add_file,
    is_member,
    member_path,
    members_of,
    parse_member,
    rows_of,
    write_index,
)
from hiera_video.errors import HieraVideoError, OutputError, RequestError, UnreadableVideo
from hiera_video.files import alone, replacing, write_csv

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the shards, as shards.json keeps it; ``bounds``: where in the list each shard begins.

    ``videos``: a digest of the list. ``keyframe_interval`` None: files are copied. ``x264``: how they are coded anew.
    """

    videos: str
    split: str
    shard_size: str
    short_side: int | None
    keyframe_interval: int | None
    crf: int
    x264: str
    bounds: list[int]


@dataclass(frozen=True)
class Made:
    """What became of one entry of the list: ``member`` is its path in the index, or None with the ``reason``.

    ``damaged``: a part cannot be decoded. Sizes in bytes, ``seconds`` of video. ``difference``: mean grey levels, of
    255, between the original and what was coded anew, both in its size; None for a copy.
    """

    number: int
    path: str
    member: str | None = None
    reason: str | None = None
    damaged: str | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    frames: int = 0
    seconds: float = 0.0
    difference: float | None = None


# --- one shard --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """The work of a process: ``videos`` are the entries from ``first`` on of the list; ``part``: its report."""

    tar: Path
    part: Path
    first: int
    videos: VideoList
    settings: Settings
    parent: int

    def stop_if_orphaned(self) -> None:
        """A run that was killed may have been started again: leave the shard to it."""
        if os.getppid() != self.parent:
            os._exit(1)


def make_shard(shard: Shard) -> None:
    """Writes a shard and, before it appears, its part of the report. Raises :class:`OutputError`."""
    torch.set_num_threads(1)
    shard.stop_if_orphaned()
    made: list[Made] = []
    sums: dict[str, int] = {}
    with replacing(shard.tar) as temporary, IsolatedReader() as reader:
        with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
            for index in range(len(shard.videos)):
                shard.stop_if_orphaned()
                made.append(add_video(tar, shard, index, reader, sums))
        for member in members_of(os.fspath(temporary)):
            with temporary.open("rb") as file:
                file.seek(member.offset)
                if zlib.crc32(file.read(member.size)) != sums.pop(member.name, -1):
                    raise OutputError(f"{shard.tar} cannot be written: {member.name} in it is not what was written")
        if sums:
            raise OutputError(f"{shard.tar} cannot be written: {len(sums)} files are not in it")
        with replacing(shard.part) as part:
            part.write_text(json.dumps([asdict(one) for one in made]), encoding="utf-8")
        shard.stop_if_orphaned()


def add_video(tar: tarfile.TarFile, shard: Shard, index: int, reader: IsolatedReader, sums: dict[str, int]) -> Made:
    """One entry: its .json and the video; ``sums`` get the checksums of both."""
    path, number = shard.videos.path(index), shard.first + index
    try:
        with local_file(path) as file:
            made = Made(number, path, bytes_before=os.path.getsize(file))
            try:
                data, suffix, made = read_video(made, file, shard.settings, reader)
            except UnreadableVideo as error:
                raise UnreadableVideo(str(error).replace(file, path)) from error
    except UnreadableVideo as error:
        return Made(number, path, reason=str(error))
    row = row_of(shard.videos, index, path)
    about: dict[str, Any] = {"labels": row.labels} if row.several else {"label": row.labels[0]}
    about |= {"path": path}
    if row.start > 0 or row.end < float("inf"):
        about |= {"start": row.start, "end": row.end if row.end < float("inf") else None}
    text = json.dumps(about).encode()
    key = f"{number:08d}"
    sums |= {f"{key}.json": zlib.crc32(text), f"{key}{suffix}": zlib.crc32(data)}
    add_file(tar, f"{key}.json", text)
    member = add_file(tar, f"{key}{suffix}", data)
    place = member_path(shard.tar.name, member.offset, member.size, member.name)
    return replace(made, member=place, bytes_after=len(data))


def read_video(made: Made, file: str, settings: Settings, reader: IsolatedReader) -> tuple[bytes, str, Made]:
    """The bytes to keep of a video or picture, their extension, and what is known of it by then."""
    if settings.keyframe_interval is None or is_image(made.path):
        if not is_image(made.path):
            with open_video(file, backend="pyav", num_threads=1) as video:  # its packets alone are read
                made = replace(made, frames=len(video), seconds=video.duration, damaged=video.error)
        return Path(file).read_bytes(), extension(made.path) or ".mp4", made
    # A copy from a shard is this process's own; the child makes another.
    with reader.open(made.path if is_member(made.path) else file, num_threads=1) as video:
        data, difference = recode(video, settings.short_side, settings.keyframe_interval, settings.crf)
        facts: dict[str, Any] = {"frames": len(video), "seconds": video.duration, "damaged": video.error}
    return data, ".mp4", replace(made, difference=difference, **facts)


def row_of(videos: VideoList, index: int, path: str) -> Row:
    """An entry's line in an index, under another path."""
    label = videos.label(index)
    numbers = np.flatnonzero(label).tolist() if isinstance(label, np.ndarray) else [label] if label >= 0 else []
    labels = [videos.classes[number] for number in numbers]
    several = videos.labels.ndim == 2 or not labels
    return Row(path, labels, float(videos.starts[index]), float(videos.ends[index]), several)


# --- all shards -------------------------------------------------------------------------------------------------------


def make(options: argparse.Namespace) -> int:
    """Writes what is missing of the shards, then the index and the report. Raises :class:`HieraVideoError`."""
    interval = options.keyframe_interval
    if interval is None and options.short_side is not None:
        interval = 16
    least = {"--short-side": (options.short_side, 16), "--keyframe-interval": (interval, 1)}
    for name, (value, lowest) in {**least, "--num-workers": (options.num_workers, 1)}.items():
        if value is not None and value < lowest:
            raise RequestError(f"{name} is {value}, but is at least {lowest}")
    if not 0 <= options.crf <= 51:
        raise RequestError(f"--crf is {options.crf}, but is from 0 (best) to 51")
    videos = list_videos(
        options.source, root=options.root, split=options.split, fold=options.fold, images=options.images
    )
    output: Path = options.output
    settings = Settings(
        digest_of(videos), options.split, options.shard_size, options.short_side, interval, options.crf, X264, []
    )
    try:
        (output / ".parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made: {error.strerror or error}") from error
    with alone(output, "shards"):
        settings = agreed(output, settings, videos)
        for half in output.rglob(".*.*.[0-9]*"):  # of a run that was killed
            half.unlink(missing_ok=True)
        shards = []
        for number, (first, stop) in enumerate(itertools.pairwise([*settings.bounds, len(videos)])):
            name = f"{settings.split}-{number:06d}"
            tar, part = output / f"{name}.tar", output / ".parts" / f"{name}.json"
            shards.append(Shard(tar, part, first, videos.subset(slice(first, stop)), settings, os.getpid()))
        write_shards([one for one in shards if not (one.tar.exists() and one.part.exists())], options.num_workers)
        return finish(output, videos, shards)


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
            raise RequestError(f"{output} holds shards that are not this script's: name another folder")
        settings = replace(settings, bounds=bounds_of(videos, settings.shard_size))
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        return settings
    try:
        begun = Settings(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise RequestError(f"{file} is not this script's: name another folder") from None
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
        raise RequestError(f"--shard-size is {shard_size!r}, but is a number of videos (1000) or of bytes (1GB)")
    paths = [videos.path(index) for index in range(len(videos))]
    if any(is_address(path) and not is_member(path) for path in paths):
        raise RequestError("the sizes of files at addresses are not known: give --shard-size as a number of videos")
    before = np.cumsum([0, *map(size_of, paths[:-1])]) // size
    return [0, *(1 + np.flatnonzero(np.diff(before))).tolist()]


def size_of(path: str) -> int:
    member = parse_member(path)
    try:
        return member.size if member is not None else os.path.getsize(path)
    except OSError:
        return 0  # it will be left out


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


def finish(output: Path, videos: VideoList, shards: list[Shard]) -> int:
    """The index and the report of whole shards; 1 where something was left out."""
    made = [Made(**one) for shard in shards for one in json.loads(shard.part.read_text(encoding="utf-8"))]
    kept = [one for one in made if one.member is not None]
    left_out = [one for one in made if one.member is None]
    measured = [(one.difference, one.path) for one in kept if one.difference is not None]
    worst = max(measured, default=(None, None))
    report = {
        "shards": len(shards),
        "videos": len(kept),
        "left_out": len(left_out),
        "frames": sum(one.frames for one in kept),
        "seconds": round(sum(one.seconds for one in kept), 3),
        "bytes_before": sum(one.bytes_before for one in kept),
        "bytes_after": sum(one.bytes_after for one in kept),
        "grey_difference_mean": float(np.mean([value for value, _ in measured])) if measured else None,
        "grey_difference_worst": worst[0],
        "worst_path": worst[1],
        "damaged": {one.path: one.damaged for one in kept if one.damaged is not None},
    }
    write_csv(output / "left_out.csv", [("path", "reason"), *((one.path, str(one.reason)) for one in left_out)])
    for name, text in (("report.json", json.dumps(report, indent=2)), ("classes.txt", "\n".join(videos.classes))):
        with replacing(output / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
    write_index(output / "index.csv", [row_of(videos, one.number, str(one.member)) for one in kept])
    for name, value in report.items():
        print(f"{name:22} {len(value) if isinstance(value, dict) else value}")
    return 1 if left_out else 0


def index(folder: Path) -> int:
    """Writes index.csv beside the tars of a folder. Raises :class:`HieraVideoError`."""
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise RequestError(f"{folder} has no .tar files: name the folder of the shards")
    extensions = [*sorted(VIDEO_EXTENSIONS), *sorted(IMAGE_EXTENSIONS)]
    rows = [row for shard in shards for row in rows_of(shard, extensions)]
    bare = [row for row in rows if not row.labels and not row.several]
    if not rows or 0 < len(bare) < len(rows):
        what = f"{bare[0].path} has no label" if rows else f"{folder} has shards without videos"
        raise RequestError(f"{what}: expected KEY.mp4 beside KEY.json, KEY.cls or KEY.txt with its label")
    if bare:
        rows = [replace(row, several=True) for row in rows]
    write_index(folder / "index.csv", rows)
    print(f"{len(rows)} videos in {len(shards)} shards are listed in {folder / 'index.csv'}")
    return 0


# --- the command line -------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"make_shards.py: {message}", file=sys.stderr)
        sys.exit(2)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="make|index")
    one = jobs.add_parser("make", help="shards of the videos of a list")
    one.add_argument("source", metavar="SOURCE", help="a card's name, a list, a folder of class folders, or shards")
    one.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder for this split's shards alone")
    one.add_argument("--root", metavar="DIR", help="the folder that paths are relative to; default: the list's")
    one.add_argument("--split", default="train", help="default: %(default)s")
    one.add_argument("--fold", type=int, default=1, metavar="N", help="of the published ones; default: %(default)s")
    one.add_argument("--images", action="store_true", help="class folders hold pictures, which are copied")
    one.add_argument("--short-side", type=int, metavar="PIXELS", help="shrink larger videos to this")
    text = "frames from one keyframe to the next; default: those of the file, or 16 with --short-side"
    one.add_argument("--keyframe-interval", type=int, metavar="N", help=text)
    one.add_argument("--crf", type=int, default=23, metavar="N", help="x264's quality; default: %(default)s")
    text = "videos in a shard, or bytes of originals (1GB, 500MB); default: %(default)s"
    one.add_argument("--shard-size", default="1GB", metavar="SIZE", help=text)
    text = "shards that are made at the same time; default: one for each core"
    one.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, metavar="N", help=text)
    other = jobs.add_parser("index", help="index.csv for shards that are there")
    other.add_argument("folder", type=Path, metavar="FOLDER")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    options = parse(argv)
    try:
        return make(options) if options.job == "make" else index(options.folder)
    except HieraVideoError as error:
        print(f"make_shards.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_shards.py: interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
