"""The last step of the built-in model: what its embedding is, in closed form, from clips that nobody labelled.

    python scripts/general_readout.py --run runs/general --photographs pictures --output hiera_video/weights

Of generated clips and their still frames the statistics of the first stages are whitened (their principal components,
scaled alike), and the teacher's principal components are told by a linear regression from all that the model sees. Both
together are the readout. Written are the two models that ship, in half precision.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

from hiera_video.data.camera_motion.batches import MotionBatches
from hiera_video.data.camera_motion.textures import make_pool
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.heads import ReadoutHead, token_statistics
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import BUILT_IN, GENERAL, from_pretrained
from hiera_video.tasks.train.teacher import ImageTeacher

#: Seconds of a clip of the general model; channels of its embedding that are whitened statistics, and the look of
#: things; how much the latter weigh in a distance (docs/results/general.md).
SECONDS, MOTION, LOOK, LOOK_SHARE = 1.28, 192, 64, 0.5
#: Added to the deviation of a principal component before it is divided by that: weak ones are mostly noise.
FLOOR = 0.1
#: Strength of the regression.
RIDGE = 0.03


def readout_of(seen: Tensor, statistics: int, taught: Tensor) -> tuple[Tensor, Tensor]:
    """The readout's weight [D, C] and bias [D].

    Args:
        seen: What the model says of N clips, float32 [N, C]: first the statistics, then the last stage's mean.
        statistics: How many channels are statistics.
        taught: What the teacher says of them, float32 [N, D'].
    """
    mean, deviation = seen.mean(dim=0), seen.std(dim=0) + 1e-6
    rows = ((seen - mean) / deviation).double()
    _, strength, directions = torch.linalg.svd(rows[:, :statistics], full_matrices=False)
    strength = strength / len(rows) ** 0.5
    motion = torch.zeros(MOTION, rows.shape[1], dtype=torch.float64)
    motion[:, :statistics] = directions[:MOTION] / (strength[:MOTION, None] + FLOOR)
    target = ((taught - taught.mean(dim=0)) / (taught.std(dim=0) + 1e-6)).double()
    _, _, axes = torch.linalg.svd(target, full_matrices=False)
    target = target @ axes[:LOOK].T
    target = target / target.std(dim=0).sqrt()  # between scaled alike and as they are
    gram = rows.T @ rows / len(rows)
    look = torch.linalg.solve(gram + RIDGE * torch.eye(len(gram)), rows.T @ target / len(rows)).T
    size = [(rows @ part.T).square().sum(dim=1).mean().sqrt() for part in (motion, look)]
    weight = torch.cat([motion / size[0] * (1 - LOOK_SHARE) ** 0.5, look / size[1] * LOOK_SHARE**0.5])
    weight = (weight / weight.square().sum(dim=1).mean().sqrt()).float() / deviation
    explained = 1 - (target - rows @ look.T).square().sum() / target.square().sum()
    print(f"the teacher's components: {explained:.1%} of their variance told")
    return weight, -(weight @ mean)


@torch.inference_mode()
def look_at_clips(model: Hiera, photographs: Path | None, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What the model and the teacher say of generated clips."""
    teacher, spec = ImageTeacher(torch.device("cpu")), model.spec
    pool = make_pool(500, seed, 384, photographs)
    batches = MotionBatches(
        seed=seed,
        steps=count,
        batch_size=32,
        num_frames=spec.num_frames,
        size=spec.size[0],
        spec=spec,
        pool=pool,
        coded=[],
        coded_share=0.0,
        growing=False,
    )
    seen, taught = [], []
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(count // 32), num_workers=1)
    for clips, _, _ in tqdm(loader, desc="clips"):
        rows = []
        for stage, last in enumerate(model.stages(spec.normalize(clips)), start=1):
            if stage in model.arch.head_stages:
                rows.append(token_statistics(last))
        rows.append(model.norm(last.tokens.flatten(1, -2).mean(dim=1)))
        seen.append(torch.cat(rows, dim=1))
        taught.append(teacher(clips.float() / 255).embedding)
    return torch.cat(seen), torch.cat(taught)


def general(run: str, output: Path, photographs: Path | None = None, clips: int = 4096, seed: int = 7) -> None:
    """Writes both models of ``run`` into folders of ``output``."""
    camera = from_pretrained(run)
    camera.license = "apache-2.0"
    stride = SECONDS * camera.spec.target_fps / camera.spec.num_frames
    arch = replace(camera.arch, head="readout", num_classes=0, readout_dim=MOTION + LOOK)
    model = Hiera(arch, camera.spec.replace(frame_stride=stride)).eval()
    state = {key: value for key, value in camera.state_dict().items() if not key.startswith("head.")}
    model.load_state_dict(state, strict=False)
    seen, taught = look_at_clips(model, photographs, clips, seed)
    weight, bias = readout_of(seen, arch.num_statistics, taught)
    assert isinstance(model.head, ReadoutHead)
    with torch.no_grad():
        model.head.readout.weight.copy_(weight)
        model.head.readout.bias.copy_(bias)
    model.license, model.views = "apache-2.0", "3x1"
    for name, made in ((BUILT_IN, camera), (GENERAL, model)):
        save_pretrained(made.half(), output / name)
        print(f"{output / name}: {sum(file.stat().st_size for file in (output / name).iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    auto_cli(general, as_positional=False)
