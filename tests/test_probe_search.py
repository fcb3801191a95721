"""``hiera-video probe`` and ``search``: what extracted embeddings know of labels, and what they find again."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec
from hiera_video.tasks.features import probe as probing
from hiera_video.tasks.features import search as searching
from hiera_video.tasks.features.feature_table import read_vectors
from hiera_video.tasks.features.job import extract
from hiera_video.tasks.features.labels import labelled, labels_of, read_labels
from hiera_video.tasks.features.probe import by_neighbours, cross_validation, probe
from hiera_video.tasks.features.search import Hit, best_hits, nearest, nearest_by_numpy, search, unit

FACTS = {
    "format": "hiera-video features 1",
    "model": "tiny",
    "weights": "0123",
    "features": ["embedding"],
    "window": 2.0,
    "hop": 2.0,
    "crop": "center",
    "dtype": "float32",
    "precision": "float32",
    "files": "parquet",
    "clip": ClipSpec().to_dict(),
}


def write_extraction(folder: Path, embeddings: dict[str, ArrayLike], **facts: Any) -> Path:
    """An extraction of these inputs; each has embeddings [windows, C], or [C] of one window."""
    (folder / "windows").mkdir(parents=True)
    (folder / "extraction.json").write_text(json.dumps(FACTS | facts))
    rows = [
        {
            "input": name,
            "window": window,
            "windows": len(np.atleast_2d(found)),
            "crop": "center",
            "start": 2.0 * window,
            "end": 2.0 * window + 2,
            "box": [0.0, 0.0, 48.0, 48.0],
            "height": 48,
            "width": 64,
            "padded": False,
            "error": None,
            "model": "tiny",
            "embedding": np.asarray(embedding, dtype=np.float32).tolist(),
        }
        for name, found in embeddings.items()
        for window, embedding in enumerate(np.atleast_2d(found))
    ]
    schema = pa.Table.from_pylist(rows).schema
    for name, kind in (("window", pa.int32()), ("windows", pa.int32()), ("error", pa.string())):
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    schema = schema.set(schema.get_field_index("embedding"), pa.field("embedding", pa.list_(pa.float32())))
    half = len(rows) // 2
    for number, part in enumerate((rows[half:], rows[:half])):  # two shards, in no order
        if part:
            pq.write_table(pa.Table.from_pylist(part, schema), folder / "windows" / f"part-{number}.parquet")
    return folder


def clusters(
    classes: str, each: int, *, seed: int = 0, windows: int = 2, spread: float = 0.1
) -> dict[str, NDArray[np.float64]]:
    """``each`` inputs a class, "a/0.mp4" and so on, around the corners of a cube."""
    rng = np.random.default_rng(seed)
    corners = np.eye(16)
    return {
        f"{name}/{number}.mp4": corners[ord(name) - ord("a")] + spread * rng.standard_normal((windows, 16))
        for name in classes
        for number in range(each)
    }


def scores(folder: Path, **options: Any) -> dict[str, float]:
    return {score.method: score.top1 for score in probe(str(folder), **options)}


# --- probe ------------------------------------------------------------------------------------------------------------


def test_classes_that_lie_apart_are_told_apart(tmp_path: Path) -> None:
    folder = write_extraction(tmp_path / "features", clusters("abcd", 20) | clusters("e", 40))
    results = list(probe(str(folder)))
    assert [score.method for score in results] == ["knn", "linear", "lda", "chance"]
    assert results[0].top1 == results[1].top1 == results[2].top1 == 1
    assert results[3].top1 == pytest.approx(40 / 120)
    assert results[0].to_dict() == {
        "method": "knn",
        "top1": 1.0,
        "standard_error": 0.0,
        "folds": 5,
        "inputs": 120,
        "test_inputs": None,
        "classes": 5,
        "left_out": 0,
    }
    assert results[0].rows() == [results[0].to_dict()] and results[0].error is None
    assert results[3].standard_error is None


def test_labels_that_mean_nothing_are_guessed_by_chance(tmp_path: Path) -> None:
    features = clusters("abcd", 60)
    folder = write_extraction(tmp_path / "features", features)
    labels = np.random.default_rng(1).permutation(np.repeat(list("abcd"), 60))
    lines = [f"{name},{label}\n" for name, label in zip(features, labels, strict=True)]
    (tmp_path / "labels.csv").write_text("input,label\n" + "".join(lines))
    found = scores(folder, labels=str(tmp_path / "labels.csv"))
    assert found["chance"] == 0.25
    assert abs(found["knn"] - 0.25) < 0.1 and abs(found["linear"] - 0.25) < 0.1
    assert abs(found["lda"] - 0.25) < 0.1


def test_an_input_has_one_vote_the_mean_over_its_windows(tmp_path: Path) -> None:
    """Single windows point into each other's class; only their mean tells."""
    centre = {"a": np.array([1.0, 0, 0]), "b": np.array([0, 1.0, 0])}
    away = np.array([[-9.0, 9, 5], [9, -9, -5]])
    rng = np.random.default_rng(0)
    features = {
        f"{name}/{number}.mp4": centre[name] + away + 0.01 * rng.standard_normal((2, 3))
        for name in "ab"
        for number in range(8)
    }
    results = list(probe(str(write_extraction(tmp_path / "features", features)), k=3))
    assert [score.top1 for score in results] == [1, 1, 1, 0.5]
    assert results[0].inputs == 16
    known = labelled(tmp_path / "features", "folder")
    expected = np.stack([features[name].mean(axis=0) for name in known.inputs])
    np.testing.assert_allclose(known.vectors, expected, atol=1e-5)


