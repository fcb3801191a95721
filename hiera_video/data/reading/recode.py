"""Videos coded anew for training: smaller, with keyframes near each other, each frame at its time."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.reading.reader import Video, open_video
from hiera_video.data.transforms import plan_whole
from hiera_video.errors import UnreadableVideo
from hiera_video.spec import ClipSpec

#: Frames of a video that are compared, and frames that are in memory at once.
NUM_COMPARED, CHUNK = 8, 16
#: Mean grey-level difference (of 255) past which a video has other pictures, not coarser ones.
MAX_DIFFERENCE = 20.0
TIME_ERROR_S = 1e-3
#: Closed groups, in which no other picture refers to three of four: what a clip does not show is left out in decoding.
#: No loop filter: at 240p a clip costs a seventh less, for 1 % more bytes and 1.61 grey levels off instead of 1.56.
X264 = "keyint={0}:min-keyint={0}:scenecut=0:open-gop=0:bframes=3:b-adapt=0:b-pyramid=none:no-deblock=1"
GREY = np.array([0.299, 0.587, 0.114])


def recode(video: Video, short_side: int | None, keyframe_interval: int, crf: int) -> tuple[bytes, float]:
    """A video as H.264 in an mp4, upright and without sound, and its mean grey-level difference from the original.

    Larger pictures are shrunk to ``short_side`` pixels; sides are made even. A keyframe comes every
    ``keyframe_interval`` frames; ``crf`` is x264's quality. What was written is decoded to its end, and some frames
    compared. A frame that cannot be decoded is written as its neighbour (``video.error``). Raises
    :class:`UnreadableVideo`.
    """
    import av

    index = video.index
    pts = index.pts - min(0, int(index.pts[0]))  # an mp4 has no times before 0
    compared = set(np.linspace(0, len(video) - 1, NUM_COMPARED).astype(int).tolist())
    originals: dict[int, NDArray[np.uint8]] = {}
    options = {"threads": "1", "x264-params": X264.format(keyframe_interval)}

    def frames() -> Iterator[NDArray[np.uint8]]:
        rows = _chunks(len(video))
        for row, block in zip(rows, video.stream(rows, lambda block: _shrink(block, short_side)), strict=True):
            for number, pixels in zip(row.tolist(), block.pixels, strict=True):
                if number in compared:
                    originals[number] = pixels
                yield pixels

    target = io.BytesIO()
    seconds = (stamp * index.time_base for stamp in pts.tolist())
    try:
        write_mp4(
            target,
            frames(),
            video.fps,
            times=seconds,
            time_base=index.time_base,
            crf=crf,
            options=options,
            pixel_aspect=video.pixel_aspect,
        )
    except av.FFmpegError as error:
        raise UnreadableVideo(f"{video.path} cannot be coded anew ({error}): leave it out, or copy it.") from error
    times = pts * index.time_base.numerator / index.time_base.denominator
    return target.getvalue(), _compare(video.path, target.getvalue(), times, originals)


def _chunks(num_frames: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.arange(num_frames), -(-num_frames // CHUNK))


def _shrink(frames: NDArray[np.uint8], short_side: int | None) -> NDArray[np.uint8]:
    """uint8 [n, H, W, 3] with a short side of at most ``short_side``, and even sides."""
    height, width = frames.shape[1:3]
    side = min(short_side or height, height, width)
    spec = ClipSpec(size=(side, side), antialias=True)
    return np.array(plan_whole((height, width), spec, 2).apply(frames, spec).permute(0, 2, 3, 1))


def _compare(path: str, data: bytes, times: NDArray[np.float64], originals: dict[int, NDArray[np.uint8]]) -> float:
    """The mean grey-level difference. Raises :class:`UnreadableVideo` where frames, times or pictures are others."""
    with open_video(data, num_threads=1) as video:
        same = len(video) == len(times) and np.abs(video.times - times).max() <= TIME_ERROR_S
        rows, differences = _chunks(len(video)), []
        for row, frames in zip(rows, video.stream(rows), strict=True):
            for number, pixels in zip(row.tolist(), frames.pixels, strict=True):
                if number in originals:
                    differences.append(float(np.abs(pixels @ GREY - originals[number] @ GREY).mean()))
        difference = float(np.mean(differences))
        if not same or video.error is not None or difference > MAX_DIFFERENCE:
            raise UnreadableVideo(
                f"{path} comes out wrong when it is coded anew ({len(video)} of {len(times)} frames, "
                f"{difference:.1f} grey levels off): copy it, or leave it out."
            )
    return difference
