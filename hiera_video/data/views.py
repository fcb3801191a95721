"""A file to the test views of a model: clips spread over it, each cut into crops, all from one decode."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.data.ahead import map_ahead
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.memory import Input, is_frames, on_disk, video_of
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_image, read_image
from hiera_video.data.reading.reader import Video, open_video
from hiera_video.data.sampling import keyed_rng, test_clips
from hiera_video.data.transforms import fit_crops, plan_crops
from hiera_video.errors import UnreadableVideo
from hiera_video.spec import ClipSpec

#: Frame numbers int64 [num_clips, num_frames] of one video from its frames' times in seconds and the clip's own draws.
Sampler: TypeAlias = Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.int64]]
#: Of which clips there are pictures for people to look at.
Pictures: TypeAlias = Literal["none", "middle", "all"]


@dataclass(frozen=True)
class Views:
    """The ``num_clips * num_crops`` test views of one input, kept as what they share: each frame once, resized.

    ``frames`` uint8 [C, K, H, W], the distinct frames; ``rows`` int64 [num_clips, T], which of them make a clip;
    ``corners`` (top, left) of each crop of ``size`` (height, width) pixels; ``times`` float64 [V, T], the seconds at
    which each frame of each view is shown; ``duration`` of the input in seconds (0 for an image); ``error``: None, or
    one sentence about the part that could not be read; ``pictures`` uint8 [n, T, h, w, 3], where they are asked for:
    the middle crop of the middle clip, or of every clip, for people to look at, at the input's own resolution (of an
    image one clip of one frame).
    """

    frames: Tensor
    rows: Tensor
    corners: list[tuple[int, int]]
    size: tuple[int, int]
    times: NDArray[np.float64]
    duration: float
    error: str | None = None
    pictures: NDArray[np.uint8] | None = None

    @property
    def clips(self) -> Tensor:
        """uint8 [V, C, T, h, w], cut on the device where ``frames`` are; view v: clip v // crops, crop v % crops."""
        height, width = self.size
        num_clips, num_frames = self.rows.shape
        shape = (num_clips, len(self.corners), len(self.frames), num_frames, height, width)
        clips = self.frames.new_empty(shape)
        # Indices on the host would be copied at each use, and each copy would wait for all that the device has to do.
        rows = self.rows.to(self.frames.device, non_blocking=True)
        for crop, (y, x) in enumerate(self.corners):
            cut = self.frames[:, :, y : y + height, x : x + width]
            for clip, row in enumerate(rows):
                clips[clip, crop] = cut[:, row]
        return clips.flatten(0, 1)

    def clip(self, view: int) -> Tensor:
        """uint8 [C, T, h, w]: view ``view`` alone, on the CPU."""
        clip, crop = divmod(view, len(self.corners))
        (y, x), (height, width) = self.corners[crop], self.size
        return self.frames[:, self.rows[clip], y : y + height, x : x + width].cpu()

    def middle(self) -> NDArray[np.uint8]:
        """uint8 [T, h, w, 3]: the middle crop of the middle clip; a copy, which keeps none of the other frames."""
        view = len(self.rows) // 2 * len(self.corners) + len(self.corners) // 2
        frames: NDArray[np.uint8] = self.clip(view).permute(1, 2, 3, 0).clone().numpy()
        return frames

    def shown(self, clip: int) -> NDArray[np.uint8]:
        """uint8 [T, h, w, 3]: the ``pictures`` of a clip, of which there must be some; of an image always the same."""
        assert self.pictures is not None
        return self.pictures[clip if len(self.pictures) == len(self.rows) else 0]

    def to(self, device: torch.device | str) -> Views:
        """The same with ``frames`` on ``device``."""
        return replace(self, frames=self.frames.to(device, non_blocking=True))


