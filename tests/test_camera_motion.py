"""Generated camera motions: labels mean what they say, the flow is that of the pictures, seeds decide all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.data.camera_motion import (
    LABELS,
    MIN_TEXTURE,
    draw_motion,
    draw_patches,
    flow,
    make_video,
    render,
    screen,
    texture,
)
from hiera_video.data.motion_batches import MotionBatches, pictures, rendered_clip, symmetric
from hiera_video.data.pictures import procedural_picture
from hiera_video.data.reader import open_video
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec

SPEC = ClipSpec(size=(64, 64), resize=64, antialias=True)


@pytest.fixture(scope="module")
def pool() -> list[Tensor]:
    return pictures(6, 1, 256)


def trend(label: str) -> tuple[Tensor, Tensor]:
    """How the picture moves over a clip, ``[y, x, 2]``, and where, ``[y, x, 2]``."""
    motion = draw_motion(np.random.default_rng(3), LABELS.index(label), np.linspace(0, 2.1, 16))
    return flow(motion, [], 16)[2:, 0].permute(1, 2, 0), screen(16, 16)


@pytest.mark.parametrize(
    ("label", "direction"),
    [("pan_left", (1, 0)), ("pan_right", (-1, 0)), ("tilt_up", (0, 1)), ("tilt_down", (0, -1))],
)
def test_the_picture_moves_against_a_panning_camera(label: str, direction: tuple[int, int]) -> None:
    moved = trend(label)[0].mean(dim=(0, 1))
    along = moved @ torch.tensor(direction).float()
    assert along > 0.9 * moved.norm() > 0


@pytest.mark.parametrize(("label", "sign"), [("zoom_in", 1), ("zoom_out", -1)])
def test_the_picture_grows_when_the_camera_zooms_in(label: str, sign: int) -> None:
    moved, place = trend(label)
    assert sign * (moved * place).sum() > 0


@pytest.mark.parametrize(("label", "sign"), [("roll_clockwise", -1), ("roll_counterclockwise", 1)])
def test_the_picture_turns_against_a_rolling_camera(label: str, sign: int) -> None:
    moved, place = trend(label)
    clockwise = place[..., 0] * moved[..., 1] - place[..., 1] * moved[..., 0]  # y points down
    assert sign * clockwise.sum() > 0


def test_a_still_camera_has_no_trend() -> None:
    assert trend("static")[0].abs().max() < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_flow_is_the_motion_that_is_seen(seed: int, pool: list[Tensor]) -> None:
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 2.1, 16)
    motion, patches = draw_motion(rng, 1 + 2 * seed, times, slowest=0.2), draw_patches(rng, times, share=1.0)
    smooth = F.avg_pool2d(pool[seed].float(), 5, 1, 2)  # sub-pixel shifts of a smooth picture are seen exactly
    frames = render(smooth, [smooth] * len(patches), motion, patches, (64, 64), 100)
    seen = flow(motion, patches, 64)[:2]
    inner = slice(8, -8)
    for j in range(0, 8, 3):
        places = (screen(64, 64) + seen[:, j].permute(1, 2, 0)) * 2
        warped = F.grid_sample(frames[None, :, 2 * j + 1], places[None], align_corners=False)[0]
        off = (warped - frames[:, 2 * j]).abs().mean(0)[inner, inner]
        still = (frames[:, 2 * j + 1] - frames[:, 2 * j]).abs().mean(0)[inner, inner]
        assert off.median() < 0.3 * still.median()


def test_a_mirrored_transposed_or_reversed_clip_carries_the_label_and_flow_that_then_hold(pool: list[Tensor]) -> None:
    rng = np.random.default_rng(5)
    signs = {1: (0, 1), 2: (0, -1), 3: (1, 1), 4: (1, -1)}
    for _ in range(30):
        clip, seen, label = symmetric(rng, *rendered_clip(rng, pool, SPEC, 16, 64, 0.0))
        assert clip.shape == (3, 16, 64, 64) and seen.shape == (4, 8, 16, 16)
        if label in signs:
            axis, sign = signs[label]
            assert sign * seen[2 + axis].mean() > 0.5 * seen[2:].mean(dim=(1, 2, 3)).norm()


def test_a_batch_is_a_function_of_seed_and_step(pool: list[Tensor]) -> None:
    def batch(seed: int, step: int) -> Tensor:
        return MotionBatches(seed, 9, 3, 8, 32, SPEC, pool, [], 0.0, True)[step][0]

    assert torch.equal(batch(1, 4), batch(1, 4))
    assert not torch.equal(batch(1, 4), batch(1, 5))
    assert not torch.equal(batch(1, 4), batch(2, 4))


def test_a_generated_video_is_a_real_file_that_its_seed_decides(tmp_path: Path, pool: list[Tensor]) -> None:
    paths = [tmp_path / f"{name}.mp4" for name in ("first", "again")]
    made = [make_video(path, np.random.default_rng(8), 5, pool, 1.0) for path in paths]
    frames = []
    for path in paths:
        with open_video(path) as video:
            assert (len(video), video.fps, (video.height, video.width)) == (made[0].fps, made[0].fps, made[0].size)
            frames.append(video.frames(range(len(video))).pixels.astype(float))
    assert made[0].crf == made[1].crf
    assert np.abs(frames[0] - frames[1]).mean() < 1  # x264's own rounding varies from run to run


def test_texture_is_low_where_a_direction_has_none() -> None:
    stripes = (torch.arange(64) % 8 < 4).float().mul(255).expand(3, 64, 64)
    assert texture(torch.full((3, 64, 64), 90.0)) == 0
    assert texture(stripes) < MIN_TEXTURE
    assert texture(torch.minimum(stripes, stripes.transpose(1, 2))) > 10 * MIN_TEXTURE


def test_pictures_differ_and_repeat_by_seed() -> None:
    first, same, other = (procedural_picture(np.random.default_rng(seed), 64) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8 and torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.slow
def test_the_training_script_leaves_a_model_that_answers(tmp_path: Path) -> None:
    recipe = Path("configs/camera_motion.yaml").read_text()
    for old, new in [("steps: 1200", "steps: 3"), ("steps: 3200", "steps: 3"), ("batch_size: 64", "batch_size: 4")]:
        assert old in recipe
        recipe = recipe.replace(old, new)
    recipe = recipe.replace("pictures_count: 1500", "pictures_count: 6").replace("coded_count: 2000", "coded_count: 4")
    (tmp_path / "recipe.yaml").write_text(recipe)
    script = [sys.executable, "scripts/train_camera_motion.py", "--config", str(tmp_path / "recipe.yaml")]
    subprocess.run([*script, "--output", str(tmp_path / "run")], check=True)
    model = from_pretrained(tmp_path / "run" / "model")
    assert (model.labels, model.views, model.spec) == (list(LABELS), "3x1", SPEC)
