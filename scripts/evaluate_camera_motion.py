"""Camera motion through the command line: makes labelled mp4 files, classifies them as a user would, counts.

    python scripts/evaluate_camera_motion.py --kind generated --output /tmp/generated                    # 900 clips
    python scripts/evaluate_camera_motion.py --kind real --videos ../shared/videos --output /tmp/real    # 180 clips
    python scripts/evaluate_camera_motion.py --kind parallax --output /tmp/parallax                      # 270 clips

``generated`` moves a window over procedural pictures of a seed never trained on and over photographs held out from
training; ``real`` over single frames of real videos; ``parallax`` is as ``generated``, with one to three ragged planes
nearer than the background, which move more than it and, in half of the zooms, grow more (a dolly). A picture with too
little texture (``camera_motion.texture``, of the first frame alone) is drawn again up to ten times; a clip that still
has too little is left out and counted.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

from hiera_video.data.camera_motion.coded import make_video
from hiera_video.data.camera_motion.generator import LABELS, MIN_TEXTURE, texture
from hiera_video.data.camera_motion.textures import Pool, make_pool, pictures
from hiera_video.data.reading.reader import open_video
from hiera_video.data.views import load_views
from hiera_video.errors import UnreadableVideo
from hiera_video.models.zoo import BUILT_IN
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import VideoClassifier


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


def make_one(output: Path, videos: Path | None, parallax: bool, seed: int, number: int) -> dict[str, Any]:
    """Writes video ``number``, 2.2 to 5 s long, and returns its row of ``labels.csv``."""
    torch.set_num_threads(1)
    rng = np.random.default_rng((seed, number))
    label, path = number % len(LABELS), output / f"{number:04d}.mp4"
    pool = _pool(videos, parallax, seed)
    cutouts = pool.cutouts if parallax else None
    made = make_video(path, rng, label, pool.pictures, rng.uniform(2.2, 5.0), cutouts, parallax=parallax)
    with open_video(path) as video:
        first = torch.from_numpy(video.frames([0]).pixels[0]).permute(2, 0, 1)
    return {
        "file": path.name,
        "label": LABELS[label],
        "crf": made.crf,
        "fps": made.fps,
        "size": f"{made.size[1]}x{made.size[0]}",
        "patches": len(made.patches),
        "texture": f"{texture(first):.2e}",
    }


@cache
def _pool(videos: Path | None, parallax: bool, seed: int) -> Pool:
    """What the videos look at: made once in each process."""
    if parallax:
        return make_pool(300, seed, 768, held_out=True)
    return Pool(pictures(300, seed, 768, held_out=True) if videos is None else real_pictures(videos, 6), [])


def make_set(output: Path, videos: Path | None, parallax: bool, count: int, seed: int) -> None:
    """Writes ``count`` videos and, when all are there, ``labels.csv``."""
    output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        rows = executor.map(partial(make_one, output, videos, parallax, seed), range(count), chunksize=10)
        found = list(tqdm(rows, total=count, desc="making videos"))
    with (output / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(found[0]))
        table.writeheader()
        table.writerows(found)


def fast_answers(paths: list[str], model: str | None) -> Iterator[dict[str, Any]]:
    """The best class of each file, as ``classify`` would say it of frames decoded fast."""
    classifier = VideoClassifier.from_pretrained(model or BUILT_IN)
    num_clips, num_crops = parse_views(classifier.model.views)
    for path in tqdm(paths):
        views = load_views(path, classifier.model.spec, num_clips, num_crops, decode="fast")
        best = int(classifier.scores(views.clips).mean(dim=0).argmax())
        yield {"input": path, "predictions": [{"label": classifier.labels[best]}]}


def evaluate(
    kind: Literal["generated", "real", "parallax"],
    output: Path,
    videos: Path | None = None,
    count: int | None = None,
    seed: int = 20_261_124,
    model: str | None = None,
    decode: Literal["exact", "fast"] = "exact",
) -> None:
    """Makes the set (unless ``output`` holds it), classifies it by the command line, prints the confusion matrix.

    ``decode="fast"`` shows the model the frames that fast decoding gives, in the same process.
    """
    if kind == "real" and videos is None:
        raise SystemExit("evaluate_camera_motion.py --kind real needs --videos FOLDER, a folder of real videos.")
    if not (output / "labels.csv").exists():
        usual = {"generated": 900, "real": 180, "parallax": 270}[kind]
        make_set(output, videos if kind == "real" else None, kind == "parallax", count or usual, seed)
    with (output / "labels.csv").open(newline="") as file:
        rows = {str(output / row["file"]): row for row in csv.DictReader(file)}
    truth = {path: row for path, row in rows.items() if float(row["texture"]) >= MIN_TEXTURE}
    if decode == "fast":
        answers = list(fast_answers(list(truth), model))
    else:
        command = ["hiera-video", "classify", str(output), "--format", "json", *(["--model", model] if model else [])]
        answers = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    matrix = np.zeros((len(LABELS), len(LABELS)), dtype=int)
    wrong = []
    for answer in answers:
        if row := truth.get(answer["input"]):
            best = answer["predictions"][0]["label"]
            matrix[LABELS.index(row["label"]), LABELS.index(best)] += 1
            if best != row["label"]:
                wrong.append(f"{row['file']}: {row['label']} taken for {best} (crf {row['crf']}, {row['size']})")
    print(f"left out for lack of texture: {len(rows) - len(truth)} of {len(rows)}")
    coarse = sum(int(row["crf"]) >= 28 for row in rows.values())
    crossed = sum(row["patches"] != "0" for row in rows.values())
    print(f"H.264 at crf 28 or worse: {coarse}; with foreign patches: {crossed}")
    print("rows: truth, columns: answer,", " ".join(LABELS))
    for label, counts in zip(LABELS, matrix, strict=True):
        print(f"{label:>22}", " ".join(f"{number:4d}" for number in counts))
    print("wrong:", *wrong, sep="\n  ", file=sys.stderr)
    print(f"top1 {np.trace(matrix) / matrix.sum():.4f} of {matrix.sum()}")


if __name__ == "__main__":
    auto_cli(evaluate, as_positional=False)
