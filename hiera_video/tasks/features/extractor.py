"""Features of videos and images, window by window: what the head sees, and maps of every stage with place and time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.data.views import Views
from hiera_video.data.windows import CROPS, Crop, Stretch, Walk, walk
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import BUILT_IN, from_pretrained
from hiera_video.training.devices import Precision, autocast, pick_device, pick_precision

#: Batches that the model works on at once.
NUM_LANES = 2
#: Seconds from one window of an image model to the next: it looks at single pictures.
IMAGE_HOP_S = 1.0


@dataclass(frozen=True)
class WindowFeatures:
    """Features of one crop of one window.

    ``embedding`` float32 [C]: the normalised mean of the last stage's tokens, which is what the head sees; or None.
    ``maps``: "stage3" -> float32 [T', H', W', C], row-major. ``start`` and ``end`` are seconds after the input's first
    frame; ``times``: "stage3" -> float64 [T'], the centre of each step. ``box`` float64 [4]: left, top, right, bottom
    of the crop in pixels of the upright ``picture`` (height, width). ``number`` of the window among ``count``.
    ``padded``: the input is shorter than a window. ``error``: None, or one sentence about what could not be read.
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
    maps: dict[str, NDArray[np.float32]]
    times: dict[str, NDArray[np.float64]]
    views: Views | None = field(repr=False)
    view: int

    @property
    def frames(self) -> NDArray[np.uint8]:
        """uint8 [T, H, W, 3]: the clip as the model sees it."""
        assert self.views is not None  # left behind where rows come from another process
        frames: NDArray[np.uint8] = self.views.clip(self.view).permute(1, 2, 3, 0).numpy()
        return frames

    def cells(self, stage: str) -> NDArray[np.float64]:
        """float64 [H', W', 4]: left, top, right, bottom of what each cell of a map covers in the upright picture."""
        height, width = self.maps[stage].shape[1:3]
        left, top, right, bottom = self.box
        x, y = np.linspace(left, right, width + 1), np.linspace(top, bottom, height + 1)
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        edges = np.broadcast_arrays(x[columns], y[rows], x[columns + 1], y[rows + 1])
        return np.stack(edges, axis=-1)


class FeatureExtractor:
    """A model that turns files into features.

    >>> extractor = FeatureExtractor.from_pretrained()  # doctest: +SKIP
    >>> for window in extractor("clip.mp4", features="embedding,stage3"):  # doctest: +SKIP
    ...     print(window.start, window.embedding.shape, window.maps["stage3"].shape)
    """

    def __init__(self, model: Hiera, *, device: str = "auto", precision: Precision = "auto") -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.precision = pick_precision(precision, self.device)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = BUILT_IN, *, device: str = "auto", precision: Precision = "auto", **kwargs: Any
    ) -> FeatureExtractor:
        """Any model that :func:`hiera_video.from_pretrained` reads; so are its ``kwargs`` (``input_size``).

        Of an MAE the encoder with all poolings and a new norm: what fine-tuning would start from.
        """
        return cls(from_pretrained(model, **kwargs), device=device, precision=precision)

    def __call__(
        self,
        path: str | os.PathLike[str],
        *,
        features: str = "embedding",
        window: float | None = None,
        hop: float | None = None,
        crop: Crop = "center",
        batch_size: int = 8,
        decode: Literal["exact", "fast"] = "exact",
    ) -> Iterator[WindowFeatures]:
        """The features of one video, image or http(s) address, in constant memory; three crops of a window in a row.

        ``features`` are "embedding", "stage1" to "stage4", several with commas, or "all". A window is ``window``
        seconds long (default: the model's clip), ``hop`` seconds after the one before (default: as long as it is).
        ``crop``: "center", "three", or "none", which is the whole picture. Raises :class:`UnreadableVideo`.
        """
        wanted = features_wanted(self.model, features)
        how = self.walk(window=window, hop=hop, crop=crop, batch_size=batch_size, decode=decode)
        name = os.fspath(path)
        return self.stream(((name, one) for one in walk(name, how)), wanted, batch_size)

    def walk(
        self,
        *,
        window: float | None = None,
        hop: float | None = None,
        crop: Crop = "center",
        batch_size: int = 8,
        decode: Literal["exact", "fast"] = "exact",
    ) -> Walk:
        """How inputs are walked through for this model. Raises :class:`RequestError` for what cannot be."""
        spec, arch = self.model.spec, self.model.arch
        for name, value in (("window", window), ("hop", hop)):
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(f"{name} is {value:g}, but is a number of seconds above 0")
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
        at_once = max(1, batch_size // len(CROPS[crop]))
        return Walk(spec, hop or spec.span, crop, multiple, at_once, decode)

    def stream(
        self, stretches: Iterable[tuple[str, Stretch]], wanted: Sequence[str], batch_size: int
    ) -> Iterator[WindowFeatures]:
        """The features of stretches of inputs, in their order; short ones go through the model together.

        Two batches are under way at once: while one is waited for, put together or written, the other computes.
        """
        threads = max(1, torch.get_num_threads() // NUM_LANES)
        with ThreadPoolExecutor(NUM_LANES, initializer=torch.set_num_threads, initargs=(threads,)) as lanes:
            running: deque[Future[list[WindowFeatures]]] = deque()
            for batch in _batches(stretches, batch_size):
                running.append(lanes.submit(self._compute, batch, wanted, batch_size))
                if len(running) > NUM_LANES:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

    def _compute(
        self, stretches: list[tuple[str, Stretch]], wanted: Sequence[str], batch_size: int
    ) -> list[WindowFeatures]:
        clips = torch.cat([one.to(self.device).views.clips for _, one in stretches])
        parts = [self.features(part, wanted) for part in clips.tensor_split(-(-len(clips) // batch_size))]
        found = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in wanted}
        stages = [one for one in wanted if one != "embedding"]
        answers: list[WindowFeatures] = []
        place = 0  # of the next view in the batch
        for name, stretch in stretches:
            boxes = stretch.plan.boxes
            for row in range(len(stretch)):
                times = {one: steps(stretch.times[row], found[one].shape[1]) for one in stages}
                for number, (crop, box) in enumerate(zip(stretch.crops, boxes, strict=True)):
                    answer = WindowFeatures(
                        input=name,
                        number=stretch.first + row,
                        count=stretch.total,
                        crop=crop,
                        start=float(stretch.starts[row]),
                        end=float(stretch.ends[row]),
                        box=box,
                        picture=stretch.plan.picture,
                        padded=stretch.padded,
                        error=stretch.views.error,
                        embedding=found["embedding"][place] if "embedding" in wanted else None,
                        maps={one: found[one][place] for one in stages},
                        times=times,
                        views=stretch.views,
                        view=row * len(boxes) + number,
                    )
                    answers.append(answer)
                    place += 1
        return answers

    @torch.inference_mode()
    def features(self, clips: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """uint8 ``[B, C, T, H, W]`` -> "embedding" float32 ``[B, C]`` and "stageN" float32 ``[B, T', H', W', C]``."""
        model = self.model
        is_image = len(model.arch.input_size) == 2
        stages = [int(name.removeprefix("stage")) for name in wanted if name != "embedding"]
        clip = model.spec.normalize(clips[:, :, 0] if is_image else clips)
        with autocast(self.device, self.precision):
            tokens, maps = model.forward_intermediates(clip, stages=stages)
            found = {"embedding": model.forward_head(tokens, pre_logits=True)} if "embedding" in wanted else {}
        found |= {
            f"stage{stage}": one.unsqueeze(1) if is_image else one for stage, one in zip(stages, maps, strict=True)
        }
        return {name: found[name].float() for name in wanted}


def _batches(stretches: Iterable[tuple[str, Stretch]], batch_size: int) -> Iterator[list[tuple[str, Stretch]]]:
    """Neighbours with crops of one size, until they have ``batch_size`` views together."""
    waiting: list[tuple[str, Stretch]] = []
    num_views = 0
    for name, stretch in stretches:
        if waiting and waiting[0][1].plan.size != stretch.plan.size:
            yield waiting
            waiting, num_views = [], 0
        waiting.append((name, stretch))
        num_views += len(stretch) * len(stretch.crops)
        if num_views >= batch_size:
            yield waiting
            waiting, num_views = [], 0
    if waiting:
        yield waiting


def features_wanted(model: Hiera, features: str) -> list[str]:
    """ "embedding,stage3" or "all" -> names, the embedding first. Raises :class:`RequestError` for other names."""
    every = ["embedding", *(f"stage{stage}" for stage in range(1, len(model.arch.stages) + 1))]
    asked = every if features == "all" else [name.strip() for name in features.split(",")]
    for name in asked:
        if name not in every:
            raise RequestError(f"features {name!r} is unknown: take {', '.join(every)}, several with commas, or all")
    return [name for name in every if name in asked]


def steps(times: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Times of a clip's frames, float64 [T] -> those of a map's ``count`` steps: the mean of the frames in each."""
    means: NDArray[np.float64] = times.reshape(count, -1).mean(axis=1)
    return means
