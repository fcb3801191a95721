"""What is left to do to a batch on the device: clips travel as uint8, a quarter of what they are as float.

:func:`on_device` mirrors, normalises and erases as the loader drew it; :func:`mix` is MixUp and CutMix.
Source: SlowFast ``slowfast/datasets/{mixup,random_erasing}.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiera_video.spec import ClipSpec


def on_device(batch: Mapping[str, Any], spec: ClipSpec, device: torch.device | str) -> Tensor:
    """A loader's batch as a model takes it: float32 [B, C, T, h, w] on ``device``, normalised by ``spec``.

    ``batch`` has ``clip`` uint8 [B, C, T, h, w], ``flip`` bool [B] (mirror left and right), ``erase`` int64 [B, 4]
    (top, left, height, width; zeros: none), ``noise_seed`` int64 [B]; they are on the host and stay as they are. An
    erased box is normal noise, fresh in each pixel and frame, a function of the seed and the kind of device.
    """
    device = torch.device(device)
    clips = batch["clip"].to(device, non_blocking=True)
    scale = 1 / (255 * torch.tensor(spec.std))
    shift = -torch.tensor(spec.mean) / torch.tensor(spec.std)
    scale, shift = (one.view(-1, 1, 1, 1).to(device, non_blocking=True) for one in (scale, shift))
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
    """Class numbers int64 [B] -> float32 [B, num_classes]: 1 - smoothing at the label, smoothing spread over all."""
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
    """MixUp or, with probability ``switch``, CutMix of clips [B, C, T, h, w] and soft targets [B, num_classes].

    One share for the batch, from Beta(``mixup``, ``mixup``) or Beta(``cutmix``, ``cutmix``); 0 switches the one off.
    Clip i is mixed with clip B - 1 - i, and CutMix pastes its box into all frames. Returns new tensors.
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
