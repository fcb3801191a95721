"""Where videos and images come from: files, folders, addresses, shards; and the pixels of an image."""

from __future__ import annotations

import glob
import os
import re
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import BinaryIO, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.pictures import begins, is_animated, to_rgb
from hiera_video.data.reading.shards import is_member, local_copy, parse_member
from hiera_video.errors import UnreadableVideo
from hiera_video.files import files_below

#: A path or http(s) address, the bytes of a file, or an open binary file that can seek.
Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"

ANIMATED_EXTENSIONS = {".avif", ".png", ".webp"}
IMAGE_EXTENSIONS = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MAX_DOWNLOAD_BYTES = 4 * 2**30
DOWNLOAD_TIMEOUT_S = 30


def name_of(source: Source) -> str:
    """What messages call a source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", "<file object>"))


def is_address(path: str) -> bool:
    """Whether this is an http(s) address."""
    return urlsplit(path).scheme in ("http", "https")


def extension(path: str) -> str:
    """In lower case, with its dot; of an address, that of its path; of a file in a shard, that of its name."""
    member = parse_member(path) if "#offset=" in path else None
    name = member.name if member is not None else urlsplit(path).path if is_address(path) else path
    return os.path.splitext(name)[1].lower()


@contextmanager
def local_file(path: str) -> Iterator[str]:
    """The absolute path of a file that is there and not empty; an http(s) address is downloaded for as long, and a file
    in a shard copied.

    Downloaded, not handed to FFmpeg: times, frames and a second decoder each read the file, and the network once.
    Raises :class:`UnreadableVideo`, one sentence.
    """
    member = parse_member(path)
    if member is not None:
        with local_copy(member) as copy:
            yield copy
        return
    if is_address(path):
        with tempfile.TemporaryDirectory(prefix="hiera_video_") as folder:
            target = os.path.join(folder, os.path.basename(urlsplit(path).path) or "download")
            _download(path, target)
            yield target
        return
    if os.path.isdir(path):
        raise UnreadableVideo(f"{path} is a folder, not a file: name the files in it.")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        remedy = "check the path" if isinstance(error, FileNotFoundError) else "check its permissions"
        raise UnreadableVideo(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
    if empty:
        raise UnreadableVideo(f"{path} is empty (0 bytes): copy or download it again.")
    yield os.path.abspath(path)  # absolute, or FFmpeg takes "a:b.mp4" for a protocol


def pictures_in(folder: str) -> list[str]:
    """The image files of a folder in the order of the numbers in their names: img_9.jpg before img_10.jpg.

    Raises :class:`UnreadableVideo` when there is none.
    """
    names = [name for name in os.listdir(folder) if extension(name) in IMAGE_EXTENSIONS and not name.startswith(".")]
    if not names:
        raise UnreadableVideo(f"{folder} is a folder without pictures: give one with its frames as JPEG files.")
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return [os.path.join(folder, name) for name in names]


def _download(address: str, target: str) -> None:
    limit = f"{MAX_DOWNLOAD_BYTES / 2**30:g} GiB"
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_S) as answer, open(target, "wb") as file:
            while block := answer.read(2**20):
                file.write(block)
                if file.tell() > MAX_DOWNLOAD_BYTES:
                    raise UnreadableVideo(f"{address} is larger than {limit}: download it yourself and name the file.")
            size = file.tell()
    except UnreadableVideo:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise UnreadableVideo(f"{address} cannot be fetched ({error}): check the address and the network.") from error
    if size == 0:
        raise UnreadableVideo(f"{address} gives an empty file: check the address.")


VIDEO_EXTENSIONS = {".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
VIDEO_EXTENSIONS |= {".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether this is a still: by its name and, as PNG, WebP and AVIF may be animated, its first bytes.

    An animation counts as a video, and a GIF always. The bytes of an address are not looked at.
    """
    path = os.fspath(path)
    kind = extension(path)
    if kind not in ANIMATED_EXTENSIONS or is_address(path):
        return kind in IMAGE_EXTENSIONS
    member = parse_member(path)
    return not is_animated(begins(path) if member is None else begins(member.shard, member.offset))


def find_inputs(inputs: Sequence[str]) -> list[tuple[str, str | None]]:
    """(file or address, None or one sentence on why it cannot be read), in the order in which they were named.

    Folders are searched to their depths for videos and images, hidden ones apart; they and globs give sorted names.
    A missing file stays in the list, its error comes on reading; a folder or glob without any gives one entry, itself.
    """
    listed: list[tuple[str, str | None]] = []
    for name in inputs:
        if is_address(name) or is_member(name) or os.path.isfile(name):
            listed.append((name, None))
        elif os.path.isdir(name):
            files = _media_below(name)
            listed += [(file, None) for file in files] or [(name, f"{name} is a folder without videos or images.")]
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            files = [file for match in matches for file in (_media_below(match) if os.path.isdir(match) else [match])]
            listed += [(file, None) for file in dict.fromkeys(files)] or [(name, f"{name} matches no file.")]
        else:
            listed.append((name, None))
    return listed


def _media_below(folder: str) -> list[str]:
    """The videos and images of a folder and of those below it, hidden ones apart, sorted."""
    kinds = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    paths = (path for path in files_below(folder) if not os.path.basename(path).startswith("."))
    return sorted(path for path in paths if extension(path) in kinds)


def read_image(path: str) -> NDArray[np.uint8]:
    """The pixels of an image file, http(s) address or file in a shard.

    Args:
        path: Where it is. Of an animation, the first frame is read.

    Returns:
        uint8 [H, W, 3], RGB, upright as its EXIF orientation says, what is transparent on white;
        :func:`hiera_video.data.reading.pictures.to_rgb` says what becomes of grey values of more than 8 bits.

    Raises:
        UnreadableVideo: One sentence saying why it cannot be read.
    """
    from PIL import Image

    with local_file(path) as file:
        try:
            with Image.open(file) as image:
                return to_rgb(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableVideo(f"{path} is not an image that can be read ({error}): check the file.") from error
