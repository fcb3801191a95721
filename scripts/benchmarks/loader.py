"""Our clip loader beside PyTorchVideo's, torchcodec's and one that decodes for each view as SlowFast's does.

All take the same clips of the same files in one run, round by round with the order alternating, so that what else the
machine does hits all alike; figures are medians over the rounds, ratios are taken within a round. The script makes
its own files, which takes minutes once, and takes a folder of real ones beside them. Run from a checkout:

    python scripts/benchmarks/loader.py --folder /tmp/clips --files ../shared/videos --output loader.json

What a row is. *train*: random 16x4 clips at 30 fps, random resized crop to 224, flip. *test*: 5 clips x 3 crops of a
video. *floor*: PyAV alone on the same clips, one thread, in as many processes as the loaders have workers: open, seek
to the keyframe before, decode to the last frame, no RGB. CPU seconds are those of the whole process tree.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from torchvision.transforms import v2

from hiera_video.data.camera_motion.generator import draw_motion, draw_patches, fitting_texels, noise, render
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.loader import ClipLoader, test_views
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.sampling import keyed_rng, test_clips, train_clips
from hiera_video.spec import Augment, ClipSpec

SPEC = ClipSpec()  # 16 frames, stride 4, 30 fps, 224
SEED = 0
VIDEOS_PER_BATCH = 2  # in training: small, so that little is under way when the time begins and ends
CLIPS, CROPS = 5, 3
SIZES = ((240, 320), (360, 480))
SHORTEST_S = 8

Batch: TypeAlias = dict[str, Any]
Loader: TypeAlias = Iterable[Batch]

# ---------------------------------------------------------------- files


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


# ---------------------------------------------------------------- contestants: each gives batches of "clip"

train_crop = v2.Compose(
    [
        v2.RandomResizedCrop(SPEC.size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=False),
        v2.RandomHorizontalFlip(0.5),
    ]
)


def subsample(frames: Tensor, axis: int) -> Tensor:
    """Sixteen frames evenly from the first to the last."""
    return frames.index_select(axis, torch.linspace(0, frames.shape[axis] - 1, SPEC.num_frames).long())


def test_crop(frames: Tensor, place: int) -> Tensor:
    """The first, middle or last square of float frames [..., H, W] whose short side is brought to 224."""
    frames = v2.functional.resize(frames, [SPEC.size[0]], antialias=False)
    top, left = ((extent - SPEC.size[0]) * place // (CROPS - 1) for extent in frames.shape[-2:])
    return frames[..., top : top + SPEC.size[0], left : left + SPEC.size[1]].contiguous()


class GivenStart:
    """Stands in for PyTorchVideo's RandomClipSampler: its clip length, but the start that all contestants take (what
    a clip costs depends on how far behind a keyframe it lies; the draw itself costs nothing).
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(
        self, last: float, duration: float, annotation: dict[str, Any]
    ) -> tuple[Fraction, Fraction, int, int, bool]:
        index = annotation["entry"]
        times = self.work.files[index].times
        start = Fraction(max(0.0, times[self.work.train_row(index)[0]] - times[0] - 1e-3))
        return start, start + Fraction(SPEC.span), 0, 0, True

    def reset(self) -> None:
        pass


def pytorchvideo(work: Work, decoder: str, test: bool) -> Loader:
    """LabeledVideoDataset. Its transforms do not import on today's torchvision: the crops are torchvision's own.

    Its dataset decodes once for the three crops of a clip, so 5 times for a video; it gives float frames.
    """
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

    def transform(sample: dict[str, Any]) -> Batch:
        frames = subsample(sample["video"], 1)  # [C, T, H, W]
        return {"clip": test_crop(frames, sample["aug_index"]) if test else train_crop(frames)}

    sampler = make_clip_sampler("constant_clips_per_video", SPEC.span, CLIPS, CROPS) if test else GivenStart(work)
    # A worker takes one stretch of its list, where others take every second batch: let those be the same.
    batches = np.arange(len(work.files)).reshape(-1, work.batch_size)
    entries = np.concatenate([batches[worker :: work.skipped].ravel() for worker in range(work.skipped)]).tolist()
    paths = [(work.files[entry].path, {"entry": entry}) for entry in entries]
    dataset = LabeledVideoDataset(paths, sampler, SequentialSampler, transform, decode_audio=False, decoder=decoder)
    return work.loader(dataset, CLIPS * CROPS if test else None)


