"""What a checkpoint needs of its input, which travels with the weights; and how a training clip is varied."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hiera_video.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClipSpec:
    """Input facts of one checkpoint: how a clip is cut from a video, resized and normalised.

    A clip of ``num_frames`` frames spans ``num_frames * frame_stride / target_fps`` seconds whatever the
    video's own frame rate ("16x4": 16 frames, stride 4, at 30 fps: 64 / 30 s). Images have ``num_frames = 1``.

    ``size`` is (height, width) in pixels. ``resize`` is the short side in pixels before the single centre crop;
    with three crops the short side goes to the crop size itself. ``antialias`` filters when shrinking: the
    published video numbers were made without. ``mean`` and ``std`` are per channel, of RGB in [0, 1].
    ``pixel_aspect``: crops are cut from an anamorphic video in the proportions in which a player shows it ("display"),
    or in those in which its pixels are stored ("stored"), as the loaders behind published numbers do.
    Defaults are those of the published Kinetics models (reference notebook; SlowFast configs).
    """

    num_frames: int = 16
    frame_stride: float = 4
    target_fps: float = 30
    size: tuple[int, int] = (224, 224)
    resize: int = 256
    interpolation: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    pixel_aspect: Literal["display", "stored"] = "display"

    def __post_init__(self) -> None:
        if self.pixel_aspect not in ("display", "stored"):
            raise RequestError(f"pixel_aspect is {self.pixel_aspect!r}, but can be display or stored")

    @property
    def span(self) -> float:
        """Seconds that one clip covers."""
        return self.num_frames * self.frame_stride / self.target_fps

    def normalize(self, clip: Tensor) -> Tensor:
        """uint8 ``[B, C, T, H, W]`` or ``[B, C, H, W]`` -> float32 of the same shape, on the clip's own device."""
        import torch

        shape = (1, -1) + (1,) * (clip.ndim - 2)
        mean, std = (torch.tensor(one).view(shape).to(clip.device, non_blocking=True) for one in (self.mean, self.std))
        return clip.float().div_(255).sub_(mean).div_(std)

    def denormalize(self, clip: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`: uint8, rounded, what lies outside [0, 255] cut off."""
        import torch

        shape = (1, -1) + (1,) * (clip.ndim - 2)
        mean, std = (torch.tensor(one).view(shape).to(clip.device, non_blocking=True) for one in (self.mean, self.std))
        return clip.float().mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands under ``clip`` in ``config.json``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipSpec:
        """The inverse of :meth:`to_dict`; raises ``TypeError`` for a field that does not exist."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)

    def replace(self, **changes: Any) -> ClipSpec:
        """A copy with some fields changed."""
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
    """How a training clip is varied. The defaults are those of fine-tuning on Kinetics.

    ``crop_area`` is the range of the crop's share of the picture, uniform; ``crop_aspect`` the range of its width over
    height, uniform in the logarithm. ``flip`` is a probability: 0 wherever a label has a direction. RandAugment picks
    ``num_ops`` operations (0: none) and applies each with ``op_probability``, at a magnitude of 0 to 10, normal around
    ``magnitude``. ``erasing`` is the probability of a box of noise, its area and aspect drawn as the crop's.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    num_ops: int = 2
    op_probability: float = 0.5
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erasing: float = 0.25
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)


#: Fine-tuning on Kinetics (Hiera Tab 11b; SlowFast k400_VIT_L_16x4_FT.yaml).
FINETUNE = Augment()
#: MAE pre-training (Hiera Tab 11a): crop and flip alone.
PRETRAIN = Augment(crop_area=(0.5, 1.0), num_ops=0, erasing=0.0)


def parse_views(views: str) -> tuple[int, int]:
    """ "5x3" -> (5 clips, 3 crops). Raises :class:`RequestError`."""
    match = re.fullmatch("([1-9][0-9]*)x([13])", views)
    if match is None:
        raise RequestError(f"views {views!r} must be clips x crops, at least one clip and 1 or 3 crops, such as 5x3")
    return int(match[1]), int(match[2])
