"""The command line as a user meets it: formats, exit codes, one sentence for each mistake."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from hiera_video import classify
from hiera_video.cells import cells
from hiera_video.cli import JOBS, main
from hiera_video.models.architecture import Architecture
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.costs import COSTS
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import create_model, list_models
from hiera_video.training.recipe import Evaluation, Finetuning
from hiera_video.training.recipe_file import load_recipe

SAMPLES = os.environ.get("HIERA_VIDEO_SAMPLES")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    try:
        code = main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    out, err = capsys.readouterr()
    return code, out, err


def test_json_is_a_list_in_input_order_with_the_documented_fields(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, videos: Path
) -> None:
    code, out, err = run(capsys, "classify", videos, "--model", tiny_model, "--format", "json", "--top-k", 2)
    answers = json.loads(out)
    names = [Path(answer["input"]).name for answer in answers]
    bad = ["audio.mp4", "empty.mp4", "text.mp4"]
    assert code == 1 and "Traceback" not in err
    assert names == ["a.mp4", "audio.mp4", "turned.mp4", "vp9.webm", "cut.mkv", "empty.mp4", "one.mp4", "text.mp4"]
    assert all(list(answer) == ["input", "duration", "predictions", "error"] for answer in answers)
    for name, answer in zip(names, answers, strict=True):
        assert len(answer["predictions"]) == (0 if name in bad else 2)
        assert (answer["error"] is None) == (name not in [*bad, "cut.mkv"])
        assert all(list(score) == ["label", "index", "score"] for score in answer["predictions"])


def test_every_format_says_the_same(capsys: pytest.CaptureFixture[str], tiny_model: Path, videos: Path) -> None:
    argv = ("classify", videos / "a.mp4", videos / "empty.mp4", "--model", tiny_model, "--top-k", 2, "--format")
    answers = json.loads(run(capsys, *argv, "json")[1])
    assert [json.loads(line) for line in run(capsys, *argv, "jsonl")[1].splitlines()] == answers
    rows = list(csv.DictReader(io.StringIO(run(capsys, *argv, "csv")[1])))
    assert list(rows[0]) == ["input", "duration", "rank", "label", "index", "score", "error"]
    assert [row["label"] for row in rows] == [score["label"] for score in answers[0]["predictions"]] + [""]
    table = run(capsys, *argv, "table")[1].splitlines()
    assert table[0] == f"{videos / 'a.mp4'}  (3.00 s)"
    assert table[1].endswith(answers[0]["predictions"][0]["label"])
    assert table[-1].startswith("  error: ") and "empty" in table[-1]


def test_all_done_is_exit_0_and_a_one_frame_video_is_answered(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, videos: Path
) -> None:
    code, out, _ = run(capsys, "classify", videos / "one.mp4", "--model", tiny_model, "--format", "json")
    assert code == 0 and len(json.loads(out)[0]["predictions"]) == 5


def test_output_and_picture_are_files(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, videos: Path, tmp_path: Path
) -> None:
    out_file, picture = tmp_path / "answers.csv", tmp_path / "answers.png"
    argv = ("classify", videos / "a.mp4", "--model", tiny_model, "--format", "csv")
    code, out, _ = run(capsys, *argv, "--output", out_file, "--picture", picture)
    assert (code, out) == (0, "")
    assert len(out_file.read_text().splitlines()) == 6
    assert Image.open(picture).format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "answers.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("missing.mp4",), "No such file"),
        (("empty.mp4",), "is empty"),
        (("text.mp4",), "text.mp4"),
        (("audio.mp4",), "no video"),
        (("nothing_here",), "folder without videos"),
        (("*.nothing",), "matches no file"),
    ],
)
def test_a_bad_input_gets_one_sentence_and_exit_1(
    words: tuple[str], sentence: str, capsys: pytest.CaptureFixture[str], tiny_model: Path, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing_here").mkdir()
    inputs = [tmp_path / word if "nothing" in word else videos / word for word in words]
    code, out, err = run(capsys, "classify", *inputs, "--model", tiny_model, "--format", "json")
    (answer,) = json.loads(out)
    assert code == 1 and answer["predictions"] == [] and answer["duration"] is None
    assert sentence in answer["error"] and "\n" not in answer["error"]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "nothing to do: name at least one input"),
        (("clip.mp4", "--views", "5x"), "views '5x' must be clips x crops"),
        (("clip.mp4", "--views", "0x3"), "views '0x3' must be clips x crops"),
        (("clip.mp4", "--top-k", "0"), "top_k is 0, but is at least 1"),
        (("clip.mp4", "--top-k", "few"), "--top-k is 'few', but must be a whole number"),
        (("clip.mp4", "--tpo-k", "3"), "there is no option --tpo-k; did you mean --top-k?"),
        (("clip.mp4", "--device", "cuda:9"), "device 'cuda:9' is not there; this machine has cpu"),
        (("clip.mp4", "--format", "xml"), "--format is 'xml', but must be one of table, json, jsonl, csv"),
        (
            ("clip.mp4", "--model", "hiera_bse_16x224"),
            "no model is called 'hiera_bse_16x224'; the nearest names: hiera_base",
        ),
        (("clip.mp4", "--output", "/nowhere/at/all.json"), "cannot be written: there is no folder /nowhere/at"),
        (("clip.mp4", "--picture", "/nowhere/at/all.png"), "cannot be written: there is no folder /nowhere/at"),
    ],
)
def test_a_wrong_request_gets_one_sentence_and_exit_2(
    options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "classify", *options)
    assert code == 2 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("hiera-video: ") and sentence in last
    assert "Traceback" not in err and "usage" not in err


def test_a_checkpoint_of_another_architecture_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    wide = Architecture(input_size=(4, 32, 32), embed_dim=16, stages=(1, 1, 1, 1), num_classes=6)
    save_pretrained(Hiera(wide), tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    code, _, err = run(capsys, "classify", "clip.mp4", "--model", tmp_path)
    assert code == 2 and "does not fit this architecture" in err and "mis-shaped" in err and "Traceback" not in err


class Payload:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_pickle_with_code_in_it_is_not_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": Payload()}, "bad.pth", pickle_module=pickle)
    code, _, err = run(capsys, "classify", "clip.mp4", "--model", "bad.pth")
    assert code == 2 and "pickle with code in it" in err and "Traceback" not in err
    assert not Path("owned").exists()


def test_no_network_for_a_pretrained_model_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed)
    template = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HIERA_VIDEO_WEIGHTS_URL", closed)
    code, _, err = run(capsys, "classify", "clip.mp4", "--model", "hiera_base_16x224.mae_k400_ft_k400")
    assert code == 2 and "Traceback" not in err
    assert "could not be fetched" in err.splitlines()[-1]


def test_no_help_and_no_refusal_of_an_option_loads_torch_or_a_decoder() -> None:
    heavy = "{'torch', 'decord', 'av', 'matplotlib', 'torchvision', 'pytorchvideo'}"
    code = (
        "import sys, hiera_video; from hiera_video.cli import JOBS, main; main(['--help']); "
        "[main([*job.split(), '--help']) for job in JOBS]; main(['classify', 'a.mp4', '--tpo-k', '3']); "
        f"sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "hiera-video: there is no option --tpo-k; did you mean --top-k?\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a.mp4 b.mp4 --top-k 3", {"inputs": ["a.mp4", "b.mp4"], "top_k": 3}),
        ("--top-k=3 a.mp4 --live b.mp4", {"inputs": ["a.mp4", "b.mp4"], "top_k": 3, "live": True}),
        ("a.mp4 --hop -1 --views null", {"inputs": ["a.mp4"], "hop": -1.0, "views": None}),
        ("--picture a.png -- --odd.mp4", {"inputs": ["--odd.mp4"], "picture": Path("a.png")}),
        ("a=b.mp4 --model=runs/lr=1", {"inputs": ["a=b.mp4"], "model": "runs/lr=1"}),
        ("- --batch_size 2", {"inputs": ["-"], "batch_size": 2}),
    ],
)
def test_words_become_what_the_function_of_a_job_takes(
    words: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("hiera_video.cli._function", lambda name: lambda **values: given.append(values) or iter(()))
    assert main(["classify", *words.split()]) == 0
    (values,) = given
    assert {name: values[name] for name in expected} == expected
    defaults = {name: parameter.default for name, parameter in inspect.signature(classify).parameters.items()}
    assert {name: value for name, value in values.items() if name not in expected} == {
        name: value for name, value in defaults.items() if name not in expected
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("probe",), "nothing to do: name a folder (hiera-video probe FOLDER)"),
        (("probe", "one", "two"), "'two' belongs to no option; for example: hiera-video probe features"),
        (("classify", "a.mp4", "-k", "3"), "there is no option -k; "),
        (("classify", "a.mp4", "--hop"), "--hop needs a value: a number, or null"),
        (("classify", "a.mp4", "--hop", "inf"), "--hop is 'inf', but must be a number, or null"),
        (("classify", "a.mp4", "--live=maybe"), "--live is 'maybe', but must be true or false"),
        (("classify", "a.mp4", "--model="), "--model is '', but must be text, or null"),
    ],
)
def test_words_that_mean_nothing_are_refused_in_one_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith(f"hiera-video: {sentence}")


def test_help_names_every_job_and_each_job_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(job in out for job in JOBS)
    for name, job in JOBS.items():
        code, out, _ = run(capsys, name, "--help")
        assert code == 0 and f"example: {job.example}" in out.splitlines()


def test_a_misspelt_job_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "clasify")[::2] == (2, "hiera-video: there is no job 'clasify'; did you mean classify?\n")


QUICK = ("hiera_nano_16x64", "mae_hiera_nano_16x64", "hiera_tiny_224")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_what_a_model_costs_is_what_is_counted(name: str) -> None:
    with torch.device("meta"):
        model: Any = create_model(name).eval()
        clip = torch.empty(1, model.arch.in_chans, *model.arch.input_size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(clip)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert COSTS[name] == (round(parameters / 1e6, 2), round(counter.get_total_flops() / 2e9, 1))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "videos"], "'train'; did you mean finetune?"),
        (["predict", "a.mp4"], "'predict'; did you mean classify?"),
        (["finetune", "--epochs", "3"], "--epochs; did you mean --run.duration?"),
        (["evaluate", "--batch", "3"], "--batch; did you mean --run.batch_size?"),
        (["classify", "a.mp4", "--weights", "x"], "--weights; did you mean --model?"),
    ],
)
def test_words_of_other_packages_are_understood(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2 and err.strip().endswith(meant)


def test_models_counts_parameters_and_multiply_adds_as_the_paper_does(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models", "hiera_b*", "--format", "json")
    found = {row["name"]: (row["params_m"], row["gflop"]) for row in json.loads(out)}
    paper = {"hiera_base_224": (52, 9), "hiera_base_16x224": (51, 102), "hiera_base_plus_16x224": (69, 133)}
    for name, (params, gflop) in paper.items():
        assert found[name][0] == pytest.approx(params, abs=1) and found[name][1] == pytest.approx(gflop, abs=1)
    assert code == 0 and "mae_k400_ft_k400" in out


@pytest.mark.skipif(SAMPLES is None, reason="HIERA_VIDEO_SAMPLES names no folder of real videos")
def test_every_real_sample_is_answered_and_the_corrupt_one_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert SAMPLES is not None
    code, out, err = run(capsys, "classify", SAMPLES, "--format", "json")
    answers = {Path(answer["input"]).name: answer for answer in json.loads(out)}
    assert code == 1 and "Traceback" not in err
    assert len(answers) == 13 and all(answer["predictions"] for answer in answers.values())
    assert [name for name, answer in answers.items() if answer["error"]] == ["corrupted.mp4"]
    assert answers["corrupted.mp4"]["error"].startswith("frames between 2.90 s and 5.00 s cannot be decoded")


def test_a_full_disk_ends_in_one_sentence(capsys: pytest.CaptureFixture[str], tiny_model: Path, videos: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "hiera_video.cli", "classify", str(videos / "a.mp4"), "--model", str(tiny_model)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


# --- jobs that take a recipe ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A record of the kind that jobs with a recipe yield: columns differ."""

    values: dict[str, Any]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return self.values

    def rows(self) -> list[dict[str, Any]]:
        return [self.values]

    def text(self) -> str:
        return cells(self.values)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes that a stand-in for each of the jobs was given; it yields two figures, and its own error."""
    recipes: list[Any] = []

    def job(recipe: Any) -> Iterator[Figure]:
        recipes.append(recipe)
        yield Figure({"kind": "train", "step": 10, "loss": 0.123456})
        yield Figure({"kind": "val", "step": 10, "top1": None}, error="2 of 9 videos could not be read")

    module = ModuleType("stand_in")
    module.job = job  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in", module)
    for name in ("pretrain", "finetune", "evaluate"):
        monkeypatch.setitem(JOBS, name, replace(JOBS[name], function="stand_in:job"))
    return recipes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--optim.lrr", "1e-3"), "there is no option --optim.lrr; did you mean --optim.lr?"),
        (("--optin.lr", "1e-3"), "there is no option --optin.lr; did you mean --optim.lr?"),
        (("--optim.lrr=1e-3",), "there is no option --optim.lrr; did you mean --optim.lr?"),
        (("--lr", "1e-3"), "there is no option --lr; did you mean --optim.lr?"),
        (("--trian", "videos"), "there is no option --trian; did you mean --train?"),
        (("--print-confg",), "there is no option --print-confg; did you mean --print-config?"),
        (("--xyz", "1"), "there is no option --xyz; see --help"),
        (("--optim.lr",), "--optim.lr needs a value: a number"),
        (("--optim.lr", "--run.seed", "1"), "--optim.lr needs a value: a number"),
        (("--optim.lr=",), "optim.lr is '', but must be a number"),
        (("--optim.lr", "fast"), "optim.lr is 'fast', but must be a number"),
        (("--run.shard",), "--run.shard needs a value: true or false"),
        (("--config",), "--config needs a value: text"),
        (("--run.duration", "10"), "run.duration is '10', but a duration needs a unit: ep (effective epochs, each"),
        (("clip.mp4",), "'clip.mp4' belongs to no option; for example: hiera-video finetune --train videos/train"),
        (("--format", "xml"), "--format is 'xml', but must be one of table, json, jsonl, csv"),
        (("--config", "finetune_k400_bse"), "there is no recipe 'finetune_k400_bse'; did you mean finetune_k400_base?"),
        (
            ("--config", "mae_k400_base"),
            "mae_k400_base.yaml is a recipe of pretrain, not of finetune: hiera-video pret",
        ),
        (("--config", "nothing/here.yaml"), "there is no file nothing/here.yaml; a recipe can be named too: "),
    ],
)
def test_a_wrong_recipe_is_refused_before_the_job_is_loaded(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(JOBS, "finetune", replace(JOBS["finetune"], function="not_to_be_loaded:job"))
    argv = words if "--config" in words else ("--config", "finetune_k400_base", *words)
    code, out, err = run(capsys, "finetune", *argv)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("hiera-video: ") and sentence in err


def test_words_reach_the_recipe_in_every_form(capsys: pytest.CaptureFixture[str], asked: list[Any]) -> None:
    words = "--optim.lr 2e-3 --run.seed=3 --run.batch-size 2 --train here --model there --output runs/x --val null"
    run(capsys, "finetune", "--config", "finetune_k400_base", *words.split(), "--optim.betas", "0.8, 0.9")
    (recipe,) = asked
    assert (recipe.optim.lr, recipe.optim.betas, recipe.run.seed, recipe.run.batch_size) == (2e-3, (0.8, 0.9), 3, 2)
    assert (recipe.data.train, recipe.data.val, recipe.model.start) == ("here", None, "there")
    assert (recipe.run.output, recipe.run.duration) == ("runs/x", "150ep")


def test_evaluate_needs_no_config_and_finetune_makes_its_own(
    capsys: pytest.CaptureFixture[str], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "evaluate", "--val", "videos/val", "--model", "runs/mine")
    assert asked == [load_recipe(Evaluation, None, {"data.source": "videos/val", "model.start": "runs/mine"})]
    seen = []
    recipe = load_recipe(Finetuning, "finetune_k400_base")
    own = ModuleType("own_videos")
    own.own_recipe = lambda changes: seen.append(changes) or recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hiera_video.tasks.train.own_videos", own)
    run(capsys, "finetune", "--train", "videos/train", "--loss.mixup", "0.2")
    assert seen == [{"data.train": "videos/train", "loss.mixup": "0.2"}] and asked[1] is recipe


def test_pretrain_without_videos_or_a_recipe_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "pretrain", "--output", "runs/mae")
    assert code == 2 and "nothing to learn from: name your videos (--train FOLDER) or a recipe (--config)" in err


def test_print_config_shows_a_recipe_that_runs_the_same(
    capsys: pytest.CaptureFixture[str], asked: list[Any], tmp_path: Path
) -> None:
    argv = ("finetune", "--config", "finetune_k400_base", "--optim.lr", "1e-3")
    code, out, err = run(capsys, *argv, "--print-config")
    assert (code, err, asked) == (0, "", [])
    (tmp_path / "mine.yaml").write_text(out)
    run(capsys, *argv)
    run(capsys, "finetune", "--config", tmp_path / "mine.yaml")
    assert asked[0] == asked[1] and asked[0].optim.lr == 1e-3


def test_records_of_a_run_in_every_format(capsys: pytest.CaptureFixture[str], asked: list[Any], tmp_path: Path) -> None:
    """``--output`` is the run's folder, which the job writes; what a run cannot read makes it exit 1."""
    argv = ("evaluate", "--val", "v", "--output", tmp_path / "run", "--format")
    expected = [{"kind": "train", "step": 10, "loss": 0.123456}, {"kind": "val", "step": 10, "top1": None}]
    code, out, _ = run(capsys, *argv, "json")
    assert code == 1 and json.loads(out) == expected
    assert [json.loads(line) for line in run(capsys, *argv, "jsonl")[1].splitlines()] == expected
    assert run(capsys, *argv, "csv")[1].split() == ["kind,step,loss,top1", "train,10,0.123456,", "val,10,,"]
    table = [line.split() for line in run(capsys, *argv, "table")[1].splitlines()]
    assert table == [["train", "10", "step", "loss", "0.1235"], ["val", "10", "step", "top1", "-"]]
    assert not list(tmp_path.iterdir())


def test_of_several_processes_the_first_alone_writes(
    capsys: pytest.CaptureFixture[str], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert run(capsys, "evaluate", "--val", "v")[1]
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "evaluate", "--val", "v") == (1, "", "")
    assert run(capsys, "evaluate", "--val", "v", "--print-config") == (0, "", "")
    assert len(asked) == 2 and Path(os.devnull).is_char_device()


def test_help_of_a_recipe_lists_its_fields_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "pretrain", "--help")
    lines = [line.split() for line in out.splitlines()]
    assert ["--optim.lr", "must", "be", "given", "a", "number", "above", "0"] in lines
    assert "The highest learning rate, for a step of lr_videos videos;" in out
    assert ["--augment.num_ops", "0", "a", "whole", "number,", "at", "least", "0"] in lines
    assert ["--train", "short", "for", "--data.train"] in lines
    assert "--loss.mixup" not in out and "--loss.mixup" in run(capsys, "finetune", "-h")[1]
