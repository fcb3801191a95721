"""Upright is what a player shows: turned and mirrored, whatever says so, with any decoder, in any order of reading."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from assets import numbers_in, picture
from numpy.typing import NDArray
from PIL import Image

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import read_image
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import UnreadableVideo

CASES = Path(__file__).parent / "cases"
Pixels = NDArray[np.uint8]
NUM_FRAMES = 12

#: Orientation as EXIF counts it -> what is done to the stored picture, and the four numbers of its display matrix.
ORIENTATIONS: dict[int, tuple[Callable[[Pixels], Pixels], tuple[int, int, int, int]]] = {
    1: (lambda stored: stored, (1, 0, 0, 1)),
    2: (lambda stored: stored[:, ::-1], (-1, 0, 0, 1)),
    3: (lambda stored: stored[::-1, ::-1], (-1, 0, 0, -1)),
    4: (lambda stored: stored[::-1], (1, 0, 0, -1)),
    5: (lambda stored: stored.transpose(1, 0, 2), (0, 1, 1, 0)),
    6: (lambda stored: np.rot90(stored, -1), (0, 1, -1, 0)),
    7: (lambda stored: np.rot90(stored, 2).transpose(1, 0, 2), (0, -1, -1, 0)),
    8: (lambda stored: np.rot90(stored), (0, -1, 1, 0)),
}
#: What undoes them: quarter turns undo each other, the others themselves.
INVERSE = {6: 8, 8: 6}
#: (mirrored left to right, up to down, anticlockwise quarters) of the message that stands for each orientation.
MESSAGES = {
    1: (0, 0, 0),
    2: (1, 0, 0),
    3: (0, 0, 2),
    4: (0, 1, 0),
    5: (1, 0, 1),
    6: (0, 0, 3),
    7: (1, 0, 3),
    8: (0, 0, 1),
}


def stored(number: int, orientation: int) -> Pixels:
    """The picture that shows ``number`` once it is turned."""
    undo, _ = ORIENTATIONS[INVERSE.get(orientation, orientation)]
    return np.ascontiguousarray(undo(picture(number, 64, 96)))


def message(codec: str, orientation: int) -> bytes:
    """The NAL unit of a display orientation message that holds until the next."""
    left_right, up_down, quarters = MESSAGES[orientation]
    bits = f"0{left_right}{up_down}{quarters * 2**14:016b}" + ("01010" if codec == "libx264" else "11000")
    header = b"\x06" if codec == "libx264" else b"\x4e\x01"
    return b"\x00\x00\x00\x01" + header + bytes([47, 3]) + int(bits, 2).to_bytes(3, "big") + b"\x80"


def write(
    path: Path, codec: str, orientation: int, *, messages: str = "", form: str | None = None, **options: str
) -> Path:
    """A video of numbered pictures, stored turned; ``messages``: none, before each "keyframe", or before "all"."""
    with av.open(str(path), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        first = stored(0, orientation)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuvj444p" if codec == "mjpeg" else "yuv420p"
        frames = [
            av.VideoFrame.from_ndarray(stored(number, orientation), format="rgb24") for number in range(NUM_FRAMES)
        ]
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 10)
        for frame in [*frames, None]:
            for packet in stream.encode(frame):
                if messages == "all" or (messages and packet.is_keyframe):
                    packet = with_data(packet, message(codec, orientation) + bytes(packet))
                elif codec == "mjpeg":
                    packet = with_data(packet, with_exif(bytes(packet), orientation))
                container.mux(packet)
    return path


def with_data(packet: Any, data: bytes) -> Any:
    other = av.Packet(data)
    other.pts, other.dts, other.time_base, other.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    other.stream, other.is_keyframe = packet.stream, packet.is_keyframe
    return other


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01" + struct.pack(
        ">HHI", orientation, 0, 0
    )
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def set_matrix(path: Path, numbers: tuple[float, float, float, float]) -> Path:
    """Writes a display matrix into an mp4's or mov's track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(number * 65536) for number in numbers)
    struct.pack_into(">iiiiii", data, at, a, b, 0, c, d, 0)
    path.write_bytes(data)
    return path


def check(path: Path, *, backends: tuple[str, ...] = ("pyav", "decord", "torchcodec")) -> None:
    expected = np.stack([picture(number, 64, 96) for number in range(NUM_FRAMES)]).astype(int)
    for backend in backends:
        try:
            with open_video(path, backend=backend, num_threads=1) as video:
                pixels = video.frames(range(NUM_FRAMES)).pixels
                upright = (video.height, video.width)
                some = {number: video.frames([number]).pixels[0] for number in (7, 2, 11, 5, 0, 9)}
        except UnreadableVideo as error:  # a decoder that cannot says so
            assert backend in ("decord", "torchcodec") and f"cannot be decoded by {backend}" in str(error)
            continue
        assert pixels.shape == (NUM_FRAMES, 64, 96, 3), backend
        assert upright == (64, 96)
        assert numbers_in(pixels) == list(range(NUM_FRAMES))
        assert np.abs(pixels - expected).mean() < 12, backend
        for number, image in some.items():
            np.testing.assert_array_equal(image, pixels[number])


