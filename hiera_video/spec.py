"""What a checkpoint needs of its input, which travels with the weights, and how a training clip is varied."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from hiera_video import fields
from hiera_video.errors import RequestError
from hiera_video.fields import CountOrZero, NotNegative, Rule, Share

if TYPE_CHECKING:
    from torch import Tensor

VIEWS = re.compile("([1-9][0-9]*)x([13])")

Views: TypeAlias = Annotated[
    str,
    Rule("clips x crops, such as 5x3 (1 or 3 crops)", lambda text: VIEWS.fullmatch(text) is not None),
]
Shares: TypeAlias = Annotated[
    tuple[float, float], Rule("two shares, the smaller first", lambda value: 0 < value <= 1, rising=True)
]
Aspects: TypeAlias = Annotated[
    tuple[float, float], Rule("two numbers above 0, the smaller first", lambda value: value > 0, rising=True)
]
Magnitude: TypeAlias = Annotated[float, Rule("from 0 to 10", lambda value: 0 <= value <= 10)]


@dataclass(frozen=True)
class ClipSpec:
    """How a clip is cut from a video, resized and normalised for one checkpoint; it travels with the weights.

    The defaults are those of the published Kinetics models (reference notebook; SlowFast configs).
    """

    num_frames: int = 16
    """Frames of a clip; 1 for images."""
    frame_stride: int | float = 4
    """Frames from one frame of the clip to the next, in a video of ``target_fps``."""
    target_fps: int | float = 30
    """Frames per second that ``frame_stride`` counts in, whatever the video's own rate."""
    size: tuple[int, int] = (224, 224)
    """Height and width of a clip in pixels."""
    resize: int = 256
    """Short side in pixels before a single centre crop; with three crops the short side goes to the crop's own."""
    interpolation: str = "bilinear"
    """How pixels are interpolated: bilinear or bicubic."""
    antialias: bool = False
    """Whether shrinking filters the picture first; the published video numbers were made without."""
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    """What is subtracted from each channel of RGB in [0, 1]."""
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    """What each channel is then divided by."""
    pixel_aspect: Literal["display", "stored"] = "display"
    """The proportions in which an anamorphic video is cropped: display, as players show it, or stored, those of its
    pixels, as the loaders behind published numbers do."""

    def __post_init__(self) -> None:
        if self.pixel_aspect not in ("display", "stored"):
            raise RequestError(f"pixel_aspect is {self.pixel_aspect!r}, but can be display or stored")

    @property
    def span(self) -> float:
        """Seconds that one clip covers: 16 frames of stride 4 at 30 fps are 64 / 30 s."""
        return self.num_frames * self.frame_stride / self.target_fps

    def normalize(self, clip: Tensor) -> Tensor:
        """The clip as the model takes it, computed on the clip's own device.

        Args:
            clip: uint8 ``[B, C, T, H, W]`` or ``[B, C, H, W]``.

        Returns:
            float32 of the same shape.
        """
        mean, std = self._statistics(clip)
        return clip.float().div_(255).sub_(mean).div_(std)

    def denormalize(self, clip: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`.

        Args:
            clip: float ``[B, C, T, H, W]`` or ``[B, C, H, W]``.

        Returns:
            uint8 of the same shape: rounded, and what lies outside [0, 255] cut off.
        """
        import torch

        mean, std = self._statistics(clip)
        return clip.float().mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def _statistics(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        shape = (1, -1) + (1,) * (clip.ndim - 2)
        mean, std = (torch.tensor(each).view(shape) for each in (self.mean, self.std))
        return mean.to(clip.device, non_blocking=True), std.to(clip.device, non_blocking=True)

    def model_input(self, clip: Tensor) -> Tensor:
        """A clip as the model takes it: an image has no time axis.

        Args:
            clip: ``[B, C, T, H, W]``, of any dtype.

        Returns:
            The same, or ``[B, C, H, W]`` where the model looks at single images (``num_frames`` is 1).
        """
        return clip[:, :, 0] if self.num_frames == 1 else clip

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands under ``clip`` in ``config.json``.

        Returns:
            All fields by name, tuples as lists.
        """
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipSpec:
        """The inverse of :meth:`to_dict`.

        Args:
            values: Fields by name; those left out have their defaults.

        Returns:
            The spec.

        Raises:
            RequestError: A field does not exist, or its value is not legal.
        """
        return fields.from_mapping(cls, values, at="clip.")

    def replace(self, **changes: Any) -> ClipSpec:
        """A copy with some fields changed.

        Args:
            changes: Values by field name.

        Returns:
            The copy.
        """
        return dataclasses.replace(self, **changes)


#: Published image models (reference README): ImageNet statistics, bicubic, short side 256, centre 224.
IMAGE_SPEC = ClipSpec(
    num_frames=1,
    frame_stride=1,
    interpolation="bicubic",
    antialias=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclass(frozen=True)
class Augment:
    """How a training clip is varied; every draw holds for all frames of a clip."""

    crop_area: Shares = (0.08, 1.0)
    """Smallest and largest share of the picture that a crop covers, drawn uniformly."""
    crop_aspect: Aspects = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop, drawn uniformly in the logarithm."""
    flip: Share = 0.5
    """Probability of a mirrored clip; 0 wherever a label has a direction."""
    num_ops: CountOrZero = 2
    """How many operations RandAugment picks; 0: none."""
    op_probability: Share = 0.5
    """Probability that an operation that was picked is applied."""
    magnitude: Magnitude = 7.0
    """Mean strength of an operation."""
    magnitude_std: NotNegative = 0.5
    """Standard deviation of the strength, which is drawn normally and kept from 0 to 10."""
    erasing: Share = 0.25
    """Probability that a box is filled with noise."""
    erasing_area: Shares = (0.02, 1 / 3)
    """Smallest and largest share of the clip that the box covers."""
    erasing_aspect: Aspects = (0.3, 1 / 0.3)
    """Smallest and largest width over height of the box."""


#: Fine-tuning on Kinetics (Hiera Tab 11b; SlowFast k400_VIT_L_16x4_FT.yaml).
FINETUNE = Augment()
#: MAE pre-training (Hiera Tab 11a): crop and flip alone.
PRETRAIN = Augment(crop_area=(0.5, 1.0), num_ops=0, erasing=0.0)


def parse_views(views: str) -> tuple[int, int]:
    """Test views as numbers.

    Args:
        views: Clips x crops, such as "5x3".

    Returns:
        The number of clips, spread over the video, and of crops: 1 or 3.

    Raises:
        RequestError: The text says anything else.
    """
    match = VIEWS.fullmatch(views)
    if match is None:
        raise RequestError(f"views {views!r} must be clips x crops, at least one clip and 1 or 3 crops, such as 5x3")
    return int(match[1]), int(match[2])
