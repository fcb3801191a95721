"""Training from the command line: the whole chain, killed and restarted runs, one's own videos, mistakes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from shelf import Shelf
from test_training import same, weights
from training_sets import finetuning, pretraining, write_colours, write_video

from hiera_video.cli import main
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import UnreadableVideo
from hiera_video.training.metrics import read_metrics


def command(job: str, changes: dict[str, str], *more: str) -> list[str]:
    options = [part for name, value in changes.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "hiera_video.cli", job, *options, *more]


def config(folder: Path, changes: dict[str, str]) -> Path:
    """A recipe's YAML file of some changes."""
    sections: dict[str, list[str]] = {}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, []).append(f"  {field}: {value}\n")
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{section}:\n{''.join(lines)}" for section, lines in sections.items()))
    return path


def run(argv: list[str], expected: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    return done


def steps_done(output: Path) -> int:
    records = read_metrics(output / "metrics.jsonl")
    return int(records[-1]["step"]) if records else 0


def kill_at(argv: list[str], output: Path, step: int, number: int) -> int:
    """Starts a run, sends all its processes a signal once it has made ``step`` steps, and returns its exit code."""
    with open(os.devnull, "w") as nowhere:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(argv, env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True)
        try:
            limit = time.monotonic() + 120
            while steps_done(output) < step and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            os.killpg(process.pid, number)  # as torchrun and Slurm do: its workers and decoders get it too
            return process.wait(60)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    write_colours(folder / "train", 12, seed=0, bad=True)
    write_colours(folder / "val", 4, seed=1)
    return folder


@pytest.mark.slow  # three trainings
def test_the_whole_chain(
    colours: Path, tiny_mae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """pretrain -> finetune -> evaluate -> classify, as commands."""

    def said(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 0
        return capsys.readouterr().out

    mae, classifier, judged = tmp_path / "mae", tmp_path / "classifier", tmp_path / "judged"
    recipe = config(tmp_path, pretraining(colours / "train", tiny_mae, run__duration="8st"))
    said("pretrain", "--config", recipe, "--output", mae)
    recipe = config(tmp_path, finetuning(colours / "train", "nothing", run__duration="24st", optim__lr="1e-2"))
    argv = ["finetune", "--config", recipe, "--model", mae, "--val", colours / "val"]
    lines = said(*argv, "--output", classifier, "--format", "jsonl").splitlines()
    assert "24 steps of 8 videos" in caplog.text
    records = [json.loads(line) for line in lines]
    assert records[-1]["kind"] == "done" and "best_top1" in records[-1]
    argv = ["evaluate", "--val", colours / "val", "--model", classifier]
    total, *classes = json.loads(said(*argv, "--output", judged, "--format", "json"))
    assert total["top1"] == pytest.approx(records[-1]["best_top1"], abs=0.2) and len(classes) == 3
    assert parquet.read_table(judged / "scores.parquet").num_rows == 12
    assert {"confusion.png", "classes.csv", "result.json"} <= {path.name for path in judged.iterdir()}
    (answer,) = json.loads(
        said("classify", colours / "val" / "red" / "0.mp4", "--model", classifier, "--format", "json")
    )
    assert {score["label"] for score in answer["predictions"]} == {"red", "green", "blue"}


@pytest.mark.slow  # five starts; test_training stops and goes on in this process
def test_a_killed_run_ends_as_if_it_had_not_been(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL once, in a run with two workers and a bad file among the videos."""
    kill_and_compare("finetune", colours, tiny_model, tmp_path, steps=32, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["finetune", "pretrain"])
def test_a_run_of_200_steps_killed_three_times(
    job: str, colours: Path, tiny_model: Path, tiny_mae: Path, tmp_path: Path
) -> None:
    kill_and_compare(
        job, colours, {"finetune": tiny_model, "pretrain": tiny_mae}[job], tmp_path, steps=208, kills=3, save="25st"
    )


def kill_and_compare(
    job: str, colours: Path, start: Path, tmp_path: Path, *, steps: int, kills: int, save: str = "4st"
) -> None:
    make = {"finetune": finetuning, "pretrain": pretraining}[job]
    changes = make(colours / "train", start, run__duration=f"{steps}st", run__save_every=save)
    recipe = config(tmp_path, changes)
    argv = [sys.executable, "-m", "hiera_video.cli", job, "--config", str(recipe)]
    run([*argv, "--output", str(tmp_path / "whole")])
    killed = [*argv, "--output", str(tmp_path / "killed")]
    for step in sorted(random.Random(7).sample(range(5, steps - 4), kills)):
        assert kill_at(killed, tmp_path / "killed", step, signal.SIGKILL) == -signal.SIGKILL
    done = run(killed)
    assert "going on from" in done.stderr
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert "bad.mp4" in (tmp_path / "killed" / "bad_videos.txt").read_text()


@pytest.mark.slow  # two starts
def test_sigterm_saves_and_leaves(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    changes = finetuning(colours / "train", tiny_model, run__duration="2000st", run__save_every="2000st")
    argv = [sys.executable, "-m", "hiera_video.cli", "finetune", "--config", str(config(tmp_path, changes))]
    argv += ["--output", str(tmp_path / "run")]
    assert kill_at(argv, tmp_path / "run", 6, signal.SIGTERM) == 130
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(folder.name[5:]) == steps_done(tmp_path / "run") >= 6


def test_ones_own_videos_need_no_recipe(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "mine"
    argv = ["--train", str(colours / "train"), "--val", str(colours / "val"), "--output", str(output)]
    assert main(["finetune", *argv, "--data.num_workers", "1", "--data.size", "32"]) == 0
    said = caplog.text
    capsys.readouterr()
    assert "37 videos of 3 classes. Model: hiera_nano_16x64.general (there is no GPU here" in said
    assert "two heads are fitted, one on the first stages, one on the last; the better is kept" in said
    assert "Judged on the 12 videos" in said
    assert {"report.md", "confusion.png", "metrics.jsonl", "model.safetensors"} <= set(os.listdir(output))
    assert main(["classify", str(colours / "val" / "green" / "1.mp4"), "--model", str(output)]) == 0
    answer = capsys.readouterr().out.splitlines()
    assert len(answer) == 4 and {line.split()[1] for line in answer[1:]} == {"red", "green", "blue"}


@pytest.mark.slow  # a training; test_weights fetches from a hub
def test_ones_own_videos_start_from_a_checkpoint_on_a_hub(
    colours: Path, tiny_model: Path, tmp_path: Path, shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.put("someone/tiny", tiny_model)
    output = tmp_path / "mine"
    argv = ["--train", str(colours / "train"), "--val", str(colours / "val"), "--output", str(output)]
    assert main(["finetune", *argv, "--model", "someone/tiny", "--run.duration", "1pass"]) == 0
    assert any("someone/tiny" in asked for asked in shelf.asked)
    assert main(["classify", str(colours / "val" / "blue" / "0.mp4"), "--model", str(output)]) == 0
    assert "blue" in capsys.readouterr().out


SAMPLES = os.environ.get("HIERA_VIDEO_SAMPLES")


@pytest.mark.slow  # four starts
def test_the_script_that_leaves_one_group_out_judges_each_by_the_others(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    for path in sorted((colours / "train").glob("*/1*.mp4")):  # 1, 10 and 11 of each colour
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for person in "ab":
            (folder / path.parent.name / f"{person}_{path.name}").symlink_to(path)
    words = ["--videos", str(folder), "--output", str(tmp_path / "folds"), "--pattern", "([a-z])_"]
    words += ["--options", "--data.size 32 --data.num_workers 1"]
    script = Path(__file__).parents[1] / "scripts" / "leave_one_out.py"
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["a", "b", "mean"] and lines[-1][-1] == "2"
    assert not set((tmp_path / "folds" / "a" / "train").glob("*/a_*"))


@pytest.mark.slow  # it trains
@pytest.mark.skipif(SAMPLES is None, reason="HIERA_VIDEO_SAMPLES names no folder of real clips")
def test_clips_cut_from_two_real_videos_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert SAMPLES is not None
    for label, path in zip(("one", "other"), list(readable(Path(SAMPLES)))[:2], strict=True):
        with open_video(path) as video:
            for number in range(8):
                start = int(number / 8 * (len(video) - 1))
                frames = video.frames(list(range(start, min(start + 40, len(video)))), short_side=64).pixels
                split = tmp_path / ("val" if number % 4 == 3 else "train") / label
                split.mkdir(parents=True, exist_ok=True)
                write_video(
                    split / f"{number}.mp4",
                    [frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames],
                )
    output = tmp_path / "mine"
    argv = ["--train", str(tmp_path / "train"), "--val", str(tmp_path / "val"), "--output", str(output)]
    assert main(["finetune", *argv, "--run.duration", "2pass"]) == 0
    assert main(["evaluate", "--val", str(tmp_path / "val"), "--model", str(output), "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("[") :])[0]["top1"] >= 0.75


def readable(folder: Path) -> Iterator[Path]:
    """Real videos of at least 3 s, in the order of their names."""
    for path in sorted(folder.iterdir()):
        try:
            with open_video(path) as video:
                if video.duration >= 3:
                    yield path
        except UnreadableVideo:
            continue


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to learn from: name your videos (--train FOLDER --val FOLDER) or a recipe (--config)"),
        (["--config", "finetune_k400_bass"], "did you mean finetune_k400_base?"),
        (["--config", "finetune_k400_base", "--optim.lrr", "1"], "optim.lr"),
        (["--config", "finetune_k400_base", "--optim.lr"], "--optim.lr"),
        (["--config", "finetune_k400_base", "--optim.lr", "fast"], "optim.lr"),
        (["--config", "finetune_k400_base", "--run.duration", "10"], "a duration needs a unit"),
        (["--train", "nowhere", "--output", "x"], "nowhere"),
    ],
)
def test_a_wrong_request_is_one_sentence(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["finetune", *argv])
    except SystemExit as stop:
        code = int(str(stop.code))
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert message in said and len(said.splitlines()) == 1, said


def test_a_table_with_a_column_missing_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text("path,label\na.mp4,red\nb.mp4\n")
    assert main(["finetune", "--train", str(tmp_path / "mine.csv"), "--output", str(tmp_path / "run")]) == 2
    assert "mine.csv, line 3: found 'b.mp4', but expected 2 fields: path,label" in capsys.readouterr().err


def test_videos_of_which_none_can_be_read_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "train" / name / f"{number}.mp4").write_text("no video")
    argv = ["--train", str(tmp_path / "train"), "--output", str(tmp_path / "run"), "--data.num_workers", "1"]
    assert main(["finetune", *argv]) == 2
    assert "none of 8 videos can be read" in capsys.readouterr().err