# --- what a container says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("b.mp4", "libvpx-vp9")])
def test_the_display_matrix_of_a_track_turns_and_mirrors(
    name: str, codec: str, orientation: int, tmp_path: Path
) -> None:
    path = set_matrix(write(tmp_path / name, codec, orientation, g="4"), ORIENTATIONS[orientation][1])
    check(path)
    with open_video(path) as video:
        assert video.stored_size == ((96, 64) if orientation >= 5 else (64, 96))
        assert video.frames([3], short_side=32).pixels.shape[1:3] in ((32, 48), (64, 96))


@pytest.mark.parametrize(
    ("name", "quarters"),
    [
        ("mirrored_left_right", "green red white blue"),
        ("mirrored_up_down", "blue white red green"),
        ("transposed", "red blue green white"),
        ("anti_transposed", "white green blue red"),
    ],
)
def test_mirrored_files_show_what_ffmpeg_shows(name: str, quarters: str) -> None:
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    with IsolatedReader() as reader, reader.open(CASES / f"{name}.mp4") as video:
        frame = video.frames([0]).pixels[0].astype(int)
    height, width = frame.shape[:2]
    assert (height, width) == ((128, 64) if "transposed" in name else (64, 128))
    seen = [frame[y, x] for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    assert [min(colours, key=lambda one: np.abs(colours[one] - pixel).sum()) for pixel in seen] == quarters.split()


def test_an_angle_that_is_no_quarter_turns_the_picture_inside_its_size(tmp_path: Path) -> None:
    turn = np.cos(np.pi / 6), np.sin(np.pi / 6)
    path = set_matrix(write(tmp_path / "a.mp4", "libx264", 1), (turn[0], turn[1], -turn[1], turn[0]))
    with open_video(path) as video:
        shown = video.frames([0]).pixels[0].astype(int)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(template=container.streams.video[0]),
            graph.add("rotate", "30*PI/180"),
            graph.add("buffersink"),
        ).configure()
        graph.push(frame)
        expected = graph.pull().to_ndarray(format="rgb24").astype(int)
    assert shown.shape == expected.shape == (64, 96, 3)
    assert np.abs(shown - expected).mean() < 4
    with pytest.raises(UnreadableVideo, match="decord does not mirror pictures, or turn them by other than right"):
        open_video(path, backend="decord")


# --- what the pictures say --------------------------------------------------------------------------------------------


#: Mirrored, turned by half, transposed, turned by a quarter: enough where all eight are told apart in another form.
SOME = (2, 3, 5, 6)


def all_of_one_and_some_of_others(*forms: str) -> list[Any]:
    """Each form with each orientation; of forms other than the first all but some are slow."""
    return [
        pytest.param(form, orientation, marks=() if form == forms[0] or orientation in SOME else pytest.mark.slow)
        for form in forms
        for orientation in ORIENTATIONS
    ]


@pytest.mark.parametrize(("messages", "orientation"), all_of_one_and_some_of_others("keyframe", "all"))
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "5", "bf": "2"}),
        ("a.ts", "libx264", {"g": "5"}),
        ("a.mkv", "libx265", {"x265-params": "log-level=none:keyint=5:min-keyint=5:open-gop=0"}),
    ],
)
def test_a_message_in_the_stream_holds_until_the_next(
    name: str, codec: str, options: dict[str, str], messages: str, orientation: int, tmp_path: Path
) -> None:
    check(write(tmp_path / name, codec, orientation, messages=messages, **options), backends=("pyav", "decord"))


@pytest.mark.parametrize(("name", "orientation"), all_of_one_and_some_of_others("a.avi", "a.mov", "a.mkv"))
def test_the_exif_of_motion_jpeg_turns_it(name: str, orientation: int, tmp_path: Path) -> None:
    check(write(tmp_path / name, "mjpeg", orientation), backends=("pyav", "torchcodec"))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_the_exif_of_pictures_turns_them_alone_and_in_a_folder(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number in range(3):
        Image.fromarray(stored(number, orientation)).save(tmp_path / f"{number}.{kind}", exif=exif)
    with open_video(tmp_path, fps=10) as video:
        pixels, small = video.frames(range(3)).pixels, video.frames([1], short_side=16).pixels
    expected = np.stack([picture(number, 64, 96) for number in range(3)]).astype(int)
    assert pixels.shape == expected.shape and np.abs(pixels - expected).mean() < 12
    assert numbers_in(small) == [1] and small.shape[1:3] == (16, 24)
    np.testing.assert_array_equal(read_image(str(tmp_path / "2.jpg").replace("jpg", kind)), pixels[2])
