"""Runs every job in two checkouts on the same inputs and says whether their results are the same.

    git worktree add ../before HEAD~1
    python scripts/compare_commits.py ../before . --videos ../shared/videos

Tables are compared value by value, weights after 20 steps bit by bit. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import yaml
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from training_sets import finetuning, pretraining, write_colours

MODEL = "hiera_nano_16x64.camera_motion"
STEPS = {"run.duration": "20st", "run.device": "cpu", "run.save_every": "20st", "run.evaluate_every": "20st"}


def run(tree: Path, folder: Path, *words: str) -> str:
    """What ``hiera-video WORDS`` of a checkout prints to stdout; exit code 1 (bad files) is an answer too."""
    environment = os.environ | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hiera_video.cli", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{tree}: hiera-video {' '.join(words)}\n{done.stderr}")
    return done.stdout


def results(tree: Path, folder: Path, videos: Path, colours: Path) -> dict[str, Any]:
    """The results of every job of one checkout, by job."""
    found: dict[str, Any] = {}

    def records(job: str, *words: str) -> None:
        found[job] = json.loads(run(tree, folder, *words, "--format", "json"))

    records("classify", "classify", str(videos))
    records("classify --views 3x3", "classify", str(colours), "--views", "3x3")
    run(tree, folder, "classify", str(videos / "dog.mp4"), "--timeline", "timeline")
    found["classify --timeline"] = (folder / "timeline" / "dog.mp4.csv").read_text()
    records("models", "models")
    records("data check", "data", "check", str(colours), "--report", "check.jsonl")
    run(tree, folder, "extract", str(videos), "--output", "features", "--hop", "1")
    found["extract: columns"], found["extract: values"] = rows_of(folder / "features")
    run(tree, folder, "extract", str(videos / "dog.mp4"), "--output", "maps", "--features", "all")
    found["extract: maps"] = arrays_of(folder / "maps")
    records("search", "search", str(videos / "dog.mp4"), "--start", "0", "--end", "2", "--index", "features")
    labels = "input,label\n" + "".join(f"{file},{file.suffix}\n" for file in sorted(videos.iterdir()))
    (folder / "labels.csv").write_text(labels)
    records("probe", "probe", "features", "--labels", "labels.csv")
    for config in sorted((tree / "configs").glob("*.yaml")):
        job = yaml.safe_load(config.read_text())["job"]
        found[f"--print-config {config.stem}"] = yaml.safe_load(
            run(tree, folder, job, "--config", str(config), "--data.root", "/data", "--print-config")
            if job != "evaluate"
            else run(tree, folder, job, "--config", str(config), "--print-config")
        )
    for job, changes in (
        ("pretrain", pretraining(colours, "mae_hiera_nano_16x64")),
        ("finetune", finetuning(colours, MODEL, data__val=str(colours))),
    ):
        recipe = folder / f"{job}.yaml"
        recipe.write_text(yaml.safe_dump(nested({**changes, **STEPS})))
        run(tree, folder, job, "--config", str(recipe), "--output", job)
        found[f"{job}: weights after 20 steps"] = load_file(folder / job / "model.safetensors")
    records("evaluate", "evaluate", "--val", str(colours), "--model", "finetune", "--output", "scores")
    found["evaluate: scores"] = rows_of(folder / "scores")
    run(
        tree,
        folder,
        "finetune",
        "--train",
        str(colours),
        "--val",
        str(colours),
        "--output",
        "own",
        "--run.device",
        "cpu",
    )
    found["finetune without a recipe: weights"] = load_file(folder / "own" / "model.safetensors")
    return found


def nested(changes: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Dotted fields as a recipe's sections."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = yaml.safe_load(value)
    return sections


def rows_of(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and sorted rows of a folder's parquet files."""
    table = [parquet.read_table(file) for file in sorted(folder.rglob("*.parquet"))]
    rows = [row for part in table for row in part.to_pylist()]
    return table[0].column_names, sorted(rows, key=lambda row: json.dumps(row, default=str)[:400])


def arrays_of(folder: Path) -> dict[str, Any]:
    """All arrays of a folder's safetensors files."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{place}/{name}": array for place, file in enumerate(files) for name, array in load_file(file).items()}


def difference(before: Any, after: Any) -> float:
    """0 where two results are the same, the largest difference of their numbers, or infinity where they differ else."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.keys() != after.keys():
            return float("inf")
        return max((difference(before[key], after[key]) for key in before), default=0.0)
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        if len(before) != len(after):
            return float("inf")
        return max((difference(*pair) for pair in zip(before, after, strict=True)), default=0.0)
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        if before.shape != after.shape or before.dtype != after.dtype:
            return float("inf")
        return 0.0 if before.tobytes() == after.tobytes() else float(np.abs(before - after).max())
    if isinstance(before, float) and isinstance(after, float):
        return 0.0 if before == after or before != before != after != after else abs(before - after)
    return 0.0 if before == after else float("inf")


def main() -> int:
    """Prints a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--videos", type=Path, required=True, help="a folder of videos, bad ones among them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        colours = write_colours(folder / "colours", 6, seed=0)
        both = []
        for tree in (options.before, options.after):
            (folder / "run").mkdir()
            both.append(results(tree, folder / "run", options.videos.resolve(), colours))
            (folder / "run").rename(folder / f"run{len(both)}")
    largest = {job: difference(both[0].get(job), both[1].get(job)) for job in both[0] | both[1]}
    for job, value in largest.items():
        if not job.startswith("--print-config"):
            print(f"{job:40} {'equal' if value == 0 else f'differs by {value:.3g}'}")
    configs = {job: value for job, value in largest.items() if job.startswith("--print-config")}
    print(f"{f'--print-config of {len(configs)} recipes':40} {'equal' if not any(configs.values()) else configs}")
    return int(any(largest.values()))


if __name__ == "__main__":
    sys.exit(main())
