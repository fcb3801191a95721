"""The files of the loader's benchmark, generated and real, and what every contestant is given to read."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from hiera_video.data.camera_motion.generator import draw_motion, draw_patches, fitting_texels, noise, render
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.sampling import keyed_rng, train_clips
from hiera_video.spec import ClipSpec

SPEC = ClipSpec()  # 16 frames, stride 4, 30 fps, 224
SEED = 0
CLIPS, CROPS = 5, 3
SIZES = ((240, 320), (360, 480))
SHORTEST_S = 8

Batch: TypeAlias = dict[str, Any]
Loader: TypeAlias = Iterable[Batch]


def make_file(path: Path, number: int, seconds: float) -> None:
    """An H.264 file at 30 fps of a moving camera over a generated picture, with moving patches and slight noise."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(number)
    size = SIZES[number % len(SIZES)]
    pictures = [procedural_picture(rng, 768).float() for _ in range(4)]
    times = np.arange(round(seconds * 30)) / 30
    motion = draw_motion(rng, int(rng.integers(1, 9)), times)
    patches = draw_patches(rng, times, share=0.9)
    texels = min(fitting_texels(motion, pictures[0], size), min(size) * 1.4)

    def frames_of_all() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(times), 10):  # a few at a time: the whole would be gigabytes
            part = range(start, min(start + 10, len(times)))
            moved = [patch.at(part) for patch in patches]
            frames = render(pictures[0], pictures[1 : 1 + len(patches)], motion.at(part), moved, size, texels)
            frames = (frames + 2 * noise(rng, frames.shape)).clamp(0, 255).byte()
            yield from frames.permute(1, 2, 3, 0).contiguous().numpy()

    options = {"preset": "medium", "g": "250", "sc_threshold": "0", "threads": "1"}
    write_mp4(path, frames_of_all(), 30, crf=23, options=options)


def make_set(folder: Path, num_files: int, seconds: float) -> list[Path]:
    """The generated files, those that are there already kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02d}_{SIZES[number % len(SIZES)][0]}p_{seconds:g}s.mp4" for number in range(num_files)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        print(f"making {len(missing)} files in {folder}", flush=True)
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
            for done in [pool.submit(make_file, paths[number], number, seconds) for number in missing]:
                done.result()
    return paths


@dataclass(frozen=True, eq=False)
class File:
    """What a file's packets say; ``times`` float64 [N] seconds, ascending. For each frame in that order, ``key`` is
    where its keyframe stands among the packets, ``end`` the packet after which a decoder can have shown it.
    """

    path: str
    height: int
    width: int
    codec: str
    times: NDArray[np.float64]
    key: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def read(cls, path: str) -> File:
        with av.open(path) as container:
            stream: Any = container.streams.best("video")
            if stream is None:
                raise ValueError(f"{path} has no video.")
            packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
            shown = sorted(range(len(packets)), key=lambda place: packets[place][0])
            keys = sorted((pts, place) for place, (pts, is_key) in enumerate(packets) if is_key)
            times = np.array([float(packets[place][0] * stream.time_base) for place in shown])
            context = stream.codec_context
            before = np.searchsorted([pts for pts, _ in keys], [packets[place][0] for place in shown], side="right") - 1
            key = np.array([place for _, place in keys])[before.clip(0)]
            return cls(path, context.height, context.width, context.name, times, key, np.maximum.accumulate(shown))

    @property
    def num_keyframes(self) -> int:
        return len(np.unique(self.key))

    def decoded(self, frames: NDArray[np.int64]) -> int:
        """How many frames one pass must decode for these: from the keyframe before each, each once."""
        needed = np.zeros(len(self.times), dtype=bool)
        for frame in np.unique(frames):
            needed[self.key[frame] : self.end[frame] + 1] = True
        return int(needed.sum())


def real_files(folder: Path) -> list[File]:
    """The H.264 files of at least 8 s below a folder."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            file = File.read(str(path))
        except (av.FFmpegError, ValueError, IndexError):
            continue
        if file.codec == "h264" and file.times[-1] - file.times[0] >= SHORTEST_S - 0.5:
            found.append(file)
    return found


@dataclass(eq=False)
class Work:
    """What every contestant is given: the files to read, in this order, ``batch_size`` of them to a batch; the first
    ``skipped`` batches are not timed (workers start), the ``timed`` after them are. ``epoch``: the round.
    """

    files: list[File]
    batch_size: int
    skipped: int
    timed: int
    num_workers: int
    epoch: int = 0

    @classmethod
    def of(cls, files: list[File], count: int, *, batch_size: int, extra: int, num_workers: int) -> Work:
        """A round of about ``count`` files and ``extra`` batches after it, so that workers are busy when it ends."""
        step = max(1, num_workers)
        timed = -(-count // batch_size)
        total = -(-(step + timed + extra) // step) * step * batch_size
        draw = np.random.default_rng(SEED)
        passes = [draw.permutation(len(files)) for _ in range(-(-total // len(files)))]
        order = [files[index] for index in np.concatenate(passes)[:total]]
        return cls(order, batch_size, step, timed, num_workers)

    @property
    def timed_entries(self) -> range:
        return range(self.skipped * self.batch_size, (self.skipped + self.timed) * self.batch_size)

    def train_row(self, index: int, repeat: int = 0, epoch: int | None = None) -> NDArray[np.int64]:
        """The frames int64 [16] of one training clip, which are a function of (seed, epoch, index, repeat)."""
        rng = keyed_rng(SEED, self.epoch if epoch is None else epoch, index, repeat)
        return train_clips(self.files[index].times, SPEC, rng)[0]

    def loader(self, dataset: Any, batch_size: int | None = None) -> Loader:
        context = "fork" if self.num_workers else None
        batch_size = batch_size or self.batch_size
        return DataLoader(dataset, batch_size, num_workers=self.num_workers, multiprocessing_context=context)