class TorchCodec(Dataset[dict[str, Any]]):
    """torchcodec's decoder, one thread, and its samplers; uint8 to the end. Test: one decode of five clips."""

    def __init__(self, work: Work, test: bool) -> None:
        self.work, self.test = work, test
        self.decoders: Any = importlib.import_module("torchcodec.decoders")
        self.samplers: Any = importlib.import_module("torchcodec.samplers")

    def __len__(self) -> int:
        return len(self.work.files)

    def __getitem__(self, index: int) -> Batch:
        file = self.work.files[index]
        # Its default mode, which reads the packets first; "approximate" costs as much here and fails on some mkv.
        decoder = self.decoders.VideoDecoder(file.path, num_ffmpeg_threads=1)
        row = self.work.train_row(index)
        shape = {
            "num_frames_per_clip": SPEC.num_frames,
            "num_indices_between_frames": max(1, int((row[-1] - row[0]) / (SPEC.num_frames - 1))),
        }
        if self.test:
            clips = self.samplers.clips_at_regular_indices(decoder, num_clips=CLIPS, **shape).data
            return {"clip": torch.stack([test_crop(clips, place) for place in range(CROPS)])}
        start = int(row[0])
        clips = self.samplers.clips_at_random_indices(
            decoder, num_clips=1, sampling_range_start=start, sampling_range_end=start + 1, **shape
        )
        return {"clip": train_crop(clips.data[0])}


