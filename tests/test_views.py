"""Test views: how crops lie, in which order views come, and that one decode serves them all."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from assets import H264, ONE_FRAME, Asset, damage_packet, numbers_in
from PIL import Image

from hiera_video.data import views as views_module
from hiera_video.data.reading import reader
from hiera_video.data.reading.files import find_inputs, is_image
from hiera_video.data.reading.reader import open_video
from hiera_video.data.sampling import test_clips as clips_for_test
from hiera_video.data.transforms import fit_crops
from hiera_video.data.views import load_views
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import IMAGE_SPEC, ClipSpec

SMALL = ClipSpec(size=(32, 32), resize=40)


def ramp(height: int, width: int) -> np.ndarray:
    """uint8 [1, height, width, 3]: red counts columns, green counts rows."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, 0 * rows], axis=-1)[np.newaxis].astype(np.uint8)


def crops_for_test(frames: np.ndarray, spec: ClipSpec, num_crops: int) -> torch.Tensor:
    """uint8 [num_crops, C, T, h, w]."""
    fitted, places = fit_crops(frames, spec, num_crops)
    height, width = spec.size
    return torch.stack([fitted[:, :, y : y + height, x : x + width] for y, x in places])


def corners(crops: torch.Tensor) -> list[tuple[int, int]]:
    """(row, column) of each crop's first pixel."""
    return [(int(crop[1, 0, 0, 0]), int(crop[0, 0, 0, 0])) for crop in crops]


@pytest.mark.parametrize(
    ("height", "width", "size", "num_crops", "expected"),
    [
        (32, 75, (32, 32), 3, [(0, 0), (0, 22), (0, 43)]),  # 43 columns to spare, the centre rounded up
        (75, 32, (32, 32), 3, [(0, 0), (22, 0), (43, 0)]),
        (32, 32, (32, 32), 3, [(0, 0), (0, 0), (0, 0)]),
        (40, 75, (32, 32), 1, [(4, 22)]),
        (32, 75, (32, 64), 3, [(0, 0), (0, 6), (0, 11)]),
        (75, 64, (32, 64), 3, [(0, 0), (22, 0), (43, 0)]),
    ],
)
def test_crops_lie_first_centre_last_along_what_is_left_over(
    height: int, width: int, size: tuple[int, int], num_crops: int, expected: list[tuple[int, int]]
) -> None:
    crops = crops_for_test(ramp(height, width), SMALL.replace(size=size), num_crops)
    assert crops.shape == (num_crops, 3, 1, *size) and crops.dtype == torch.uint8
    assert corners(crops) == expected


@pytest.mark.parametrize("shape", [(240, 426), (426, 240), (7, 500), (225, 224), (33, 31)])
@pytest.mark.parametrize("num_crops", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_any_picture_fills_the_crop(shape: tuple[int, int], num_crops: int, interpolation: str) -> None:
    spec = ClipSpec(interpolation=interpolation, antialias=True)
    crops = crops_for_test(np.full((2, *shape, 3), 77, dtype=np.uint8), spec, num_crops)
    assert crops.shape == (num_crops, 3, 2, 224, 224)
    assert set(crops.unique().tolist()) == {77}


def test_resizing_equals_the_float_rule_within_one_level() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 120, 120, 3), dtype=np.uint8)
    crops = crops_for_test(frames, ClipSpec(), 3)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).float(), size=(224, 224), mode="bilinear", align_corners=False
    )
    assert (crops[1].transpose(0, 1).float() - expected).abs().max() < 1.01


def test_another_number_of_crops_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match=r"the number of crops is 2, but can be 1 \(centre\) or 3"):
        crops_for_test(ramp(40, 40), SMALL, 2)


def test_views_come_clip_by_clip_and_crop_by_crop(tmp_path: Path) -> None:
    views = load_views(H264.write(tmp_path), SMALL.replace(size=(48, 48)), 2, 3)
    rows = clips_for_test(H264.times, SMALL, 2)
    assert views.clips.shape == (6, 3, 16, 48, 48) and views.clips.is_contiguous()
    np.testing.assert_allclose(views.times, H264.times[rows.repeat(3, axis=0)], atol=1e-6)
    assert views.duration == pytest.approx(3) and views.error is None
    # The first and the last crop of 64 columns, side by side, are the whole picture again.
    for clip in range(2):
        left, _, right = views.clips[3 * clip : 3 * clip + 3]
        whole = torch.cat([left[..., :32], right[..., 16:]], dim=-1).permute(1, 2, 3, 0).numpy()
        assert numbers_in(whole) == rows[clip].tolist()


def test_five_by_three_views_open_once_and_decode_and_resize_each_frame_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = H264.write(tmp_path)
    opened: list[str] = []
    decoded: list[int] = []
    resized: list[int] = []
    read, opener, cropper = reader.Video.read, views_module.open_video, views_module.fit_crops
    monkeypatch.setattr(views_module, "open_video", lambda path, **_: opened.append(str(path)) or opener(path))
    monkeypatch.setattr(
        reader.Video, "read", lambda self, wanted, *rest: decoded.extend(wanted) or read(self, wanted, *rest)
    )
    monkeypatch.setattr(
        views_module, "fit_crops", lambda frames, *rest: resized.append(len(frames)) or cropper(frames, *rest)
    )
    views = load_views(path, ClipSpec(), 5, 3)
    assert len(views.clips) == 15
    assert opened == [str(path)]
    distinct = sorted(set(clips_for_test(H264.times, ClipSpec(), 5).ravel().tolist()))
    assert decoded == distinct and resized == [len(distinct)]
    assert len(distinct) < 5 * 16  # 90 frames: the clips overlap