def test_no_input_is_learned_from_and_judged_in_the_same_fold(tmp_path: Path) -> None:
    known = labelled(write_extraction(tmp_path / "features", clusters("abc", 11, windows=3)), "folder")
    assert len(set(known.inputs)) == len(known.inputs) == len(known.vectors) == 33
    task = cross_validation(known, 5)
    assert len(task.splits) == 5
    for learned, judged in task.splits:
        assert not set(learned) & set(judged)
        assert sorted([*learned, *judged]) == list(range(33))
        assert min(np.bincount(task.classes[judged])) >= 2  # every class has its share
    assert sorted(np.concatenate([judged for _, judged in task.splits])) == list(range(33))
    again = cross_validation(known, 5)
    assert all(np.array_equal(one[1], two[1]) for one, two in zip(task.splits, again.splits, strict=True))


def test_neighbours_in_the_alphabet_stay_in_one_fold(tmp_path: Path) -> None:
    known = labelled(write_extraction(tmp_path / "features", clusters("ab", 9)), "folder")
    for _, judged in cross_validation(known, 3).splits:
        numbers = [int(Path(known.inputs[row]).stem) for row in judged]
        assert sorted(numbers) == sorted(2 * list(range(min(numbers), min(numbers) + 3)))


def test_mean_and_standard_error_are_those_of_the_folds(tmp_path: Path) -> None:
    """By hand: with one neighbour none of two inputs is right in the first fold, one of two in the second."""
    features = {"a/0.mp4": [1, 0], "a/1.mp4": [1, 0.1], "b/0.mp4": [0, 1], "b/1.mp4": [1, -0.05]}
    folder = write_extraction(tmp_path / "features", features)
    neighbour, *_ = probe(str(folder), k=1, folds=2)
    assert (neighbour.top1, neighbour.standard_error) == (0.25, pytest.approx(0.25))


def test_a_small_class_makes_fewer_folds_and_an_input_alone_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = clusters("ab", 8) | clusters("c", 3) | clusters("d", 1)
    results = list(probe(str(write_extraction(tmp_path / "features", features)), k=2))
    assert {(one.folds, one.inputs, one.classes, one.left_out) for one in results} == {(3, 19, 3, 1)}
    assert "1 inputs are alone in their class" in caplog.text and "3 folds instead of 5" in caplog.text


