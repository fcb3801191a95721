"""The one place that writes mp4 files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import OutputError
from hiera_video.files import replacing

#: Ticks of a second in which times are rounded where none are given: a usual clock of video.
TICK = Fraction(1, 90_000)
SQUARE = Fraction(1)


def write_mp4(
    target: Path | io.BytesIO,
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    *,
    times: Iterable[float | Fraction] | None = None,
    time_base: Fraction | None = None,
    crf: int = 18,
    options: Mapping[str, str] | None = None,
    pixel_aspect: Fraction = SQUARE,
) -> None:
    """Writes frames as H.264 (4:2:0) in an mp4, without sound.

    The frames are taken and coded one at a time. A file appears whole or not at all: it is written beside its place
    under a temporary name, and renamed.

    Args:
        target: The file, or a buffer that gets its bytes.
        frames: uint8 [H, W, 3], RGB, all of one size. H.264 has even sides: an odd last row or column is left out.
        fps: Frames a second.
        times: Seconds at which each frame is shown, ascending from 0 on, where the rate is not constant.
        time_base: Seconds to which ``times`` are rounded.
        crf: Quality of x264, from 0 (without loss) to 51.
        options: Further options of the encoder libx264, such as ``{"preset": "veryfast"}``.
        pixel_aspect: Width over height at which players show a pixel.

    Raises:
        OutputError: The file cannot be written.
        ValueError: There is no frame.
    """
    settings = {"crf": str(crf), **(options or {})}
    if isinstance(target, io.BytesIO):
        _write(target, frames, fps, times, time_base, settings, pixel_aspect)
        return
    import av

    with replacing(target) as temporary:
        try:
            _write(str(temporary), frames, fps, times, time_base, settings, pixel_aspect)
        except av.FFmpegError as error:  # a full disk, a folder without permission
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error


def _write(
    place: str | io.BytesIO,
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    times: Iterable[float | Fraction] | None,
    time_base: Fraction | None,
    options: dict[str, str],
    pixel_aspect: Fraction,
) -> None:
    import av

    rate = Fraction(fps).limit_denominator(100_000)
    tick = time_base or (1 / rate if times is None else TICK)
    stamps = count() if times is None else (round(seconds / tick) for seconds in times)
    with av.open(place, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", tick
        for pixels, stamp in zip(frames, stamps, strict=False):  # the count does not end
            height, width = (side - side % 2 for side in pixels.shape[:2])
            if not stream.codec_context.is_open:
                stream.height, stream.width = height, width
                if pixel_aspect != SQUARE:
                    stream.codec_context.sample_aspect_ratio = pixel_aspect
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        if not stream.codec_context.is_open:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))
