"""How sure the figures of an evaluation are: intervals, calibration, confused pairs, and lists of every odd kind."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import recipe
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
    multiclass_calibration_error,
)
from training_sets import COLOURS, write_colours

import hiera_video.tasks.evaluate.pictures as module
from hiera_video.data.lists.video_list import VideoList
from hiera_video.tasks.evaluate.calibration import calibration
from hiera_video.tasks.evaluate.class_scores import class_scores, interval_method, missing_classes
from hiera_video.tasks.evaluate.intervals import bootstrap, num_resamples, wilson
from hiera_video.tasks.evaluate.job import evaluate
from hiera_video.tasks.evaluate.metrics import Scores, confusions, cross_entropy, weighted
from hiera_video.tasks.evaluate.pictures import draw_pictures, draw_worst, worst
from hiera_video.tasks.evaluate.score_table import write_results

READING: dict[str, Any] = {"num_workers": 0, "time_limit": 30, "fps": None}


def listed(labels: Any, num_classes: int, paths: list[str] | None = None, **more: Any) -> VideoList:
    names = paths or [f"/absolute/{number}.mp4" for number in range(len(labels))]
    return VideoList.make(names, labels, [f"class{number}" for number in range(num_classes)], **more)


def scored(table: Any, errors: dict[int, str] | None = None) -> Scores:
    values = np.asarray(table, dtype=np.float32)
    return Scores(np.arange(len(values)), values, errors or {})


def answers(right: int, wrong: int) -> tuple[Scores, VideoList]:
    """Videos of class0 of two, as many of them taken for class0 and for class1."""
    return scored([[0.8, 0.2]] * right + [[0.3, 0.7]] * wrong), listed([0] * (right + wrong), 2)


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # as scipy.stats.binomtest(hits, count).proportion_ci(method="wilson") and statsmodels have them
        (0, 10, 0.0, 0.2775327999),
        (10, 10, 0.7224672001, 1.0),
        (40, 90, 0.3461565563, 0.5472807354),
        (8, 9, 0.5650002944, 0.9801091124),
    ],
)
def test_wilsons_interval_is_that_of_statistics_programs(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx([low, high], abs=1e-8)


def test_wilsons_interval_of_no_video_is_none() -> None:
    bounds = wilson([0, 3], [0, 4])
    assert bounds.shape == (2, 2) and np.isnan(bounds[0]).all() and np.isfinite(bounds[1]).all()


def test_the_total_and_each_class_have_wilsons_interval() -> None:
    scores, videos = answers(right=8, wrong=1)
    total, own = class_scores(scores, videos)
    assert total.intervals["top1"] == own.intervals["top1"] == pytest.approx((0.565000, 0.980109), abs=1e-6)
    assert total.text().splitlines()[:2] == ["all: 9 of 9 videos, intervals at 95%", "  top1      88.9% (56.5-98.0)"]
    assert own.to_dict()["top1_low"] == pytest.approx(0.565000, abs=1e-6)
    assert own.text().split()[:5] == ["class0", "9", "of", "9", "top1"]


def test_resampling_a_share_comes_close_to_its_standard_error() -> None:
    hits = np.arange(400) < 300
    (low, high), _ = bootstrap(lambda weights: np.array([weights @ hits / weights.sum(), 0.5]), np.arange(400), 1000)
    error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - error, 0.75 + error), abs=0.004)


def test_resampling_is_the_same_every_time_and_holds_the_figure() -> None:
    rng = np.random.default_rng(3)
    scores, videos = scored(rng.random((60, 5))), listed((rng.random((60, 5)) < 0.2).astype(int), 5)
    first, second = class_scores(scores, videos), class_scores(scores, videos)
    assert first == second
    for one in first:
        low, high = one.intervals["map"]
        assert low < (one.values["map"] or 0) < high
    assert interval_method(scores, videos) == "95%, bootstrap, 1000 resamples (seed 0) of the videos"


def test_where_resampling_cannot_tell_there_is_no_interval() -> None:
    scores, videos = answers(right=9, wrong=0)
    total, _ = class_scores(scores, videos)
    assert total.values["macro"] == 1 and "macro" not in total.intervals  # not "100 %, surely"
    assert total.to_dict()["macro_low"] is None and "top1" in total.intervals
    assert np.isnan(bootstrap(lambda weights: weights[:1], np.zeros(5, dtype=np.int64), 10)).all()


def test_segments_of_one_file_are_drawn_together() -> None:
    """Ten segments of each of nine files, all right or all wrong: nine things are known, not ninety."""
    right = np.repeat(np.arange(9) < 6, 10)
    table = np.where(right[:, np.newaxis], [[0.9, 0.1]], [[0.1, 0.9]])
    starts = np.tile(np.arange(10.0), 9)
    files = [f"{number // 10}.mp4" for number in range(90)]
    apart = class_scores(scored(table), listed([0] * 90, 2))[0].intervals["top1"]
    videos = listed([0] * 90, 2, files, starts=starts, ends=starts + 1)
    together = class_scores(scored(table), videos)[0].intervals["top1"]
    error = 1.96 * np.sqrt(6 / 9 * 3 / 9 / 9)
    assert together == pytest.approx((6 / 9 - error, 6 / 9 + error), abs=0.02)
    assert together[1] - together[0] > 2.5 * (apart[1] - apart[0])
    said = interval_method(scored(table), videos)
    assert said == "95%, bootstrap, 1000 resamples (seed 0) of the 9 files whose segments the 90 videos are"


def test_large_tables_are_resampled_less_often() -> None:
    assert (num_resamples(10), num_resamples(4 * 10**6), num_resamples(10**9)) == (1000, 250, 100)


@pytest.mark.parametrize("levels", [3, 10**6])
def test_average_precision_is_that_of_torchmetrics_with_ties_and_of_videos_drawn_twice(levels: int) -> None:
    rng = np.random.default_rng(levels)
    values = (rng.integers(0, levels, (50, 4)) / levels).astype(np.float32)
    labels = (rng.random((50, 4)) < [0.1, 0.5, 0.9, 0.0]).astype(np.float32)
    draw = rng.integers(50, size=50)
    for rows in (np.arange(50), draw):
        each = weighted(values, labels)(np.bincount(rows, minlength=50).astype(float)).classes["map"]
        for number in range(3):
            truth = torch.from_numpy(labels[rows, number]).long()
            right = float(binary_average_precision(torch.from_numpy(values[rows, number]), truth))
            assert each[number] == pytest.approx(right, abs=1e-6)
        assert np.isnan(each[3])


# --- calibration ------------------------------------------------------------------------------------------------------


def test_the_calibration_error_by_hand() -> None:
    """Scores 0.9 and 0.92, one right: |0.5 - 0.91|; 0.62, right: |1 - 0.62|. Two thirds and one third of the videos."""
    bins = calibration(np.array([[0.9, 0.1], [0.08, 0.92], [0.62, 0.38]], dtype=np.float32), np.array([0, 0, 0]))
    assert bins.error == pytest.approx(2 / 3 * 0.41 + 1 / 3 * 0.38)
    assert bins.counts.tolist() == [0] * 9 + [1] + [0] * 3 + [2, 0]
    assert (bins.confidence[13], bins.accuracy[13]) == pytest.approx((0.91, 0.5))
    assert bins.of == "the best class of each video"


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(7), 500).astype(np.float32)
    labels = rng.integers(0, 7, 500)
    right = multiclass_calibration_error(torch.from_numpy(values), torch.from_numpy(labels), 7, n_bins=15)
    assert calibration(values, labels).error == pytest.approx(float(right), abs=1e-6)
    several = (rng.random((500, 7)) < values).astype(np.float32)
    right = binary_calibration_error(torch.from_numpy(values.ravel()), torch.from_numpy(several.ravel()), n_bins=15)
    bins = calibration(values, several)
    assert bins.error == pytest.approx(float(right), abs=1e-6)
    assert bins.counts.sum() == 3500 and bins.of == "each class of each video"


def test_scores_of_exactly_one_lie_in_the_last_bin_and_those_that_are_not_finite_in_none() -> None:
    bins = calibration(np.array([[1.0, 0], [0, 1.0], [np.nan, np.nan]], dtype=np.float32), np.array([0, 1, 0]))
    assert bins.counts.tolist() == [0] * 14 + [2] and bins.error == 0


def test_the_cross_entropy_of_a_list_by_hand() -> None:
    videos = listed([0, 1, -1], 2)
    assert cross_entropy(scored([[0.5, 0.5], [0.75, 0.25], [1, 0]]), videos) == pytest.approx(np.log([2, 4]).mean())
    several = listed([[1, 0], [1, 1]], 2)
    assert cross_entropy(scored([[0.5, 0.5], [0.5, 0.25]]), several) == pytest.approx(np.log([2, 2, 2, 4]).mean())


# --- what is confused, and what is missing ----------------------------------------------------------------------------


def test_the_worst_videos_are_wrong_and_the_surest_first() -> None:
    videos = listed([0, 0, 1, -1, 1], 2)
    scores = scored([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [0.95, 0.05]])
    assert worst(scores, videos).tolist() == [4, 1, 2]
    several = listed([[1, 0], [1, 1], [0, 0]], 2)
    assert worst(scored([[0.3, 0.8], [0.9, 0.8], [0.6, 0.9]]), several).tolist() == [2, 0]


def test_only_classes_that_occur_are_in_the_matrix_of_confusions() -> None:
    shown, matrix = confusions(scored([[0, 0, 1, 0], [0, 1, 0, 0]]).scores, np.array([1, 1]))
    assert shown.tolist() == [1, 2] and matrix.tolist() == [[1, 1], [0, 0]]


def test_classes_without_a_video_are_named() -> None:
    assert missing_classes(listed([0, 2, -1], 4)) == ["class1", "class3"]
    assert missing_classes(listed([[0, 1, 0], [0, 1, 0]], 3)) == ["class0", "class2"]


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of each of red, green and blue."""
    return write_colours(tmp_path_factory.mktemp("colours"), 3, seed=0)


