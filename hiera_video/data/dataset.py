"""Files to model inputs: finds them, and cuts the test views of one from a single decode."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.data.reader import is_address, local_file, open_video
from hiera_video.data.sampling import test_clips
from hiera_video.data.transforms import test_crops
from hiera_video.errors import UnreadableVideo
from hiera_video.spec import ClipSpec

IMAGE_EXTENSIONS = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEO_EXTENSIONS = {".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
VIDEO_EXTENSIONS |= {".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}


@dataclass(frozen=True)
class Views:
    """The ``num_clips * num_crops`` test views of one input; view v shows clip v // num_crops, crop v % num_crops.

    ``clips`` uint8 [V, C, T, H, W]; ``times`` float64 [V, T], the seconds at which each frame is shown; ``duration`` of
    the input in seconds (0 for an image); ``error``: None, or one sentence about the part that could not be read.
    """

    clips: Tensor
    times: NDArray[np.float64]
    duration: float
    error: str | None = None


def load_views(path: str | os.PathLike[str], spec: ClipSpec, num_clips: int, num_crops: int) -> Views:
    """The test views of a video file, image file or http(s) address: opened once, each frame decoded and resized once.

    An image is a still: every frame of a clip shows it. Raises :class:`UnreadableVideo` when nothing can be read.
    """
    if is_image(path):
        pixels, duration, error = _read_image(os.fspath(path))[np.newaxis], 0.0, None
        rows = np.zeros((num_clips, spec.num_frames), dtype=np.int64)
        times = np.zeros(rows.shape)
    else:
        with open_video(path) as video:
            rows = test_clips(video.times, spec, num_clips)
            distinct, inverse = np.unique(rows, return_inverse=True)
            pixels = video.frames(distinct).pixels
            times, duration, error = video.times[rows], video.duration, video.error
            rows = inverse.reshape(rows.shape)
    crops = test_crops(pixels, spec, num_crops)  # [num_crops, C, K, h, w] of the K distinct frames
    clips = crops.new_empty((num_clips, *crops.shape[:2], spec.num_frames, *spec.size))
    for clip, row in zip(clips, torch.from_numpy(rows), strict=True):
        torch.index_select(crops, 2, row, out=clip)
    return Views(clips.flatten(0, 1), np.repeat(times, num_crops, axis=0), duration, error)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether the name is an image file's; a GIF counts as a video."""
    return _extension(os.fspath(path)) in IMAGE_EXTENSIONS


def find_inputs(inputs: Sequence[str]) -> list[tuple[str, str | None]]:
    """(file or address, None or one sentence on why it cannot be read), in the order in which they were named.

    Folders are searched to their depths for videos and images, hidden ones apart; they and globs give sorted names.
    A missing file stays in the list, its error comes on reading; a folder or glob without any gives one entry, itself.
    """
    found: list[tuple[str, str | None]] = []
    for name in inputs:
        if is_address(name) or os.path.isfile(name):
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
            if not file.startswith(".") and _extension(file) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                yield os.path.join(where, file)


def _extension(path: str) -> str:
    return os.path.splitext(urlsplit(path).path if is_address(path) else path)[1].lower()


def _read_image(path: str) -> NDArray[np.uint8]:
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