def test_a_video_of_one_frame_is_answered(tmp_path: Path) -> None:
    views = load_views(ONE_FRAME.write(tmp_path), SMALL, 5, 3)
    assert views.clips.shape == (15, 3, 16, 32, 32)
    assert (views.clips[0] == views.clips[0, :, :1]).all()
    assert views.duration == pytest.approx(1 / 30)


def test_a_damaged_video_has_views_and_an_error(tmp_path: Path) -> None:
    views = load_views(damage_packet(H264.write(tmp_path), 40), SMALL, 5, 3)
    assert views.clips.shape == (15, 3, 16, 32, 32)
    assert views.error is not None and "cannot be decoded" in views.error


def test_an_image_is_one_frame_or_a_still_clip_upright(tmp_path: Path) -> None:
    path = tmp_path / "photo.JPG"
    image = Image.fromarray(np.full((40, 80, 3), (200, 10, 10), dtype=np.uint8))
    image.paste((10, 10, 200), (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right: the stored left side is the top
    image.save(path, exif=exif)
    views = load_views(path, IMAGE_SPEC.replace(size=(32, 32), resize=40), 1, 3)
    assert views.clips.shape == (3, 3, 1, 32, 32)
    assert (views.duration, views.error, views.times.tolist()) == (0, None, [[0], [0], [0]])
    assert views.clips[0, 2].float().mean() > 190 and views.clips[2, 0].float().mean() > 190  # blue above, red below
    assert load_views(path, SMALL, 2, 1).clips.shape == (2, 3, 16, 32, 32)


def test_a_text_named_png_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(UnreadableVideo, match=r"text.png is not an image that can be read \(.*\): check the file"):
        load_views(path, IMAGE_SPEC, 1, 1)


def test_inputs_are_found_in_folders_linked_ones_and_globs_and_kept_otherwise(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "deep/c.webm", ".git/d.mp4", "photo.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    elsewhere = tmp_path.with_name(f"{tmp_path.name} elsewhere")
    elsewhere.mkdir()
    (elsewhere / "e.mp4").touch()
    (elsewhere / "loop").symlink_to(elsewhere)
    (tmp_path / "linked").symlink_to(elsewhere)
    at = f"{tmp_path}/"
    found = find_inputs([at + "missing.mp4", str(tmp_path), at + "*.mp4", at + "empty", at + "*.avi", "http://h/x.mp4"])
    assert found == [
        (at + "missing.mp4", None),
        (at + "a.MKV", None),
        (at + "b.mp4", None),
        (at + "deep/c.webm", None),
        (at + "linked/e.mp4", None),
        (at + "photo.png", None),
        (at + "b.mp4", None),
        (at + "empty", f"{at}empty is a folder without videos or images."),
        (at + "*.avi", f"{at}*.avi matches no file."),
        ("http://h/x.mp4", None),
    ]
    assert [is_image(name) for name in ("a.png", "http://h/a.JPEG?size=1", "a.mp4", "a.gif")] == [
        True,
        True,
        False,
        False,
    ]


SAMPLES = os.environ.get("HIERA_VIDEO_SAMPLES")
NAMES = sorted(os.listdir(SAMPLES)) if SAMPLES else []


@pytest.mark.skipif(not SAMPLES, reason="HIERA_VIDEO_SAMPLES names no folder of real clips")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "corrupted.mp4"])
def test_both_decoders_give_the_same_frames_of_a_real_clip(name: str) -> None:
    path = os.path.join(str(SAMPLES), name)
    with open_video(path) as one, open_video(path, backend="pyav") as other:
        rows = np.unique(np.linspace(0, len(one) - 1, 8).astype(int))
        first, second = one.frames(rows), other.frames(rows)
    np.testing.assert_array_equal(first.times, second.times)
    difference = np.abs(first.pixels.astype(int) - second.pixels.astype(int))
    # Between 10-bit chroma and 8-bit RGB the two scale in other orders; the frames are the same.
    # The FFmpeg of PyAV before 18 converts colours differently than decord2's (AV1 most).
    alike = 0.01 if int(av.__version__.split(".")[0]) >= 18 else 6
    assert difference.mean() < (5 if "10bit" in name else alike)


@pytest.mark.skipif(not SAMPLES, reason="HIERA_VIDEO_SAMPLES names no folder of real clips")
def test_a_real_clip_that_breaks_in_the_middle_has_views_and_an_error() -> None:
    views = load_views(os.path.join(str(SAMPLES), "corrupted.mp4"), ClipSpec(), 5, 3)
    assert views.clips.shape == (15, 3, 16, 224, 224)
    assert views.error is not None and views.error.startswith("frames between 2.90 s and 5.00 s cannot be decoded")


def test_odd_pictures_make_views(tmp_path: Path) -> None:
    path = Asset("wide.mp4", width=65, height=17, pix_fmt="yuv444p").write(tmp_path)
    assert load_views(path, SMALL, 1, 3).clips.shape == (3, 3, 16, 32, 32)
