"""One tar shard: the videos of a part of a list, each with its .json, copied or coded anew."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import extension, is_image, local_file
from hiera_video.data.reading.reader import open_video
from hiera_video.data.reading.recode import recode
from hiera_video.data.reading.shards import Row, add_file, is_member, member_path, members_of
from hiera_video.errors import OutputError, UnreadableVideo
from hiera_video.files import replacing


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
            part.write_text(json.dumps([asdict(entry) for entry in made]), encoding="utf-8")
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
    labels = videos.class_names(index)
    several = videos.labels.ndim == 2 or not labels
    return Row(path, labels, float(videos.starts[index]), float(videos.ends[index]), several)
