"""What ``hiera-video plan`` predicts against what the jobs then take: time and memory of six jobs, on a quiet machine.

    python scripts/benchmarks/plan.py --folder /tmp/plan

Makes 90 clips of 10 s and 60 of 3 s in ``folder`` (kept, and used again), and for each job runs ``hiera-video plan
JOB`` and then ``hiera-video JOB``, each in a process of its own. Time is wall time. Memory is the most that the job's
main process has held (peak RSS) and the most that the processes below it held for themselves at one time (USS).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from common import machine, write_json
from extract import make
from jsonargparse import auto_cli

from hiera_video import create_model
from hiera_video.models.checkpoints.saving import save_pretrained

COMMAND = [sys.executable, "-m", "hiera_video.cli"]
#: Seconds between two looks at a job's memory; the processes below it are asked at every so many looks, as that costs
#: time.
LOOK_S, SELDOM = 0.2, 10
#: The errors that are aimed at.
TIME, MEMORY = 0.15, 0.10


def jobs(folder: Path) -> dict[str, list[str]]:
    """The six jobs by name, as words of the command line; what they need is made."""
    clips, classes = folder / "clips", folder / "classes"
    long = make(clips, 90, 10)
    few = folder / "few"
    few.mkdir(exist_ok=True)
    for path in long[:6]:
        shutil.copy(path, few)
    short = make(folder / "short", 60, 3)
    for number, path in enumerate(short):  # four classes, of which every fifth video is validation's
        target = classes / ("val" if number % 5 == 0 else "train") / f"class_{number % 4}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    torch.manual_seed(0)
    save_pretrained(create_model("hiera_tiny_16x224"), folder / "tiny")
    judge = create_model("hiera_nano_16x64", num_classes=4)
    judge.labels = [f"class_{number}" for number in range(4)]
    save_pretrained(judge, folder / "judge")
    recipe = folder / "small.yaml"
    recipe.write_text(
        f"""job: finetune
data: {{train: {classes / "train"}, val: {classes / "val"}, num_frames: 16, frame_stride: 2, size: 64, num_workers: 2}}
augment: {{crop_area: [0.5, 1], num_ops: 0, erasing: 0}}
model: {{start: hiera_nano_16x64, narrow_init: true}}
optim: {{lr: 1.0e-3, lr_videos: 16, warmup: 10%}}
run: {{duration: 60st, videos_per_step: 16, batch_size: 16, save_every: 30st, evaluate_every: 30st}}
"""
    )
    train, val = str(classes / "train"), str(classes / "val")
    return {
        "extract, built-in model": ["extract", str(clips)],
        "extract, tiny at 224": ["extract", str(few), "--model", str(folder / "tiny")],
        "evaluate, 5x3 views": ["evaluate", "--val", train, "--model", str(folder / "judge"), "--data.views", "5x3"],
        "finetune, own videos": ["finetune", "--train", train, "--val", val],
        "finetune, a recipe": ["finetune", "--config", str(recipe)],
        "pretrain, own videos": ["pretrain", "--train", train, "--run.duration", "60st"],
    }


def run(words: list[str], output: Path) -> tuple[float, int]:
    """Runs a job: its seconds, and the most bytes that it held."""
    began, own, others, looks = time.perf_counter(), 0, 0, 0
    command = [*COMMAND, *words, "--output", str(output)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    top = psutil.Process(job.pid)
    while job.poll() is None:
        with suppress(OSError, StopIteration, psutil.Error):
            status = Path(f"/proc/{job.pid}/status").read_text().splitlines()
            own = max(own, 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1]))
            if looks % SELDOM == 0:
                below = top.children(recursive=True)
                others = max(others, sum(process.memory_full_info().uss for process in below))
        looks += 1
        time.sleep(LOOK_S)
    if job.returncode:
        sys.exit(f"{' '.join(command)} ended with {job.returncode}")
    return time.perf_counter() - began, own + others


def main(folder: Path, only: str = "", output: Path | None = None) -> None:
    """Prints a line for each job; ``only`` those whose names have this; ``output``: JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    print("| job | planned s | measured s | error | planned GB | measured GB | error |\n|---|---|---|---|---|---|---|")
    for name, words in jobs(folder).items():
        if only not in name:
            continue
        planned = subprocess.run(
            [*COMMAND, "plan", *words, "--output", str(folder / "run"), "--format", "json"],
            capture_output=True,
            text=True,
            check=True,
        )
        answer = json.loads(planned.stdout)[0]
        seconds, memory = run(words, folder / "run")
        shutil.rmtree(folder / "run")
        errors = 3600 * answer["hours"] / seconds - 1, answer["memory"] / memory - 1
        rows.append({"job": name, "plan": answer, "seconds": seconds, "memory": memory, "errors": errors})
        time_cells = f"{3600 * answer['hours']:.1f} | {seconds:.1f} | {errors[0]:+.0%}"
        memory_cells = f"{answer['memory'] / 1e9:.2f} | {memory / 1e9:.2f} | {errors[1]:+.0%}"
        print(f"| {name} | {time_cells} | {memory_cells} |", flush=True)
    holds = [all(abs(error) <= most for error, most in zip(row["errors"], (TIME, MEMORY), strict=True)) for row in rows]
    print(f"{sum(holds)} of {len(rows)} within {TIME:.0%} of the time and {MEMORY:.0%} of the memory")
    write_json(output, {"machine": machine(("torch", "numpy", "av", "decord2")), "jobs": rows})


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
