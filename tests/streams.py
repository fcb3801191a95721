"""Streams with oddities, each made with its truth: which picture is shown when, and which of them are lost.

``scripts/check_streams.py`` prints a table of all of them; ``test_streams.py`` reads them one by one.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from assets import numbers_in, picture

RATE = 25
HEIGHT, WIDTH = 48, 64
QUIET = {
    "libx264": {"sc_threshold": "0"},
    "libx265": {"x265-params": "log-level=none"},
    "libsvtav1": {"preset": "12", "crf": "20"},
}
PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "huffyuv": "yuv422p", "png": "rgb24"}

Packets = list[Any]


@dataclass(frozen=True)
class Stream:
    """One generated file: ``change`` is applied to its packets before they are written, ``patch`` to its bytes.

    ``shown``: the numbers in the pictures, in order; ``times``: seconds from the first, None where any between the
    neighbours' will do; ``lost``: the places at which another whole picture may stand in, with an ``error``.
    """

    oddity: str
    codec: str
    suffix: str
    options: dict[str, str] = field(default_factory=dict)
    ticks: Sequence[int] = tuple(range(50))  # at which each picture is shown, in 1 / RATE s
    change: Callable[[Packets], Packets] | None = None
    patch: Callable[[bytes], bytes] | None = None
    container: str | None = None
    format_options: dict[str, str] = field(default_factory=dict)
    shown: Sequence[int] | None = None
    times: Sequence[float | None] | None = None
    lost: frozenset[int] = frozenset()
    warned: bool = False
    cut: bool = False

    @property
    def name(self) -> str:
        return f"{self.oddity.replace(' ', '_')}_{self.codec}.{self.suffix}"

    @property
    def numbers(self) -> list[int]:
        return list(range(len(self.ticks)) if self.shown is None else self.shown)

    @property
    def seconds(self) -> list[float | None]:
        if self.times is not None:
            return list(self.times)
        return [(tick - self.ticks[0]) / RATE for tick in self.ticks]

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        source = io.BytesIO()
        options = {"g": "10", **QUIET.get(self.codec, {}), **self.options}
        encoder: Any = av.CodecContext.create(self.codec, "w")
        encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, PIXELS.get(self.codec, "yuv420p")
        encoder.bit_rate = 0 if self.codec in ("libx264", "libx265", "libsvtav1", "ffv1") else 2_000_000
        encoder.time_base, encoder.framerate, encoder.options = Fraction(1, RATE), Fraction(RATE), options
        if self.codec == "libvpx":
            encoder.thread_count = 1  # its threads wait by turning round: half a minute where a core has other work
        form = self.container or {"ts": "mpegts", "mkv": "matroska", "m2v": "mpeg2video"}.get(self.suffix, self.suffix)
        with av.open(source, "w", format=form, options=self.format_options) as target:
            if target.format.flags & 0x40:  # headers stand before the packets
                encoder.flags |= 1 << 22
            packets = []
            for number, tick in enumerate(self.ticks):
                frame = av.VideoFrame.from_ndarray(picture(number, HEIGHT, WIDTH), format="rgb24")
                frame.pts, frame.time_base = tick, Fraction(1, RATE)
                packets += encoder.encode(frame)
            packets += encoder.encode(None)
            stream: Any = target.add_stream(self.codec, rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, encoder.pix_fmt
            stream.time_base = Fraction(1, RATE)
            if encoder.extradata:
                stream.codec_context.extradata = encoder.extradata
            for packet in packets if self.change is None else self.change(packets):
                packet.stream = stream
                packet.time_base = packet.time_base or Fraction(1, RATE)
                target.mux(packet)
        data = source.getvalue()
        path.write_bytes(data if self.patch is None else self.patch(data))
        return path


def restamped(at: int, tick: int) -> Callable[[Packets], Packets]:
    """Packet ``at`` gets the time ``tick``; decode times give way."""

    def change(packets: Packets) -> Packets:
        packets[at].pts = tick
        for number, packet in enumerate(packets):
            packet.dts = number - 100
        return packets

    return change


def without(at: int) -> Callable[[Packets], Packets]:
    return lambda packets: packets[:at] + packets[at + 1 :]


def stamped_with_decode_times(packets: Packets) -> Packets:
    """As a writer does that knows nothing of pictures stored before those that they are shown behind."""
    for number, packet in enumerate(packets):
        packet.pts = packet.dts = number
    return packets


def without_table_of_keyframes(data: bytes) -> bytes:
    """An mp4 that calls every picture a keyframe."""
    return data.replace(b"stss", b"free")


def spoiled(at: int) -> Callable[[Packets], Packets]:
    """The second half of packet ``at`` is overwritten."""

    def change(packets: Packets) -> Packets:
        data = bytearray(bytes(packets[at]))
        data[len(data) // 2 :] = bytes((17 * i + 93) % 256 for i in range(len(data) - len(data) // 2))
        packet = av.Packet(bytes(data))
        packet.pts, packet.dts = packets[at].pts, packets[at].dts
        packet.time_base, packet.is_keyframe = packets[at].time_base, packets[at].is_keyframe
        return [*packets[:at], packet, *packets[at + 1 :]]

    return change


def later(ticks: int) -> Callable[[Packets], Packets]:
    def change(packets: Packets) -> Packets:
        for packet in packets:
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        return packets

    return change


def with_clocks(*offsets: float) -> Callable[[bytes], bytes]:
    """The recording once for each offset in seconds by which its clock is moved, one behind the other."""

    def patch(data: bytes) -> bytes:
        return b"".join(moved_transport_stream(data, round(offset * 90000)) for offset in offsets)

    return patch


def moved_transport_stream(data: bytes, ticks: int) -> bytes:
    """Every clock of a transport stream moved by so many 1 / 90000 s, modulo 2 ** 33."""
    result = bytearray(data)
    for start in range(0, len(data), 188):
        body = start + 4
        if data[start + 3] & 0x20:
            if data[body] and data[body + 1] & 0x10:
                clock = (int.from_bytes(data[body + 2 : body + 6], "big") << 1 | data[body + 6] >> 7) + ticks
                result[body + 2 : body + 6] = (clock % 2**33 >> 1).to_bytes(4, "big")
                result[body + 6] = data[body + 6] & 0x7F | (clock & 1) << 7
            body += 1 + data[body]
        if data[start + 1] & 0x40 and data[body : body + 3] == b"\0\0\1" and 0xE0 <= data[body + 3] < 0xF0:
            for i in range((data[body + 7] >> 6) - 1 if data[body + 7] >> 6 else 0):
                _move_stamp(result, body + 9 + 5 * i, ticks)
    return bytes(result)


def _move_stamp(data: bytearray, at: int, ticks: int) -> None:
    high, middle, low = data[at] >> 1 & 7, struct.unpack_from(">H", data, at + 1)[0] >> 1, 0
    low = struct.unpack_from(">H", data, at + 3)[0] >> 1
    stamp = ((high << 30 | middle << 15 | low) + ticks) % 2**33
    data[at] = data[at] & 0xF1 | (stamp >> 30 & 7) << 1
    struct.pack_into(">HH", data, at + 1, (stamp >> 15 & 0x7FFF) << 1 | 1, (stamp & 0x7FFF) << 1 | 1)


def promising(frames: int) -> Callable[[bytes], bytes]:
    """An AVI header that promises more frames than there are."""

    def patch(data: bytes) -> bytes:
        result = bytearray(data)
        struct.pack_into("<I", result, data.index(b"avih") + 8 + 16, frames)
        struct.pack_into("<I", result, data.index(b"strh") + 8 + 32, frames)
        return bytes(result)

    return patch


def without_transport_packet(share: float) -> Callable[[bytes], bytes]:
    """The first packet of pictures behind ``share`` of the stream, which begins no picture, is lost."""

    def patch(data: bytes) -> bytes:
        starts = range(int(len(data) * share) // 188 * 188, len(data), 188)
        at = next(i for i in starts if data[i + 1] & 0x5F == 1 and data[i + 2] == 0)
        return data[:at] + data[at + 188 :]

    return patch


TWICE = tuple(range(50)) * 2
AB = [n / RATE for n in range(100)]
B2 = {"bf": "2"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "25", "deadline": "good", "cpu-used": "4", "arnr-maxframes": "7"}
GAPS = [tick for tick in range(60) if tick not in (7, 8, 21, 40, 41, 42)][:50]
UNEVEN = [*range(20), *range(20, 80, 3), *range(80, 180, 10)]
MUXES = {
    "libx264": ("mp4", "mkv", "ts", "mov", "flv"),
    "libx265": ("mp4", "mkv", "ts"),
    "mpeg4": ("mp4", "mkv", "avi", "mov"),
    "mpeg2video": ("ts", "mkv", "vob", "m2v"),
    "mpeg1video": ("mpeg", "mkv"),
    "libvpx": ("webm", "ivf"),
    "libvpx-vp9": ("webm", "mp4", "ivf"),
    "libsvtav1": ("mp4", "mkv", "ivf"),
    "mjpeg": ("avi", "mov"),
    "ffv1": ("mkv", "avi"),
    "wmv2": ("asf",),
    "flv": ("flv",),
    "prores_ks": ("mov",),
}
NO_B = ("libx264", "libx265", "mpeg4", "mpeg2video")


def _options(codec: str) -> dict[str, str]:
    return {"bf": "2"} if codec in ("libx264", "mpeg2video", "mpeg1video") else {}


def streams() -> list[Stream]:
    """All of them."""
    made = [Stream("plain", codec, suffix, _options(codec)) for codec, all_ in MUXES.items() for suffix in all_]
    made = [replace(stream, ticks=range(30)) if stream.codec == "libsvtav1" else stream for stream in made]
    made += [
        Stream("raw", "libx264", "h264", B2, warned=True),
        Stream("raw", "libx265", "hevc", warned=True),
        Stream("raw", "mpeg4", "m4v", B2),
        *(Stream("b frames", codec, "avi", B2) for codec in ("mpeg4", "libx264", "mpeg2video")),
        *(Stream("dropped frames", codec, "avi", {"bf": "0"}, GAPS) for codec in ("mpeg4", "libx264", "mjpeg")),
        *(Stream("dropped frames b", codec, "avi", B2, GAPS) for codec in ("mpeg4", "libx264")),
        *(Stream("more promised", codec, "avi", {"bf": "0"}, patch=promising(90)) for codec in ("mpeg4", "mjpeg")),
        Stream("uneven", "libx264", "mp4", B2, UNEVEN),
        Stream("uneven", "libx265", "mkv", {}, UNEVEN),
        Stream("uneven", "libvpx-vp9", "webm", {}, UNEVEN),
        Stream("interlaced", "libx264", "ts", {"x264-params": "interlaced=1", "bf": "2"}),
        Stream("interlaced", "libx264", "mp4", {"x264-params": "interlaced=1:bframes=0"}),
        Stream("interlaced", "libx264", "mkv", {"x264-params": "tff=1", "bf": "2"}),
        Stream("interlaced", "mpeg2video", "ts", {"flags": "+ildct+ilme"}),
        *(Stream("hidden", "libvpx", suffix, HIDDEN) for suffix in ("webm", "mkv", "ivf")),
        *(Stream("hidden", "libvpx-vp9", suffix, HIDDEN) for suffix in ("webm", "mkv", "mp4")),
        Stream("open group", "libx264", "mp4", {"x264-params": "open-gop=1:keyint=8:bframes=2"}),
        Stream("open group", "libx264", "ts", {"x264-params": "open-gop=1:keyint=8:bframes=2"}),
        Stream("open group", "mpeg2video", "ts", B2),
        Stream("refresh", "libx264", "mp4", {"x264-params": "intra-refresh=1:bframes=0:keyint=10"}),
        Stream("refresh", "libx264", "ts", {"x264-params": "intra-refresh=1:bframes=0:keyint=10"}),
    ]
    for codec, suffix in (("libx264", "mkv"), ("mpeg4", "mkv"), ("libvpx-vp9", "webm"), ("libvpx", "webm")):
        options = {"bf": "0"} if codec in NO_B else {"lag-in-frames": "0"}
        regular, free = [n / RATE for n in range(50)], {"avoid_negative_ts": "disabled"}
        made += [
            Stream("stamp twice", codec, suffix, options, format_options=free, change=restamped(14, 13), times=regular),
            Stream(
                "backward stamp", codec, suffix, options, format_options=free, change=restamped(23, 17), times=regular
            ),
            Stream(
                "forward stamp", codec, suffix, options, format_options=free, change=restamped(30, 44), times=regular
            ),
        ]
    for codec, suffix in (("libx264", "mkv"), ("libx264", "ts"), ("libx265", "mp4"), ("mpeg4", "mov")):
        b = {} if codec == "libx265" else B2
        made.append(Stream("decode times", codec, suffix, b, change=stamped_with_decode_times))
    for codec, suffix in (("libx264", "mp4"), ("libx265", "mp4"), ("mpeg4", "mp4"), ("mpeg2video", "mov")):
        made.append(Stream("no key table", codec, suffix, _options(codec), patch=without_table_of_keyframes))
    for at, tick in ((14, 8), (23, 29)):
        stream = Stream(f"stamp {at} as {tick}", "libx264", "mkv", B2, change=restamped(at, tick))
        made.append(replace(stream, format_options=free, times=[n / RATE for n in range(50)]))
    for codec in ("libx264", "libx265", "mpeg2video"):
        b = {"bf": "2"} if codec != "libx265" else {}
        joined: dict[str, Any] = {"shown": TWICE, "times": AB}
        made += [
            Stream("clock back", codec, "ts", b, patch=with_clocks(200, 100), **joined),
            Stream("clock ahead", codec, "ts", b, patch=with_clocks(0, 100), **joined),
            Stream("clocks overlap", codec, "ts", b, patch=with_clocks(0, 0.5), **joined),
            Stream("clock wraps", codec, "ts", b, patch=with_clocks(2**33 / 90000 - 3)),
        ]
    made += [
        *(
            Stream("spoiled", codec, suffix, {"bf": "0"}, change=spoiled(23), lost=frozenset(range(23, 30)))
            for codec, suffix in (
                ("libx264", "mp4"),
                ("libx264", "mkv"),
                ("mpeg4", "mp4"),
                ("mpeg4", "avi"),
                ("mpeg2video", "ts"),
                ("flv", "flv"),
            )
        ),
        Stream("spoiled key", "libx264", "ts", {"bf": "0"}, change=spoiled(20), lost=frozenset(range(20, 30))),
        Stream("spoiled b", "libx264", "mkv", B2, change=spoiled(23), lost=frozenset(range(20, 30))),
        Stream("spoiled b", "mpeg2video", "ts", B2, change=spoiled(24), lost=frozenset(range(15, 31))),
    ]
    for codec, suffix in (("libx264", "mkv"), ("libx264", "ts"), ("libx264", "mp4"), ("libx265", "mkv")):
        options = {"bf": "0"} if codec == "libx264" else {"x265-params": "log-level=none:bframes=0"}
        there = [n for n in range(50) if n != 23]
        made.append(
            Stream(
                "lost picture",
                codec,
                suffix,
                options,
                change=without(23),
                shown=there,
                times=[n / RATE for n in there],
                lost=frozenset(range(23, 29)),
            )
        )
    return made


@dataclass(frozen=True)
class Outcome:
    """What reading gave: ``wrong`` is None, or what differs from the truth."""

    frames: int
    error: str | None
    wrong: str | None


def sequential(path: Path) -> tuple[list[int], list[np.ndarray], list[float | None]]:
    """FFmpeg's own answer: the numbers in the pictures, the pictures, and their times, from first to last."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(stream)]
    pixels = [image for image, _ in frames]
    return numbers_in(np.stack(pixels)), pixels, [time for _, time in frames]


