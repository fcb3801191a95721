"""Pixels of image files, by Pillow: stills, folders of pictures and animations as uint8 RGB, upright, on white."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.frame_index import FrameIndex
from hiera_video.errors import UnreadableVideo

Image = NDArray[np.uint8]

ORIENTATION_TAG = 0x0112
#: Milliseconds that a frame is shown that says 0, as FFmpeg does it for PNG, and browsers for the others.
UNTIMED_MS = {"PNG": 1000 / 15}
#: Of durations, which files state in milliseconds, or in fractions of them.
TIME_BASE = Fraction(1, 1_000_000)
#: What Pillow raises for a file that it cannot read.
TROUBLE = (OSError, SyntaxError, ValueError, EOFError)


def to_rgb(image: Any) -> Image:
    """The pixels of a ``PIL.Image.Image`` of any mode.

    Grey values of more than 8 bits keep their range: the full scale of 16 bits becomes 255. No file states the scale of
    32 bits and of floats: it is the first of 1 (floats), 255 and 65535 that holds all values. Values that none holds,
    such as negative ones, are stretched between the lowest and the highest.

    Args:
        image: The picture, as it is stored.

    Returns:
        uint8 [H, W, 3], upright as its EXIF orientation says, what is transparent on white.
    """
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_wide_grey(image)
    if image.has_transparency_data:
        return on_white(np.array(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def on_white(rgba: NDArray[np.uint8]) -> Image:
    """uint8 [H, W, 4] before a white background, uint8 [H, W, 3]."""
    from PIL import Image as Pictures

    picture = Pictures.fromarray(rgba)
    return np.array(Pictures.alpha_composite(Pictures.new("RGBA", picture.size, "white"), picture).convert("RGB"))


def _from_wide_grey(image: Any) -> Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    lowest, highest = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        lowest, highest = 0.0, 65535.0
    elif lowest >= 0 and highest <= 65535:
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        lowest, highest = 0.0, next(scale for scale in scales if highest <= scale)
    grey = np.rint((values - lowest) * (255 / max(highest - lowest, 1e-300)))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a grey value that stands for it
        grey[values == transparent] = 255
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def is_animated(head: bytes) -> bool:
    """Whether a PNG, WebP or AVIF file that begins with these bytes (4096 do) has several frames in time.

    An APNG whose animation is announced behind longer metadata than that is taken for a still, its first frame.
    """
    if head.startswith(b"RIFF") and head[8:16] == b"WEBPVP8X":
        return bool(head[20:21] and head[20] & 2)
    if head.startswith(b"\x89PNG"):
        announced = head.find(b"acTL")
        return announced > 0 and (head.find(b"IDAT") < 0 or announced < head.find(b"IDAT"))
    return head[4:12] == b"ftypavis"


class PictureDecoder:
    """A folder's pictures as frames, each in the size of the first, upright."""

    backend = "pictures"
    error = None
    time_error = 0.0
    turned = False

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._size: tuple[int, int] | None = None

    def close(self) -> None:
        pass

    def read(self, wanted: NDArray[np.int64], short_side: int | None) -> tuple[NDArray[np.int64], list[Image]]:
        """One image for each of ``wanted``; a JPEG is decoded straight to the smaller size."""
        return wanted, [self._image(self._paths[number], short_side) for number in wanted.tolist()]

    def _image(self, path: str, short_side: int | None) -> Image:
        from PIL import Image as Pictures

        try:
            with Pictures.open(path) as picture:
                # An orientation of 5 and more swaps width and height, but Pillow turns a TIFF by itself.
                lies = picture.format != "TIFF" and picture.getexif().get(ORIENTATION_TAG, 1) >= 5
                self._size = self._size or (picture.size[::-1] if lies else picture.size)
                size = shrunk(self._size, short_side)
                picture.draft("RGB", size[::-1] if lies else size)
                return resized(to_rgb(picture), size)
        except (*TROUBLE, Pictures.DecompressionBombError) as error:
            raise UnreadableVideo(f"{path} is not an image that can be read ({error}): check the file.") from error