def load_views(
    source: Input,
    spec: ClipSpec,
    num_clips: int,
    num_crops: int,
    *,
    start: float = 0.0,
    end: float = float("inf"),
    sample: Sampler | None = None,
    decode: Literal["exact", "fast"] = "exact",
    fps: float | None = None,
    reader: IsolatedReader | None = None,
    num_threads: int | None = None,
    keep_pictures: Pictures = "none",
) -> Views:
    """The test views of one input: opened once, each frame decoded and resized once.

    An image is a still: every frame of a clip shows it.

    Args:
        source: A video or image file, an http(s) address, bytes, an open binary file, frames uint8 [T, H, W, 3] (a
            tensor may be [T, 3, H, W] too), or a list of PIL pictures.
        spec: What a clip is, and its size.
        num_clips: Clips, spread evenly over the input.
        num_crops: 1 is the centre, 3 lie along the long side.
        start: Seconds after the first frame at which the segment to look at begins.
        end: Seconds after the first frame at which it ends.
        sample: Chooses the frames instead of :func:`hiera_video.data.sampling.test_clips`.
        decode: As for :func:`hiera_video.open_video`.
        fps: Frames a second of frames in memory and of a folder of pictures.
        reader: Decodes in its child process.
        num_threads: Threads that decode; 0 is as many as there are processors. Default: 1 in a child, else 0.
        keep_pictures: Of which clips the views have ``pictures``: none, the middle one, or all.

    Returns:
        The views.

    Raises:
        UnreadableVideo: Where nothing can be read.
        RequestError: For a source of another kind, or frames without ``fps``.
    """
    if not isinstance(source, (str, os.PathLike)):
        if is_frames(source):
            return _views_of(video_of(source, fps), spec, (num_clips, num_crops), start, end, sample, keep_pictures)
        how: dict[str, Any] = {"start": start, "end": end, "sample": sample, "decode": decode, "fps": fps}
        how["keep_pictures"] = keep_pictures
        with on_disk(source) as path:
            return load_views(path, spec, num_clips, num_crops, reader=reader, num_threads=num_threads, **how)
    if is_image(source):
        still = np.zeros((num_clips, spec.num_frames), dtype=np.int64)
        times = np.zeros((num_clips * num_crops, spec.num_frames))
        image = read_image(os.fspath(source))[np.newaxis]
        frames, corners = fit_crops(image, spec, num_crops)
        pictures = None if keep_pictures == "none" else _pictures(image, spec, num_crops)[np.newaxis]
        return Views(frames, torch.from_numpy(still), corners, spec.size, times, 0.0, pictures=pictures)
    with open_input(source, reader, num_threads=num_threads, decode=decode, fps=fps) as video:
        return _views_of(video, spec, (num_clips, num_crops), start, end, sample, keep_pictures)


