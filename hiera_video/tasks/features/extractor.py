"""Features of videos and images, window by window: what the head sees, and maps of every stage with place and time.

source -> walk() -> windows -> stream(): batches -> the model -> one WindowFeatures for each crop of each window
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.data.memory import Input, input_name, is_frames, on_disk, video_of
from hiera_video.data.views import Views
from hiera_video.data.windows import CROPS, Crop, Walk, Windows, walk
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.io import weights_of
from hiera_video.models.hiera import Hiera
from hiera_video.models.unroll import reroll
from hiera_video.models.zoo import GENERAL, from_pretrained
from hiera_video.training.devices import (
    Precision,
    autocast,
    compiled,
    in_lanes,
    lane_size,
    pick_device,
    pick_precision,
    refuse_name,
    width_of,
)

#: Seconds from one window of an image model to the next: it looks at single pictures.
IMAGE_HOP_S = 1.0
#: Features that are one vector a clip, not a map.
VECTORS = ("embedding", "statistics")
#: Statistics of stages are taken at these strides; asked for alone, of clips of so many frames, seconds apart, and of
#: at least this height and width (docs/results/own_videos.md).
STRIDES, FRAMES, STEP_S, SIDE = (1, 2), 32, 0.04, 96


@dataclass(frozen=True)
class WindowFeatures:
    """Features of one crop of one window: a row of what ``hiera-video extract`` writes.

    ``input``: its path, or what messages call it. ``number`` of the window among ``count``. ``crop``: its name.
    ``start`` and ``end``: seconds after the input's first frame. ``box`` float64 [4]: left, top, right, bottom of the
    crop in pixels of the upright ``picture`` (height, width). ``padded``: the input is shorter than a window.
    ``error``: None, or one sentence about what could not be read.

    ``embedding`` float32 [C]: the normalised mean of the last stage's tokens, which is what the head sees; or None.
    ``statistics`` float32 [C]: those of the first stages (:meth:`hiera_video.Hiera.statistics`); or None.
    ``maps``: "stage3" -> float32 [T', H', W', C], row-major; ``times``: "stage3" -> float64 [T'], the centre of each
    step in seconds. ``views``: the pictures of the windows that were decoded together, of which ``view`` is this one;
    None where the features come from another process.
    """

    input: str
    number: int
    count: int
    crop: str
    start: float
    end: float
    box: NDArray[np.float64]
    picture: tuple[int, int]
    padded: bool
    error: str | None
    embedding: NDArray[np.float32] | None
    statistics: NDArray[np.float32] | None
    maps: dict[str, NDArray[np.float32]]
    times: dict[str, NDArray[np.float64]]
    views: Views | None = field(repr=False)
    view: int

    @property
    def frames(self) -> NDArray[np.uint8]:
        """uint8 [T, H, W, 3]: the clip as the model sees it."""
        assert self.views is not None
        frames: NDArray[np.uint8] = self.views.clip(self.view).permute(1, 2, 3, 0).numpy()
        return frames

    def cells(self, stage: str) -> NDArray[np.float64]:
        """Where the cells of a map lie.

        Args:
            stage: A name in ``maps``.

        Returns:
            float64 [H', W', 4]: left, top, right, bottom of what each cell covers, in pixels of the upright picture.
        """
        height, width = self.maps[stage].shape[1:3]
        left, top, right, bottom = self.box
        x, y = np.linspace(left, right, width + 1), np.linspace(top, bottom, height + 1)
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        edges = np.broadcast_arrays(x[columns], y[rows], x[columns + 1], y[rows + 1])
        return np.stack(edges, axis=-1)


class FeatureExtractor:
    """A model that turns videos and images into features.

    Args:
        model: Any Hiera; its own classes do not matter.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
        precision: ``auto`` is bf16 on a GPU that has it, and on a CPU that is faster in it, else fp32.
        compile: Whether to compile the model (torch.compile), which takes a minute or more: for long jobs.

    Raises:
        RequestError: For a device or compiler that is not there, another precision, and a name in place of a model.

    >>> extractor = FeatureExtractor.from_pretrained()  # doctest: +SKIP
    >>> for window in extractor("clip.mp4", features="embedding,stage3"):  # doctest: +SKIP
    ...     print(window.start, window.embedding.shape, window.maps["stage3"].shape)
    """

    def __init__(
        self, model: Hiera, *, device: str = "auto", precision: Precision = "auto", compile: bool = False
    ) -> None:
        refuse_name(model, "FeatureExtractor")
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.precision = pick_precision(precision, self.device, width=width_of(model.arch.dims))
        self._values: Callable[..., dict[str, Tensor]] = compiled(_values, self.device) if compile else _values

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = GENERAL,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        compile: bool = False,
        **kwargs: Any,
    ) -> FeatureExtractor:
        """The extractor of any model that :func:`hiera_video.from_pretrained` reads.

        Of an MAE the encoder with all poolings and a new norm: what fine-tuning would start from.

        Args:
            model: A name, a file, a folder or a hub id.
            device: As for the class.
            precision: As for the class.
            compile: As for the class.
            **kwargs: What else :func:`hiera_video.from_pretrained` takes, such as ``input_size``.

        Returns:
            The extractor.

        Raises:
            WeightsError: Where the model cannot be had.
            RequestError: As for the class.
        """
        return cls(from_pretrained(model, **kwargs), device=device, precision=precision, compile=compile)

    @property
    def weights(self) -> str:
        """A fingerprint of what the features depend on, 16 hexadecimal digits.

        A head that was drawn at random when the model was loaded (of an MAE, or a checkpoint without one) is left out.
        """
        return weights_of(self.model, head=not self.model.new_head)

    def __call__(
        self,
        source: Input,
        *,
        features: str = "embedding",
        window: float | None = None,
        hop: float | None = None,
        crop: Crop = "center",
        batch_size: int = 8,
        decode: Literal["exact", "fast"] = "exact",
        fps: float | None = None,
    ) -> Iterator[WindowFeatures]:
        """The features of one video or image, window by window, in constant memory.

        Args:
            source: A video or image file, an http(s) address, the bytes of a file, an open binary file, frames uint8
                [T, H, W, 3] (a tensor may be [T, 3, H, W] too), or a list of PIL pictures.
            features: ``embedding``, ``statistics`` of the first stages, ``stage1`` to ``stage4``, several with commas,
                or ``all`` but ``statistics``.
            window: Seconds of one window. Default: the model's clip; of ``statistics`` alone 32 frames, 1.28 s.
            hop: Seconds from one window to the next. Default: as long as a window.
            crop: ``center``, ``three`` along the long side, or ``none``: the whole picture.
            batch_size: Clips that go through the model at once.
            decode: As in :func:`hiera_video.open_video`.
            fps: Frames a second, of frames and pictures, which have no times of their own.

        Yields:
            The features of each crop of each window, in their order.

        Raises:
            UnreadableVideo: When nothing can be read, or nothing more.
            RequestError: For a value that is not possible, and a source of another kind.
        """
        names = feature_names(self.model, features)
        how = self.walk(names, window=window, hop=hop, crop=crop, batch_size=batch_size, decode=decode)
        return self.stream(_windows_of(source, how, fps), names, batch_size)

    def walk(
        self,
        names: Sequence[str] = ("embedding",),
        *,
        window: float | None = None,
        hop: float | None = None,
        crop: Crop = "center",
        batch_size: int = 8,
        decode: Literal["exact", "fast"] = "exact",
    ) -> Walk:
        """How inputs become windows for this model.

        Args:
            names: Of the features.
            window: As in a call, like all others.
            hop: Seconds.
            crop: ``center``, ``three`` or ``none``.
            batch_size: Clips that go through the model at once.
            decode: ``exact`` or ``fast``.

        Returns:
            What :func:`hiera_video.data.windows.walk` takes.

        Raises:
            RequestError: For a value that is not possible.
        """
        spec, arch = self.model.spec, self.model.arch
        if list(names) == ["statistics"] and arch.head != "stages" and spec.num_frames > 1:
            side = max(SIDE, min(spec.size))
            stride = STEP_S * spec.target_fps
            spec = spec.replace(num_frames=FRAMES, frame_stride=stride, size=(side, side), resize=side)
        for name, value in (("window", window), ("hop", hop)):
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(f"{name} is {value:g}, but is a number of seconds above 0")
        if crop == "none" and self._values is not _values:
            raise RequestError("crop none has clips of many sizes, a compiled model takes one: leave out compile")
        if crop not in CROPS:
            raise RequestError(f"crop is {crop!r}, but can be {', '.join(CROPS)}")
        if batch_size < 1:
            raise RequestError(f"batch_size is {batch_size}, but is at least 1")
        if spec.num_frames == 1 and window is None:
            window = hop or IMAGE_HOP_S
        if window is not None:
            spec = spec.replace(frame_stride=window * spec.target_fps / spec.num_frames)
        # The side of a mask unit: sizes are multiples of it.
        multiple = arch.patch_stride[-1] * arch.mask_unit_size[-1]
        at_once = max(1, lane_size(batch_size, self.device, spec) // len(CROPS[crop]))
        return Walk(spec, hop or spec.span, crop, multiple, at_once, decode)

    def stream(self, windows: Iterable[Windows], names: Sequence[str], batch_size: int) -> Iterator[WindowFeatures]:
        """The features of windows; short inputs go through the model together.

        Two batches are under way at once: while one is waited for, put together or written, the other computes.

        Args:
            windows: Of one input or of many.
            names: Of the features: "embedding", "stage1", ...
            batch_size: Clips that go through the model at once.

        Yields:
            The features of each crop of each window, in the order in which the windows come.
        """
        size = lane_size(batch_size, self.device, self.model.spec)
        for rows in in_lanes(partial(self._compute, names=names, batch_size=size), _batches(windows, size)):
            yield from rows

    def _compute(self, batch: list[Windows], *, names: Sequence[str], batch_size: int) -> list[WindowFeatures]:
        clips = torch.cat([windows.views.to(self.device).clips for windows in batch])
        parts = [self.features(part, names) for part in clips.tensor_split(-(-len(clips) // batch_size))]
        values = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in names}
        rows: list[WindowFeatures] = []
        for windows in batch:
            rows += _rows(windows, {name: value[len(rows) :] for name, value in values.items()})
        return rows

    @torch.inference_mode()
    def features(self, clips: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The model's features of clips.

        Args:
            clips: uint8 ``[B, C, T, H, W]``; an image model looks at their first frames.
            names: Of the features: "embedding", "stage1", ...

        Returns:
            By name: "embedding" and "statistics" float32 ``[B, C]``, "stageN" float32 ``[B, T', H', W', C]``.
        """
        clip = self.model.spec.normalize(self.model.spec.model_input(clips))
        with autocast(self.device, self.precision):
            values = self._values(clip, self.model, names)
        return {name: values[name].float() for name in names}


