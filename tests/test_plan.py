"""``hiera-video plan``: what is counted is what the job then does; what is measured is plausible; mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_sets import finetuning, pretraining, write_colours

from hiera_video.cli import main
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import from_pretrained
from hiera_video.tasks.plan import job, measure
from hiera_video.training.recipe import Finetuning, Pretraining
from hiera_video.training.recipe_file import load_recipe, to_yaml


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a fifth of a second."""
    monkeypatch.setattr(job, "SECONDS", 0.2)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of each of three colours."""
    return write_colours(tmp_path_factory.mktemp("colours"), 4, seed=0)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def planned(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = run(capsys, "plan", *words, "--format", "json")
    assert code == 0, err
    return json.loads(out)[0]


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.mp4"))


def flops(model: Hiera, clips: int, *, train: bool = False) -> int:
    """Of a model of the same kind that has no values."""
    with torch.device("meta"):
        twin = Hiera(model.arch, model.spec).train(train)
        clip = torch.empty(1, 3, *model.arch.input_size)
    with FlopCounterMode(display=False) as counter:
        loss = twin(clip).sum()
        if train:
            loss.backward()
    return clips * counter.get_total_flops()


def test_of_an_extraction_windows_and_bytes_are_those_that_it_comes_to(
    colours: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("extract", colours, "--model", tiny_model, "--output", tmp_path / "features", "--num-workers", "1")
    plan = planned(capsys, *words)
    assert not (tmp_path / "features").exists()
    code, out, _ = run(capsys, *words)
    assert code == 0 and f"{plan['parts'][0]['count']} windows" in out
    assert plan["bytes"] == size_of(colours)
    # The job does not compute the head: six classes of what one clip's 64 channels are.
    head = 2 * 6 * from_pretrained(tiny_model).num_features
    assert (
        plan["flops"]
        == flops(from_pretrained(tiny_model), plan["parts"][0]["count"]) - head * plan["parts"][0]["count"]
    )
    assert plan["hours"] > 0 and plan["memory"] > 1e8


def recipe_file(folder: Path, kind: type[Any], changes: dict[str, str]) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(to_yaml(load_recipe(kind, changes=changes)), encoding="utf-8")
    return file


def test_of_a_training_steps_and_flops_are_those_of_the_run(
    colours: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = finetuning(colours, tiny_model, data__val=str(colours), data__num_workers="1", run__duration="1pass")
    changes |= {"run.videos_per_step": "4", "run.evaluate_every": "2st", "optim.ema": "null"}
    words = ("finetune", "--config", recipe_file(tmp_path, Finetuning, changes), "--output", tmp_path / "run")
    plan = planned(capsys, *words)
    assert not (tmp_path / "run").exists()
    _, out, _ = run(capsys, *words, "--format", "jsonl")
    done = json.loads(out.splitlines()[-1])
    assert (done["kind"], done["step"]) == ("done", plan["steps"])
    step, judged = plan["parts"]
    assert plan["steps"] == step["count"] == 3
    model = from_pretrained(tiny_model)
    model.reset_classifier(3)
    assert step["flops"] == flops(model, 8, train=True)  # 4 videos, each augmented twice
    assert judged["count"] == 2 * 12  # after two steps and after three
    assert plan["bytes"] == 3 * size_of(colours)  # once to learn from, twice to judge by


def test_for_another_gpu_the_published_peak_is_taken_and_said(
    colours: Path, tiny_mae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe_file(
        tmp_path, Pretraining, pretraining(colours, tiny_mae, data__num_workers="1", run__duration="8st")
    )
    words = ("pretrain", "--config", file, "--gpu", "h100", "--gpu-share", "0.5")
    plan = planned(capsys, *words)
    assert plan["job"] == "pretrain on h100 in bf16, not measured: 50% of the published peak of 989 TFLOP/s"
    assert plan["memory"] is None
    (step,) = plan["parts"]
    assert step["model"] == pytest.approx(step["flops"] / 494.5e12)
    assert step["each"] == pytest.approx(max(step["model"], step["decoding"]))
    assert plan["limit"].startswith(("decoding limits: ", "the disk limits: ")) and plan[
        "decoder_cores"
    ] == pytest.approx(step["decoding"] / step["model"])


def test_a_bad_file_is_named_and_the_rest_is_planned_in_a_table(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = write_colours(tmp_path / "videos", 1, seed=1, bad=True)
    words = ("extract", videos, "--model", tiny_model, "--output", tmp_path / "features", "--num-workers", "1")
    code, out, _ = run(capsys, "plan", *words)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 1
    assert lines["error"].startswith(f"{videos / 'red' / 'bad.mp4'} ") and lines["window"].startswith("9 of ")
    assert lines["job"] == "extract on cpu in fp32, measured" and lines["steps"] == "2"
    assert lines["limit"].split(":")[0] in ("decoding limits", "the model limits", "the disk limits")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classify", "a.mp4"], "plan is of pretrain, finetune, evaluate or extract, not of 'classify'"),
        ([], "plan is of pretrain, finetune, evaluate or extract: name one"),
        (["extract", "a.mp4", "--gpu", "h1000"], "--gpu is 'h1000', but must be one of a10, a100, b200, h100,"),
        (["extract", "a.mp4", "--output", "out", "--gpu-share", "2"], "gpu_share is 2, but is above 0 and at most 1"),
        (["evaluate", "--vals", "videos"], "there is no option --vals; did you mean --val?"),
        (
            ["extract", "none.mp4", "--output", "out"],
            "none of 1 files can be read: none.mp4: No such file or directory",
        ),
        (["finetune", "--train", "nowhere"], "there is no file, folder or card 'nowhere'"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "plan", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_the_pace_of_what_comes_in_bursts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, *(2 + 3 * burst + item / 1000 for burst in range(9) for item in range(4))])
    monkeypatch.setattr(measure, "clock", lambda: next(now))
    seen = measure.pace((1 for _ in range(36)), 2)  # the third batch comes after 6 s
    assert seen.each == pytest.approx(0.75)
    assert seen.start == pytest.approx(0) and seen.total == pytest.approx(8)


def test_the_help_shows_what_plan_takes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "--help")
    assert code == 0 and "--gpu-share" in out and "hiera-video plan JOB" in out
