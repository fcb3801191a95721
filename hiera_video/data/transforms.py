"""Frames to the size a model takes: shape and size alone; values stay uint8 and are normalised on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

#: The short side, in pixels, of crops that people look at is at most this long.
PICTURE_SIDE = 288


@dataclass(frozen=True)
class CropPlan:
    """How pictures of one size become crops of ``size`` (height, width) pixels.

    They are resized to ``resized``; ``kept`` (top, left, height, width) of that is needed; ``corners`` are (top, left)
    of each crop in what is kept. ``picture``: (height, width) of the pictures.
    """

    picture: tuple[int, int]
    resized: tuple[int, int]
    kept: tuple[int, int, int, int]
    corners: list[tuple[int, int]]
    size: tuple[int, int]

    @property
    def boxes(self) -> NDArray[np.float64]:
        """float64 [crops, 4]: left, top, right, bottom of each crop, in pixels of the upright picture as it is
        stored, also where its proportions are corrected.
        """
        corners = np.array(self.corners, dtype=np.float64) + self.kept[:2]
        scale = np.array(self.picture) / self.resized
        top_left, bottom_right = corners * scale, (corners + self.size) * scale
        return np.concatenate([top_left[:, ::-1], bottom_right[:, ::-1]], axis=1)

    def apply(self, frames: NDArray[np.uint8] | Tensor, spec: ClipSpec) -> Tensor:
        """uint8 [T, H, W, C] of the plan's picture size -> what is kept of them, uint8 [T, C, h, w], channels last."""
        pictures = torch.as_tensor(frames).permute(0, 3, 1, 2)
        if self.resized != self.picture:
            # Channels-last uint8 takes torch's vectorised path: 17 ms for 80 frames of 240p, where float takes 120.
            pictures = F.interpolate(
                pictures, size=self.resized, mode=spec.interpolation, align_corners=False, antialias=spec.antialias
            )
        top, left, height, width = self.kept
        return pictures[:, :, top : top + height, left : left + width]

    def show(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The middle crop for people to look at: at the frame's own resolution, not at the model's.

        Args:
            frame: uint8 [H, W, 3] of the plan's picture size.

        Returns:
            uint8 [h, w, 3] in the proportions of ``size``; the short side has ``PICTURE_SIDE`` pixels at most.
        """
        left, top, right, bottom = self.boxes[len(self.corners) // 2].round().astype(int).tolist()
        cut = torch.from_numpy(frame[top : max(bottom, top + 1), left : max(right, left + 1)]).permute(2, 0, 1)
        own = max(pixels / side for pixels, side in zip(cut.shape[1:], self.size, strict=True))
        scale = min(own, PICTURE_SIDE / min(self.size))
        size = [max(round(side * scale), 1) for side in self.size]
        return F.interpolate(cut[None], size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def plan_crops(
    picture: tuple[int, int], spec: ClipSpec, num_crops: int, pixel_aspect: float | Fraction = 1
) -> CropPlan:
    """One crop or three of pictures of one size.

    Three crops: the picture just covers ``spec.size``; first, centre and last along the side that is left over.
    One crop: the short side goes to ``spec.resize`` (when ``spec.size`` is not square: its short side's), centre.
    Offsets of the centre are rounded up. Source: SlowFast ``slowfast/datasets/transform.py`` (``uniform_crop``).

    Args:
        picture: (height, width) of the upright pictures in pixels.
        spec: What the model takes; ``spec.pixel_aspect`` says whether proportions are corrected.
        num_crops: 1 or 3.
        pixel_aspect: Width over height of a pixel as it is shown: :attr:`Video.pixel_aspect`.

    Returns:
        The plan.

    Raises:
        RequestError: ``num_crops`` is another number.
    """
    if num_crops not in (1, 3):
        raise RequestError(f"the number of crops is {num_crops}, but can be 1 (centre) or 3 (along the long side).")
    height, width = spec.size
    enlarge = max(1.0, spec.resize / min(spec.size)) if num_crops == 1 else 1.0
    shown = _as_shown(picture, spec, pixel_aspect)
    scale = max(height * enlarge / shown[0], width * enlarge / shown[1])
    # SlowFast rounds the long side down. An epsilon against float error (223.99999): the crop always fits.
    resized = (
        max(round(height * enlarge), math.floor(shown[0] * scale + 1e-6)),
        max(round(width * enlarge), math.floor(shown[1] * scale + 1e-6)),
    )
    spare_y, spare_x = resized[0] - height, resized[1] - width
    top, left = math.ceil(spare_y / 2), math.ceil(spare_x / 2)
    if num_crops == 1:
        return CropPlan(picture, resized, (top, left, height, width), [(0, 0)], spec.size)
    corners = (
        [(0, left), (top, left), (spare_y, left)] if spare_y > spare_x else [(top, 0), (top, left), (top, spare_x)]
    )
    return CropPlan(picture, resized, (0, 0, *resized), corners, spec.size)


def _as_shown(picture: tuple[int, int], spec: ClipSpec, pixel_aspect: float | Fraction) -> tuple[int, float]:
    """(height, width) with the width that a player gives it, where ``spec`` asks for that."""
    height, width = picture
    return height, width * float(pixel_aspect) if spec.pixel_aspect == "display" and pixel_aspect != 1 else width


def plan_whole(picture: tuple[int, int], spec: ClipSpec, multiple: int, pixel_aspect: float | Fraction = 1) -> CropPlan:
    """The whole picture, its short side as long as that of ``spec.size``, its sides multiples of ``multiple`` pixels.

    The long side is rounded to the nearest multiple, so that proportions change by a few percent.
    """
    shown = _as_shown(picture, spec, pixel_aspect)
    scale = min(spec.size) / min(shown)
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in shown)
    return CropPlan(picture, (height, width), (0, 0, height, width), [(0, 0)], (height, width))


def fit_crops(
    frames: NDArray[np.uint8] | Tensor, spec: ClipSpec, num_crops: int, pixel_aspect: float | Fraction = 1
) -> tuple[Tensor, list[tuple[int, int]]]:
    """uint8 [T, H, W, C] -> resized uint8 [C, T, H', W'], and the (top, left) of each crop of ``spec.size`` in it."""
    plan = plan_crops((frames.shape[1], frames.shape[2]), spec, num_crops, pixel_aspect)
    # In one piece, so that crops are copied by whole rows.
    return plan.apply(frames, spec).transpose(0, 1).contiguous(), plan.corners
