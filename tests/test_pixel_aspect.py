"""Anamorphic videos: clips show what a player shows, frames stay as they are stored."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_orientation import ORIENTATIONS, set_matrix

from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.reader import open_video
from hiera_video.data.reading.recode import recode
from hiera_video.data.views import load_views
from hiera_video.data.windows import Walk, walk
from hiera_video.errors import RequestError
from hiera_video.spec import PRETRAIN, Augment, ClipSpec

SPEC = ClipSpec(num_frames=4, size=(64, 64), resize=72)


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours, the same at every size."""
    small = Image.fromarray(np.random.default_rng(5).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def write(path: Path, codec: str, size: tuple[int, int], aspect: Fraction | None, *, turned: bool = False) -> Path:
    """20 frames of the scene as ``size`` (height, width) stored pixels, of an aspect; ``turned``: by a quarter."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options={"crf": "12", "qmin": "1", "qmax": "4"})
        stored = np.rot90(scene(*size[::-1]), 1) if turned else scene(*size)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if turned:
        set_matrix(path, ORIENTATIONS[6][1])
    return path


FILES = [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video"), ("b.mp4", "mpeg4")]


@pytest.mark.parametrize(("name", "codec"), FILES)
def test_clips_are_what_a_player_shows_and_frames_what_is_stored(name: str, codec: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, codec, (144, 176), Fraction(16, 11))
    plain = write(tmp_path / "plain.mp4", "libx264", (144, 256), None)
    with open_video(path) as video, open_video(plain) as square:
        assert video.pixel_aspect == pytest.approx(Fraction(16, 11), rel=0.01) and square.pixel_aspect == 1
        assert (video.height, video.width) == (144, 176)
    for views in (1, 3):
        shown, expected = (load_views(one, SPEC, 1, views).clips.int() for one in (path, plain))
        assert (shown - expected).abs().float().mean() < 3
    squeezed = load_views(path, SPEC.replace(pixel_aspect="stored"), 1, 1).clips.int()
    assert (squeezed - load_views(plain, SPEC, 1, 1).clips.int()).abs().float().mean() > 6


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_a_quarter_turn_turns_the_pixels_too(backend: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", "libx264", (144, 176), Fraction(2), turned=True)
    with open_video(path, backend=backend) as video:
        assert video.pixel_aspect == Fraction(1, 2) and (video.height, video.width) == (176, 144)
    plain = write(tmp_path / "plain.mp4", "libx264", (176, 72), None)
    with IsolatedReader() as reader:
        shown = load_views(path, SPEC, 1, 3, reader=reader).clips.int()
    assert (shown - load_views(plain, SPEC, 1, 3).clips.int()).abs().float().mean() < 3


def test_the_container_goes_before_the_codec(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", "libx264", (48, 64), Fraction(16, 11))
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.index(b"pasp") + 4, 4, 3)
    path.write_bytes(data)
    with av.open(str(path)) as container, open_video(path) as video:
        assert video.pixel_aspect == container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize("aspect", [Fraction(1, 65535), Fraction(200), Fraction(0)])
def test_an_aspect_that_no_camera_has_is_not_believed(aspect: Fraction, tmp_path: Path) -> None:
    with open_video(write(tmp_path / "a.mkv", "libx264", (48, 64), aspect)) as video:
        assert video.pixel_aspect == 1


@pytest.mark.parametrize("augment", [PRETRAIN, Augment(flip=0, num_ops=2, op_probability=0, erasing=0)])
@pytest.mark.parametrize("turned", [False, True])
def test_training_crops_are_those_of_the_shown_picture(augment: Augment, turned: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", "libx264", (288, 180), Fraction(2), turned=turned)
    plain = write(tmp_path / "b.mp4", "libx264", (180, 144) if turned else (288, 360), None)
    videos = VideoList.make([str(path), str(plain)], [0, 0], ["a"])
    dataset = ClipDataset(videos, SPEC, augment=augment, num_clips=2, isolate=False, on_error="raise")
    draws = (0, 0, 0)
    for index in (0, 1):
        dataset._read(index, draws, [])
    shown, expected = (dataset._read(index, draws, [])["clip"].int() for index in (0, 1))
    assert (shown - expected).abs().float().mean() < 5
    stored = ClipDataset(videos, SPEC.replace(pixel_aspect="stored"), augment=augment, num_clips=2, isolate=False)
    assert (stored._read(0, draws, [])["clip"].int() - expected).abs().float().mean() > 6


def test_boxes_are_in_pixels_of_the_stored_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", "libx264", (144, 176), Fraction(2))
    for crop, box in (("center", [56, 8, 120, 136]), ("none", [0, 0, 176, 144])):
        (stretch, *_) = walk(str(path), Walk(SPEC.replace(size=(128, 128), resize=144), hop=1, crop=crop))
        np.testing.assert_allclose(stretch.plan.boxes[0], [*box], atol=1)
    assert stretch.plan.size == (128, 320)


def test_a_video_that_is_coded_anew_keeps_its_proportions(tmp_path: Path) -> None:
    with open_video(write(tmp_path / "a.mp4", "libx264", (144, 176), Fraction(16, 11))) as video:
        data, _ = recode(video, 72, 10, 20)
    with open_video(data) as video:
        assert (video.stored_size, video.pixel_aspect) == ((72, 88), Fraction(16, 11))


def test_another_word_for_pixel_aspect_is_refused() -> None:
    with pytest.raises(RequestError, match="pixel_aspect is 'square', but can be display or stored"):
        ClipSpec(pixel_aspect="square")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"clip\.pixel_aspect is 'square', but must be one of display, stored"):
        ClipSpec.from_dict(ClipSpec().to_dict() | {"pixel_aspect": "square"})
    old = {name: value for name, value in ClipSpec().to_dict().items() if name != "pixel_aspect"}
    assert ClipSpec.from_dict(old).pixel_aspect == "display"
