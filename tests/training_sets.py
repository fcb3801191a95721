"""Small labelled sets of videos to train on, and the recipes of short runs."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


def write_colours(folder: Path, per_class: int, *, seed: int, bad: bool = False) -> Path:
    """``per_class`` videos, 1.3 s of 48 x 40 pixels, of each of three colours, in class folders; ``bad``: one more in
    red/ that cannot be read.
    """
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            rng = np.random.default_rng((seed, number, index))
            picture = np.empty((40, 48, 3), dtype=np.uint8)
            picture[:] = colour
            picture[10:30, 10:30] = rng.integers(0, 255, 3)
            write_video(folder / name / f"{index}.mp4", [np.roll(picture, shift, axis=1) for shift in range(40)])
    if bad:
        (folder / "red" / "bad.mp4").write_text("this is no video\n" * 100)
    return folder


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """H.264, 30 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def finetuning(train: Path, start: Path | str, **changes: str) -> dict[str, str]:
    """Dotted changes that make a recipe of 32 steps with everything on: mixing, drop path, dropout, average.

    Names in ``changes`` have double underscores for dots.
    """
    return {
        "data.train": str(train),
        "data.repeats": "2",
        "data.num_workers": "2",
        "model.start": str(start),
        "model.drop_path_rate": "0.1",
        "model.head_dropout": "0.1",
        "loss.mixup": "0.8",
        "loss.cutmix": "1.0",
        "loss.label_smoothing": "0.1",
        "optim.lr": "3e-3",
        "optim.lr_videos": "8",
        "optim.layer_decay": "0.8",
        "optim.warmup": "10%",
        "optim.clip_norm": "5",
        "optim.ema": "0.9",
        "run.duration": "32st",
        "run.videos_per_step": "8",
        "run.batch_size": "4",
        "run.save_every": "8st",
        "run.evaluate_every": "16st",
        "run.log_every": "1st",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }


def pretraining(train: Path, start: Path | str, **changes: str) -> dict[str, str]:
    """Dotted changes that make an MAE recipe of 32 steps."""
    return {
        "data.train": str(train),
        "data.repeats": "2",
        "data.num_workers": "2",
        "model.start": str(start),
        "model.drop_path_rate": "0.1",
        "model.mask_ratio": "0.5",
        "optim.lr": "1e-3",
        "optim.lr_videos": "8",
        "optim.betas": "[0.9, 0.95]",
        "optim.warmup": "10%",
        "optim.clip_norm": "1",
        "run.duration": "32st",
        "run.videos_per_step": "8",
        "run.batch_size": "4",
        "run.save_every": "8st",
        "run.evaluate_every": "16st",
        "run.log_every": "1st",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
