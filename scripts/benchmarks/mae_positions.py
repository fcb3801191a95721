"""Does an MAE with absolute-window position embeddings keep its loss at sizes that it was not trained for?

    python scripts/benchmarks/mae_positions.py --output runs/mae_positions.json

Generated clips of 16 x 128 x 128 pixels are learnt at 64 x 64, by the model with a table of positions and by the one
with a background and a window that repeats (arXiv 2311.05613), from the same seeds, in the same order, under the same
masks. Each is then asked at 64, 96 and 128 pixels; the table is resized in both ways that this package knows.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from hiera_video.data.camera_motion.batches import MotionBatches
from hiera_video.data.camera_motion.textures import make_pool
from hiera_video.files import replacing
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.zoo import create_model
from hiera_video.spec import ClipSpec

SPEC = ClipSpec(size=(128, 128), resize=128)
SIZES = (64, 96, 128)
FORMS: dict[str, dict[str, Any]] = {
    "table": {},
    "absolute windows": {"abs_win_pos_embed": True, "global_pos_size": (4, 4)},
}


def rendered(count: int, seed: int) -> Tensor:
    """Generated clips, uint8 [N, 3, 16, 128, 128]."""
    pool = make_pool(200, seed, 384)
    batches = MotionBatches(
        seed=seed,
        steps=count,
        batch_size=16,
        num_frames=16,
        size=128,
        spec=SPEC,
        pool=pool,
        coded=[],
        coded_share=0.0,
        growing=False,
    )
    loader = DataLoader(batches, batch_size=None, sampler=range(count // 16), num_workers=2)
    return torch.cat([clips for clips, _, _ in tqdm(loader, desc="clips")])


def at(clips: Tensor, side: int) -> Tensor:
    """Normalised float clips of another height and width."""
    frames = SPEC.normalize(clips).transpose(1, 2)
    small = F.interpolate(frames.flatten(0, 1), size=(side, side), mode="bilinear", antialias=True)
    return small.unflatten(0, frames.shape[:2]).transpose(1, 2)


def trained(form: dict[str, Any], clips: Tensor, steps: int, seed: int) -> HieraMAE:
    """An MAE after ``steps`` of 16 clips."""
    torch.manual_seed(seed)
    model: Any = create_model(
        "mae_hiera_nano_16x64", decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=2, **form
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.1)
    draws = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc=f"seed {seed}"):
        chosen = torch.randint(len(clips), (16,), generator=draws)
        keep = random_keep(16, model.num_mask_units(), 0.75, generator=draws)
        loss = model(at(clips[chosen], 64), keep).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def losses(model: HieraMAE, clips: Tensor, way: str) -> dict[int, float]:
    """The loss at each size, over all clips, under masks that are the same for every model."""
    model.position_resize = way
    found = {}
    for side in SIZES:
        draws, parts = torch.Generator().manual_seed(0), []
        for part in clips.split(16):
            keep = random_keep(len(part), model.num_mask_units((16, side, side)), 0.75, generator=draws)
            parts.append(model(at(part, side), keep).loss.item())
        found[side] = statistics.mean(parts)
    return found


def compare(output: Path, steps: int = 500, clips: int = 800, seeds: int = 3) -> None:
    """Trains both forms from ``seeds`` seeds, and writes the losses to ``output`` after each."""
    train, held_out = rendered(clips, 1), rendered(128, 2)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, form in FORMS.items():
            model = trained(form, train, steps, seed)
            for way in ("window", "plain"):
                rows.append({"seed": seed, "form": name, "resized": way, "loss": losses(model, held_out, way)})
                print(rows[-1], flush=True)
            with replacing(output) as temporary:
                temporary.write_text(json.dumps(rows, indent=2) + "\n")
    for name in FORMS:
        for way in ("window", "plain"):
            means = {
                side: statistics.mean(row["loss"][side] for row in rows if (row["form"], row["resized"]) == (name, way))
                for side in SIZES
            }
            print(f"{name}, {way}: " + ", ".join(f"{side}: {loss:.4f}" for side, loss in means.items()))
    print(f"{output} has every figure")


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