def test_labels_come_from_a_file_by_full_name_or_by_a_file_name_that_is_unique(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(
        'input,seconds,label\n"x/a,1.mp4",3,run\nb.mp4,3,jump\nc.mp4,3,run\n/elsewhere/d.mp4,3,jump\ne.mp4,3,\n'
    )
    names = ["x/a,1.mp4", "y/b.mp4", "y/c.mp4", "z/c.mp4", "y/d.mp4", "e.mp4", "f.mp4"]
    assert labels_of(names, read_labels(file)) == ["run", "jump", "", "", "jump", "", ""]


def test_a_file_name_that_the_labels_have_twice_says_nothing(tmp_path: Path) -> None:
    assert labels_of(["z/a.mp4", "x/a.mp4"], {"x/a.mp4": "run", "y/a.mp4": "jump"}) == ["", "run"]


def test_labels_are_names_of_folders_by_default() -> None:
    names = ["k400/run/a.mp4", "./run/b.mp4", "c.mp4", "../d.mp4", "https://host/jump/e.mp4"]
    assert labels_of(names, "folder") == ["run", "run", "", "", "jump"]


def test_inputs_without_a_label_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = clusters("ab", 6) | {"alone.mp4": np.zeros((1, 16))}
    results = list(probe(str(write_extraction(tmp_path / "features", features)), k=1))
    assert (results[0].inputs, results[0].left_out) == (12, 1)
    assert "1 of 13 inputs" in caplog.text


def test_another_extraction_is_judged_as_a_whole(tmp_path: Path) -> None:
    folder = write_extraction(tmp_path / "train", clusters("abc", 6))
    wrong = {"a/wrong.mp4": clusters("b", 1)["b/0.mp4"]}
    test = write_extraction(tmp_path / "test", clusters("ab", 2, seed=1) | wrong, model="tiny by another name")
    results = list(probe(str(folder), test=test))
    assert [score.top1 for score in results] == pytest.approx([4 / 5, 4 / 5, 4 / 5, 3 / 5])
    shown = results[0].to_dict()
    assert [shown[name] for name in ("standard_error", "folds", "inputs", "test_inputs", "classes")] == [
        None,
        None,
        18,
        5,
        3,
    ]


def test_inputs_that_are_in_both_extractions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_extraction(tmp_path / "train", clusters("ab", 6))
    list(probe(str(folder), test=write_extraction(tmp_path / "test", clusters("ab", 2))))
    assert "4 inputs are in" in caplog.text


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"model": "base", "weights": "4567"}, "made with model base, but"),
        ({"weights": "4567"}, "made with weights 4567, but"),
        ({"window": 1.0}, "made with window 1.0, but"),
        ({"hop": 1.0}, "made with hop 1.0, but"),
        ({"crop": "three"}, "made with crop three, but"),
        ({"clip": ClipSpec(resize=224).to_dict()}, "made with resize 224, but"),
    ],
)
def test_a_test_set_made_otherwise_is_refused(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    folder = write_extraction(tmp_path / "train", clusters("ab", 6))
    test = write_extraction(tmp_path / "test", clusters("ab", 2), **facts)
    with pytest.raises(RequestError, match=said):
        probe(str(folder), test=test)


@pytest.mark.parametrize(
    ("features", "options", "said"),
    [
        (clusters("ab", 4), {"k": 0}, "k is 0, but is at least 1"),
        (clusters("ab", 4), {"folds": 1}, "folds is 1, but is at least 2"),
        (clusters("ab", 4), {"k": 7}, "k is 7, but only 6 inputs can be neighbours"),
        (clusters("a", 4), {}, r"has too few classes \(a\)"),
        (clusters("abc", 1), {}, r"has too few classes \(a, b, c\)"),
        ({"0.mp4": np.ones(3), "1.mp4": np.ones(3)}, {}, "no input of .* lies in a folder, such as 0.mp4"),
        (clusters("ab", 4) | {"b/bad.mp4": np.full(16, np.nan)}, {}, "no finite embedding of b/bad.mp4"),
        (clusters("ab", 4), {"labels": "none.csv"}, "labels are 'none.csv', but must be folder, or a CSV file"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    tmp_path: Path, features: dict[str, ArrayLike], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        probe(str(write_extraction(tmp_path / "features", features)), **options)


def test_a_class_that_nothing_was_learned_of_is_refused(tmp_path: Path) -> None:
    folder = write_extraction(tmp_path / "train", clusters("ab", 6))
    with pytest.raises(RequestError, match="has inputs of class 'c', but"):
        probe(str(folder), test=write_extraction(tmp_path / "test", clusters("c", 2)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"path,label\na.mp4,run\n", "line 1: found 'path,label', but expected the columns input,label"),
        (b"input,label\na.mp4,run\na.mp4,jump\n", "line 3: found 'jump', but expected 'run', which a.mp4 is in a line"),
        (b"input,label\n\xff.mp4,run\n", "is no CSV file in UTF-8"),
        (b"", "line 1: found nothing, but expected the columns"),
    ],
)
def test_a_bad_file_of_labels_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(RequestError, match=said):
        read_labels(tmp_path / "labels.csv")


def by_person(folder: Path) -> Path:
    """Three people who show two things each; what tells the things apart is another channel for each person."""
    rng = np.random.default_rng(0)
    inputs = {}
    for number, person in enumerate("abc"):
        for thing in (0, 1):
            for take in range(4):
                row = rng.normal(size=3) * 0.1
                row[number] += 4 * thing - 2
                inputs[f"{thing}/{person}{take}.mp4"] = row
    return write_extraction(folder / "found", inputs)


def test_one_group_is_judged_by_what_the_others_teach(tmp_path: Path) -> None:
    folder = by_person(tmp_path)
    groups = tmp_path / "groups.csv"
    rows = [f"{thing}/{person}{take}.mp4,{person}" for person in "abc" for thing in (0, 1) for take in range(4)]
    groups.write_text("\n".join(["input,group", *rows]))
    with_group = {score.method: score for score in probe(str(folder), k=3, groups=groups)}
    without = {score.method: score for score in probe(str(folder), k=3, folds=4)}
    assert with_group["knn"].top1 < without["knn"].top1 - 0.2
    assert with_group["knn"].folds == 3 and with_group["linear"].inputs == 24


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("input,person\n", "the columns input,group"),
        ("input,group\n0/a0.mp4,a\n", "has no group: name one for each input"),
        (None, "groups are .* but must be a CSV file: No such file"),
    ],
)
def test_wrong_groups_are_one_sentence(text: str | None, sentence: str, tmp_path: Path) -> None:
    folder, groups = by_person(tmp_path), tmp_path / "groups.csv"
    if text is not None:
        groups.write_text(text)
    with pytest.raises(RequestError, match=sentence):
        probe(str(folder), k=3, groups=groups)


def test_neighbours_are_found_by_angle_and_a_tie_goes_to_the_nearer() -> None:
    known = np.array([[9, 0], [0, 0.1], [1, 0.5], [0.5, 1]], dtype=np.float32)
    classes = np.array([0, 1, 0, 1])
    judged = np.array([[1, 0.2], [2, 10]], dtype=np.float32)
    assert by_neighbours(known.copy(), classes, judged.copy(), k=1).tolist() == [0, 1]
    tie = by_neighbours(known.copy(), classes, np.array([[0.1, 0.11]], dtype=np.float32), k=2)
    assert tie.tolist() == [1]
    far = np.array([[1, 0], [0, 1], [0.1, 1]], dtype=np.float32)
    assert by_neighbours(far, np.array([0, 1, 1]), np.array([[1, 0.1]], dtype=np.float32), k=3).tolist() == [1]


def test_a_linear_probe_that_has_not_settled_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probing, "MAX_STEPS", 1)
    list(probe(str(write_extraction(tmp_path / "features", clusters("ab", 4))), k=1))
    assert "has not settled after 1 steps" in caplog.text


