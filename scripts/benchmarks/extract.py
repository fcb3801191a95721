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
from typing import Any

import numpy as np
import torch

from hiera_video import FeatureExtractor, extract, open_video
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.sampling import window_clips, window_starts
from hiera_video.data.windows import Walk

LIMIT = 1.15
#: Clips that differ; the others are copies.
DISTINCT = 10


def make(folder: Path, num_clips: int, seconds: int, distinct: int = DISTINCT) -> list[Path]:
    """Clips of a window that moves over a picture, with noise: H.264, 30 fps, as x264 codes by default."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seconds}s_{number:04d}.mp4" for number in range(num_clips)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        if number >= distinct:
            shutil.copy(paths[number % distinct], path)
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
    """Seconds of the model alone: of one CPU thread, or of the GPU, where the clips lie already."""
    clips = torch.randint(0, 256, (batch_size, 3, *extractor.model.arch.input_size), dtype=torch.uint8)
    clips, clock, batches = clips.to(extractor.device), time.process_time, max(1, num_windows // batch_size)
    if extractor.device.type == "cuda":
        extractor.features(clips, ["embedding"])  # libraries load their parts
        torch.cuda.synchronize()
        clock = time.perf_counter
    begin = clock()
    for _ in range(batches):
        values = extractor.features(clips, ["embedding"])
    values["embedding"].cpu()  # waits for the GPU
    return (clock() - begin) * num_windows / (batches * batch_size)


def once(paths: list[Path], extractor: FeatureExtractor, **options: Any) -> dict[str, float]:
    """Seconds of the job, of decoding and of the model alone, and the number of windows; ``options`` of extract."""
    with tempfile.TemporaryDirectory() as temporary:
        begin = time.perf_counter()
        (summary,) = extract([str(path) for path in paths], output=Path(temporary) / "features", **options)
        wall = time.perf_counter() - begin
    decoding = decode(paths, replace(extractor.walk(), at_once=options["batch_size"]))
    model = compute(extractor, summary.windows, options["batch_size"])
    return {"wall": wall, "D": decoding, "M": model, "windows": summary.windows}


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
    cores = os.cpu_count() or 1
    rounds_of = []
    for _ in range(rounds):
        times = once(paths, extractor, num_workers=num_workers, batch_size=batch_size, device="cpu")
        times["ratio"] = times["wall"] / ((times["D"] + times["M"]) / cores)
        print("  ".join(f"{name} {value:.2f}" for name, value in times.items()), flush=True)
        rounds_of.append(times)
    ratio = statistics.median(times["ratio"] for times in rounds_of)
    print(
        f"wall time is {ratio:.2f} times (D + M) / {cores} (limit {LIMIT}: {'holds' if ratio <= LIMIT else 'MISSED'})"
    )
    if output is not None:
        output.write_text(json.dumps({"cores": cores, "rounds": rounds_of}, indent=2) + "\n")


if __name__ == "__main__":
    from jsonargparse import auto_cli  # scripts/check_gpu.py runs where it is not installed

    auto_cli(main, as_positional=False)