def _values(clip: Tensor, model: Hiera, names: Sequence[str]) -> dict[str, Tensor]:
    """The features of normalised clips, by name, in the numbers that the model computes in."""
    stages = [int(name.removeprefix("stage")) for name in names if name not in VECTORS]
    values: dict[str, Tensor] = {}
    if "statistics" in names:
        values["statistics"] = model.statistics(clip, None if model.arch.head == "stages" else STRIDES)
    if model.arch.head == "stages" and "embedding" in names:  # the last stages are not computed for it
        values["embedding"] = model.embedding(clip)
    if stages or set(names) - set(values):
        walked = list(model.stages(clip))
        if "embedding" in names and "embedding" not in values:
            values["embedding"] = model.embedding_of(walked)
        for stage in stages:
            stage_map = reroll(*walked[stage - 1])
            values[f"stage{stage}"] = stage_map.unsqueeze(1) if clip.ndim == 4 else stage_map
    return values


def feature_names(model: Hiera, features: str) -> list[str]:
    """The names of the features that a user asks for, vectors first.

    Args:
        model: Of which features are asked.
        features: "embedding,stage3" or "all", which is all but statistics.

    Returns:
        "embedding", "statistics", "stage1", ..., each once.

    Raises:
        RequestError: For other names.
    """
    maps = [f"stage{stage}" for stage in range(1, len(model.arch.stages) + 1)]
    every = [*VECTORS, *maps]
    asked = ["embedding", *maps] if features == "all" else [name.strip() for name in features.split(",")]
    for name in asked:
        if name not in every:
            raise RequestError(f"features {name!r} is unknown: take {', '.join(every)}, several with commas, or all")
    return [name for name in every if name in asked]