# --- search: vectors --------------------------------------------------------------------------------------------------


def vectors(count: int, width: int = 12, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32))


def without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.mark.parametrize("count", [1, 5, 50])
def test_faiss_and_numpy_find_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(searching, "CHUNK", 7)
    monkeypatch.setattr(searching, "QUERY_CHUNK", 3)
    base, queries = vectors(50), vectors(8, seed=1)
    expected = np.argsort(-(queries.astype(np.float64) @ base.T.astype(np.float64)), axis=1)[:, :count]
    for products, rows in (nearest(base, queries, count), nearest_by_numpy(base, queries, count)):
        assert np.array_equal(rows, expected)
        np.testing.assert_allclose(products, np.take_along_axis(queries @ base.T, rows, axis=1), atol=1e-6)


def windows_of(inputs: Sequence[tuple[str, int, str, float, float]]) -> pa.Table:
    names = ("input", "window", "crop", "start", "end")
    return pa.table(dict(zip(names, map(list, zip(*inputs, strict=True)), strict=True)))


def test_hits_are_the_same_with_and_without_faiss_though_many_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    base = np.repeat(vectors(40), 50, axis=0)  # stills: fifty windows each that look the same
    table = windows_of([(f"{row % 7}.mp4", row, "center", 2.0 * row, 2.0 * row + 2) for row in range(len(base))])
    query = vectors(1, seed=3)[0]
    with_faiss = best_hits(table, base.copy(), query, 70)
    without_faiss(monkeypatch)
    assert best_hits(table, base.copy(), query, 70) == with_faiss
    assert [one.rank for one in with_faiss] == list(range(1, 71))
    cosines = np.sort(base @ query)[::-1][:70]
    np.testing.assert_allclose([one.similarity for one in with_faiss], cosines, atol=1e-5)


