"""Pictures of features: a timeline with its table, and maps as colours beside their frames."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from assets import H264
from PIL import Image

from hiera_video import classify, extract
from hiera_video.cli import main
from hiera_video.errors import RequestError
from hiera_video.visual.feature_colours import _legend, fit_colours, write_colours
from hiera_video.visual.timelines import draw_timeline

ZOOM = Path(__file__).parents[1] / "docs" / "zoom_in.mp4"


def test_a_timeline_has_a_row_for_each_window_and_a_column_for_each_class(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    folder = tmp_path / "over_time"
    good, bad = classify([str(ZOOM), str(tmp_path / "bad.mp4")], timeline=folder, hop=0.5)
    assert good.predictions[0].label == "zoom_in" and good.duration == 4.0
    assert bad.error is not None and "is not a video" in bad.error
    with (folder / "zoom_in.mp4.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["start"]) for row in rows] == pytest.approx([0, 0.5, 1, 1.5, 4 - 64 / 30])
    assert float(rows[-1]["end"]) == 4.0
    for row in rows:
        scores = {name: float(value) for name, value in row.items() if name not in ("start", "end")}
        assert len(scores) == 9 and sum(scores.values()) == pytest.approx(1, abs=1e-4)
        assert max(scores, key=lambda name: scores[name]) == "zoom_in"
    with Image.open(folder / "zoom_in.mp4.png") as picture:
        assert picture.size[0] > 1000 and len(picture.getcolors(2**20) or ()) > 500
    assert sorted(path.name for path in folder.iterdir()) == ["zoom_in.mp4.csv", "zoom_in.mp4.png"]


def test_inputs_of_one_name_have_files_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        H264.write(tmp_path / name)
    inputs = [str(tmp_path / "a"), str(tmp_path / "b")]
    list(classify(inputs, model=str(tiny_model), timeline=tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {"h264.mp4.csv", "h264.mp4.2.csv"}


@pytest.mark.parametrize(
    "words", [["--views", "1x1", "--timeline", "out"], ["--hop", "1"], ["--timeline", "out", "--hop", "0"]]
)
def test_what_does_not_go_with_a_timeline_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(ZOOM), *words]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("hiera-video: ")


@pytest.mark.parametrize(("count", "length"), [(1, 2.0), (300, 7200.0)])
def test_a_timeline_of_one_window_or_of_two_hours(count: int, length: float, tmp_path: Path) -> None:
    starts = np.linspace(0, length - 2, count)
    scores = np.random.default_rng(0).dirichlet(np.ones(7), count).astype(np.float32)
    times = np.stack([starts, starts + 2], axis=1)
    thumbnails = [(float(starts[0]), np.full((48, 64, 3), 90, dtype=np.uint8))]
    draw_timeline("a $title", times, scores, list("abcdefg"), thumbnails, tmp_path / "line.png")
    with Image.open(tmp_path / "line.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**20) or ()) > 50


def square_maps() -> np.ndarray:
    """float32 [4, 2, 6, 6, 8]: one cell of its own, moving, on a noisy ground."""
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 0.05, (4, 2, 6, 6, 8)).astype(np.float32)
    for window in range(4):
        maps[window, :, window, 1 + window] += np.arange(8)
    return maps


def test_what_differs_has_another_colour_and_the_same_one_everywhere() -> None:
    maps = square_maps()
    colours = fit_colours(maps)
    painted = colours.paint(maps).astype(int)
    assert painted.shape == (4, 2, 6, 6, 3)
    ground = np.median(painted.reshape(-1, 3), axis=0)
    for window in range(4):
        distance = np.abs(painted[window, 0] - ground)[..., 0]  # along the first component
        assert np.unravel_index(distance.argmax(), distance.shape) == (window, 1 + window)
    assert np.array_equal(painted, fit_colours(maps.copy()).paint(maps))


def test_films_and_pictures_show_frames_beside_their_colours(tmp_path: Path) -> None:
    maps = square_maps().reshape(8, 6, 6, 8)
    painted = fit_colours(maps).paint(maps)
    frames = [np.full((65, 97, 3), 30 * number, dtype=np.uint8) for number in range(8)]
    moments = [(number / 10, frame, colour) for number, (frame, colour) in enumerate(zip(frames, painted, strict=True))]
    write_colours(tmp_path / "film.mp4", iter(moments))
    with av.open(str(tmp_path / "film.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        times = [0.1 * number for number in range(8)]
    assert len(shown) == 8 and shown[0].shape == (194 + 24, 580, 3)  # three times as large, and even; words below
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=2e-3)
    assert [int(frame[:194, :280].mean()) for frame in shown] == pytest.approx([30 * n for n in range(8)], abs=6)
    write_colours(tmp_path / "sheet.png", iter(moments))
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (8 * 290, 2 * 194 + 3 * 24)
        words = np.asarray(picture)[2 * 194 :]
        assert words.min() < 60 and (words > 250).mean() > 0.9
        assert picture.getpixel((8 * 290 - 20, 10)) == (210, 210, 210)


def test_the_legend_takes_as_many_lines_as_a_narrow_picture_needs() -> None:
    assert [_legend(width).shape for width in (384, 192)] == [(40, 384, 3), (56, 192, 3)]


def test_extract_draws_its_first_readable_input(tmp_path: Path) -> None:
    list(extract(["none.mp4", str(ZOOM)], output=tmp_path / "out", num_workers=1, picture=tmp_path / "film.mp4"))
    with av.open(str(tmp_path / "film.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) > 25 and times[-1] == pytest.approx(4.0, abs=0.1) and (np.diff(times) > 0).all()


def test_another_kind_of_picture_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"must end in \.mp4 \(a film\) or \.png"):
        extract([str(ZOOM)], output=tmp_path / "out", picture=tmp_path / "film.gif")
    assert not (tmp_path / "out").exists()
