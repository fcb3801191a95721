"""Pictures that people look at: frames from the video itself, doubtful answers called so, legends beside the data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hiera_video import VideoClassifier, classify, open_video
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.transforms import PICTURE_SIDE, plan_crops
from hiera_video.data.views import load_views
from hiera_video.data.windows import Walk, walk
from hiera_video.spec import ClipSpec
from hiera_video.visual.strips import doubt

SPEC = ClipSpec(num_frames=4, frame_stride=4, target_fps=20, size=(32, 32), resize=36)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 x 640, 3 s at 10 fps: stripes of 8 pixels under a grey bar that grows."""
    path = tmp_path_factory.mktemp("stripes") / "stripes.mp4"
    pattern = np.where(np.arange(640) // 8 % 2, 200, 40).astype(np.uint8)
    frames = np.broadcast_to(pattern[None, None, :, None], (30, 480, 640, 3)).copy()
    for number, frame in enumerate(frames):
        frame[: 4 * number + 8] = 120  # how late it is
    write_mp4(path, frames, 10)
    return path


@pytest.mark.parametrize("num_crops", [1, 3])
def test_pictures_have_the_videos_own_resolution(stripes: Path, num_crops: int) -> None:
    views = load_views(str(stripes), SPEC, 2, num_crops, keep_pictures="middle")
    assert views.pictures is not None and views.pictures.shape == (1, 4, PICTURE_SIDE, PICTURE_SIDE, 3)
    pictures = views.shown(1)
    rows = pictures[0, -9, :, 0], views.middle()[0, -1, :, 0]
    edges = [int(np.diff(row > 120).sum()) for row in rows]
    assert edges[0] >= 52 > 31 >= edges[1]  # a stripe is 8 of the 427 or 480 pixels that are seen
    grey = [round(float(picture.mean())) for picture in (*pictures, *views.middle())]
    assert grey[:4] == pytest.approx(grey[4:], abs=2)  # of the same moments and the same crop
    assert load_views(str(stripes), SPEC, 2, num_crops).pictures is None


def test_pictures_of_all_clips_are_those_of_their_frames(stripes: Path) -> None:
    views = load_views(str(stripes), SPEC, 3, 1, keep_pictures="all")
    assert views.pictures is not None and views.pictures.shape[:2] == (3, 4)
    with open_video(stripes) as video:
        for clip in range(3):
            frames = video.frames([video.at(seconds + 1e-6) for seconds in views.times[clip]]).pixels
            expected = [plan_crops(frame.shape[:2], SPEC, 1).show(frame) for frame in frames]
            np.testing.assert_array_equal(views.shown(clip), expected)
    assert not np.array_equal(views.shown(0), views.shown(2))


def test_pictures_of_windows_are_those_of_their_times(stripes: Path) -> None:
    windows = list(walk(str(stripes), Walk(SPEC, 0.4, at_once=2, num_pictures=3)))
    pictures = [picture for part in windows for picture in part.pictures]
    assert [round(seconds, 1) for seconds, _ in pictures] == pytest.approx([0.4, 1.6, 2.6], abs=0.11)
    with open_video(stripes) as video:
        for seconds, picture in pictures:
            frame = video.frames([video.at(seconds + 1e-6)]).pixels[0]
            expected = plan_crops(frame.shape[:2], SPEC, 1).show(frame)
            assert np.abs(picture.astype(int) - expected).mean() < 1
    assert not any(part.pictures for part in walk(str(stripes), Walk(SPEC, 0.4)))


def test_pictures_are_not_enlarged_and_keep_a_crops_proportions() -> None:
    small = np.zeros((45, 60, 3), dtype=np.uint8)
    assert plan_crops((45, 60), SPEC, 1).show(small).shape == (40, 40, 3)  # 32 / 36 of the short side
    wide = np.zeros((900, 900, 3), dtype=np.uint8)
    wide[:, 225:675] = 255
    shown = plan_crops((900, 900), SPEC, 3, pixel_aspect=2).show(wide)  # the middle half of the width, stretched
    assert shown.shape == (PICTURE_SIDE, PICTURE_SIDE, 3) and shown.min() == 255


def test_an_image_has_one_picture(tiny_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((400, 300, 3), 90, dtype=np.uint8)).save(tmp_path / "still.png")
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    (answer,) = classifier.stream([str(tmp_path / "still.png")], keep_frames=True)
    assert answer.frames is not None and answer.frames.shape == (1, 266, 266, 3)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *how, **more: (drawn.append(self), save(self, *how, **more)))
    return drawn


def test_an_answer_below_one_half_is_called_doubtful(
    stripes: Path, tiny_model: Path, tmp_path: Path, figures: list[Any]
) -> None:
    assert (doubt(0.41), doubt(0.4999), doubt(0.5), doubt(1)) == ("doubtful: 41 %", "doubtful: 50 %", None, None)
    (answer,) = classify([str(stripes)], model=str(tiny_model), picture=tmp_path / "answers.png")
    best, second = answer.predictions[:2]
    texts = [text.get_text() for panel in figures[0].axes for text in panel.texts]
    assert best.score < 0.5 and texts[0] == f"{best.label}   doubtful: {best.score:.0%}".replace("%", " %")
    assert texts[1] == f"{second.label}   {second.score:.0%}".replace("%", " %")
    assert [text.get_text() for text in figures[0].texts] == ["stripes.mp4"]


def test_a_legend_and_thumbnails_stand_beside_the_curves(tmp_path: Path, figures: list[Any]) -> None:
    example = Path(__file__).parents[1] / "docs" / "zoom_in.mp4"
    list(classify([str(example.resolve())], timeline=tmp_path))
    (figure,) = figures
    curves, *panels = [panel.get_window_extent() for panel in figure.axes]
    (legend,) = [legend.get_window_extent() for legend in figure.legends]
    assert legend.x0 >= curves.x1 and legend.x1 <= figure.bbox.x1
    assert all(left.x1 <= right.x0 for left, right in pairwise(panels))
    assert all(panel.width >= 200 and panel.y1 < curves.y0 for panel in panels)
    assert figure.texts[0].get_text() == "zoom_in.mp4"
