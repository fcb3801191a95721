"""Exports of annotation tools in training, and ``data import``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from annotation_tools import (
    EXPORTS,
    FPS,
    box,
    coco,
    cvat,
    cvat_document,
    cvat_meta,
    label_studio,
    rows,
    task,
    timeline,
    track,
    written,
)
from assets import H264, numbers_in

from hiera_video.cli import main
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import list_videos
from hiera_video.spec import Augment, ClipSpec
from hiera_video.tasks.train.data import lists_of
from hiera_video.training.recipe import Data


def test_the_lists_of_a_run_are_read_from_exports(pool: Path, tmp_path: Path) -> None:
    train, val = written(tmp_path / "train.json", label_studio()), written(tmp_path / "val.xml", cvat())
    lists = lists_of(Data(train=str(train), val=str(val), root=str(pool)))
    assert lists.train is not None and lists.val is not None
    assert rows(lists.train) == rows(lists.val)


@pytest.mark.slow  # a whole run
def test_finetune_takes_an_export(
    pool: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = written(tmp_path / "project.json", label_studio())
    argv = ["--train", file, "--val", file, "--data.root", pool, "--model", tiny_model, "--output", tmp_path / "run"]
    assert main(["finetune", *map(str, argv), "--run.duration", "1pass", "--data.num_workers", "0"]) == 0
    assert "4 videos of 2 classes" in caplog.text


def test_a_clip_of_a_labelled_segment_shows_its_frames_alone(tmp_path: Path) -> None:
    name = H264.write(tmp_path).name  # its frames are numbered
    file = written(tmp_path / "project.json", [task(name, timeline("jump", 30, 59), timeline("swim", 61, 66))])
    plain = Augment(crop_area=(1.0, 1.0), crop_aspect=(4 / 3, 4 / 3), flip=0.0, num_ops=0, erasing=0.0)
    spec = ClipSpec(num_frames=4, frame_stride=1, size=(32, 32), resize=40)
    dataset = ClipDataset(list_videos(file), spec, augment=plain, isolate=False)
    for epoch in range(4):
        for index, (first, last) in enumerate([(30, 59), (61, 66)]):
            pixels = dataset[epoch, index]["clip"][0].permute(1, 2, 3, 0).numpy()
            assert all(first <= number <= last for number in numbers_in(pixels))


@dataclass
class Run:
    code: int
    out: str
    err: str
    table: list[dict[str, str]]
    """The list that was written."""


@pytest.fixture
def run(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def start(*words: object) -> Run:
        output = tmp_path / "list.csv"
        code = main(["data", "import", *map(str, words), "--output", str(output)])
        out, err = capsys.readouterr()
        table = list(csv.DictReader(output.read_text().splitlines())) if output.exists() else []
        return Run(code, out, err, table)

    return start


def test_data_import_writes_a_list_that_reads_back_as_the_export(
    run: Callable[..., Run], pool: Path, tmp_path: Path
) -> None:
    files = [written(tmp_path / name, EXPORTS[name]()) for name in ("annotations.xml", "coco.json")]
    done = run(*files, "--root", pool)
    assert done.code == 0
    header, *lines = (line.split() for line in done.out.splitlines()[:5])
    assert header == ["label", "segments", "videos", "seconds", "left_out"]
    assert [line[:2] for line in lines[:3]] == [["jump", "2"], ["swim", "2"], ["all", "4"]]
    assert "it repeats another with this label, start and end" in done.out
    assert done.table[1] == {"path": f"{pool}/a.mp4", "start": "0.666667", "end": "0.7", "label": "swim"}
    assert rows(list_videos(tmp_path / "list.csv")) == rows(list_videos(files[0], root=pool))


def test_data_import_counts_as_json(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["indoor", "loud"]}}
    text = {"type": "textarea", "value": {"text": ["nice"]}}
    file = written(tmp_path / "x.json", [task("a.mp4", timeline("jump", 0, 5), text), task("b.mp4", choice)])
    done = run(file, "--root", pool, "--format", "json")
    count = {"segments": 1, "videos": 1, "seconds": None, "left_out": "", "error": None}
    assert json.loads(done.out) == [
        {"label": "jump", **count, "seconds": 0.2},
        {"label": "indoor", **count},
        {"label": "loud", **count},
        {"label": "all", **count, "segments": 2, "videos": 2},
        {"label": "no label", **count, "left_out": "it is of the type textarea"},
    ]
    assert done.table[1] == {"path": f"{pool}/b.mp4", "start": "0", "end": "", "labels": "indoor;loud"}
    assert rows(list_videos(tmp_path / "list.csv")) == rows(list_videos(file, root=pool))


def test_background_lies_where_nobody_labelled_anything(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    document = cvat_document(
        cvat_meta(start=5, stop=54), track("jump", box(10, 0), box(13, 1)), track("swim", box(30, 0), box(36, 1))
    )
    again = task("b.mp4", timeline("jump", 20, 24))
    again["annotations"].append({"was_cancelled": True, "result": [timeline("jump", 28, 40)]})
    files = [written(tmp_path / "x.xml", document), written(tmp_path / "y.json", [again])]
    words = [*files, "--root", pool, "--background", 9, "--fps", 30]
    done = run(*words)
    assert done.code == 0
    taken: dict[str, list[tuple[float, float]]] = {}
    lengths = []
    for row in done.table:
        span = float(row["start"]) * FPS, float(row["end"]) * FPS
        taken.setdefault(Path(row["path"]).name, []).append(span)
        lengths += [round(span[1] - span[0], 3)] if row["label"] == "background" else []
    assert len(lengths) == 9 and set(lengths) <= {3, 5, 6}
    taken["b.mp4"].append((28, 41))  # it was labelled, if not for good
    assert min(taken["a.mp4"])[0] >= 5 and max(taken["a.mp4"])[1] <= 55  # the task's frames
    for some in taken.values():
        some.sort()
        assert all(before[1] <= after[0] + 1e-3 for before, after in pairwise(some))
    assert run(*words).table == done.table != run(*words, "--seed", 1).table


def test_background_has_no_more_segments_than_there_is_room(
    run: Callable[..., Run], pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = run(
        written(tmp_path / "x.json", [task("a.mp4", timeline("jump", 0, 24))]), "--root", pool, "--background", 5
    )
    assert sum(row["label"] == "background" for row in done.table) == 1
    assert "background: there is room for 1 of 5 segments where nobody labelled anything" in caplog.text


def test_a_bad_export_is_told_and_the_others_are_written(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    good = written(tmp_path / "good.json", label_studio())
    bad = written(tmp_path / "bad.json", [{"id": 1, "template": "Holding [something]"}])
    done = run(bad, good, tmp_path / "absent.xml", "--root", pool)
    assert done.code == 1 and len(done.table) == 4
    lines = done.out.splitlines()[-2:]
    assert lines[0].startswith(f"{bad} is something else: expected an export of Label Studio (JSON), CVAT")
    assert lines[1].startswith(f"{tmp_path}/absent.xml cannot be read (No such file or directory)")


def test_nothing_is_written_where_nothing_is_labelled(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    done = run(written(tmp_path / "x.json", [task("a.mp4", {"type": "textarea", "value": {}})]), "--root", pool)
    assert done.code == 1 and not done.table
    assert done.out.splitlines()[-1] == f"{tmp_path}/list.csv is not written: there is no label"


def test_videos_that_are_not_there_stay_in_the_list_and_are_told(
    run: Callable[..., Run], pool: Path, tmp_path: Path
) -> None:
    done = run(written(tmp_path / "x.json", coco()))
    assert done.code == 1 and len(done.table) == 4
    sentence = f"2 videos are not there, such as {tmp_path}/clips/a.mp4: name their folder as --root"
    assert done.out.splitlines()[-1] == sentence


def test_a_semicolon_in_one_of_several_labels_is_refused(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["a;b", "c"]}}
    done = run(written(tmp_path / "x.json", [task("a.mp4", choice)]), "--root", pool)
    assert done.code == 2 and not done.table
    assert "label 'a;b' has a semicolon, which stands between labels: rename it" in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fps", "0"], "fps is 0, but must be above 0"),
        (["--fps", "fast"], "--fps is 'fast', but must be a number"),
        (["--background", "-1"], "background is -1, but must be at least 0"),
        (["--background", "some"], "--background is 'some', but must be a whole number"),
        (["--seed", "-3"], "seed is -3, but must be at least 0"),
        (["--root", ""], "--root is '', but must be a path"),
        (["--output", "{tmp}/x.json"], "output {tmp}/x.json is an export that would be lost: name another file"),
        (["--output", "{tmp}/no/list.csv"], "{tmp}/no/list.csv cannot be written: there is no folder {tmp}/no"),
    ],
)
def test_a_wrong_option_of_data_import_is_one_sentence(
    words: list[str], sentence: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "x.json", label_studio())
    words = [word.format(tmp=tmp_path) for word in words]
    output = [] if "--output" in words else ["--output", str(tmp_path / "list.csv")]
    assert main(["data", "import", str(file), *output, *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hiera-video: {sentence.format(tmp=tmp_path)}") and err.count("\n") == 1
