"""Files inside tar shards: how they are named, and their bytes by one seek on disk or one range request.

A shard is a plain tar, as webdataset reads it. The name of a file in it says where it lies,

    train-000000.tar#offset=1536&size=10332&name=00000000.mp4

after the path or the http(s) address of the shard, so that it is a path like any other: a list of them is shuffled,
divided among processes and gone on with as a list of files is.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import quote, unquote_to_bytes, urlsplit
from urllib.request import Request, urlopen

from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.files import write_csv

FETCH_TIMEOUT_S = 30
#: A server that stumbles is asked again after these seconds: a file that fails once is not read again in its run.
RETRY_AFTER_S = (0.5, 2.0)
#: What is read to get to a file on a server that sends whole shards only; farther in, it is refused.
MAX_SKIPPED_BYTES = 32 * 2**20
#: Larger files are copied to the disk, smaller ones to memory.
MAX_IN_MEMORY_BYTES = 256 * 2**20

MEMBER = re.compile(r"(.+)#offset=([0-9]+)&size=([0-9]+)&name=([^#&]+)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """The file ``name`` in the tar ``shard`` (a path or an http(s) address): ``size`` bytes from ``offset`` on."""

    shard: str
    offset: int
    size: int
    name: str

    @property
    def end(self) -> int:
        return self.offset + self.size


def member_path(shard: str, offset: int, size: int, name: str) -> str:
    """What stands for it in a list. The name comes last, so that its extension is the path's."""
    return f"{shard}#offset={offset}&size={size}&name={quote(os.fsencode(name), safe='')}"


def parse_member(path: str) -> Member | None:
    """The inverse of :func:`member_path`; None for any other path."""
    match = MEMBER.fullmatch(path)
    if match is None:
        return None
    return Member(match[1], int(match[2]), int(match[3]), os.fsdecode(unquote_to_bytes(match[4])))


def is_member(path: str) -> bool:
    """Whether this names a file inside a shard."""
    return MEMBER.fullmatch(path) is not None


def below_address(folder: str, path: str) -> str:
    """The address of a path (of a member too) that is relative to a folder's address."""
    member = parse_member(path)
    if member is None:
        return f"{folder}/{quote(os.fsencode(path))}"
    return member_path(f"{folder}/{quote(os.fsencode(member.shard))}", member.offset, member.size, member.name)


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def local_copy(member: Member) -> Iterator[str]:
    """The absolute path of a file with the member's bytes, for as long. Raises :class:`UnreadableVideo`.

    In memory where the system can: it takes no disk, and is gone with its process, however that ends.
    """
    if member.size <= MAX_IN_MEMORY_BYTES and hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        with os.fdopen(os.memfd_create("hiera_video"), "w+b") as file:
            copy_member(member, file)
            yield f"/proc/self/fd/{file.fileno()}"
        return
    suffix = os.path.splitext(member.name)[1]
    with tempfile.NamedTemporaryFile(prefix="hiera_video_", suffix=suffix) as named:
        copy_member(member, named)  # type: ignore[arg-type]  # a wrapper of a binary file
        yield named.name


def copy_member(member: Member, file: BinaryIO) -> None:
    """Writes a member's bytes into an empty file. Raises :class:`UnreadableVideo`."""
    if member.size == 0:
        raise UnreadableVideo(f"{member.name} in {member.shard} is empty (0 bytes): make the shard again.")
    remote = urlsplit(member.shard).scheme in ("http", "https")
    for wait in (*RETRY_AFTER_S, None):
        try:
            if remote:
                _fetch(member, file)
            else:
                with open(member.shard, "rb") as shard:
                    shard.seek(member.offset - tarfile.BLOCKSIZE)
                    if not _copy(member, shard, file):
                        raise _cut_off(member)
            file.flush()
            return
        except UnreadableVideo:
            raise
        except (OSError, HTTPException, ValueError) as error:
            refused = isinstance(error, HTTPError) and error.code < 500
            if not remote or refused or wait is None:
                reason = (not remote and isinstance(error, OSError) and error.strerror) or error
                remedy = "check the address and the network" if remote else "check the path"
                raise UnreadableVideo(f"{member.shard} cannot be read ({reason}): {remedy}.") from error
            time.sleep(wait)
            file.seek(0)
            file.truncate()