class DecodePerView(Dataset[dict[str, Any]]):
    """What SlowFast's loader does for a clip: open, decode the stretch with PyAV, all of its frames to RGB, sixteen of
    them to normalised float, then crop. A test view is a row of the dataset, so a video is decoded 15 times.
    """

    def __init__(self, work: Work, test: bool) -> None:
        self.work, self.test = work, test

    def __len__(self) -> int:
        return len(self.work.files) * (CLIPS * CROPS if self.test else 1)

    def __getitem__(self, index: int) -> Batch:
        if not self.test:
            return {"clip": train_crop(self.clip(self.work.files[index], self.work.train_row(index)))}
        number, view = divmod(index, CLIPS * CROPS)
        file = self.work.files[number]
        row = test_clips(file.times, SPEC, CLIPS)[view // CROPS]
        return {"clip": test_crop(self.clip(file, row), view % CROPS)}

    def clip(self, file: File, row: NDArray[np.int64]) -> Tensor:
        """Float [T, C, H, W]."""
        images = []
        with av.open(file.path) as container:
            for frame in stretch(container, file, row):
                images.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
        frames = subsample(torch.stack(images), 0).float() / 255
        frames = (frames - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
        return frames.permute(0, 3, 1, 2)


def stretch(container: Any, file: File, row: NDArray[np.int64]) -> Iterator[Any]:
    """The decoded frames from a clip's first to its last, after those from the keyframe on that they need."""
    stream = container.streams.best("video")
    first, last = file.times[row[0]] - 1e-4, file.times[row[-1]] - 1e-4
    container.seek(round(file.times[row[0]] / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.time >= first:
            yield frame
        if frame.time >= last:
            return


class Floor(Dataset[dict[str, Any]]):
    """Bare decoding; "cpu" is the CPU seconds of the clip, and of nothing else."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __len__(self) -> int:
        return len(self.work.files)

    def __getitem__(self, index: int) -> Batch:
        file, row = self.work.files[index], self.work.train_row(index)
        start = time.process_time()
        with av.open(file.path) as container:
            stream: Any = container.streams.best("video")
            context = stream.codec_context
            context.thread_type, context.thread_count = "NONE", 1
            for _ in stretch(container, file, row):
                pass
        return {"clip": torch.empty(0), "cpu": time.process_time() - start}


class Ours:
    """ClipLoader, crop and flip alone, from the start of the round's epoch. The flip, which it leaves to the device, is
    done here as the others do it. ``options`` of ClipDataset.
    """

    def __init__(self, work: Work, **options: Any) -> None:
        self.work = work
        augment = Augment(num_ops=0, erasing=0.0)
        dataset = ClipDataset(our_list(work), SPEC, augment=augment, seed=SEED, on_error="raise", **options)
        self.loader = ClipLoader(dataset, work.batch_size, num_workers=work.num_workers, shuffle=False)
        self.start = self.loader.state_dict()

    def __iter__(self) -> Iterator[Batch]:
        self.loader.load_state_dict(self.start | {"epoch": self.work.epoch})
        try:
            for batch in self.loader:
                for row in batch["flip"].nonzero().flatten().tolist():
                    clip = batch["clip"][row]
                    clip.copy_(clip.flip(-1))
                yield batch
        finally:
            self.loader.close()


class OurViews:
    """test_views, cut from the one decode in the main process."""

    def __init__(self, work: Work, **options: Any) -> None:
        self.work, self.options = work, options

    def __iter__(self) -> Iterator[Batch]:
        options = {"num_workers": self.work.num_workers, **self.options}
        for views in test_views(our_list(self.work), SPEC, CLIPS, CROPS, **options):
            yield {"clip": views["clips"]}


def our_list(work: Work) -> VideoList:
    return VideoList.make([file.path for file in work.files], [0] * len(work.files), ["any"])


Make: TypeAlias = Callable[[Work], Loader]
TRAIN: dict[str, Make] = {
    "ours": Ours,
    "ours-fast": partial(Ours, decode="fast"),
    "ours-4-clips": partial(Ours, num_clips=4),
    "ours-not-isolated": partial(Ours, isolate=False),
    "pytorchvideo-pyav": partial(pytorchvideo, decoder="pyav", test=False),
    "pytorchvideo-decord": partial(pytorchvideo, decoder="decord", test=False),
    "torchcodec": lambda work: work.loader(TorchCodec(work, test=False)),
    "decode-per-view": lambda work: work.loader(DecodePerView(work, test=False)),
    "floor": lambda work: work.loader(Floor(work)),
}
TEST: dict[str, Make] = {
    "ours": OurViews,
    "ours-not-isolated": partial(OurViews, isolate=False),
    "pytorchvideo-pyav": partial(pytorchvideo, decoder="pyav", test=True),
    "pytorchvideo-decord": partial(pytorchvideo, decoder="decord", test=True),
    "torchcodec": lambda work: work.loader(TorchCodec(work, test=True)),
    "decode-per-view": lambda work: work.loader(DecodePerView(work, test=True), CLIPS * CROPS),
}

# ---------------------------------------------------------------- measuring


class Tree:
    """A process and all below it, as they are now."""

    def __init__(self, pid: int | None = None) -> None:
        self.top = psutil.Process(pid)
        self.below = self.top.children(recursive=True)

    def cpu_seconds(self) -> float:
        """User and system time, that of ended children included."""
        total = 0.0
        for one in [self.top, *self.below]:
            with suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])
        return total

    def memory_mb(self, num_workers: int) -> dict[str, float]:
        """``worker_mb``: what is private to the processes below, by workers (one and its decoder); ``all_mb``: the
        whole tree, its part of shared pages included (PSS).
        """
        private = total = 0.0
        for one in [self.top, *self.below]:
            with suppress(psutil.NoSuchProcess):
                info = one.memory_full_info()
                total += getattr(info, "pss", info.uss) / 2**20
                private += info.uss / 2**20 if one is not self.top else 0.0
        return {"worker_mb": private / max(num_workers, 1), "all_mb": total}


def one_round(loader: Loader, work: Work) -> dict[str, float]:
    """Of the timed batches: ``views`` in them, their ``seconds`` and CPU seconds; ``start_up`` seconds to the first.

    From the arrival of the last batch that is skipped to that of the last that is timed; workers are busy at both.
    """
    begin = time.perf_counter()
    views = bare = start_up = 0.0
    batches = iter(loader)
    for number in range(1, work.skipped + work.timed + 1):
        batch = next(batches)
        arrival = time.perf_counter()
        start_up = start_up or arrival - begin
        if number == work.skipped:
            tree = Tree()
            start, spent = arrival, tree.cpu_seconds()
        elif number > work.skipped and "cpu" in batch:
            views, bare = views + len(batch["cpu"]), bare + float(batch["cpu"].sum())
        elif number > work.skipped:
            views += batch["clip"].numel() / (3 * SPEC.num_frames * SPEC.size[0] * SPEC.size[1])
    cpu = bare or tree.cpu_seconds() - spent
    return {"views": views, "seconds": arrival - start, "cpu": cpu, "start_up": start_up}


def serve(connection: Connection, make: Make, work: Work) -> None:
    """A contestant's own process: a round for each epoch that it is sent. A failure is its answer, one line."""
    try:
        torch.set_num_threads(1)
        loader = make(work)
        while (epoch := connection.recv()) is not None:
            work.epoch = epoch
            connection.send(one_round(loader, work))
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        connection.send(f"{type(error).__name__}: {str(error).strip()}".split("\n")[0])


def ask(process: Any, connection: Connection, epoch: int, work: Work, peak: dict[str, float]) -> dict[str, float] | str:
    """The round of one contestant, or what failed. In the first its memory is looked at, into ``peak``."""
    with suppress(BrokenPipeError):  # it has failed already, and said why
        connection.send(epoch)
    while not connection.poll(0.5 if epoch == 0 else None):
        for key, value in Tree(process.pid).memory_mb(work.num_workers).items():
            peak[key] = max(peak.get(key, 0.0), value)
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return f"its process ended with exit code {process.exitcode}"


def race(contestants: dict[str, Make], work: Work, rounds: int, views_per_unit: int) -> dict[str, dict[str, Any]]:
    """By contestant: per round ``rates`` (units a second), ``costs`` (CPU seconds a unit), ``start_up`` seconds, and
    peak ``worker_mb``, ``all_mb``. Who fails is said and left out.

    Each lives in a forked process of its own until the race is over; one runs at a time, in alternating order.
    """
    context = multiprocessing.get_context("fork")
    running: dict[str, tuple[Any, Connection]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make in contestants.items():
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, make, work))
        process.start()
        there.close()
        running[name] = process, here
        results[name] = {"rates": [], "costs": [], "start_up": [], "memory": {}}
    for epoch in range(rounds):
        for name in list(running)[:: -1 if epoch % 2 else 1]:
            answer = ask(*running[name], epoch, work, results[name]["memory"])
            if isinstance(answer, str):
                print(f"{name} is left out: {answer}", flush=True)
                del running[name], results[name]
                continue
            units = answer["views"] / views_per_unit
            results[name]["rates"].append(units / answer["seconds"])
            results[name]["costs"].append(answer["cpu"] / units)
            results[name]["start_up"].append(answer["start_up"])
    for process, connection in running.values():
        connection.send(None)
        process.join()
    return results


# ---------------------------------------------------------------- counting, comparing


def counted(work: Work, views: Work, rounds: int) -> dict[str, float]:
    """Frames that a decoder must decode for a training clip, and by what factor fewer it must where a line of the
    comparison allows it: what the files' keyframes allow, over the very draws of the rounds.

    Four clips of a video singly, over all four at once; 5x3 views of a video, each by itself (15 decodes), or clip by
    clip at PyTorchVideo's own starts (5 decodes), over all at once.
    """
    single = four = together = 0
    for epoch in range(rounds):
        for index in work.timed_entries:
            file = work.files[index]
            rows = [work.train_row(index, repeat, epoch) for repeat in range(4)]
            frames = [file.decoded(row) for row in rows]
            single, four = single + frames[0], four + sum(frames)
            together += file.decoded(np.concatenate(rows))
    once = per_view = per_clip = 0
    for index in views.timed_entries:
        file = views.files[index]
        rows = list(test_clips(file.times, SPEC, CLIPS))
        once += file.decoded(np.concatenate(rows))
        per_view += CROPS * sum(file.decoded(row) for row in rows)
        room = max(0.0, file.times[-1] - file.times[0] - SPEC.span)
        for start in file.times[0] + room * np.arange(CLIPS) / CLIPS:
            first, stop = np.searchsorted(file.times, [start, start + SPEC.span])
            per_clip += file.decoded(np.arange(first, stop))
    return {
        "per clip": single / rounds / len(work.timed_entries),
        "train ours-4-clips/ours": four / together,
        "test ours/decode-per-view": per_view / once,
        "test ours/pytorchvideo": per_clip / once,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "quartile_low": low, "quartile_high": high}


def ratio(mine: list[float], others: list[float]) -> dict[str, float]:
    """Of the same rounds."""
    return spread([one / other for one, other in zip(mine, others, strict=True)])


def fastest(results: dict[str, Any], start: str) -> str:
    """The contestant of this beginning of a name that is fastest on these files; "" without one."""
    found = [name for name in results if name.startswith(start)]
    return max(found, key=lambda name: statistics.median(results[name]["rates"]), default="")


#: Table, contestant, what is compared, with which other, the limit: what the loader is held to. None: no limit.
LINES: list[tuple[str, str, str, str, float | None]] = [
    ("train", "ours", "rates", "pytorchvideo", 1.3),
    ("train", "ours-fast", "rates", "pytorchvideo", 1.7),
    ("train", "ours", "costs", "floor", 1.2),
    ("train", "ours-4-clips", "rates", "ours", 1.8),
    ("test", "ours", "rates", "pytorchvideo", 0.8),  # of what counted frames allow
    ("test", "ours", "rates", "decode-per-view", 0.8),
    ("train", "ours", "rates", "torchcodec", None),
    ("train", "ours", "rates", "decode-per-view", None),
    ("train", "ours-not-isolated", "rates", "ours", None),
    ("train", "ours-not-isolated", "costs", "ours", None),
    ("test", "ours", "rates", "torchcodec", None),
    ("test", "ours-not-isolated", "rates", "ours", None),
]


def compare(tables: dict[str, dict[str, Any]], bounds: dict[str, float]) -> list[dict[str, Any]]:
    """One of :data:`LINES` each: ``line``, ``ratio``, ``bound`` by counted frames, ``limit``, and whether it holds."""
    lines = []
    for table, mine, what, other, limit in LINES:
        results = tables[table]
        peer = fastest(results, other) if other == "pytorchvideo" else other
        if mine not in results or peer not in results:
            continue
        bound = bounds.get(f"{table} {mine}/{other}")
        if table == "test" and limit is not None and bound is not None:
            limit *= bound
        value = ratio(results[mine][what], results[peer][what])
        holds = limit is None or (value["median"] <= limit if what == "costs" else value["median"] >= limit)
        line = f"{table}: {mine} / {peer}, {'per second' if what == 'rates' else 'CPU'}"
        lines.append({"line": line, "ratio": value, "bound": bound, "limit": limit, "holds": holds})
    return lines


def print_table(title: str, results: dict[str, Any]) -> None:
    print(f"\n{title:46}{'[quartiles]':>16}{'CPU s':>9}{'/ floor':>9}{'MB/worker':>11}{'MB all':>8}{'start s':>9}")
    for name, result in results.items():
        speed, cost = spread(result["rates"]), statistics.median(result["costs"])
        quartiles = f"[{speed['quartile_low']:.2f}, {speed['quartile_high']:.2f}]"
        over = f"{ratio(result['costs'], results['floor']['costs'])['median']:.2f}" if "floor" in results else ""
        worker, whole = (result["memory"].get(key, 0.0) for key in ("worker_mb", "all_mb"))
        start_up = statistics.median(result["start_up"])
        print(f"  {name:32}{speed['median']:12.2f}{quartiles:>16}{cost:9.4f}{over:>9}", end="")
        print(f"{worker:11.0f}{whole:8.0f}{start_up:9.1f}")


def print_lines(lines: list[dict[str, Any]]) -> None:
    print(f"\n{'ratios within a round':64}{'median':>8}{'[quartiles]':>16}{'bound':>7}{'limit':>7}")
    for line in lines:
        value = line["ratio"]
        quartiles = f"[{value['quartile_low']:.2f}, {value['quartile_high']:.2f}]"
        numbers = [f"{line[key]:.2f}" if line[key] is not None else "" for key in ("bound", "limit")]
        verdict = "" if line["limit"] is None else "  holds" if line["holds"] else "  MISSED"
        print(f"  {line['line']:62}{value['median']:8.2f}{quartiles:>16}{numbers[0]:>7}{numbers[1]:>7}{verdict}")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = {"python": platform.python_version()}
    for package in ("av", "decord2", "torchcodec", "pytorchvideo", "torch", "torchvision", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": versions}


def benchmark(title: str, files: list[File], options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one set of files, printed and as it goes into the JSON file."""
    workers, test_rounds = options.workers, min(options.rounds, options.test_rounds)
    work = Work.of(files, options.clips, batch_size=VIDEOS_PER_BATCH, extra=2 * workers, num_workers=workers)
    views = Work.of(files, options.videos, batch_size=1, extra=0, num_workers=workers)
    train = race({name: TRAIN[name] for name in TRAIN if name in options.only}, work, options.rounds, 1)
    test = race({name: TEST[name] for name in TEST if name in options.only}, views, test_rounds, CLIPS * CROPS)
    bounds = counted(work, views, options.rounds)
    lines = compare({"train": train, "test": test}, bounds)

    keys = sorted({file.num_keyframes for file in files})
    print(f"\n== {title}: {len(files)} files with {keys[0]} to {keys[-1]} keyframes")
    print("frames that a decoder must decode: " + ", ".join(f"{name} {value:.2f}" for name, value in bounds.items()))
    print_table(f"train clips/s, {options.rounds} rounds of {len(work.timed_entries)}", train)
    print_table(f"5x3 test videos/s, {test_rounds} rounds of {len(views.timed_entries)}", test)
    print_lines(lines)
    facts = [{"path": file.path, "frames": len(file.times), "keyframes": file.num_keyframes} for file in files]
    return {"files": facts, "counted_frames": bounds, "train": train, "test": test, "lines": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the generated files are kept (a temporary folder)")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="real files: its H.264 ones of at least 8 s")
    parser.add_argument("--num-files", type=int, default=30, help="generated files; 0: only --files")
    parser.add_argument("--seconds", type=float, default=10, help="length of a generated file")
    parser.add_argument("--clips", type=int, default=48, help="training clips in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=4, help="test videos in a round")
    parser.add_argument("--test-rounds", type=int, default=3, help="at most this many rounds of tests")
    parser.add_argument("--workers", type=int, default=2)
    names = list(dict.fromkeys([*TRAIN, *TEST]))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write everything measured to FILE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # decoder processes inherit it
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as temporary:
        made = make_set(options.folder or Path(temporary), options.num_files, options.seconds)
        sets = {"generated": [File.read(str(path)) for path in made]}
        if options.files:
            sets[str(options.files)] = real_files(options.files)
        on = machine()
        print(f"{on['cpu']}, {on['cores']} cores, {options.workers} workers")
        print(", ".join(f"{package} {version}" for package, version in on["versions"].items()), flush=True)
        result = {"machine": on, "workers": options.workers}
        result["sets"] = {title: benchmark(title, files, options) for title, files in sets.items() if files}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