def towards(query: NDArray[np.float32], angles: Sequence[float]) -> NDArray[np.float32]:
    """Vectors of these angles, in degrees, to ``query`` [1, 0]."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_windows_that_overlap_and_crops_of_a_window_are_one_hit() -> None:
    query = np.array([1, 0], dtype=np.float32)
    rows = [
        (("a.mp4", 0, "center", 0.0, 2.0), 20),  # overlaps with the next, which is better
        (("a.mp4", 1, "center", 1.0, 3.0), 10),
        (("a.mp4", 2, "center", 2.0, 4.0), 15),  # overlaps with the one before
        (("a.mp4", 3, "center", 3.0, 5.0), 30),  # begins where the best ends
        (("b.mp4", 1, "center", 1.0, 3.0), 12),  # the same seconds of another input
        (("c.png", 0, "first", 0.0, 0.0), 40),
        (("c.png", 0, "last", 0.0, 0.0), 35),
    ]
    table = windows_of([row for row, _ in rows])
    hits = best_hits(table, towards(query, [angle for _, angle in rows]), query, 10)
    assert hits == [
        Hit(1, "a.mp4", 1, 1.0, 3.0, round(math.cos(math.radians(10)), 6)),
        Hit(2, "b.mp4", 1, 1.0, 3.0, round(math.cos(math.radians(12)), 6)),
        Hit(3, "a.mp4", 3, 3.0, 5.0, round(math.cos(math.radians(30)), 6)),
        Hit(4, "c.png", 0, 0.0, 0.0, round(math.cos(math.radians(35)), 6)),
    ]
    assert hits[0].to_dict() == {
        "rank": 1,
        "input": "a.mp4",
        "window": 1,
        "start": 1.0,
        "end": 3.0,
        "similarity": 0.984808,
    }
    assert hits[0].rows() == [hits[0].to_dict()] and hits[0].error is None


def test_hits_are_found_below_hundreds_of_windows_that_are_merged() -> None:
    query = np.array([1, 0], dtype=np.float32)
    rows = [("slow.mp4", number, "center", number / 1000, 5.0) for number in range(900)]
    rows += [("other.mp4", number, "center", 2.0 * number, 2.0 * number + 2) for number in range(3)]
    base = towards(query, [*np.linspace(1, 2, 900), 50, 60, 70])
    hits = best_hits(windows_of(rows), base, query, 3)
    assert [(one.input, one.window) for one in hits] == [("slow.mp4", 0), ("other.mp4", 0), ("other.mp4", 1)]


def test_hits_of_one_input_are_as_many_as_are_asked_for() -> None:
    query = np.array([1, 0], dtype=np.float32)
    rows = [("match.mp4", number, "center", 2.0 * number, 2.0 * number + 2) for number in range(900)]
    rows += [("other.mp4", number, "center", 2.0 * number, 2.0 * number + 2) for number in range(3)]
    table, base = windows_of(rows), towards(query, [*np.linspace(1, 2, 900), 50, 60, 70])
    for per_video, expected in (
        (None, [("match.mp4", number) for number in range(4)]),  # as without the option
        (1, [("match.mp4", 0), ("other.mp4", 0)]),
        (2, [("match.mp4", 0), ("match.mp4", 1), ("other.mp4", 0), ("other.mp4", 1)]),
    ):
        hits = best_hits(table, base.copy(), query, 4, per_video)
        assert [(hit.input, hit.window) for hit in hits] == expected
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


# --- search: files ----------------------------------------------------------------------------------------------------

#: Seconds of a window of the small model: 4 frames of stride 4, of 30 a second.
WINDOW = 16 / 30


def write_colours(path: Path, colours: Sequence[tuple[int, int, int]]) -> Path:
    """Each colour for the 16 frames of one window, in a pattern that has edges."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(16 * len(colours)):
            picture = np.zeros((48, 64, 3), dtype=np.uint8)
            picture[:, number % 16 :: 16] = 255
            picture[8:40, 8:56] = colours[number // 16]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


FILMS = {
    "long.mp4": [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)],
    "grey.mp4": [(90, 90, 90)],
    "cyan.mp4": [(0, 255, 255)],
    "white.mp4": [(255, 255, 255)],
}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of plain colours, an image, and what is neither."""
    folder = tmp_path_factory.mktemp("films")
    for name, colours in FILMS.items():
        write_colours(folder / name, colours)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return folder


@pytest.fixture(scope="module")
def index(films: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``hiera-video extract`` makes of them."""
    output = tmp_path_factory.mktemp("index") / "features"
    (summary,) = extract([str(films)], output=output, model=str(tiny_model), num_workers=1, device="cpu")
    assert (summary.windows, summary.failed) == (8, 0)
    return output


