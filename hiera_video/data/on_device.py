"""What is left to do to a batch on the device: clips travel as uint8, a quarter of what they are as float.

:func:`on_device` mirrors, normalises and erases as the loader drew it; :func:`mix` is MixUp and CutMix.
Source: SlowFast ``slowfast/datasets/{mixup,random_erasing}.py``.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from hiera_video.spec import ClipSpec


class DrawnClips(TypedDict):
    """Clips as they leave the loader, and what is left to do to each of them, all of it on the host."""

    clip: Tensor
    """uint8 [B, C, T, h, w], cropped and resized, RandAugment applied (in memory the channels come last)."""
    flip: Tensor
    """bool [B]: to be mirrored, left and right."""
    erase: Tensor
    """int64 [B, 4]: top, left, height and width of the box to be erased, in pixels; zeros: none."""
    noise_seed: Tensor
    """int64 [B]: the seed of the noise in that box."""


def on_device(batch: DrawnClips, spec: ClipSpec, device: torch.device | str) -> Tensor:
    """A loader's batch as a model takes it: mirrored, normalised and erased as the loader drew it.

    Args:
        batch: Of a :class:`~hiera_video.ClipLoader`, or any with the keys of :class:`DrawnClips`. It stays as it is.
        spec: Gives the mean and the standard deviation of the pixels.
        device: Where the clips go.

    Returns:
        float32 [B, C, T, h, w] on ``device``. An erased box is normal noise, fresh in each pixel and frame, a function
        of the seed and the kind of device (random erasing, arXiv 1708.04896; SlowFast ``random_erasing.py``).
    """
    device = torch.device(device)
    clips = batch["clip"].to(device, non_blocking=True)
    scale = 1 / (255 * torch.tensor(spec.std))
    shift = -torch.tensor(spec.mean) / torch.tensor(spec.std)
    scale, shift = (value.view(-1, 1, 1, 1).to(device, non_blocking=True) for value in (scale, shift))
    normalised = torch.empty(clips.shape, dtype=torch.float32, device=device)
    # What to do is read from the host's copy: no row waits for the device.
    todo = zip(batch["flip"].tolist(), batch["erase"].tolist(), batch["noise_seed"].tolist(), strict=True)
    for clip, result, (mirrored, (top, left, rows, columns), seed) in zip(clips, normalised, todo, strict=True):
        torch.addcmul(shift, clip.flip(-1) if mirrored else clip, scale, out=result)
        if rows:
            noise = torch.Generator(device).manual_seed(seed)
            result[:, :, top : top + rows, left : left + columns].normal_(generator=noise)
    return normalised


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Classes as targets of a loss (label smoothing, arXiv 1512.00567).

    Args:
        labels: Class numbers, int64 [B].
        num_classes: How many classes there are.
        smoothing: The share of each target that is spread over all classes.

    Returns:
        float32 [B, num_classes]; each row sums to 1.
    """
    share = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), share, device=labels.device)
    return targets.scatter_(1, labels.unsqueeze(1), 1 - smoothing + share)


def mix(
    clips: Tensor,
    targets: Tensor,
    rng: np.random.Generator,
    *,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of a batch, as in SlowFast ``slowfast/datasets/mixup.py``.

    Clip i is mixed with clip B - 1 - i, by one share for the whole batch. CutMix pastes its box into all frames.

    Args:
        clips: [B, C, T, h, w].
        targets: [B, num_classes].
        rng: Where the draws come from.
        mixup: The share is drawn from Beta(mixup, mixup); 0: no MixUp.
        cutmix: The same for CutMix.
        switch: Probability of CutMix where both are on.

    Returns:
        Mixed clips and targets, new tensors of the same shapes.
    """
    # torchvision's v2.MixUp and v2.CutMix pair by rolling, draw from torch's global generator and take hard labels;
    # the published runs pair by reversing. Wrapping them would take more lines than these.
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < switch)
    alpha = cutmix if cut else mixup
    kept = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
    if cut:
        height, width = clips.shape[-2:]
        half_height, half_width = (int(side * math.sqrt(1 - kept)) // 2 for side in (height, width))
        y, x = int(rng.integers(height)), int(rng.integers(width))
        rows = slice(max(0, y - half_height), min(height, y + half_height))
        columns = slice(max(0, x - half_width), min(width, x + half_width))
        mixed = clips.clone()
        mixed[..., rows, columns] = clips[..., rows, columns].flip(0)
        # The share that is really left: the border may have cut the box.
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        mixed = clips.mul(kept).add_(clips.flip(0), alpha=1 - kept)
    return mixed, targets * kept + targets.flip(0) * (1 - kept)
