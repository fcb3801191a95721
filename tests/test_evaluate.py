"""``evaluate``: each video once, by the protocol; what cannot be read is told, not replaced; and nothing done twice."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from assets import Asset
from PIL import Image
from torch import Tensor, nn

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.sampling import segment_clips
from hiera_video.data.views import load_ahead, segments_of
from hiera_video.errors import OutputError, RequestError
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.tasks.classify.classifier import Scored, Scorer, VideoClassifier, score_views
from hiera_video.tasks.evaluate import job as module
from hiera_video.tasks.evaluate.class_scores import class_scores
from hiera_video.tasks.evaluate.job import evaluate
from hiera_video.tasks.evaluate.metrics import Scores, match_classes, metrics, put_together
from hiera_video.training.recipe import EvaluateData, EvaluateModel, EvaluateRun, Evaluation

NUM_VIDEOS = 7
BAD = 3
SPEC = ClipSpec(num_frames=4, size=(32, 32), resize=36)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.mp4 to 6.mp4, of which 3.mp4 is no video."""
    made = tmp_path_factory.mktemp("evaluated")
    for number in range(NUM_VIDEOS):
        width, height = (64, 48) if number % 2 else (48, 64)
        Asset(f"{number}.mp4", num_frames=24 + 4 * number, width=width, height=height).write(made)
    (made / f"{BAD}.mp4").write_text("this is no video\n" * 200)
    return made


@pytest.fixture(scope="module")
def predicted(folder: Path, tiny_model: Path) -> list[str | None]:
    """What ``classify`` says of each: the other way from files to answers."""
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    files = [str(folder / f"{number}.mp4") for number in range(NUM_VIDEOS)]
    return [one.predictions[0].label if one.predictions else None for one in classifier.stream(files)]


@pytest.fixture
def listed(folder: Path, predicted: list[str | None], tmp_path: Path) -> Path:
    """A list in which videos 0, 1, 2 have the right class, 4, 5 and 6 another one; 3 is not readable."""
    labels = [name if name and number < 3 else "abcdef"[number - 1] for number, name in enumerate(predicted)]
    labels = [
        "f" if name == label and number > 3 else label
        for number, (name, label) in enumerate(zip(predicted, labels, strict=True))
    ]
    file = tmp_path / "list.csv"
    lines = [f"{folder / f'{number}.mp4'},{label}" for number, label in enumerate(labels)]
    file.write_text("\n".join(["path,label", *lines]) + "\n")
    return file


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs whose pictures are not the question: drawing takes longer than scoring."""
    monkeypatch.setattr(module, "draw_pictures", lambda *args, **more: None)


def recipe(source: Path, model: Path, *, data: dict[str, Any] | None = None, **run: Any) -> Evaluation:
    return Evaluation(
        data=EvaluateData(source=str(source), **{"num_workers": 0, **(data or {})}),
        model=EvaluateModel(start=str(model)),
        run=EvaluateRun(**{"device": "cpu", **run}),
    )


def videos_of(folder: Path, numbers: list[int]) -> VideoList:
    return VideoList.make([str(folder / f"{one}.mp4") for one in numbers], [0] * len(numbers), list("abcdef"))


def scored(
    model: nn.Module,
    videos: VideoList,
    views: tuple[int, int] = (2, 3),
    *,
    spec: ClipSpec = SPEC,
    batch_size: int = 8,
    num_workers: int = 0,
    indices: range | None = None,
) -> list[Scored]:
    loaded = load_ahead(segments_of(videos, indices), spec, *views, num_workers=num_workers)
    return list(score_views(Scorer(model, spec, CPU, torch.float32), loaded, batch_size=batch_size))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_neither_workers_nor_batch_size_change_a_score(folder: Path, tiny_model: Path) -> None:
    model, videos = from_pretrained(tiny_model), videos_of(folder, list(range(NUM_VIDEOS)))
    runs = [
        put_together(scored(model, videos, batch_size=size, num_workers=workers), 6)
        for size, workers in ((4, 0), (4, 2), (1, 0), (6, 0), (100, 0))
    ]
    assert runs[0].index.tolist() == [0, 1, 2, 4, 5, 6] and runs[0].index.dtype == np.int64
    assert runs[0].scores.shape == (6, 6) and runs[0].scores.dtype == np.float32
    assert np.array_equal(runs[0].scores, runs[1].scores)
    for run in runs:
        assert np.array_equal(run.index, runs[0].index) and list(run.errors) == [BAD]
        np.testing.assert_allclose(run.scores, runs[0].scores, atol=1e-6)
    assert "3.mp4" in runs[0].errors[BAD]


def test_scores_are_those_of_classify(folder: Path, tiny_model: Path) -> None:
    """Mean of the softmax over views, in a batch that mixes videos."""
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    videos = videos_of(folder, [0, 1, 2])
    for item in scored(classifier.model, videos, batch_size=5):
        answer = classifier(videos.path(item.index), top_k=6, views="2x3")
        assert item.scores == pytest.approx(
            [one.score for one in sorted(answer.predictions, key=lambda one: one.index)], 1e-5
        )


class Counting(nn.Module):
    """Gives the brightness of each clip as a logit, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.seen: list[tuple[int, ...]] = []
        self.modes: set[bool] = set()

    def forward(self, clips: Tensor) -> Tensor:
        self.seen.append(tuple(clips.shape))
        self.modes.add(self.training or self.head.training)
        return torch.stack([clips.flatten(1).mean(dim=1), torch.zeros(len(clips))], dim=1)


