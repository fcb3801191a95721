"""Camera motion through the command line: makes labelled mp4 files, classifies them as a user would, counts.

    python scripts/evaluate_camera_motion.py generated --output /tmp/generated                    # 900 clips
    python scripts/evaluate_camera_motion.py real --videos ../shared/videos --output /tmp/real    # 180 clips

``generated`` moves a window over procedural pictures of a seed never trained on and over photographs held out from
training; ``real`` over single frames of real videos. A picture with too little texture (``camera_motion.texture``, of
the first frame alone) is drawn again up to ten times; a clip that still has too little is left out and counted.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import trange

from hiera_video.data.camera_motion import LABELS, MIN_TEXTURE, make_video, texture
from hiera_video.data.motion_batches import pictures
from hiera_video.data.reader import open_video
from hiera_video.errors import UnreadableVideo


def real_pictures(folder: Path, per_video: int) -> list[Tensor]:
    """Frames uint8 ``[3, h, w]`` spread over every readable video of ``folder``."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            with open_video(path) as video:
                frames = video.frames(np.linspace(0, len(video) - 1, per_video).astype(int)).pixels
        except UnreadableVideo:
            continue
        if min(frames.shape[1:3]) >= 120:
            found += [torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in frames]
    return found


def make_set(output: Path, pool: list[Tensor], count: int, seed: int) -> dict[str, tuple[str, float]]:
    """Writes ``count`` videos of 2.2 to 5 s and ``labels.csv``; returns label and speed of each answerable file."""
    output.mkdir(parents=True, exist_ok=True)
    truth: dict[str, tuple[str, float]] = {}
    with (output / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "crf", "fps", "size", "patches", "texture"])
        for number in trange(count, desc="making videos"):
            rng = np.random.default_rng((seed, number))
            label, path = number % len(LABELS), output / f"{number:04d}.mp4"
            made = make_video(path, rng, label, pool, rng.uniform(2.2, 5.0))
            with open_video(path) as video:
                first = torch.from_numpy(video.frames([0]).pixels[0]).permute(2, 0, 1)
            seen = texture(first)
            size = f"{made.size[1]}x{made.size[0]}"
            table.writerow([path.name, LABELS[label], made.crf, made.fps, size, len(made.patches), f"{seen:.2e}"])
            if seen >= MIN_TEXTURE:
                truth[str(path)] = (LABELS[label], made.crf)
    return truth


def evaluate(
    kind: Literal["generated", "real"],
    output: Path,
    videos: Path | None = None,
    count: int | None = None,
    seed: int = 20_261_124,
    model: str | None = None,
) -> None:
    """Makes the set (unless ``output`` holds it), classifies it by the command line, prints the confusion matrix."""
    torch.set_num_threads(1)
    if kind == "real":
        if videos is None:
            raise SystemExit("evaluate_camera_motion.py real needs --videos FOLDER, a folder of real videos.")
        pool = real_pictures(videos, 6)
    else:
        pool = pictures(300, seed, 768, held_out=True)
    count = count or (900 if kind == "generated" else 180)
    truth_file = output / "truth.json"
    if truth_file.exists():
        truth = json.loads(truth_file.read_text())
    else:
        truth = make_set(output, pool, count, seed)
        truth_file.write_text(json.dumps(truth))
    command = ["hiera-video", "classify", str(output), "--format", "json", *(["--model", model] if model else [])]
    answers = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    matrix = np.zeros((len(LABELS), len(LABELS)), dtype=int)
    wrong = []
    for answer in answers:
        if answer["input"] in truth:
            label, crf = truth[answer["input"]]
            best = answer["predictions"][0]["label"]
            matrix[LABELS.index(label), LABELS.index(best)] += 1
            if best != label:
                wrong.append((Path(answer["input"]).name, label, best, crf))
    print(f"left out for lack of texture: {count - matrix.sum()} of {count}")
    print("rows: truth, columns: answer,", " ".join(LABELS))
    for label, row in zip(LABELS, matrix, strict=True):
        print(f"{label:>22}", " ".join(f"{n:4d}" for n in row))
    print("wrong:", *wrong, sep="\n  ", file=sys.stderr)
    print(f"top1 {np.trace(matrix) / matrix.sum():.4f} of {matrix.sum()}")


if __name__ == "__main__":
    auto_cli(evaluate)
