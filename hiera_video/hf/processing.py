"""From videos to ``pixel_values``: our reader, sampling and crops behind transformers' video processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Resampling
from torch import Tensor
from transformers import BatchFeature, BitImageProcessor
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import make_batched_metadata, make_batched_videos

from hiera_video.data.sampling import test_clips
from hiera_video.data.transforms import fit_crops
from hiera_video.data.views import load_views
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.build import default_spec, read_config
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec


class HieraVideoProcessor(BaseVideoProcessor):
    """Cuts the centre clip of each video, its centre crop, and normalises it, all as ``clip`` says.

    That is the view "1x1" of ``hiera-video classify``. Files and addresses are read by this package's own decoders. The
    attributes of transformers' processors (``size``, ``image_mean``, ...) are there to be read; a change goes through
    ``clip``.

    Args:
        clip: What a clip is, or its dict. Default: that of the published Kinetics models.
        kwargs: As in transformers, but for what follows from ``clip``.

    Raises:
        RequestError: Something is given that follows from ``clip``.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # transformers' own form

    def __init__(self, clip: ClipSpec | dict[str, Any] | None = None, **kwargs: Any) -> None:
        if fixed := sorted(kwargs.keys() & set(self.valid_kwargs.__annotations__)):
            raise RequestError(f"{fixed[0]} follows from clip: change that")
        spec = clip if isinstance(clip, ClipSpec) else ClipSpec.from_dict(clip) if clip else ClipSpec()
        height, width = spec.size
        super().__init__(
            do_resize=True,
            size={"shortest_edge": spec.resize},
            do_center_crop=True,
            crop_size={"height": height, "width": width},
            resample=_resampling(spec),
            do_rescale=True,
            do_normalize=True,
            image_mean=list(spec.mean),
            image_std=list(spec.std),
            num_frames=spec.num_frames,
        )
        self.clip = spec.to_dict()

    @property
    def spec(self) -> ClipSpec:
        """``clip`` as what it is."""
        return ClipSpec.from_dict(self.clip)

    def preprocess(
        self,
        videos: Any,
        *,
        num_frames: int | None = None,
        do_sample_frames: bool | None = None,
        video_metadata: Any = None,
        return_tensors: str | None = None,
        device: str | torch.device | None = None,
    ) -> BatchFeature:
        """Makes model inputs of videos.

        Args:
            videos: A video or a list of them: paths or addresses, of which the centre clip is cut, or uint8 frames
                ``[T, H, W, C]``, ``[T, C, H, W]`` or a list of pictures, which are the clip.
            num_frames: Frames of the clip, over the same span. Default: those of ``clip``.
            do_sample_frames: Whether frames are a video to cut the clip from.
            video_metadata: Its ``fps`` is then the rate of the frames. Default: the ``target_fps`` of ``clip``.
            return_tensors: As in transformers: "pt" for one tensor.
            device: Where to normalise. Default: the CPU.

        Returns:
            ``pixel_values``, float32 ``[B, T, C, H, W]``.

        Raises:
            UnreadableVideo: A file cannot be read.
            RequestError: Frames are not uint8.
        """
        spec = self.spec
        if num_frames is not None and num_frames != spec.num_frames:
            stride = spec.frame_stride * spec.num_frames / num_frames
            spec = spec.replace(num_frames=num_frames, frame_stride=stride)
        if isinstance(videos, list | tuple):
            videos = [os.fspath(video) if isinstance(video, os.PathLike) else video for video in videos]
        # Any: transformers' types of a batch do not fit each other.
        batch: Any = make_batched_videos(os.fspath(videos) if isinstance(videos, os.PathLike) else videos)
        if all(isinstance(video, str) for video in batch):
            clips = [load_views(path, spec, 1, 1).clips[0] for path in batch]
        else:
            metadata = make_batched_metadata(batch, video_metadata)
            rates = [(entry.fps or spec.target_fps) if do_sample_frames else None for entry in metadata]
            clips = [_cut(_channels_last(frames), spec, rate) for frames, rate in zip(batch, rates, strict=True)]
        pixels = [spec.normalize(clip[None].to(device or "cpu"))[0].transpose(0, 1).contiguous() for clip in clips]
        return BatchFeature(data={"pixel_values": pixels}, tensor_type=return_tensors)

    @classmethod
    def get_video_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The saved processor's; in a folder without one, and for our names, what the model's own config says."""
        if (spec := _spec_of(pretrained_model_name_or_path)) is not None:
            changes = {key: value for key, value in kwargs.items() if key in cls.valid_kwargs.__annotations__}
            return {"clip": spec.to_dict()}, changes
        return super().get_video_processor_dict(pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What is saved: ``clip`` alone, since the rest follows."""
        return {"video_processor_type": type(self).__name__, "clip": self.clip}


def image_processor(spec: ClipSpec) -> BitImageProcessor:
    """Makes transformers' own image processor.

    Args:
        spec: What a picture is.

    Returns:
        A processor that prepares pictures so.
    """
    height, width = spec.size
    return BitImageProcessor(
        size={"shortest_edge": spec.resize},
        crop_size={"height": height, "width": width},
        resample=_resampling(spec),
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def _resampling(spec: ClipSpec) -> Resampling:
    return Resampling[spec.interpolation.upper()]


def _spec_of(name: str | os.PathLike[str]) -> ClipSpec | None:
    """The :class:`ClipSpec` of a folder that has a config.json and no processor, or of a name of ours."""
    path = Path(name)
    if path.is_dir():
        processors = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
        if not (path / "config.json").is_file() or any((path / processor).is_file() for processor in processors):
            return None
        facts = read_config(path / "config.json")
        return facts.spec or (default_spec(facts.arch) if facts.arch else None)
    return None if path.exists() or "/" in str(name) else from_pretrained(str(name)).spec


def _cut(frames: NDArray[np.uint8], spec: ClipSpec, rate: float | None) -> Tensor:
    """uint8 ``[N, H, W, C]`` at ``rate`` frames per second -> the centre clip's crop; no rate: all are the clip."""
    if rate is not None:
        frames = frames[test_clips(np.arange(len(frames)) / rate, spec, 1)[0]]
    fitted, ((top, left), *_) = fit_crops(frames, spec, 1)
    height, width = spec.size
    return fitted[:, :, top : top + height, left : left + width]


def _channels_last(video: Any) -> NDArray[np.uint8]:
    frames = np.asarray(video)
    if frames.dtype != np.uint8:
        raise RequestError(f"frames must be uint8 from 0 to 255, not {frames.dtype}")
    first = infer_channel_dimension_format(frames) == ChannelDimension.FIRST
    return np.ascontiguousarray(np.moveaxis(frames, 1, -1) if first else frames)
