"""Trains the built-in model, hiera_nano_16x64.camera_motion, on generated clips: two CPU cores, somewhat over an hour.

    pip install -e ".[train]"
    python scripts/train_camera_motion.py --config configs/camera_motion.yaml --output runs/camera_motion

Labels alone teach a small video Hiera nothing here, so a linear head on each stage's map also predicts the optical
flow that the generator knows. Small clips first, then full-size ones, half of them read back from coded files.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from hiera_video.data.camera_motion import LABELS
from hiera_video.data.motion_batches import MotionBatches, Sample, coded_clips, pictures
from hiera_video.models.hiera import Hiera
from hiera_video.models.weights import save_pretrained
from hiera_video.models.zoo import create_model
from hiera_video.spec import ClipSpec

SPEC = ClipSpec(size=(64, 64), resize=64, antialias=True)
Batch = tuple[Tensor, Tensor, Tensor]  # clips, flow, labels


@dataclass
class Phase:
    """Steps on clips of ``num_frames`` x ``size`` x ``size``, of which ``coded_share`` come from coded files.

    The learning rate falls from ``lr[0]`` to ``lr[1]`` by a cosine, the weight of the flow loss linearly.
    """

    steps: int
    batch_size: int
    num_frames: int
    size: int
    lr: tuple[float, float]
    flow_weight: tuple[float, float]
    coded_share: float


def losses(
    model: Hiera, heads: nn.ModuleList, clip: Tensor, flow: Tensor, label: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, the flow loss averaged over stages (as a share of what predicting no flow would give), logits.

    Flow is compared on a scale that is logarithmic above 0.8 % of the window per frame: slow motions count too.
    """
    tokens, maps = model.forward_intermediates(SPEC.normalize(clip))
    logits = model.forward_head(tokens)
    target = flow.sign() * (flow.abs() / 0.008).log1p()
    dense = torch.zeros(())
    for head, features in zip(heads, maps, strict=True):
        _, frames, height, width, _ = features.shape
        goal = F.adaptive_avg_pool3d(target, (frames, height, width)).permute(0, 2, 3, 4, 1)
        guess = head(F.layer_norm(features, features.shape[-1:]))
        dense = dense + F.smooth_l1_loss(guess, goal) / F.smooth_l1_loss(torch.zeros_like(goal), goal) / len(maps)
    return F.cross_entropy(logits, label), dense, logits


def start_model() -> tuple[Hiera, nn.ModuleList]:
    """The model and its flow heads. The published std of 0.02 is very small for narrow layers: Xavier weights, and
    patch filters of std 0.1.
    """
    model = create_model("hiera_nano_16x64", num_classes=len(LABELS))
    model.spec, model.labels, model.views, model.license = SPEC, list(LABELS), "3x1", "apache-2.0"
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.patch_embed.get_parameter("proj.weight"), std=0.1)
    return model, nn.ModuleList(nn.Linear(dim, 4) for dim in model.arch.dims)


def batches(phase: Phase, seed: int, pool: list[Tensor], coded: list[Sample], *, growing: bool) -> Iterable[Batch]:
    """The phase's batches, made ahead by two processes. Pictures shrink with the window: a small clip shows as much."""
    side = 384 * phase.size // SPEC.size[0]
    shrunk = [F.interpolate(picture[None], size=(side, side), mode="bilinear", antialias=True)[0] for picture in pool]
    data = MotionBatches(
        seed=seed,
        steps=phase.steps,
        batch_size=phase.batch_size,
        num_frames=phase.num_frames,
        size=phase.size,
        spec=SPEC,
        pool=shrunk,
        coded=coded,
        coded_share=phase.coded_share,
        growing=growing,
    )
    return tqdm(DataLoader(data, batch_size=None, num_workers=2, prefetch_factor=8), disable=None)


def train(
    output: Path, phases: list[Phase], pictures_count: int, coded_count: int, weight_decay: float, ema: float, seed: int
) -> None:
    """Trains through ``phases`` and writes the averaged weights in fp16, in our folder format, to ``output/model``."""
    output.mkdir(parents=True, exist_ok=True)
    cache = output / f"coded_{coded_count}_{seed}.pt"
    if not cache.exists():
        torch.save(coded_clips(coded_count, seed + 1_000_000, SPEC, workers=2), cache)
    coded, pool = torch.load(cache, weights_only=True), pictures(pictures_count, seed, 384)
    torch.manual_seed(seed)
    model, heads = start_model()
    average = copy.deepcopy(model)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=weight_decay)
    for number, phase in enumerate(phases):
        recent = torch.zeros(3)
        for step, (clip, flow, label) in enumerate(batches(phase, seed + number, pool, coded, growing=number == 0), 1):
            done = (step - 1) / phase.steps
            cosine = (1 + math.cos(math.pi * done)) / 2
            optimizer.param_groups[0]["lr"] = min(1.0, step / 200) * (
                phase.lr[1] + (phase.lr[0] - phase.lr[1]) * cosine
            )
            weight = phase.flow_weight[0] + (phase.flow_weight[1] - phase.flow_weight[0]) * done
            classes, dense, logits = losses(model, heads, clip, flow, label)
            optimizer.zero_grad(set_to_none=True)
            (classes + weight * dense).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                    mine.lerp_(theirs, 1 - min(ema, step / (step + 9)))
                recent += torch.stack([classes, dense, (logits.argmax(1) == label).float().mean()]) / 50
            if step % 50 == 0:
                names = ("loss", "flow_loss", "top1")
                record = {"phase": number, "step": step, **dict(zip(names, recent.tolist(), strict=True))}
                with (output / "metrics.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
                recent.zero_()
    save_pretrained(average.half(), output / "model")


if __name__ == "__main__":
    auto_cli(train, as_positional=False)