def of_colours(folder: Path) -> tuple[Scores, VideoList]:
    """Nine videos; two of red and one of blue are taken for green, 1.mp4 in blue for red."""
    names = [*COLOURS, "yellow"]
    paths = [str(folder / name / f"{number}.mp4") for name in COLOURS for number in range(3)]
    table = np.full((9, 4), 0.1, dtype=np.float32)
    table[np.arange(9), [0, 1, 1, 1, 1, 1, 2, 0, 1]] = [0.5, 0.65, 0.9, 0.8, 0.8, 0.8, 0.7, 0.99, 0.6]
    return scored(table), VideoList.make(paths, np.repeat([0, 1, 2], 3), names)


def test_an_evaluation_writes_confused_pairs_calibration_and_pictures(colours: Path, tmp_path: Path) -> None:
    scores, videos = of_colours(colours)
    figures = class_scores(scores, videos)
    write_results(tmp_path, videos, scores, figures, {"model": "made"})
    draw_pictures(tmp_path, videos, scores, **READING)
    with (tmp_path / "confused.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["true", "predicted", "count", "share"],
            ["red", "green", "2", "0.666667"],
            ["blue", "red", "1", "0.333333"],
            ["blue", "green", "1", "0.333333"],
        ]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["missing"] == ["yellow"] and result["intervals"].startswith("95%, Wilson for top1 and top5")
    assert (result["top1_low"], result["top1_high"]) == figures[0].intervals["top1"]
    assert result["ece"] == pytest.approx(figures[0].values["ece"], abs=1e-6)
    lines = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [line["class"] for line in lines] == ["red", "green", "blue"]
    assert float(lines[1]["top1_low"]) == pytest.approx(0.438494, abs=1e-5) and lines[1]["error"] == ""
    assert {"confusion.png", "reliability.png", "worst_videos.png"} <= set(os.listdir(tmp_path))