class AnimationDecoder:
    """An animated PNG, WebP or AVIF file as a video, each frame put together as it is shown."""

    backend = "pictures"
    error = None
    time_error = 0.0
    turned = False

    def __init__(self, name: str, place: str | BinaryIO) -> None:
        self._name, self._place = name, place
        self._image = self._open()
        self._at = 0
        self._first = int(bool(self._image.info.get("default_image")))  # a still for those who cannot show more

    def _open(self) -> Any:
        from PIL import Image as Pictures

        try:
            if not isinstance(self._place, str):
                self._place.seek(0)
            return Pictures.open(self._place)
        except (*TROUBLE, Pictures.DecompressionBombError) as error:
            raise UnreadableVideo(
                f"{self._name} is not an image that can be read ({error}): check the file."
            ) from error

    def _go(self, number: int) -> None:
        """Put a frame together. Pillow 12 cannot go back in every PNG: begin anew."""
        if number < self._at:
            self._image.close()
            self._image = self._open()
        self._at = number
        self._image.seek(number + self._first)
        self._image.load()

    def index(self) -> FrameIndex:
        """Its frames and their times, for which all are decoded once.

        Raises:
            UnreadableVideo: There is not one.
        """
        image, ends, error = self._image, [0], None
        total = getattr(image, "n_frames", 1) - self._first
        for number in range(total):
            try:
                self._go(number)
            except TROUBLE as trouble:
                error = f"the file cannot be read to its end ({trouble}): {number} of {total} frames are there."
                break
            shown_ms = image.info.get("duration") or UNTIMED_MS.get(image.format, 100)
            ends.append(ends[-1] + round(shown_ms / (1000 * TIME_BASE)))
        if len(ends) == 1:
            raise UnreadableVideo(f"{self._name} holds no complete frame: copy or download it again.")
        starts = np.array(ends[:-1], dtype=np.int64)
        size = (image.size[1], image.size[0])
        keys = np.zeros(1, dtype=np.int64)
        end, form = float(ends[-1] * TIME_BASE), image.format.lower()
        ids = np.arange(len(starts))
        return FrameIndex(starts, keys, TIME_BASE, end, 0, "pictures", form, size, ids=ids, stored=ids, error=error)

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()

    def read(self, wanted: NDArray[np.int64], short_side: int | None) -> tuple[NDArray[np.int64], list[Image]]:
        """One image for each of ``wanted`` (ascending); going back begins anew."""
        images = []
        for number in wanted.tolist():
            try:
                self._go(number)
                pixels = to_rgb(self._image)
            except TROUBLE as error:
                raise UnreadableVideo(
                    f"frame {number} of {self._name} cannot be read ({error}): copy the file again."
                ) from error
            height, width = pixels.shape[:2]
            images.append(resized(pixels, shrunk((width, height), short_side)))
        return wanted, images


def resized(pixels: Image, size: tuple[int, int]) -> Image:
    """uint8 [H, W, 3] in another size (width, height)."""
    from PIL import Image as Pictures

    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.array(Pictures.fromarray(pixels).resize(size, Pictures.Resampling.BILINEAR))


def shrunk(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """The size with its short side no longer than ``short_side``, in proportion."""
    if short_side is None or short_side >= min(size):
        return size
    first, second = (round(side * Fraction(short_side, min(size))) for side in size)
    return first, second


def begins(place: str | os.PathLike[str] | BinaryIO, at: int = 0) -> bytes:
    """The first 4096 bytes of a file, or of what begins at byte ``at`` of it; none where it cannot be read."""
    if not isinstance(place, (str, os.PathLike)):
        place.seek(at)
        head = place.read(4096)
        place.seek(at)
        return head
    try:
        with open(place, "rb") as file:
            file.seek(at)
            return file.read(4096)
    except OSError:
        return b""
