"""Copies of a film are named, however they were coded, cropped or cut; other films before the same wall are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_sets import write_video

from hiera_video import extract
from hiera_video.cli import main
from hiera_video.tasks.features.recordings import SAME, Film, compare

#: Like walls that people stand before, smooth with some detail.
WALL = sum(
    np.random.default_rng(size)
    .integers(0, 40, (96 // size, 128 // size), dtype=np.uint8)
    .repeat(size, 0)
    .repeat(size, 1)
    for size in (32, 16, 8, 4)
).astype(np.uint8)
#: Who walks: seed of the way and of the clothes.
WALKERS = range(4)


def walk(seed: int, seconds: float = 2.0) -> NDArray[np.uint8]:
    """Somebody in motley who goes up and down before the wall, uint8 [T, 96, 128, 3], 30 frames a second."""
    rng = np.random.default_rng(100 + seed)
    clothes = rng.integers(0, 256, (3, 2), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    speed, pace, begin = rng.uniform(15, 30), rng.uniform(3, 7), rng.uniform(0, 3)
    frames = np.repeat(WALL[None], round(30 * seconds), axis=0)
    for number, frame in enumerate(frames):
        x, y = 15 + speed * number / 30, 35 + 12 * np.sin(begin + pace * number / 30)
        frame[round(y) : round(y) + 30, round(x) : round(x) + 20] = clothes
    return np.repeat(frames[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with two walkers each before one wall; val/a/copy.mp4 is the first of train, from 0.3 s on, with
    an eighth cut off at each side.
    """
    folder = tmp_path_factory.mktemp("sets")
    for seed in WALKERS:
        place = folder / ("train" if seed < 2 else "val") / "ab"[seed % 2]
        place.mkdir(parents=True)
        write_video(place / f"{seed}.mp4", list(walk(seed)))
    write_video(folder / "val" / "a" / "copy.mp4", list(walk(0)[9:, 12:84, 16:112]))
    return folder


def records(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    assert main([*argv, "--format", "json"]) == code
    return list(json.loads(capsys.readouterr().out))


def test_a_cropped_copy_of_a_training_video_in_the_validation_folder_is_named_and_nothing_else(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["data", "leaks", "--train", str(sets / "train"), "--val", str(sets / "val"), "--num-workers", "1"]
    (found,) = records([*argv, "--device", "cpu"], capsys)
    assert (found["input"], found["other"]) == (f"{sets}/val/a/copy.mp4", f"{sets}/train/a/0.mp4")
    assert found["similarity"] > SAME and found["error"] is None
    times = [found[name] for name in ("start", "end", "other_start", "other_end")]
    assert times == pytest.approx([0, 1.7, 0.3, 2], abs=0.05)


def test_duplicates_of_an_extraction_are_named_once_with_what_could_not_be_read(
    sets: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(sets, videos)
    (videos / "text.mp4").write_text("this is no video")
    options: dict[str, Any] = {"model": str(tiny_model), "num_workers": 1, "device": "cpu"}
    list(extract([str(videos)], output=tmp_path / "out", **options))
    (videos / "train" / "b" / "1.mp4").unlink()
    copy, *failed = records(["data", "duplicates", str(tmp_path / "out")], capsys, code=1)
    assert {Path(copy["input"]).name, Path(copy["other"]).name} == {"copy.mp4", "0.mp4"}
    assert {Path(record["input"]).name for record in failed} == {"text.mp4", "1.mp4"}
    assert all(record["error"] and record["similarity"] is None for record in failed)
    main(["data", "duplicates", str(tmp_path / "out")])
    printed = capsys.readouterr().out.splitlines()
    assert any(" s  =  " in line and line.endswith(" s") for line in printed)
    assert sum("text.mp4 is not a video" in line for line in printed) == 1


def test_one_file_in_both_lists_is_a_leak_though_nobody_looks(
    sets: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"model": str(tiny_model), "num_workers": 1, "device": "cpu"}
    for name, parts in (("train", ["train"]), ("both", ["train/a", "val/b"])):
        list(extract([str(sets / part) for part in parts], output=tmp_path / name, **options))
    argv = ["data", "leaks", "--train", str(tmp_path / "train"), "--val", str(tmp_path / "both")]
    (found,) = records(argv, capsys)
    assert found["input"] == found["other"] == f"{sets}/train/a/0.mp4" and found["similarity"] == 1


def film(pixels: NDArray[np.uint8], start: float = 0.0) -> Film:
    """Every second frame of 30 a second, in grey, 48 pixels high."""
    grey = torch.from_numpy(pixels[::2, ..., 0].astype(np.float32))[None]
    size = [48, round(48 * pixels.shape[2] / pixels.shape[1])]
    return Film(torch.nn.functional.interpolate(grey, size, mode="bilinear", antialias=True)[0], start)


@pytest.mark.parametrize(
    ("rows", "columns", "first"),
    [(slice(None), slice(None), 20), (slice(0, 80), slice(0, 104), 0), (slice(6, 90), slice(8, 120), 7)],
)
def test_what_was_cut_off_and_when_it_begins_is_found(rows: slice, columns: slice, first: int) -> None:
    """The same at other seconds of each: the first is seen ``later`` seconds after the second."""
    whole = walk(0)
    alike, later = compare(film(whole, 4.0), film(whole[first:, rows, columns], 1.0))
    assert alike > 0.9 and later == pytest.approx(3.0 + first / 30, abs=0.04)
    turned, earlier = compare(film(whole[first:, rows, columns], 1.0), film(whole, 4.0))
    assert turned == pytest.approx(alike, abs=0.02) and earlier == pytest.approx(-later, abs=0.02)


def test_others_before_the_same_wall_and_walls_alone_are_no_copies() -> None:
    for seed in WALKERS[1:]:
        assert compare(film(walk(0)), film(walk(seed)))[0] < 0.7
    still = film(np.repeat(walk(0)[:1], 60, axis=0))
    assert compare(still, still)[0] < SAME


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["duplicates", "FOLDER", "--similarity", "1.5"], "similarity is 1.5, but is above 0 and at most 1"),
        (["duplicates", "FOLDER"], "holds no features"),
        (["leaks", "--train", "FOLDER"], "--val is missing"),
        (["leaks", "--train", "FOLDER/none", "--val", "FOLDER"], "there is no file, folder or card"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *(word.replace("FOLDER", str(tmp_path)) for word in argv)]) == 2
    assert said in capsys.readouterr().err
