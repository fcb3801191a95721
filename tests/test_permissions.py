"""Files that jobs write have the permissions that the user's umask gives, those of other libraries too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from training_sets import write_colours

JOBS = """
import os, sys
from hiera_video.cli import main
train, out, model = sys.argv[1:]
video = f"{train}/red/0.mp4"
def run(*argv):
    assert main([*argv]) == 0, argv
run("classify", video, "--model", model, "--output", f"{out}/answers.csv", "--picture", f"{out}/answers.png")
run("extract", video, "--model", model, "--output", f"{out}/features", "--picture", f"{out}/features.mp4")
run("data", "check", train, "--report", f"{out}/report.csv")
run("finetune", "--train", train, "--model", model, "--output", f"{out}/run", "--run.duration", "1st",
    "--run.save_every", "1st",
    "--run.videos_per_step", "2", "--run.batch_size", "2", "--data.num_workers", "1", "--model.fit_head", "false")
run("evaluate", "--val", train, "--model", f"{out}/run", "--output", f"{out}/scores",
    "--data.num_workers", "1")
"""


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_what_jobs_write(
    umask: int, mode: int, tiny_model: Path, tmp_path: Path
) -> None:
    train = write_colours(tmp_path / "train", 2, seed=0)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", JOBS, str(train), str(tmp_path / "out"), str(tiny_model)],
        capture_output=True,
        text=True,
        umask=umask,
    )
    assert done.returncode == 0, done.stderr
    files = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path.suffix for path in files} >= {".csv", ".png", ".mp4", ".parquet", ".safetensors", ".json", ".yaml"}
    assert {path.name: oct(found) for path, found in files.items() if found != mode} == {}