def _fetch(member: Member, file: BinaryIO) -> None:
    first = member.offset - tarfile.BLOCKSIZE
    request = Request(member.shard, headers={"Range": f"bytes={first}-{member.end - 1}"})
    try:
        answer = urlopen(request, timeout=FETCH_TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416:  # the shard ends before that range
            raise _cut_off(member) from error
        raise
    with answer:
        part = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", answer.headers.get("Content-Range", ""))
        length = part[2] if part is not None else answer.headers.get("Content-Length", "*")
        if answer.status != 206 or part is None or int(part[1]) != first:
            if answer.status != 200 or first > MAX_SKIPPED_BYTES:
                raise UnreadableVideo(
                    f"the server of {member.shard} answers no range requests: serve the shards from one that does "
                    "(nginx, Apache, S3), or copy them to disk."
                )
            while first and (block := answer.read(min(first, 2**20))):
                first -= len(block)
        if not _copy(member, answer, file):
            if length.isdecimal() and int(length) >= member.end:
                raise ConnectionError("the connection was cut off")
            raise _cut_off(member)


def _copy(member: Member, shard: BinaryIO, file: BinaryIO) -> bool:
    """Copies a member from its header on; whether all was there.

    The header is compared first: what an old index says of a new shard would be other videos under wrong labels.
    """
    header = shard.read(tarfile.BLOCKSIZE)
    if len(header) < tarfile.BLOCKSIZE:
        return False
    try:
        size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        size = -1
    if size != member.size:
        raise UnreadableVideo(
            f"{member.shard} has no file of {member.size} bytes at byte {member.offset}: its index is another shard's, "
            "or it is damaged; copy it again, or index it again (hiera-video data index)."
        )
    rest = member.size
    while rest and (block := shard.read(min(rest, 2**20))):
        file.write(block)
        rest -= len(block)
    return rest == 0


def _cut_off(member: Member) -> UnreadableVideo:
    return UnreadableVideo(
        f"{member.shard} is cut off before byte {member.end}, where {member.name} ends: copy the shard again."
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> Member:
    """Appends a file to an open tar: the same bytes for the same data, whoever writes it and when."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    before = tar.offset
    tar.addfile(info, io.BytesIO(data))
    return Member(os.fsdecode(tar.name or ""), before + tarfile.BLOCKSIZE, len(data), name)


def members_of(shard: str) -> Iterator[Member]:
    """The files of a tar on disk, in its order, from their headers alone.

    Raises :class:`RequestError` where it is none, is compressed, or does not come to its end.
    """
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep a million
                if info.isfile():
                    yield Member(shard, info.offset_data, info.size, info.name)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it breaks off")
    except (OSError, tarfile.TarError) as error:
        raise RequestError(f"{shard} is no whole tar without compression ({error}): copy it again.") from error


# --- the index --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of an index; seconds as in a list of segments. ``several``: it may have any number of labels."""

    path: str
    labels: list[str]
    start: float = 0.0
    end: float = float("inf")
    several: bool = False


def write_index(file: Path, rows: Sequence[Row]) -> None:
    """A table as ``list_videos`` reads it. Raises :class:`OutputError`."""
    labels = "labels" if any(row.several for row in rows) else "label"
    segments = any(row.start > 0 or row.end < float("inf") for row in rows)
    lines = [["path", labels, *(("start", "end") if segments else ())]]
    for row in rows:
        span = (repr(row.start), repr(row.end) if row.end < float("inf") else "") if segments else ()
        lines.append([row.path, ";".join(row.labels), *span])
    write_csv(file, lines)


def find_index(folder: str, split: str) -> str | None:
    """The index of a folder of shards, or of the split's folder below it."""
    for place in (folder, os.path.join(folder, split)):
        index = os.path.join(place, "index.csv")
        if os.path.isfile(index) and any(name.endswith(".tar") for name in os.listdir(place)):
            return index
    return None


def rows_of(shard: Path, extensions: Sequence[str]) -> Iterator[Row]:
    """The index of one shard: its files with the first of ``extensions`` that a sample has, and the labels beside them.

    A sample is what webdataset takes for one: neighbours of one name up to its first dot. Its label is in its .json
    ("label", or "labels" for several; "start" and "end" in seconds), .cls or .txt. Raises :class:`RequestError`.
    """
    for _, group in itertools.groupby(members_of(os.fspath(shard)), key=lambda member: _key(member.name)):
        files = {os.path.splitext(member.name)[1].lower(): member for member in group}
        found = next((files[suffix] for suffix in extensions if suffix in files), None)
        if found is not None:
            yield _labelled(member_path(shard.name, found.offset, found.size, found.name), files)


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _labelled(path: str, files: dict[str, Member]) -> Row:
    texts = dict.fromkeys((".json", ".cls", ".txt"), "")
    for suffix in texts.keys() & files.keys():
        with open(files[suffix].shard, "rb") as shard:
            shard.seek(files[suffix].offset)
            texts[suffix] = shard.read(files[suffix].size).decode("utf-8", "surrogateescape").strip()
    try:
        about = json.loads(texts[".json"] or "{}")
        start, end = float(about.get("start") or 0), float("inf" if about.get("end") is None else about["end"])
        if "labels" in about:
            return Row(path, [str(label) for label in about["labels"]], start, end, several=True)
        label = texts[".cls"] or texts[".txt"] if about.get("label") is None else str(about["label"])
    except (ValueError, TypeError, AttributeError) as error:
        file = files[".json"]
        raise RequestError(f"{file.name} in {file.shard} cannot be read ({error}): make the shard again.") from None
    return Row(path, [label] if label else [], start, end)