def _views_of(
    video: Video,
    spec: ClipSpec,
    views: tuple[int, int],
    start: float,
    end: float,
    sample: Sampler | None,
    keep: Pictures,
) -> Views:
    num_clips, num_crops = views
    choose = sample or (lambda times, rng: test_clips(times, spec, num_clips))
    rows = rows_within(video.times, start, end, choose, keyed_rng(0))
    distinct, inverse = np.unique(rows, return_inverse=True)
    _, images = video.read(distinct)
    pixels = images if isinstance(images, np.ndarray) else np.stack(images)
    frames, corners = fit_crops(pixels, spec, num_crops, video.pixel_aspect)
    times = np.repeat(video.times[rows], num_crops, axis=0)
    places = inverse.reshape(rows.shape)
    pictures = None
    if keep != "none":  # of frames that are decoded anyway, each once
        looked_at, which = np.unique(places if keep == "all" else places[[num_clips // 2]], return_inverse=True)
        shown = _pictures((pixels[place] for place in looked_at), spec, num_crops, video.pixel_aspect)
        pictures = shown[which.reshape(-1, rows.shape[1])]
    return Views(frames, torch.from_numpy(places), corners, spec.size, times, video.duration, video.error, pictures)


def _pictures(
    frames: Iterable[NDArray[np.uint8]], spec: ClipSpec, num_crops: int, pixel_aspect: float | Fraction = 1
) -> NDArray[np.uint8]:
    """uint8 [T, h, w, 3] for people to look at, of T frames uint8 [H, W, 3]."""
    return np.stack([plan_crops(frame.shape[:2], spec, num_crops, pixel_aspect).show(frame) for frame in frames])


def rows_within(
    times: NDArray[np.float64], start: float, end: float, sample: Sampler, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Frame numbers that ``sample`` chooses among those shown in [start, end) seconds after the first frame."""
    if start <= 0 and end == float("inf"):
        return sample(times, rng)
    since = times - times[0]
    first = max(0, int(np.searchsorted(since, start + 1e-6, side="right")) - 1)
    last = max(first + 1, int(np.searchsorted(since, end - 1e-6)))
    return sample(times[first:last], rng) + first


def open_input(
    path: str | os.PathLike[str], reader: IsolatedReader | None, *, num_threads: int | None = None, **options: Any
) -> Video:
    """:func:`open_video`, in ``reader``'s child process if there is one, by one thread then; ``options`` are its."""
    if reader is None:
        return open_video(path, num_threads=num_threads or 0, **options)
    return reader.open(path, num_threads=num_threads or 1, **options)


# --- many inputs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """One input among many: ``source`` from ``start`` to ``end`` seconds after its first frame.

    ``index`` is its number among the inputs; ``error``: None, or one sentence on why it cannot be read.
    """

    source: Input
    index: int
    start: float = 0.0
    end: float = float("inf")
    error: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A segment and its views; ``views`` is None where nothing could be read, and ``error`` then says why."""

    segment: Segment
    views: Views | None
    error: str | None


def load_ahead(
    segments: Iterable[Segment],
    spec: ClipSpec,
    num_clips: int,
    num_crops: int,
    *,
    num_workers: int = 2,
    time_limit: float = 60,
    isolate: bool = True,
    **options: Any,
) -> Iterator[Loaded]:
    """The views of many inputs, in their order, read ahead by threads that each decode in a child process.

    A decoder that crashes or hangs costs its file. The threads end with the iterator, however it ends.

    Args:
        segments: What to read.
        spec: What a clip is, and its size.
        num_clips: Clips of each input.
        num_crops: Crops of each clip, 1 or 3.
        num_workers: Threads; 0 reads in the calling thread.
        time_limit: Seconds after which a decoder counts as hanging.
        isolate: Whether to decode in child processes.
        options: ``sample``, ``decode``, ``fps``, ``num_threads`` and ``keep_pictures`` of :func:`load_views`.

    Yields:
        One :class:`Loaded` for each segment.

    Raises:
        RequestError: For options that mean nothing.
    """
    read = partial(load_segment, spec=spec, num_clips=num_clips, num_crops=num_crops, **options)
    return map_ahead(read, segments, num_workers=num_workers, time_limit=time_limit, isolate=isolate)


def load_segment(segment: Segment, reader: IsolatedReader | None, **options: Any) -> Loaded:
    """The views of one input; what cannot be read is told in ``error``.

    Args:
        segment: What to read.
        reader: Decodes in its child process; None decodes in this one.
        options: The other arguments of :func:`load_views`.

    Returns:
        The segment with its views or its error.

    Raises:
        RequestError: For options that mean nothing, and sources that are none.
    """
    if segment.error is not None:
        return Loaded(segment, None, segment.error)
    try:
        views = load_views(segment.source, start=segment.start, end=segment.end, reader=reader, **options)
    except UnreadableVideo as error:
        return Loaded(segment, None, str(error))
    return Loaded(segment, views, views.error)


def segments_of(videos: VideoList, indices: Iterable[int] | None = None) -> Iterator[Segment]:
    """The videos of a list as inputs.

    Args:
        videos: The list.
        indices: Which of them; default: all.

    Yields:
        One segment for each, with the video's number in the list as its ``index``.
    """
    for index in range(len(videos)) if indices is None else indices:
        yield Segment(videos.path(index), index, float(videos.starts[index]), float(videos.ends[index]))


def test_views(
    videos: VideoList,
    spec: ClipSpec,
    num_clips: int,
    num_crops: int,
    *,
    device: torch.device | str = "cpu",
    indices: Iterable[int] | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """The test views of each video of a list, in its order; nothing is replaced.

    Args:
        videos: The list.
        spec: What a clip is, and its size.
        num_clips: Clips of each video.
        num_crops: Crops of each clip, 1 or 3.
        device: Where the views are cut: each resized frame is sent there once.
        indices: Numbers of the videos to read; default: all.
        options: The other arguments of :func:`load_ahead`.

    Yields:
        ``clips`` uint8 [V, C, T, h, w] on ``device``, or None where nothing could be read; ``error``: None, or one
        sentence; ``label``, ``path``, ``index``.

    Raises:
        RequestError: For options that mean nothing.
    """
    for loaded in load_ahead(segments_of(videos, indices), spec, num_clips, num_crops, **options):
        index = loaded.segment.index
        yield {
            "index": index,
            "path": videos.path(index),
            "label": videos.label(index),
            "clips": None if loaded.views is None else loaded.views.to(device).clips,
            "error": loaded.error,
        }


test_views.__test__ = False  # type: ignore[attr-defined]  # the name is the protocol's; pytest is not meant