def test_the_picture_of_the_worst_videos_names_them_and_shows_their_own_frames(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hiera_video.visual.strips as strips

    scores, videos = of_colours(colours)
    drawn: list[Any] = []
    draw = strips.draw_strips
    monkeypatch.setattr(
        strips, "draw_strips", lambda rows, *args, **more: drawn.extend(rows) or draw(rows, *args, **more)
    )
    draw_worst(tmp_path / "worst_videos.png", videos, scores, **READING)
    assert [title for title, *_ in drawn] == [
        *("1.mp4: is blue, taken for red", "2.mp4: is red, taken for green"),
        *("1.mp4: is red, taken for green", "2.mp4: is blue, taken for green"),
    ]
    _, frames, best = drawn[0]
    assert frames.shape == (3, 40, 48, 3) and (best[0].label, best[0].score) == ("red", pytest.approx(0.99))
    assert np.abs(np.median(frames, axis=(0, 1, 2)) - COLOURS["blue"]).max() < 12
    assert Image.open(tmp_path / "worst_videos.png").width > 800


def test_a_picture_that_fails_loses_no_figures(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_model: Path
) -> None:
    """matplotlib is not there at all."""
    import builtins

    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **more)

    lines = [f"{colours / 'red' / '0.mp4'},a", f"{colours / 'green' / '0.mp4'},b", f"{colours / 'blue' / '0.mp4'},c"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    monkeypatch.setattr(builtins, "__import__", without)
    records = list(evaluate(recipe(tmp_path / "list.csv", tiny_model, output=str(tmp_path / "out"))))
    assert records[0].videos == 3
    assert not list((tmp_path / "out").glob("*.png")) and (tmp_path / "out" / "result.json").is_file()
    assert f"{tmp_path}/out/reliability.png could not be drawn: No module named 'matplotlib'" in caplog.messages
    assert "3 of the model's 6 classes have no video in the list, so that no figure is about them: d, e, f" in (
        caplog.messages
    )


def test_an_old_picture_of_the_worst_goes_when_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "worst_videos.png").write_bytes(b"old")
    scores, videos = answers(right=4, wrong=0)
    draw_pictures(tmp_path, videos, scores, **READING)
    assert not (tmp_path / "worst_videos.png").exists() and (tmp_path / "confusion.png").exists()


