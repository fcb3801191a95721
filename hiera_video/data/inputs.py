"""What a user names on a command line, as files: finds them, tells images from videos, and reads images."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.shards import is_member
from hiera_video.data.sources import IMAGE_EXTENSIONS, extension, is_address, local_file
from hiera_video.errors import UnreadableVideo

VIDEO_EXTENSIONS = {".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
VIDEO_EXTENSIONS |= {".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether the name is an image file's; a GIF counts as a video."""
    return extension(os.fspath(path)) in IMAGE_EXTENSIONS


def find_inputs(inputs: Sequence[str]) -> list[tuple[str, str | None]]:
    """(file or address, None or one sentence on why it cannot be read), in the order in which they were named.

    Folders are searched to their depths for videos and images, hidden ones apart; they and globs give sorted names.
    A missing file stays in the list, its error comes on reading; a folder or glob without any gives one entry, itself.
    """
    found: list[tuple[str, str | None]] = []
    for name in inputs:
        if is_address(name) or is_member(name) or os.path.isfile(name):
            found.append((name, None))
        elif os.path.isdir(name):
            files = sorted(_walk(name))
            found += [(file, None) for file in files] or [(name, f"{name} is a folder without videos or images.")]
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            files = [file for match in matches for file in (sorted(_walk(match)) if os.path.isdir(match) else [match])]
            found += [(file, None) for file in dict.fromkeys(files)] or [(name, f"{name} matches no file.")]
        else:
            found.append((name, None))
    return found


def _walk(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".")]
        for file in files:
            if not file.startswith(".") and extension(file) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                yield os.path.join(where, file)


def read_image(path: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], RGB, upright as its EXIF orientation says; transparent places come on white."""
    from PIL import Image, ImageOps

    with local_file(path) as file:
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return np.array(upright.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableVideo(f"{path} is not an image that can be read ({error}): check the file.") from error