def test_clips_of_several_videos_fill_a_batch_and_the_models_mode_comes_back(folder: Path) -> None:
    model = Counting()
    model.head.eval()
    done = scored(model, videos_of(folder, [0, 1, 2, 4]), (1, 3), batch_size=5)
    assert [shape[0] for shape in model.seen] == [5, 5, 2] and model.seen[0][1:] == (3, 4, 32, 32)
    assert model.modes == {False} and (model.training, model.head.training) == (True, False)
    assert [one.index for one in done] == [0, 1, 2, 3]


def test_an_image_model_sees_single_pictures(folder: Path, tiny_image_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8)).save(tmp_path / "grey.png")
    videos = VideoList.make([str(folder / "0.mp4"), str(tmp_path / "grey.png")], [0, 1], list("abcdef"))
    model = from_pretrained(tiny_image_model)
    found = put_together(scored(model, videos, (3, 1), spec=model.spec), 6)
    assert found.scores.sum(axis=1) == pytest.approx([1, 1]) and not found.errors


def test_each_process_takes_every_other_video_and_gathering_gives_none_twice(folder: Path, tiny_model: Path) -> None:
    model, videos = from_pretrained(tiny_model), videos_of(folder, list(range(NUM_VIDEOS)))
    whole = put_together(scored(model, videos, (1, 1)), 6)
    shares = [range(rank, NUM_VIDEOS, 3) for rank in range(3)]
    parts = [scored(model, videos, (1, 1), indices=share) for share in shares]
    assert [[item.index for item in part] for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    together = put_together([item for part in (*parts, parts[0]) for item in part], 6)
    assert np.array_equal(together.index, whole.index) and together.errors == whole.errors
    np.testing.assert_allclose(together.scores, whole.scores, atol=1e-6)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_top1_and_top5_by_hand() -> None:
    """Four readable videos of seven classes: two are right at once, one among five; the fifth has no label."""
    table = np.array(
        [
            [0.9, 0.1, 0, 0, 0, 0, 0],
            [0.2, 0.5, 0.1, 0.1, 0.1, 0, 0],
            [0.30, 0.25, 0.20, 0.15, 0.10, 0, 0],
            [0.30, 0.25, 0.20, 0.15, 0.08, 0.02, 0],
            [0, 0, 0, 0, 0, 0, 1],
        ],
        dtype=np.float32,
    )
    videos = VideoList.make(list("uvwxyz"), [0, 1, 4, 6, -1, 1], list("abcdefg"))
    scores = Scores(np.array([0, 1, 2, 3, 4]), table, {5: "z cannot be read"})
    found = metrics(scores, videos)
    macro = {"macro": 0.5, "macro_f1": (2 * 1 / (1 + 3) + 1 + 0 + 0) / 4}  # a is named three times, and right once
    assert found == {"top1": 0.5, "top5": 0.75, **macro, "videos": 4, "listed": 6}
    total, *classes = class_scores(scores, videos)
    assert (total.name, total.listed, total.videos, total.error) == ("all", 6, 4, "1 of 6 videos could not be read")
    error = (0.1 + 0.5 + 2 * 0.3) / 4  # one is right at 0.9, one at 0.5, two are wrong at 0.3
    assert total.values == {"top1": 0.5, "top5": 0.75, **macro, "ece": pytest.approx(error)}
    assert [(one.name, one.listed, one.videos, one.values["top1"], one.values["top5"]) for one in classes] == [
        ("a", 1, 1, 1, 1),
        ("b", 2, 1, 1, 1),
        ("e", 1, 1, 0, 1),
        ("g", 1, 1, 0, 0),
        ("(no label)", 1, 0, None, None),
    ]
    (row,) = classes[2].rows()
    assert list(row) == [
        *("class", "listed", "videos", "top1", "top5", "top1_low", "top1_high", "top5_low", "top5_high", "error"),
    ]
    assert (row["class"], row["listed"], row["videos"], row["top1"], row["top5"]) == ("e", 1, 1, 0.0, 1.0)


def test_videos_without_any_label_are_refused(tmp_path: Path, tiny_model: Path, videos: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.mp4").symlink_to(videos / "a.mp4")
    with pytest.raises(RequestError, match=r"flat/a.mp4 and all others have no label to count by: name class folders"):
        list(evaluate(recipe(tmp_path / "flat", tiny_model)))


def test_fewer_than_five_classes_and_nothing_to_count() -> None:
    videos = VideoList.make(["u", "v"], [1, 0], ["a", "b"])
    scores = Scores(np.array([0]), np.array([[0.8, 0.2]], dtype=np.float32), {1: "v: no"})
    assert metrics(scores, videos) == {"top1": 0, "top5": 1, "macro": 0, "macro_f1": 0, "videos": 1, "listed": 2}
    none = Scores(np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.float32), {0: "u: no", 1: "v: no"})
    assert np.isnan(metrics(none, videos)["top1"]) and metrics(none, videos)["videos"] == 0
    total, *classes = class_scores(none, videos)
    assert total.error == "none of 2 videos could be read; the first: u: no" and total.values["top1"] is None
    assert [(one.name, one.listed, one.videos) for one in classes] == [("a", 1, 0), ("b", 1, 0)]


def test_the_mean_average_precision_by_hand() -> None:
    """Class a: right at ranks 1 and 3: (1 + 2/3) / 2; b: at rank 2: 1/2; no readable video has c."""
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=np.float32)
    table = np.array([[0.9, 0.7, 0.5], [0.8, 0.6, 0.5], [0.7, 0.1, 0.5], [0.1, 0.2, 0.5]], dtype=np.float32)
    videos = VideoList.make(list("vwxyz"), labels, ["a", "b", "c"])
    scores = Scores(np.arange(4), table, {4: "z: no"})
    found = metrics(scores, videos)
    assert found == {"map": pytest.approx((5 / 6 + 1 / 2) / 2), "videos": 4, "listed": 5}
    total, *classes = class_scores(scores, videos)
    assert total.to_dict()["map"] == pytest.approx(2 / 3, abs=1e-6)
    assert [(one.name, one.listed, one.videos, one.values["map"]) for one in classes] == [
        ("a", 2, 2, pytest.approx(5 / 6)),
        ("b", 1, 1, pytest.approx(1 / 2)),
        ("c", 1, 0, None),
    ]


