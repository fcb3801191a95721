"""What a masked autoencoder sees and what it makes of it: original, masked and reconstructed clips side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.files import replacing

Pixels = NDArray[np.uint8]

NAMES = ("original", "masked", "reconstructed")
#: Pixels of a frame's short side: smaller ones are drawn larger by a whole factor, as hard-edged pixels.
LEAST_SIDE = 128
#: A frame's width in a picture at most, pixels.
MOST_WIDTH = 160
#: Frames per second of a film of which frames are far apart and every one is to be looked at.
FPS = 4
DPI = 110


def show_reconstructions(
    clips: ArrayLike, masked: ArrayLike, reconstructed: ArrayLike, path: Path, title: str, *, num_frames: int = 8
) -> None:
    """A PNG of clips uint8 ``[N, 3, T, H, W]`` in three rows each: original, masked, reconstructed.

    Shows ``num_frames`` of the frames, evenly spread; of pictures (``T = 1``) the first ``num_frames`` side by side.
    Written whole or not at all; raises :class:`OutputError`.
    """
    from matplotlib.figure import Figure

    videos = _together(clips, masked, reconstructed)
    if videos.shape[2] == 1:
        videos = videos[:, :num_frames].swapaxes(1, 2)
    chosen = np.linspace(0, videos.shape[2] - 1, min(num_frames, videos.shape[2])).round().astype(int)
    videos = videos[:, :, chosen]
    gap, between = max(videos.shape[4] // 32, 1), max(videos.shape[4] // 8, 1)
    rows = [_apart(list(row), axis=1, gap=gap) for clip in videos.swapaxes(0, 1) for row in clip]
    sheet = _apart([_apart(rows[at : at + 3], 0, gap) for at in range(0, len(rows), 3)], 0, between)

    scale = min(MOST_WIDTH / videos.shape[4], 1.0)
    left, head, right = 118, 40, 12
    high, wide = round(sheet.shape[0] * scale), round(sheet.shape[1] * scale)
    width, height = max(left + wide + right, 420), head + high + right
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    panel = figure.add_axes((left / width, right / height, wide / width, high / height))
    panel.imshow(sheet, aspect="auto", interpolation="nearest" if scale == 1 else "antialiased")
    panel.set_axis_off()
    tall = videos.shape[3] + gap
    for number in range(len(rows)):
        place = number * tall + number // 3 * (between - gap) + videos.shape[3] / 2
        panel.text(-8 / scale, place, NAMES[number % 3], ha="right", va="center", fontsize=9)
    figure.text(left / width, 1 - head / 2 / height, title, fontsize=11, va="center", parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def write_video(clips: ArrayLike, masked: ArrayLike, reconstructed: ArrayLike, path: Path, *, fps: int = FPS) -> None:
    """An mp4 (H.264) of clips uint8 ``[N, 3, T, H, W]``, ``T`` frames: a row for each, original, masked and
    reconstructed from left to right. Written whole or not at all; raises :class:`OutputError`.
    """
    videos = _together(clips, masked, reconstructed)
    gap = max(videos.shape[4] // 32, 1)
    frames = [
        _apart([_apart(list(row), 1, gap) for row in moment], 0, gap) for moment in videos.transpose(2, 1, 0, 3, 4, 5)
    ]
    film = np.stack(frames)
    odd = [(0, 0), *((0, side % 2) for side in film.shape[1:3]), (0, 0)]  # H.264 halves the colours' resolution
    film = np.pad(film, odd, constant_values=255)
    write_mp4(path, film, fps)


def _together(clips: ArrayLike, masked: ArrayLike, reconstructed: ArrayLike) -> Pixels:
    """Three times ``[N, 3, T, H, W]`` as one ``[3, N, T, H, W, 3]``, small frames enlarged."""
    videos = np.stack([np.asarray(part, dtype=np.uint8) for part in (clips, masked, reconstructed)])
    videos = videos.transpose(0, 1, 3, 4, 5, 2)
    zoom = -(-LEAST_SIDE // min(videos.shape[3:5]))
    return videos.repeat(zoom, axis=3).repeat(zoom, axis=4)


def _apart(pieces: list[Pixels], axis: int, gap: int) -> Pixels:
    """Pictures ``[h, w, 3]`` in a row (axis 1) or a column (axis 0), white between them."""
    shape = list(pieces[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, dtype=np.uint8)
    return np.concatenate([one for piece in pieces for one in (white, piece)][1:], axis=axis)
