"""Pictures and films of a run: they appear whole, show what they were given, and bear what is missing."""

from __future__ import annotations

import ast
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.cbook
import matplotlib.figure
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import hiera_video.visual
from hiera_video import open_video
from hiera_video.errors import OutputError
from hiera_video.visual.confusion import draw_confusion
from hiera_video.visual.curves import curves, draw_curves, smooth
from hiera_video.visual.reconstructions import show_reconstructions, write_video
from hiera_video.visual.reliability import draw_reliability

Pixels = NDArray[np.uint8]
RED, GREEN, BLUE = (230, 20, 20), (20, 180, 20), (20, 20, 230)


def train(step: int, **fields: object) -> dict[str, Any]:
    usual = {"loss": 1 + 100 / (step + 50), "lr": 1e-3 / step, "grad_norm": 1.0, "clips_per_s": 300.0, "data_wait": 0.1}
    return {"kind": "train", "step": step, "passes": step / 50, **usual, **fields}


def val(step: int, **fields: object) -> dict[str, Any]:
    return {"kind": "val", "step": step, "passes": step / 50, "loss": 1.1, "videos": 9, "listed": 10, **fields}


RECORDS = [*(train(step) for step in range(10, 210, 10)), val(100, top1=0.5, top5=0.8), val(200, top1=0.6, top5=0.9)]