# --- classes ----------------------------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return " | ".join(caplog.messages)


def test_classes_in_another_order_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hiera_video")
    videos = VideoList.make(list("wxyz"), [0, 1, 2, -1], ["pan_left", "zoom", "skiing not slalom"])
    found = match_classes(videos, ["skiing (not slalom)", "pan left", "zoom"], 3)
    assert found.labels.tolist() == [1, 2, 0, -1] and found.classes == ["skiing (not slalom)", "pan left", "zoom"]
    assert found.path(2) == "y"
    assert caplog.messages == ["the list has the model's 3 classes in another order: matched by name"]


def test_equal_classes_are_left_alone_and_fewer_are_matched(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hiera_video")
    videos = VideoList.make(["x", "y"], [0, 1], ["a", "c"])
    assert match_classes(videos, ["a", "c"], 2) is videos and not caplog.messages
    assert match_classes(videos, ["c", "b", "a"], 3).labels.tolist() == [2, 0]
    assert caplog.messages == ["2 of the model's 3 classes are listed: matched by name"]
    several = VideoList.make(["x", "y"], [[1, 1], [0, 1]], ["a", "c"])
    assert match_classes(several, ["c", "b", "a"], 3).labels.tolist() == [[1, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("names", "labels", "count", "expected"),
    [
        (["x", "y"], None, 2, ["x", "y"]),
        (["0", "1"], ["a", "b"], 2, ["a", "b"]),
        (["0", "1"], None, 3, ["0", "1", "2"]),
        (["x", "y"], ["0", "1"], 2, ["x", "y"]),
        (["n01440764", "n01443537"], ["tench", "goldfish"], 2, ["tench", "goldfish"]),
    ],
)
def test_where_one_side_has_no_names_numbers_count(
    names: list[str], labels: list[str] | None, count: int, expected: list[str]
) -> None:
    videos = VideoList.make(["x", "y"], [1, 0], names)
    found = match_classes(videos, labels, count)
    assert found.labels.tolist() == [1, 0] and found.classes == expected


def test_a_class_that_the_model_lacks_is_refused_with_the_nearest() -> None:
    videos = VideoList.make(["x", "y"], [0, 1], ["surfing", "skateboard"])
    with pytest.raises(RequestError) as refused:
        match_classes(videos, ["surfing", "skateboarding", "skiing"], 3)
    sentence = "the videos to evaluate have the class 'skateboard', which the model lacks; its nearest is"
    assert str(refused.value) == f"{sentence} 'skateboarding'"
    unused = VideoList.make(["x"], [0], ["surfing", "skateboard"])
    assert match_classes(unused, ["skiing", "surfing"], 2).labels.tolist() == [1]
    with pytest.raises(RequestError, match="the list has 2 classes and the model 3 of other names or none"):
        match_classes(videos, None, 3)


# --- the job ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_counts_what_can_be_read_and_writes_it(
    folder: Path, listed: Path, predicted: list[str], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "runs" / "e1"
    records = evaluate(recipe(listed, tiny_model, output=str(output)))
    length, found = len(records), list(records)
    assert length == len(found) and found[0].name == "all"
    total = found[0].to_dict()
    assert (total["listed"], total["videos"], total["top1"]) == (7, 6, 0.5)  # 3 of 6
    assert total["error"] == "1 of 7 videos could not be read" and "3.mp4" in logged(caplog)

    table = pq.read_table(output / "scores.parquet")
    rows = table.to_pylist()
    assert table.column_names == [
        *("path", "label", "label_name", "prediction", "prediction_name", "score", "error", "scores"),
    ]
    assert [row["path"] for row in rows] == [str(folder / f"{number}.mp4") for number in range(NUM_VIDEOS)]
    assert [row["prediction_name"] for row in rows] == predicted and rows[0]["label_name"] == predicted[0]
    assert rows[0]["score"] == max(rows[0]["scores"]) == rows[0]["scores"][rows[0]["prediction"]]
    assert sum(rows[0]["scores"]) == pytest.approx(1) and rows[0]["error"] is None
    bad = rows[BAD]
    assert bad["scores"] is None and bad["prediction"] is None and bad["score"] is None and "3.mp4" in bad["error"]

    result = json.loads((output / "result.json").read_text())
    assert (result["top1"], result["videos"], result["listed"], result["views"]) == (0.5, 6, 7, "2x1")
    assert [one["path"] for one in result["bad"]] == [str(folder / "3.mp4")]
    lines = list(csv.DictReader((output / "classes.csv").open()))
    assert list(lines[0]) == [
        *("class", "listed", "videos", "top1", "top5", "macro", "macro_f1"),
        *("top1_low", "top1_high", "top5_low", "top5_high", "error"),
    ]
    assert sum(int(line["videos"]) for line in lines) == 6
    with Image.open(output / "confusion.png") as picture:
        assert picture.width > 100
    tables = ["classes.csv", "confused.csv", "parts", "result.json", "scores.parquet"]
    pictures = ["confusion.png", "reliability.png", "worst_videos.png"]
    assert sorted(os.listdir(output)) == sorted([*tables, *pictures])


def test_without_an_output_nothing_is_written(
    listed: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert next(iter(evaluate(recipe(listed, tiny_model)))).values["top1"] == 0.5
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.usefixtures("no_pictures")
def test_videos_without_a_label_are_scored_and_not_counted(
    listed: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_videos(*args: Any, **more: Any) -> VideoList:
        found = real(*args, **more)
        return replace(found, labels=np.where(np.arange(NUM_VIDEOS) > 4, -1, found.labels))

    real = module.list_videos
    monkeypatch.setattr(module, "list_videos", list_videos)
    records = evaluate(recipe(listed, tiny_model, output=str(tmp_path / "out")))
    length, found = len(records), list(records)
    assert length == len(found) and found[0].to_dict()["top1"] == 0.75 and found[0].videos == 4
    assert (found[-1].name, found[-1].listed, found[-1].videos) == ("(no label)", 2, 0)
    row = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()[6]
    assert (row["label"], row["label_name"]) == (-1, None) and row["prediction"] is not None


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of videos that are read from here on."""
    seen: list[int] = []
    real = module.load_ahead

    def load_ahead(segments: Any, *args: Any, **more: Any) -> Any:
        chosen = list(segments)
        seen.extend(segment.index for segment in chosen)
        return real(chosen, *args, **more)

    monkeypatch.setattr(module, "load_ahead", load_ahead)
    return seen


@pytest.mark.usefixtures("no_pictures")
def test_a_killed_run_goes_on_behind_its_half_line(
    listed: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part of a run that was killed while it wrote its fifth line; the bad video is tried again."""
    wanted = recipe(listed, tiny_model, output=str(tmp_path / "out"))
    first = list(evaluate(wanted))
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    part = tmp_path / "out" / "parts" / "rank0000.jsonl"
    whole = part.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["index"] for line in whole[1:]] == list(range(NUM_VIDEOS))
    part.write_bytes(b"".join(whole[:5]) + whole[5][:30])
    (tmp_path / "out" / "scores.parquet").unlink()

    seen = asked_for(monkeypatch)
    assert list(evaluate(wanted)) == first and seen == [3, 4, 5, 6]
    assert pq.read_table(tmp_path / "out" / "scores.parquet").drop(["scores", "score"]) == scores.drop(
        ["scores", "score"]
    )
    assert part.read_bytes().startswith(b"".join(whole[:5]))
    assert all(json.loads(line) for line in part.read_bytes().splitlines())
    seen.clear()
    assert list(evaluate(wanted)) == first and seen == [3]
    # Half of the first line alone, as a run killed at once leaves it.
    part.write_bytes(whole[0][:20])
    seen.clear()
    assert list(evaluate(wanted)) == first and seen == list(range(NUM_VIDEOS))


@pytest.mark.usefixtures("no_pictures")
def test_what_other_processes_scored_before_is_not_scored_again(
    listed: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of three processes, killed, goes on in one."""
    wanted = recipe(listed, tiny_model, output=str(tmp_path / "out"))
    first = list(evaluate(wanted))
    parts = tmp_path / "out" / "parts"
    header, *lines = (parts / "rank0000.jsonl").read_bytes().splitlines(keepends=True)
    (parts / "rank0000.jsonl").write_bytes(header + lines[0])
    (parts / "rank0001.jsonl").write_bytes(header + lines[1] + lines[4] + lines[5][:9])
    (parts / "rank0002.jsonl").write_bytes(header + lines[2])
    seen = asked_for(monkeypatch)
    assert list(evaluate(wanted)) == first and seen == [3, 5, 6]


@pytest.mark.usefixtures("no_pictures")
def test_parts_of_another_evaluation_are_refused_and_left_alone(
    folder: Path, listed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    list(evaluate(recipe(listed, tiny_model, output=str(output))))
    part = output / "parts" / "rank0000.jsonl"
    content = part.read_bytes()
    torch.manual_seed(1)
    other_model = save_pretrained(from_pretrained(tiny_model, num_classes=6, head_init_scale=1.0), tmp_path / "other")
    state = from_pretrained(other_model)
    with torch.no_grad():
        state.norm.weight.mul_(1.5)
    save_pretrained(state, other_model)
    shorter = tmp_path / "shorter.csv"
    shorter.write_text(f"path,label\n{folder / '0.mp4'},a\n")
    for changed, field in (
        (recipe(listed, other_model, output=str(output)), "weights"),
        (recipe(listed, tiny_model, output=str(output), data={"views": "1x3"}), "views was 2x1, is now 1x3"),
        (recipe(listed, tiny_model, output=str(output), precision="bf16"), "precision was float32, is now bfloat16"),
        (recipe(shorter, tiny_model, output=str(output)), "list"),
    ):
        with pytest.raises(RequestError, match=f"another evaluation .{field}") as refused:
            list(evaluate(changed))
        assert "name another run.output" in str(refused.value) and "\n" not in str(refused.value)
    part.write_text("my notes\n")
    with pytest.raises(RequestError, match="another evaluation"):
        list(evaluate(recipe(listed, tiny_model, output=str(output))))
    assert part.read_text() == "my notes\n"
    part.write_bytes(content)
    list(evaluate(recipe(listed, tiny_model, output=str(output))))


def test_an_output_that_cannot_be_is_told_before_a_video_is_read(
    listed: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    seen = asked_for(monkeypatch)
    with pytest.raises(OutputError, match="cannot be written"):
        list(evaluate(recipe(listed, tiny_model, output=str(tmp_path / "file"))))
    assert seen == []


def test_segments_and_views_are_the_cards_unless_said(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of Something-Something's kind: frames of the whole video, one clip of three crops."""
    (tmp_path / "list.csv").write_text(f"{folder / '0.mp4'},a\n{folder / '1.mp4'},b\n")
    card = {
        "name": "small",
        "format": "list",
        "num_classes": 6,
        "classes": list("abcdef"),
        "splits": {"val": {"folder": ["."], "annotations": ["list.csv"]}},
        "layout": "a list",
        "source": "made here",
        "licence": "none",
        "sampling": {"rule": "segments", "num_frames": 16, "views": "1x3", "flip": False},
    }
    (tmp_path / "small.yaml").write_text(json.dumps(card))
    looked: list[tuple[int, int, list[list[int]] | None]] = []
    times = np.arange(24) / 24

    def load_ahead(segments: Any, spec: Any, num_clips: int, num_crops: int, *, sample: Any, **more: Any) -> Any:
        rows = None if sample is None else sample(times, np.random.default_rng(0)).tolist()
        looked.append((num_clips, num_crops, rows))
        return iter(())

    monkeypatch.setattr(module, "load_ahead", load_ahead)
    source = tmp_path / "small.yaml"
    list(evaluate(recipe(source, tiny_model, data={"root": str(tmp_path), "sampling": None})))
    list(evaluate(recipe(source, tiny_model, data={"root": str(tmp_path), "sampling": "dense", "views": "5x1"})))
    list(evaluate(recipe(tmp_path / "list.csv", tiny_model, data={"sampling": "segments"})))
    one, two = (segment_clips(times, SPEC, num_clips=number).tolist() for number in (1, 2))
    assert looked == [(1, 3, one), (5, 1, None), (2, 1, two)]


def test_a_top1_near_zero_on_many_classes_says_that_their_order_may_be_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for num_classes, told in ((99, False), (400, True)):
        videos = VideoList.make(["x"], [0], [f"class {number}" for number in range(num_classes)])
        scores = Scores(np.array([0]), np.eye(num_classes, dtype=np.float32)[1:2], {})
        caplog.clear()
        module._say(class_scores(scores, videos)[0], scores, videos)
        assert ("their order in the list may not be the model's" in logged(caplog)) == told


def test_scores_that_are_not_finite_end_the_run(listed: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = from_pretrained(tiny_model)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    broken = save_pretrained(model, tmp_path / "broken")
    with pytest.raises(RequestError, match=r"0.mp4 are not finite in float32: take run.precision fp32"):
        list(evaluate(recipe(listed, broken)))


def test_a_video_of_several_labels_is_scored_by_the_sigmoid(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "several.csv"
    file.write_text(f"path,labels\n{folder / '0.mp4'},a;b\n{folder / '1.mp4'},b\n{folder / '2.mp4'},\n")
    found = list(evaluate(recipe(file, tiny_model, output=str(tmp_path / "out"))))
    assert [one.name for one in found] == ["all", "a", "b"] and list(found[0].values) == ["map", "ece"]
    assert (found[0].listed, found[0].videos, found[0].error) == (3, 3, None)
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [row["label"] for row in rows] == [[0, 1], [1], []] and rows[0]["label_name"] == ["a", "b"]
    assert sum(rows[0]["scores"]) != pytest.approx(1, abs=0.1)
    assert not (tmp_path / "out" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"source": None}, "data.source"),
        ({"source": "nowhere"}, "there is no file, folder or card 'nowhere'"),
    ],
)
def test_a_wrong_request_is_one_sentence(data: dict[str, Any], sentence: str, listed: Path, tiny_model: Path) -> None:
    wanted = Evaluation(
        data=EvaluateData(**{"source": str(listed), **data}), model=EvaluateModel(start=str(tiny_model))
    )
    with pytest.raises(RequestError, match=sentence) as refused:
        evaluate(wanted)
    assert "\n" not in str(refused.value)


PAIR = """
import json, logging, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_evaluate import recipe
from hiera_video.tasks.evaluate.job import evaluate
logging.basicConfig(level=logging.INFO, format="%(message)s")
wanted = recipe(Path({source!r}), Path({model!r}), output={output!r}, device="auto")
print("RECORDS", json.dumps([one.to_dict() for one in evaluate(wanted)]))
"""


@pytest.mark.slow
def test_two_processes_give_the_same_and_go_on_from_one(listed: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Real ones; the second run goes on from what is left of the first one's single part."""
    alone = [one.to_dict() for one in evaluate(recipe(listed, tiny_model, output=str(tmp_path / "alone")))]
    output = tmp_path / "pair"
    script = tmp_path / "pair.py"
    names = {"source": str(listed), "model": str(tiny_model), "output": str(output)}
    script.write_text(PAIR.format(tests=str(Path(__file__).parent), **names))
    (output / "parts").mkdir(parents=True)
    whole = (tmp_path / "alone" / "parts" / "rank0000.jsonl").read_bytes().splitlines(keepends=True)
    (output / "parts" / "rank0000.jsonl").write_bytes(b"".join(whole[:2]) + whole[2][:30])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    given = [json.loads(line.removeprefix("RECORDS ")) for line in done.stdout.splitlines() if "RECORDS" in line]
    assert sorted(given, key=len) == [[], alone]
    tables = [pq.read_table(tmp_path / name / "scores.parquet") for name in ("alone", "pair")]
    for column in ("path", "label", "prediction", "error"):
        assert tables[0][column] == tables[1][column]
    parts = [(output / "parts" / f"rank000{rank}.jsonl").read_bytes().splitlines()[1:] for rank in (0, 1)]
    indices = [[json.loads(line)["index"] for line in part] for part in parts]
    assert indices == [[0, 1, 3, 5], [2, 4, 6]]
    assert "holds scores of 1 of 7 videos" in done.stderr


def test_fast_decoding_scores_every_video_too(listed: Path, tiny_model: Path) -> None:
    counted = []
    for decode in ("exact", "fast"):
        data = EvaluateData(source=str(listed), decode=decode, num_workers=0)
        total = next(iter(evaluate(Evaluation(data=data, model=EvaluateModel(start=str(tiny_model))))))
        counted.append(total.videos)
    assert counted[0] == counted[1]
