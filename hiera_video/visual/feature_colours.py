"""Maps of a stage as colours: their first three principal components, beside the frames."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.errors import RequestError
from hiera_video.files import check_output, replacing

#: Cells that the components are fitted to, at most, and percentiles of them that become black and full colour.
MAX_CELLS, LOW, HIGH = 50_000, 2, 98
_TICK = Fraction(1, 1000)  # seconds: what a film's times are rounded to
#: Frames of a picture, and a frame's least side in pixels: smaller ones are enlarged.
NUM_FRAMES, LEAST_SIDE = 8, 192
#: What stands below them, in letters of so many pixels for each so many of the picture's width.
LEGEND = "colours: first three principal components of the tokens; same colour = similar features"
LETTERS, WIDE = 12, 800


@dataclass(frozen=True)
class Colours:
    """``mean`` [C], ``components`` [C, 3]; what lies at ``low`` and ``high`` [3] along them is dark and bright."""

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def paint(self, maps: NDArray[np.float32]) -> NDArray[np.uint8]:
        """float32 [..., C] -> uint8 [..., 3]."""
        values = ((maps - self.mean) @ self.components - self.low) / np.maximum(self.high - self.low, 1e-12)
        colours: NDArray[np.uint8] = (255 * values.clip(0, 1)).round().astype(np.uint8)
        return colours


def fit_colours(maps: NDArray[np.float32]) -> Colours:
    """From maps float32 [..., C] of at least three channels; nothing is drawn, and signs are fixed."""
    cells = maps.reshape(-1, maps.shape[-1])
    cells = cells[:: -(-len(cells) // MAX_CELLS)]
    mean = cells.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((cells - mean).T.astype(np.float64)))
    components = vectors[:, ::-1][:, :3]
    components = components * np.where(components.sum(axis=0) < 0, -1, 1)  # which way is bright does not matter
    along = (cells - mean) @ components
    low, high = np.percentile(along, [LOW, HIGH], axis=0)
    return Colours(mean, *(one.astype(np.float32) for one in (components, low, high)))


def check_picture(path: Path) -> None:
    """Raises :class:`RequestError` for a name that is no film's or picture's, :class:`OutputError` for its place."""
    if path.suffix.lower() not in (".mp4", ".png"):
        raise RequestError(f"picture {path} must end in .mp4 (a film) or .png")
    check_output(path)


def write_colours(path: Path, moments: Iterable[tuple[float, NDArray[np.uint8], NDArray[np.uint8]]]) -> None:
    """Frames with their colours: an mp4 side by side, in time, or a PNG of evenly spread ones, one above the other.
    Below them stands what the colours mean.

    ``moments``, in time: seconds, the frame uint8 [h, w, 3], and the colours of its cells uint8 [H', W', 3]. A film
    takes one at a time. Written whole or not at all; raises :class:`OutputError`, :class:`RequestError`.
    """
    check_picture(path)
    if path.suffix.lower() == ".png":
        from PIL import Image

        pairs = [_pair(frame, colours, axis=0) for _, frame, colours in moments]
        chosen = np.linspace(0, len(pairs) - 1, min(NUM_FRAMES, len(pairs))).round().astype(int)
        with replacing(path) as temporary:
            sheet = np.concatenate([pairs[number] for number in chosen], axis=1)
            Image.fromarray(_with_legend(sheet)).save(temporary, "png")
        return
    moments = iter(moments)
    first = next(moments)
    shown, timed = tee(chain([first], moments))  # the writer takes a frame and its time together: one is kept at most
    film = (_with_legend(_pair(frame, colours, axis=1)) for _, frame, colours in shown)
    write_mp4(path, film, 30, times=(seconds - first[0] for seconds, _, _ in timed), time_base=_TICK)


def _pair(frame: NDArray[np.uint8], colours: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """The frame, enlarged where it is small, and hard-edged cells of its size; sides are even, as H.264 has them."""
    zoom = -(-LEAST_SIDE // min(frame.shape[:2]))
    large = frame.repeat(zoom, axis=0).repeat(zoom, axis=1)
    height, width = (side - side % 2 for side in large.shape[:2])
    rows = np.arange(height) * colours.shape[0] // height
    columns = np.arange(width) * colours.shape[1] // width
    return np.concatenate([large[:height, :width], colours[rows][:, columns]], axis=axis)


def _with_legend(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([picture, _legend(picture.shape[1])])


@lru_cache(maxsize=1)
def _legend(width: int) -> NDArray[np.uint8]:
    """uint8 [h, width, 3], h even: the words in as many lines as they need, black on white."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(round(width / WIDE), 1)  # a wide picture is looked at from further away
    font, lines = ImageFont.load_default(zoom * LETTERS), textwrap.wrap(LEGEND, max(width // (6 * zoom), 1))
    picture = Image.new("RGB", (width, zoom * (8 + 16 * len(lines))), "white")
    where, gap = (6 * zoom, 3 * zoom), 2 * zoom
    ImageDraw.Draw(picture).multiline_text(where, "\n".join(lines), "black", font, spacing=gap)
    return np.asarray(picture)