def check(stream: Stream, path: Path) -> Outcome:
    """Read a stream whole and from anywhere, and compare with its truth and with FFmpeg's pictures."""
    from hiera_video import open_video

    with open_video(path) as video:
        pixels = video.frames(range(len(video))).pixels
        error, times = video.error, video.times - video.times[0]
        shown, warned = numbers_in(pixels), video.warning is not None
    wrong = None
    expected = stream.numbers
    if len(shown) != len(expected):
        wrong = f"{len(shown)} frames, not {len(expected)}"
    elif off := [i for i, (a, b) in enumerate(zip(shown, expected, strict=True)) if a != b and i not in stream.lost]:
        wrong = f"frame {off[0]} shows {shown[off[0]]}, not {expected[off[0]]}"
    elif late := [i for i, t in enumerate(stream.seconds) if t is not None and abs(times[i] - t) > 2e-3]:
        wrong = f"frame {late[0]} at {times[late[0]]:.3f} s, not {stream.seconds[late[0]]:.3f} s"
    elif bool(stream.lost) != (error is not None):
        wrong = f"error: {error}"
    elif warned != stream.warned:
        wrong = f"warning: {warned}"
    if wrong is None:
        wrong = _compare_pictures(stream, path, pixels)
    return Outcome(len(shown), error, wrong)


def _compare_pictures(stream: Stream, path: Path, pixels: np.ndarray) -> str | None:
    from hiera_video import open_video

    if not stream.lost:
        numbers, images, _ = sequential(path)
        if numbers != stream.numbers:
            return f"FFmpeg shows {len(numbers)} pictures, {numbers[:5]}..."
        if np.abs(np.stack(images).astype(int) - pixels).max() > 3:
            return "pictures differ from FFmpeg's"
    order = np.random.default_rng(0).permutation(len(pixels))
    for threads in (1, 0):
        with open_video(path, num_threads=threads) as video:
            for i in order[:16].tolist():
                if np.abs(video.frames([i]).pixels[0].astype(int) - pixels[i]).max() > 3:
                    return f"frame {i} differs when it is read by itself"
    return None