def _windows_of(source: Input, how: Walk, fps: float | None) -> Iterator[Windows]:
    if is_frames(source) or fps is not None:
        with video_of(source, fps) as video:
            yield from walk(video, how)
    else:
        with on_disk(source) as path:
            yield from walk(path, how, name=input_name(source))


def _batches(windows: Iterable[Windows], batch_size: int) -> Iterator[list[Windows]]:
    """Neighbours with crops of one size, until they have ``batch_size`` clips together."""
    waiting: list[Windows] = []
    num_clips = 0
    for several in windows:
        if waiting and waiting[0].plan.size != several.plan.size:
            yield waiting
            waiting, num_clips = [], 0
        waiting.append(several)
        num_clips += len(several) * len(several.crops)
        if num_clips >= batch_size:
            yield waiting
            waiting, num_clips = [], 0
    if waiting:
        yield waiting


def _rows(windows: Windows, values: dict[str, NDArray[np.float32]]) -> Iterator[WindowFeatures]:
    """The features of each crop of each window; ``values`` has theirs, in this order, and more behind them."""
    stages = [name for name in values if name not in VECTORS]
    boxes = windows.plan.boxes
    for window, crop in np.ndindex(len(windows), len(boxes)):
        view = window * len(boxes) + crop
        yield WindowFeatures(
            input=windows.input,
            number=windows.first + window,
            count=windows.total,
            crop=windows.crops[crop],
            start=float(windows.starts[window]),
            end=float(windows.ends[window]),
            box=boxes[crop],
            picture=windows.plan.picture,
            padded=windows.padded,
            error=windows.views.error,
            embedding=values["embedding"][view] if "embedding" in values else None,
            statistics=values["statistics"][view] if "statistics" in values else None,
            maps={name: values[name][view] for name in stages},
            times={name: _step_times(windows.times[window], values[name].shape[1]) for name in stages},
            views=windows.views,
            view=view,
        )


def _step_times(times: NDArray[np.float64], num_steps: int) -> NDArray[np.float64]:
    """Times of a clip's frames, float64 [T] -> of a map's steps, [T']: the mean of the frames in each."""
    means: NDArray[np.float64] = times.reshape(num_steps, -1).mean(axis=1)
    return means