def pixels(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"))


def drawn(records: list[dict[str, Any]], folder: Path) -> Pixels:
    draw_curves(records, folder / "curves.png")
    return pixels(folder / "curves.png")


def flat(colour: tuple[int, int, int], shape: tuple[int, int, int, int]) -> Pixels:
    """Clips uint8 [N, 3, T, H, W] of one colour."""
    number, *rest = shape
    return np.broadcast_to(np.array(colour, dtype=np.uint8)[None, :, None, None, None], (number, 3, *rest))


def where(image: Pixels, colour: tuple[int, ...], tolerance: int = 0) -> NDArray[np.intp]:
    """Rows and columns [n, 2] of the pixels of one colour."""
    return np.argwhere((np.abs(image.astype(int) - colour) <= tolerance).all(axis=-1))


# Curves


def test_curves_appear_whole_and_alone_and_differ_with_every_field(tmp_path: Path) -> None:
    usual = drawn(RECORDS, tmp_path)
    assert usual.shape == (825, 1210, 3)
    assert os.listdir(tmp_path) == ["curves.png"]
    for field in ("loss", "data_wait", "top1"):
        changed = [{**record, field: 0.7 * record[field]} if field in record else record for record in RECORDS]
        assert (drawn(changed, tmp_path) != usual).any(), field


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    saved: list[Any] = []
    savefig = matplotlib.figure.Figure.savefig

    def noted(figure: matplotlib.figure.Figure, *args: Any, **options: Any) -> None:
        saved.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", noted)
    return saved


@pytest.mark.parametrize(
    ("records", "titles", "summary", "note"),
    [
        (
            RECORDS,
            ["loss", "validation", "learning rate", "clips per second", "waiting for data"],
            "step 200   ·",
            None,
        ),
        ([], ["loss"], "", "no loss recorded yet"),
        (
            [val(0, map=0.0), {"kind": "train", "loss": 1.0}, {"kind": "done", "step": 3}],
            ["loss", "validation"],
            "",
            None,
        ),
        (
            [{"kind": "train", "step": 10, "loss": None, "lr": "low", "data_wait": 0.5, "clips_per_s": True}],
            ["loss", "waiting for data"],
            "step 10",
            "no loss recorded yet",
        ),
    ],
    ids=["all fields", "no records", "one validation", "no numbers"],
)
def test_curves_draw_a_panel_for_each_field_with_values(
    records: list[dict[str, Any]],
    titles: list[str],
    summary: str,
    note: str | None,
    figures: list[Any],
    tmp_path: Path,
) -> None:
    draw_curves(records, tmp_path / "curves.png")
    (figure,) = figures
    loss, *others = figure.axes
    shown = [panel.get_title(loc=side) for panel in others for side in ("left", "center", "right")]
    assert ["loss", *filter(None, shown)] == titles
    assert figure.get_suptitle().startswith(summary)
    assert [text.get_text() for text in loss.texts] == ([note] if note else [])
    assert (loss.get_legend() is None) == (note is not None)


def test_values_that_are_not_finite_are_left_out() -> None:
    found = curves([train(10), train(20, loss=math.nan), train(30, loss=math.inf, lr=0.5), train(40)])
    assert found["loss"].steps.tolist() == [10, 40]
    assert found["lr"].values[2] == 0.5


def test_of_a_step_recorded_twice_the_later_record_counts() -> None:
    """A killed run goes on from its last checkpoint: the steps behind it are in the file twice."""
    found = curves([train(10, loss=5), train(20, loss=4), train(30, loss=9), train(20, loss=3), train(30, loss=2)])
    assert found["loss"].steps.tolist() == [10, 20, 30]
    assert found["loss"].values.tolist() == [5, 3, 2]


def test_smoothing_keeps_a_level_and_the_start_and_evens_out_the_rest() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.normal(1, 1, 4000)
    assert np.allclose(smooth(np.ones(200)), 1)
    assert smooth(noisy)[0] == noisy[0]
    assert smooth(noisy)[1000:].std() < 0.15


def test_of_20000_records_at_most_2000_points_of_a_line_are_drawn(figures: list[Any], tmp_path: Path) -> None:
    """So that drawing takes as long as for a short run; the band of the noisy values keeps its highest and lowest."""
    records = [train(10 * number, loss=1 + number % 7 / 7) for number in range(1, 20_001)]
    records[12_345]["loss"] = 1.99
    draw_curves(records, tmp_path / "curves.png")
    loss = figures[0].axes[0]
    assert [len(line.get_xdata()) for line in loss.lines] == [2000]
    (band,) = loss.collections
    outline = band.get_paths()[0].vertices
    assert len(outline) < 2200 and outline[:, 1].max() == 1.99 and outline[:, 1].min() == 1


# Reconstructions


def test_a_picture_has_three_rows_for_each_clip(tmp_path: Path) -> None:
    shape = (2, 16, 64, 64)
    show_reconstructions(
        flat(RED, shape), flat(GREEN, shape), flat(BLUE, shape), tmp_path / "clips.png", "step 5, $loss$ 1"
    )
    assert os.listdir(tmp_path) == ["clips.png"]
    image = pixels(tmp_path / "clips.png")
    places = [where(image, colour) for colour in (RED, GREEN, BLUE)]
    assert [len(place) for place in places] == [2 * 8 * 128 * 128] * 3  # eight of the frames, enlarged twice
    order = [tuple(colour) for colour in image[:, places[0][0, 1]].tolist() if tuple(colour) in (RED, GREEN, BLUE)]
    assert order[::128] == [RED, GREEN, BLUE, RED, GREEN, BLUE]


def test_pictures_of_one_frame_stand_side_by_side(tmp_path: Path) -> None:
    shape = (5, 1, 64, 64)
    show_reconstructions(flat(RED, shape), flat(GREEN, shape), flat(BLUE, shape), tmp_path / "pictures.png", "")
    rows, columns = np.ptp(where(pixels(tmp_path / "pictures.png"), RED), axis=0) + 1
    assert (rows, columns) == (128, 5 * 128 + 4 * 4)


def test_a_film_shows_every_frame_slowly_and_from_left_to_right(tmp_path: Path) -> None:
    shape = (2, 8, 64, 64)
    write_video(flat(RED, shape), flat(GREEN, shape), flat(BLUE, shape), tmp_path / "clips.mp4")
    assert os.listdir(tmp_path) == ["clips.mp4"]
    with open_video(tmp_path / "clips.mp4") as video:
        assert len(video) == 8
        assert np.allclose(np.diff(video.times), 0.25)
        assert (video.height, video.width) == (2 * 128 + 4, 3 * 128 + 2 * 4)
        frame = video.frames([7]).pixels[0]
    for number, colour in enumerate((RED, GREEN, BLUE)):
        assert np.abs(frame[[64, 196], 64 + 132 * number].astype(int) - colour).max() < 25


def test_a_film_of_odd_size_is_padded_and_its_frames_differ(tmp_path: Path) -> None:
    ramp = (np.arange(5) * 50).astype(np.uint8)
    clips = np.broadcast_to(ramp[None, None, :, None, None], (1, 3, 5, 131, 135))
    write_video(clips, clips, clips, tmp_path / "odd.mp4")
    with open_video(tmp_path / "odd.mp4") as video:
        assert (video.height, video.width) == (132, 3 * 135 + 2 * 4 + 1)
        shades = video.frames(range(5)).pixels[:, 60, 60].mean(axis=-1)
    assert np.abs(shades - ramp).max() < 8


# Confusion matrices


def counts(number: int, per_class: int = 50) -> NDArray[np.int64]:
    """Every third video of a class is taken for the next class."""
    right = np.eye(number, dtype=np.int64)
    return (per_class - per_class // 3) * right + per_class // 3 * np.roll(right, 1, axis=1)


def names(number: int) -> list[str]:
    return [f"class {number} of a rather long name" for number in range(number)]


def test_the_darkest_cell_is_where_the_matrix_has_it(tmp_path: Path) -> None:
    def darkest(true: int, predicted: int) -> NDArray[np.float64]:
        matrix = np.ones((7, 7), dtype=np.int64)
        matrix[true, predicted] = 10**6
        draw_confusion(matrix, list("abcdefg"), tmp_path / "confusion.png")
        red, green, blue, _ = matplotlib.colormaps["YlGnBu"](1.0, bytes=True)
        places = where(pixels(tmp_path / "confusion.png"), (int(red), int(green), int(blue)))
        return np.median(places.astype(float), axis=0)  # the colour scale has few such pixels

    first = darkest(0, 0)
    assert np.abs(darkest(6, 6) - first - (6 * 60, 6 * 60)).max() <= 2  # cells of 60 pixels
    assert np.abs(darkest(1, 5) - first - (1 * 60, 5 * 60)).max() <= 2


def test_a_confusion_picture_appears_whole_and_differs_with_the_matrix(tmp_path: Path) -> None:
    images = []
    for per_class in (50, 2):
        draw_confusion(counts(9, per_class), names(9), tmp_path / "confusion.png")
        images.append(pixels(tmp_path / "confusion.png"))
    assert os.listdir(tmp_path) == ["confusion.png"]
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize("number", [2, 21, 700])
def test_few_and_many_classes_fit_a_picture(number: int, tmp_path: Path) -> None:
    draw_confusion(counts(number), names(number), tmp_path / "confusion.png")
    height, width, _ = pixels(tmp_path / "confusion.png").shape
    assert max(2 * number, 180) < height < width < 2300


def test_the_row_of_a_class_without_videos_is_grey(tmp_path: Path) -> None:
    matrix = counts(9)
    matrix[4] = 0
    draw_confusion(matrix, names(9), tmp_path / "confusion.png")
    assert len(where(pixels(tmp_path / "confusion.png"), (160, 160, 160))) >= 9 * 58 * 58


def test_what_is_never_confused_is_white(tmp_path: Path) -> None:
    draw_confusion(np.eye(9, dtype=np.int64), names(9), tmp_path / "confusion.png")
    assert len(where(pixels(tmp_path / "confusion.png"), (255, 255, 255))) > 72 * 58 * 58


def test_no_legend_of_the_curves_lies_on_data_and_the_runs_name_is_on_top(figures: list[Any], tmp_path: Path) -> None:
    draw_curves(RECORDS, tmp_path / "curves.png")
    (figure,) = figures
    legends = [panel for panel in figure.axes if panel.get_legend() is not None]
    assert len(legends) == 2
    for panel in legends:
        assert panel.get_legend().get_window_extent().y0 >= panel.get_window_extent().y1 - 1
    assert [text.get_text() for text in legends[0].get_legend().get_texts()] == ["training loss", "validation loss"]
    assert tmp_path.name in [text.get_text() for text in figure.texts]


def test_reliability_is_drawn_where_the_bins_have_it_and_the_legend_above(figures: list[Any], tmp_path: Path) -> None:
    counts = np.array([0, 3, 9])
    confidence, accuracy = np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 1 / 3, 1.0])
    draw_reliability(counts, confidence, accuracy, tmp_path / "reliability.png", title="a title")
    above, below = figures[0].axes
    assert [bar.get_height() for bar in above.patches] == [1 / 3, 1.0]
    assert [bar.get_x() for bar in above.patches] == pytest.approx([1 / 3, 2 / 3])
    assert [bar.get_height() for bar in below.patches] == [0, 3, 9]
    assert [text.get_text() for text in below.texts] == ["", "3", "9"]
    assert above.get_legend().get_window_extent().y0 >= above.get_window_extent().y1 - 1


