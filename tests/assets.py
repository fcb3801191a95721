"""Video files that the tests make themselves, each with its known truth.

Every frame carries its number in the brightness of eight vertical stripes (one bit each, black or white), which any
codec keeps; the picture's top quarter is red, so that upright can be told from turned.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 8


@dataclass(frozen=True)
class Asset:
    """How one file is made, and what a reader must find in it; ``times`` are seconds, by default ``number / fps``."""

    name: str
    codec: str = "libx264"
    num_frames: int = 30
    fps: Fraction = Fraction(30)
    width: int = 64
    height: int = 48
    pix_fmt: str = "yuv420p"
    rotation: int = 0  # degrees counterclockwise by which a player turns the stored picture
    options: dict[str, str] = field(default_factory=dict)
    format_options: dict[str, str] = field(default_factory=dict)
    ticks: tuple[int, ...] | None = None  # of 1 / 1000 s, for a variable rate
    start: int = 0  # frames

    @property
    def times(self) -> NDArray[np.float64]:
        if self.ticks is not None:
            return np.array(self.ticks) / 1000
        return (np.arange(self.num_frames) + self.start) / float(self.fps)

    @property
    def upright(self) -> tuple[int, int]:
        return (self.width, self.height) if self.rotation % 180 else (self.height, self.width)

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with av.open(str(path), "w", options=self.format_options) as container:
            stream = container.add_stream(self.codec, rate=self.fps, options=self.options)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.pix_fmt
            if self.ticks is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(self.num_frames):
                stored = np.rot90(picture(number, *self.upright), -self.rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
                frame.pts = self.ticks[number] if self.ticks else number + self.start
                frame.time_base = Fraction(1, 1000) if self.ticks else 1 / self.fps
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if self.rotation:
            turn(path, self.rotation)
        return path


def turn(path: Path, degrees: int) -> None:
    """Writes a counterclockwise turn into an mp4's track header (PyAV can do it only from version 18 on)."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    cos, sin = (round(part(math.radians(degrees)) * 65536) for part in (math.cos, math.sin))
    struct.pack_into(">iixxxxii", data, matrix, cos, -sin, sin, cos)
    path.write_bytes(data)


H264 = Asset("h264.mp4", num_frames=90, options={"g": "30"})
NTSC = Asset("ntsc.mkv", num_frames=60, fps=Fraction(30000, 1001))
HEVC = Asset("hevc.mp4", codec="libx265", options={"x265-params": "log-level=none"})
#: The pictures before a keyframe may be stored behind it: decord seeks to wrong frames here.
OPEN_GOP = Asset(
    "open_gop.mp4",
    codec="libx265",
    options={"x265-params": "log-level=none:keyint=8:min-keyint=8:open-gop=1:bframes=2"},
)
VP9 = Asset("vp9.webm", codec="libvpx-vp9", options={"cpu-used": "8"})
AV1 = Asset("av1.mkv", codec="libsvtav1", options={"preset": "12"})
TEN_BIT = Asset("ten_bit.mp4", pix_fmt="yuv420p10le")
ODD_SIZE = Asset("odd_size.mp4", width=65, height=49, pix_fmt="yuv444p")
ROTATED = Asset("rotated.mp4", width=96, height=64, rotation=90)
LATE_START = Asset("late_start.mp4", start=250)
ONE_FRAME = Asset("one_frame.mp4", num_frames=1)
AVI = Asset("b_frames.avi", codec="mpeg4", options={"bf": "2", "g": "12"})
TRANSPORT = Asset("transport.ts", options={"g": "10"}, start=2)
#: 20 frames a second for a second, then 5 a second for two.
VARIABLE = Asset("variable.mp4", ticks=tuple(range(0, 1000, 50)) + tuple(range(1000, 3000, 200)))
#: Its index stands before its frames, so that a part of the file can be opened.
FRONT_INDEX = Asset("front_index.mp4", num_frames=90, options={"g": "30"}, format_options={"movflags": "faststart"})
LONG_MKV = Asset("long.mkv", num_frames=90, options={"g": "30"})
READABLE = (
    H264,
    NTSC,
    HEVC,
    OPEN_GOP,
    VP9,
    AV1,
    TEN_BIT,
    ODD_SIZE,
    ROTATED,
    LATE_START,
    ONE_FRAME,
    AVI,
    TRANSPORT,
    VARIABLE,
)


def picture(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] that shows ``number``."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for bit in range(BITS):
        image[:, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    image[: height // 4] = (255, 0, 0)
    return image


def numbers_in(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers that upright frames uint8 [T, H, W, 3] show."""
    height, width = frames.shape[1:3]
    columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    bits = frames[:, height * 3 // 4, columns].mean(axis=-1) > 127
    return [int(number) for number in bits @ (1 << np.arange(BITS))]


def write_audio(path: Path) -> Path:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for _ in range(8):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_off(path: Path, share: float) -> Path:
    """A copy of the file's first ``share``, as a broken download leaves it."""
    data = path.read_bytes()
    copy = path.with_name("cut_" + path.name)
    copy.write_bytes(data[: int(len(data) * share)])
    return copy


def damage_packet(path: Path, number: int) -> Path:
    """A copy in which the bytes of packet ``number`` of the first stream are overwritten."""
    with av.open(str(path)) as container:
        packet = [one for one in container.demux(video=0) if one.size][number]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    copy = path.with_name("damaged_" + path.name)
    copy.write_bytes(data)
    return copy
