"""The contestants of the loader's benchmark: PyTorchVideo, torchcodec, one decode per view, bare decoding, and ours.

Each gives batches of "clip".
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, TypeAlias

import av
import numpy as np
import torch
from clip_files import CLIPS, CROPS, SEED, SPEC, Batch, File, Loader, Work
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from torchvision.transforms import v2

from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.loader import ClipLoader
from hiera_video.data.sampling import test_clips
from hiera_video.data.views import test_views
from hiera_video.spec import Augment

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
                yield dict(batch)
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