@pytest.mark.parametrize("name", ["grey.mp4", "cyan.mp4", "white.mp4", "noise.png"])
def test_an_input_of_the_index_finds_itself_first(name: str, films: Path, index: Path) -> None:
    hits = list(search(str(films / name), index=index, top_k=5, device="cpu"))
    assert hits[0].input == str(films / name) and hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert [one.rank for one in hits] == [1, 2, 3, 4, 5]
    assert hits[1].similarity < 0.9999


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [
        (None, 0.7, 0),
        (0.5, 1.1, 1),
        (1.3, 1.4, 2),  # shorter than a window, around its middle
        (1.75, 1.8, 3),  # shorter than a window, before its middle
        (1.7, None, 3),
        (1.7, 100.0, 3),
    ],
)
def test_a_stretch_finds_the_window_whose_middle_lies_in_it(
    start: float | None, end: float | None, window: int, films: Path, index: Path
) -> None:
    best = next(search(str(films / "long.mp4"), index=index, start=start, end=end, device="cpu"))
    assert (Path(best.input).name, best.window) == ("long.mp4", window)
    assert (best.start, best.end) == (pytest.approx(window * WINDOW), pytest.approx((window + 1) * WINDOW))
    assert best.similarity == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("start", "end", "windows"), [(None, None, [0, 1, 2, 3]), (0.5, 1.6, [1, 2])])