def test_a_class_name_is_no_formula(figures: list[Any], tmp_path: Path) -> None:
    classes = ["$5", r"a $\nothing$ b", "$x_2$"]
    draw_confusion(counts(3), classes, tmp_path / "confusion.png")
    cells = figures[0].axes[0]
    for labels in (cells.get_xticklabels(), cells.get_yticklabels()):
        texts = [label.get_text() for label in labels]
        assert [matplotlib.cbook.is_math_text(text) for text in texts] == [False] * 3
        assert [text.replace(r"\$", "$") for text in texts] == classes


def test_a_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\) does not fit 2 classes"):
        draw_confusion(counts(3), ["a", "b"], tmp_path / "confusion.png")


# All of them

CLIP = flat(RED, (1, 2, 32, 32))
DRAWINGS: dict[str, Callable[[Path], None]] = {
    "curves": lambda path: draw_curves(RECORDS, path),
    "picture": lambda path: show_reconstructions(CLIP, CLIP, CLIP, path, "title"),
    "film": lambda path: write_video(CLIP, CLIP, CLIP, path),
    "confusion": lambda path: draw_confusion(counts(2), ["a", "b"], path),
    "reliability": lambda path: draw_reliability(np.ones(1, dtype=int), np.ones(1), np.ones(1), path, title=""),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_a_place_that_cannot_be_written_is_an_output_error(draw: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing/it cannot be written: No such file or directory"):
        draw(tmp_path / "missing" / "it")


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def savefig(figure: matplotlib.figure.Figure, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "curves.png").write_bytes(b"old")
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    with pytest.raises(OutputError, match="No space left on device"):
        draw_curves(RECORDS, tmp_path / "curves.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_pictures_know_nothing_of_models_and_training() -> None:
    for path in Path(hiera_video.visual.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hiera_video."):
                assert str(node.module).split(".")[1] in ("files", "errors", "data", "visual"), path
