"""Does the model wait when features are extracted? Wall time against what decoding and the model cost alone.

    python scripts/benchmarks/extract.py --folder /tmp/clips

Makes ``num_clips`` clips of ``seconds`` at 320 x 240 in ``folder`` (kept, and used again), and measures in one process:
D, CPU seconds of decoding the frames that windows show and nothing else, by one thread; M, CPU seconds of the model on
as many clips, by one thread; and the wall time of ``hiera_video.extract``, which may be limit * (D + M) / cores.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli

from hiera_video import FeatureExtractor, extract, open_video
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.sampling import window_clips, window_starts
from hiera_video.data.windows import Walk

LIMIT = 1.25
#: Clips that differ; the others are copies.
DISTINCT = 10


def make(folder: Path, num_clips: int, seconds: int) -> list[Path]:
    """Clips of a window that moves over a picture, with noise: H.264, 30 fps, as x264 codes by default."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seconds}s_{number:04d}.mp4" for number in range(num_clips)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        if number >= DISTINCT:
            shutil.copy(paths[number % DISTINCT], path)
            continue
        rng = np.random.default_rng(number)
        picture = procedural_picture(rng, 640)
        frames = []
        for frame in range(30 * seconds):
            angle = 2 * np.pi * frame / (30 * seconds) + number
            x, y = int(150 + 140 * np.cos(angle)), int(190 + 180 * np.sin(angle))
            noisy = picture[:, y : y + 240, x : x + 320].float() + 4 * torch.from_numpy(rng.normal(size=(3, 240, 320)))
            frames.append(noisy.clamp(0, 255).byte().permute(1, 2, 0).numpy())
        write_mp4(path, frames, 30, crf=23, options={"preset": "veryfast"})
    return paths


def decode(paths: list[Path], how: Walk) -> float:
    """CPU seconds of decoding alone."""
    begin = time.process_time()
    for path in paths:
        with open_video(path, num_threads=1) as video:
            rows = window_clips(video.times, how.spec, window_starts(video.times, how.spec, how.hop))
            video.read(np.unique(np.concatenate(list(rows))))
    return time.process_time() - begin


def compute(extractor: FeatureExtractor, num_windows: int, batch_size: int) -> float:
    """CPU seconds of the model alone."""
    clips = torch.randint(0, 256, (batch_size, 3, *extractor.model.arch.input_size), dtype=torch.uint8)
    begin = time.process_time()
    for _ in range(num_windows // batch_size):
        extractor.features(clips, ["embedding"])
    return (time.process_time() - begin) * num_windows / (num_windows // batch_size * batch_size)


def main(
    folder: Path,
    num_clips: int = 200,
    seconds: int = 10,
    num_workers: int = 2,
    batch_size: int = 8,
    rounds: int = 3,
    output: Path | None = None,
) -> None:
    """Prints D, M, the wall time and the ratio of every round, and their medians; ``output``: JSON."""
    torch.set_num_threads(1)
    paths = make(folder, num_clips, seconds)
    extractor = FeatureExtractor.from_pretrained(device="cpu")
    how = replace(extractor.walk(), at_once=batch_size)
    cores = os.cpu_count() or 1
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            begin = time.perf_counter()
            (summary,) = extract(
                [str(path) for path in paths],
                output=Path(temporary) / "features",
                num_workers=num_workers,
                batch_size=batch_size,
                device="cpu",
            )
            wall = time.perf_counter() - begin
        decoding, model = decode(paths, how), compute(extractor, summary.windows, batch_size)
        one = {"wall": wall, "D": decoding, "M": model, "ratio": wall / ((decoding + model) / cores)}
        print(
            "  ".join(f"{name} {value:.2f}" for name, value in one.items()), f"({summary.windows} windows)", flush=True
        )
        found.append(one)
    ratio = statistics.median(one["ratio"] for one in found)
    print(
        f"wall time is {ratio:.2f} times (D + M) / {cores} (limit {LIMIT}: {'holds' if ratio <= LIMIT else 'MISSED'})"
    )
    if output is not None:
        output.write_text(json.dumps({"cores": cores, "rounds": found}, indent=2) + "\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