def test_the_windows_of_a_stretch_are_averaged(
    start: float | None, end: float | None, windows: list[int], films: Path, index: Path
) -> None:
    table, embeddings = read_vectors(index)
    mine = np.array([name == str(films / "long.mp4") for name in table["input"].to_pylist()])
    mean = embeddings[mine][windows].mean(axis=0)
    expected = unit(embeddings.copy()) @ mean / np.linalg.norm(mean)
    hits = list(search(str(films / "long.mp4"), index=index, start=start, end=end, device="cpu"))
    np.testing.assert_allclose([one.similarity for one in hits], np.sort(expected)[::-1], atol=1e-4)


def test_the_query_is_embedded_as_the_index_was(films: Path, tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"window": 1.0, "hop": 0.4, "crop": "three", "num_workers": 1, "device": "cpu"}
    list(extract([str(films / "long.mp4"), str(films / "grey.mp4")], output=tmp_path, model=str(tiny_model), **options))
    hits = list(search(str(films / "grey.mp4"), index=tmp_path, device="cpu"))
    assert hits[0].input == str(films / "grey.mp4")
    best = next(search(str(films / "long.mp4"), index=tmp_path, start=0.8, end=1.0, device="cpu"))
    assert (best.window, best.start, best.end) == (1, pytest.approx(0.4), pytest.approx(1.4))
    spans = sorted((one.start, one.end) for one in hits if one.input == str(films / "long.mp4"))
    assert len(spans) > 1 and all(one[1] <= two[0] for one, two in pairwise(spans))


def test_an_index_of_other_weights_is_refused(films: Path, index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "old")
    facts = json.loads((index / "extraction.json").read_text())
    (tmp_path / "old" / "extraction.json").write_text(json.dumps(facts | {"weights": "0" * 16}))
    with pytest.raises(RequestError, match=r"has other weights than when .*old was made: extract it again"):
        search(str(films / "grey.mp4"), index=tmp_path / "old", device="cpu")


@pytest.mark.parametrize(
    ("query", "options", "said"),
    [
        ("grey.mp4", {"top_k": 0}, "top_k is 0, but is at least 1"),
        ("grey.mp4", {"per_video": 0}, "per_video is 0, but is at least 1"),
        ("grey.mp4", {"start": 2.0, "end": 2.0}, "from 2 to 2 s is no part of a video"),
        ("grey.mp4", {"start": -1.0}, "from -1 to inf s is no part of a video"),
        ("grey.mp4", {"end": 0.0}, "from 0 to 0 s is no part of a video"),
        ("grey.mp4", {"end": math.nan}, "is no part of a video"),
        ("grey.mp4", {"start": 0.54}, "grey.mp4 ends before 0.54 s: name a stretch that lies in it"),
        ("long.mp4", {"start": 3000.0}, "long.mp4 ends before 3000 s"),
        ("noise.png", {"start": 0.0}, "noise.png is an image, which lasts no time"),
    ],
)
def test_a_stretch_that_is_none_is_refused(
    query: str, options: dict[str, Any], said: str, films: Path, index: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        search(str(films / query), index=index, device="cpu", **options)


def test_a_query_that_cannot_be_read_is_named(films: Path, index: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 200)
    for path in (tmp_path / "text.mp4", tmp_path / "missing.mp4", films):
        with pytest.raises(UnreadableVideo, match=str(path)):
            search(str(path), index=index, device="cpu")


@pytest.mark.parametrize(
    "job", [lambda folder, film: search(film, index=folder), lambda folder, film: probe(str(folder))]
)
def test_a_folder_that_is_no_extraction_is_refused(
    job: Callable[[Path, str], object], films: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=f"{tmp_path} holds no features"):
        job(tmp_path, str(films / "grey.mp4"))
