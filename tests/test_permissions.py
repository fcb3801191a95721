"""Files that jobs write have the permissions that the user's umask gives, those of other libraries too."""

from __future__ import annotations

import os
from pathlib import Path

from training_sets import write_colours

from hiera_video.cli import main


def test_the_umask_decides_who_may_read_what_jobs_write(tiny_model: Path, tmp_path: Path) -> None:
    train = write_colours(tmp_path / "train", 2, seed=0)
    out = tmp_path / "out"
    out.mkdir()
    video, model = train / "red" / "0.mp4", tiny_model
    jobs: list[tuple[object, ...]] = [
        ("classify", video, "--model", model, "--output", out / "answers.csv", "--picture", out / "answers.png"),
        ("extract", video, "--model", model, "--output", out / "features", "--picture", out / "features.mp4"),
        ("data", "check", train, "--report", out / "report.csv"),
        (
            *("finetune", "--train", train, "--model", model, "--output", out / "run", "--data.num_workers", 0),
            *("--run.duration", "1st", "--run.save_every", "1st", "--run.videos_per_step", 2, "--run.batch_size", 2),
            *("--model.fit_head", "false"),
        ),
        ("evaluate", "--val", train, "--model", out / "run", "--output", out / "scores", "--data.num_workers", 0),
    ]
    before = os.umask(0o037)  # files of mode 640, which neither a temporary file has nor one that is merely opened
    try:
        for job in jobs:
            assert main([str(word) for word in job]) == 0, job
    finally:
        os.umask(before)
    files = {path: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} >= {".csv", ".png", ".mp4", ".parquet", ".safetensors", ".json", ".yaml"}
    assert {path.name: oct(mode) for path, mode in files.items() if mode != 0o640} == {}