ODD: dict[str, tuple[Any, Any]] = {
    "nothing readable": (np.empty((0, 3)), [0, 1, 2]),
    "one video": ([[0.2, 0.5, 0.3]], [1]),
    "one class alone": ([[1.0], [1.0]], [0, 0]),
    "all wrong": ([[0.1, 0.9], [0.1, 0.9]], [0, 0]),
    "no label": ([[0.1, 0.9]], [-1]),
    "scores that are no numbers": ([[np.nan, np.nan], [0.3, 0.7]], [0, 1]),
    "several labels, nothing readable": (np.empty((0, 3)), [[1, 0, 0]]),
    "several labels, none given": ([[0.4, 0.9]], [[0, 0]]),
    "several labels, one video": ([[0.4, 0.9]], [[0, 1]]),
    "several labels, no numbers": ([[np.nan, 0.9]], [[0, 1]]),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_lists_have_figures_and_pictures(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their files are not there: one child process that finds that out is enough."""
    caplog.set_level(logging.WARNING, "hiera_video")
    if kind != "all wrong":
        monkeypatch.setattr(module, "draw_worst", lambda path, videos, scores, **more: worst(scores, videos))
    table, labels = ODD[kind]
    scores, videos = scored(table), listed(labels, np.asarray(table).shape[1])
    figures = class_scores(scores, videos)
    write_results(tmp_path, videos, scores, figures, {})
    draw_pictures(tmp_path, videos, scores, **READING)
    assert not caplog.messages and "nan" not in "".join(one.text() for one in figures)
    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["videos"] == figures[0].videos and interval_method(scores, videos)
