"""Training augmentation: one draw for a clip, decided by its key; published operations; the batch stage by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm_augment

from hiera_video.data.augment import (
    OPERATIONS,
    crop_box,
    crop_resize,
    draw_crop,
    draw_erase,
    draw_operations,
    rand_augment,
    short_side_needed,
)
from hiera_video.data.on_device import mix, on_device, soft_targets
from hiera_video.spec import FINETUNE, IMAGE_SPEC, PRETRAIN, Augment, ClipSpec

SMALL = ClipSpec(num_frames=4, size=(32, 32))
rng = np.random.default_rng


def natural(num_frames: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3]: smooth pictures with some texture, all different, not using the whole range."""
    coarse = rng(seed).integers(20, 230, (num_frames, 6, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    noise = rng(seed + 1).integers(0, 20, (num_frames, height, width, 3), dtype=np.uint8)
    return np.stack([np.asarray(one) for one in pictures]) // 2 + noise + 30


# --- crops ------------------------------------------------------------------------------------------------------------

SIDES = st.integers(64, 1000)
PRESETS = st.sampled_from([FINETUNE, PRETRAIN])
SEEDS = st.integers(0, 10_000)


@given(height=SIDES, width=SIDES, augment=PRESETS, seed=SEEDS)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_crop_lies_within_the_picture(height: int, width: int, augment: Augment, seed: int) -> None:
    top, left, rows, columns = crop_box(draw_crop(rng(seed), augment), height, width)
    assert 0 <= top <= top + rows <= height and 0 <= left <= left + columns <= width
    assert rows >= 1 and columns >= 1


def test_crops_have_the_published_shares_and_aspects() -> None:
    boxes = np.array([crop_box(draw_crop(rng(seed), FINETUNE), 1000, 1000) for seed in range(3000)])
    shares, aspects = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert 0.08 - 0.002 < shares.min() < 0.09 and 0.95 < shares.max() <= 1
    assert 3 / 4 - 0.01 < aspects.min() < 0.76 and 1.32 < aspects.max() < 4 / 3 + 0.01
    # The logarithm is uniform, so as many crops are wide as high; large ones that do not fit are drawn again.
    assert abs(np.log(aspects).mean()) < 0.01
    assert abs(shares.mean() - 0.479) < 0.01
    places = boxes[:, :2] / (1000 - boxes[:, 2:] + 1)
    assert np.abs(places.mean(axis=0) - 0.5).max() < 0.02 and places.min() < 0.01 and places.max() > 0.97


def test_a_picture_too_long_for_every_try_gives_its_centre() -> None:
    augment = Augment(crop_area=(0.9, 1.0))
    assert crop_box(draw_crop(rng(0), augment), 300, 1200) == (0, 400, 300, 400)  # 4:3, as wide as allowed
    assert crop_box(draw_crop(rng(0), augment), 1200, 300) == (400, 0, 400, 300)


@given(seed=SEEDS, augment=PRESETS, scale=st.integers(2, 6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_draw_gives_the_corresponding_box_at_every_resolution(seed: int, augment: Augment, scale: int) -> None:
    draw = draw_crop(rng(seed), augment)
    small, large = (np.array(crop_box(draw, 90 * times, 160 * times)) for times in (1, scale))
    assert np.abs(small * scale - large).max() <= 1.5 * scale  # rounding to the pixels of the smaller picture


@given(height=SIDES, width=SIDES, augment=PRESETS, seed=SEEDS, rows=st.integers(32, 256), columns=st.integers(32, 256))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_frames_may_be_shrunk_until_the_crop_has_just_its_size(
    height: int, width: int, augment: Augment, seed: int, rows: int, columns: int
) -> None:
    draw = draw_crop(rng(seed), augment)
    short = short_side_needed(draw, height, width, (rows, columns))
    assert 1 <= short <= min(height, width)
    if short == min(height, width):
        return
    for sides in ((height, width), (width, height)):  # the picture may be turned
        # Decoders round the long side, some to an even number.
        for rounded in (round, lambda side: int(side) // 2 * 2):
            shrunk = [short if side == min(sides) else rounded(side * short / min(sides)) for side in sides]
            box = crop_box(draw, *shrunk)
            assert box[2] >= rows and box[3] >= columns


def test_the_short_side_needed_is_no_larger_than_it_must_be() -> None:
    draw = draw_crop(rng(1), Augment(crop_area=(0.25, 0.25), crop_aspect=(1.0, 1.0)))
    assert crop_box(draw, 480, 480)[2:] == (240, 240)
    assert short_side_needed(draw, 480, 480, (112, 112)) == 225  # 224, and what half a pixel more takes
    assert short_side_needed(draw, 480, 480, (224, 224)) == 449
    assert short_side_needed(draw, 480, 480, (448, 448)) == 480
    assert short_side_needed(draw, 480, 480, (112, 56)) == 225


# --- resizing ---------------------------------------------------------------------------------------------------------


BOXES = pytest.mark.parametrize("box", [(10, 20, 90, 70), (0, 0, 120, 160), (7, 3, 31, 29), (119, 159, 1, 1)])


@BOXES
def test_a_resized_crop_equals_the_float_rule_within_a_level(box: tuple[int, int, int, int]) -> None:
    frames = rng(0).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
    top, left, rows, columns = box
    pictures = torch.from_numpy(frames[:, top : top + rows, left : left + columns]).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(pictures.float(), size=(64, 48), mode="bilinear", align_corners=False)
    result = crop_resize(frames, box, ClipSpec(size=(64, 48)))
    assert result.dtype == torch.uint8 and result.is_contiguous()
    assert result.shape == (3, 3, 64, 48)
    assert (result.float() - expected.transpose(0, 1)).abs().max() < 1.02  # rounded weights


@BOXES
def test_a_resized_crop_of_an_image_equals_pillows_within_a_level(box: tuple[int, int, int, int]) -> None:
    image = rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    top, left, rows, columns = box
    crop = Image.fromarray(image).crop((left, top, left + columns, top + rows))
    expected = np.asarray(crop.resize((40, 40), Image.Resampling.BICUBIC)).astype(int)
    result = crop_resize(image[np.newaxis], box, IMAGE_SPEC.replace(size=(40, 40)))
    assert np.abs(result[:, 0].permute(1, 2, 0).numpy() - expected).max() <= 1


def test_the_result_is_written_into_a_place_of_any_strides() -> None:
    frames, box = natural(4, 48, 64), (5, 6, 40, 40)
    expected = crop_resize(torch.from_numpy(frames), box, SMALL)
    batch = torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8)
    channels_last = torch.zeros(4, 32, 32, 3, dtype=torch.uint8).permute(3, 0, 1, 2)
    for out in (batch[1], channels_last):
        assert crop_resize(frames, box, SMALL, out=out) is out
        assert torch.equal(out, expected)
    assert not batch[0].any()


# --- RandAugment ------------------------------------------------------------------------------------------------------

#: Ours by the names of timm, whose Pillow code SlowFast took over.
THEIRS = dict(zip(OPERATIONS, timm_augment._RAND_INCREASING_TRANSFORMS, strict=True))


def by_timm(frames: NDArray[np.uint8], name: str, magnitude: float) -> NDArray[np.uint8]:
    operation = timm_augment.AugmentOp(
        THEIRS[name],
        prob=1.0,
        magnitude=magnitude,
        hparams={"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC},
    )
    return np.stack([np.asarray(operation(Image.fromarray(frame))) for frame in frames])


# At magnitude 10 Pillow refuses to keep 0 bits, which was black: RandAugment is tested up to just under it.
@pytest.mark.parametrize("magnitude", [0, 2.5, 7, 9.9])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_published_picture(name: str, magnitude: float, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = natural(2, 45, 64)
    kept = frames.copy()
    for sign in (1, -1):
        monkeypatch.setattr(timm_augment, "_randomly_negate", lambda value, sign=sign: sign * value)
        expected = by_timm(frames, name, magnitude).astype(int)
        result = OPERATIONS[name](frames, magnitude / 10, sign)
        assert result.dtype == np.uint8 and result.shape == frames.shape
        difference = np.abs(result - expected)
        # Where pixels are resampled, weights in float32 and in float64 truncate one value in some hundred differently.
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    np.testing.assert_array_equal(frames, kept)


def test_no_bits_kept_is_black() -> None:
    assert not OPERATIONS["posterize"](natural(1, 8, 8), 1.0, 1).any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_frame_of_a_clip_gets_the_same(name: str) -> None:
    frames = natural(3, 33, 40)
    one_by_one = [OPERATIONS[name](frame[np.newaxis], 0.7, -1)[0] for frame in frames]
    np.testing.assert_array_equal(OPERATIONS[name](frames, 0.7, -1), np.stack(one_by_one))


def test_operations_are_drawn_as_published() -> None:
    draws = [draw_operations(rng(seed), FINETUNE) for seed in range(6000)]
    # Two, with replacement, each applied with probability 1/2.
    assert np.abs(np.bincount([len(one) for one in draws]) / 6000 - [0.25, 0.5, 0.25]).max() < 0.02
    assert any(len(one) == 2 and one[0][0] == one[1][0] for one in draws)
    names, levels, signs = zip(*(operation for one in draws for operation in one), strict=True)
    counts = np.array(list(Counter(names).values())) / len(names)
    assert len(counts) == 15 and np.abs(counts - 1 / 15).max() < 0.01
    assert abs(np.mean(levels) - 0.7) < 0.005 and abs(np.std(levels) - 0.05) < 0.003
    assert abs(np.mean(signs)) < 0.04


def test_magnitudes_end_at_ten() -> None:
    draws = [draw_operations(rng(seed), Augment(magnitude=9.9, magnitude_std=3.0)) for seed in range(300)]
    levels = [level for one in draws for _, level, _ in one]
    assert max(levels) == 1 and min(levels) >= 0 and 0.4 < np.mean(np.array(levels) == 1) < 0.6


def test_rand_augment_is_its_operations_in_order_decided_by_the_key() -> None:
    frames = natural(2, 45, 64)
    seed = next(seed for seed in range(99) if len(draw_operations(rng(seed), FINETUNE)) == 2)
    expected = frames
    for name, level, sign in draw_operations(rng(seed), FINETUNE):
        expected = OPERATIONS[name](expected, level, sign)
    np.testing.assert_array_equal(rand_augment(frames, FINETUNE, rng(seed)), expected)
    np.testing.assert_array_equal(rand_augment(frames, PRETRAIN, rng(seed)), frames)


# --- erasing ----------------------------------------------------------------------------------------------------------


def test_boxes_are_erased_as_published() -> None:
    boxes = np.stack([draw_erase(rng(seed), FINETUNE, (500, 500)) for seed in range(8000)])
    drawn = boxes[boxes[:, 2] > 0]
    assert abs(len(drawn) / 8000 - 0.25) < 0.02
    assert not boxes[boxes[:, 2] == 0].any()
    shares, aspects = drawn[:, 2] * drawn[:, 3] / 500**2, drawn[:, 2] / drawn[:, 3]
    assert 0.019 < shares.min() < 0.025 and 0.32 < shares.max() < 0.34
    assert 0.29 < aspects.min() < 0.33 and 3 < aspects.max() < 3.4
    assert (drawn[:, :2] >= 0).all() and (drawn[:, :2] + drawn[:, 2:] <= 500).all()


def test_pretraining_erases_nothing() -> None:
    assert not any(draw_erase(rng(seed), PRETRAIN, (224, 224)).any() for seed in range(50))


# --- the batch on the device ------------------------------------------------------------------------------------------


def batch_of(size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "clip": torch.randint(0, 256, (size, 3, 4, 32, 32), dtype=torch.uint8, generator=generator),
        "flip": torch.arange(size) % 2 == 1,
        "erase": torch.tensor([[0, 0, 0, 0], [3, 20, 9, 12], [0, 0, 32, 32]])[torch.arange(size) % 3],
        "noise_seed": torch.arange(size) + 2**62,
    }


def test_the_batch_is_mirrored_normalised_and_erased_as_drawn() -> None:
    batch = batch_of(5)
    kept = {key: value.clone() for key, value in batch.items()}
    spec = SMALL.replace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    result = on_device(batch, spec, "cpu")
    expected = torch.stack([clip.flip(-1) if i in (1, 3) else clip for i, clip in enumerate(batch["clip"])])
    expected = spec.normalize(expected)
    for row, (top, left, bottom, right) in {1: (3, 20, 12, 32), 2: (0, 0, 32, 32), 4: (3, 20, 12, 32)}.items():
        noise = result[row, :, :, top:bottom, left:right]
        assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
        assert not torch.equal(noise[:, 0], noise[:, 1])  # fresh in every frame
        expected[row, :, :, top:bottom, left:right] = noise
    assert result.dtype == torch.float32 and result.is_contiguous()
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    assert all(torch.equal(batch[key], kept[key]) for key in batch)


def test_a_row_is_the_same_in_every_batch() -> None:
    batch = batch_of(6)
    one = {key: value[4:5] for key, value in batch.items()}
    state = torch.get_rng_state()
    assert torch.equal(on_device(batch, SMALL, "cpu")[4:5], on_device(one, SMALL, "cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_strides_make_no_difference() -> None:
    batch = batch_of(3)
    last = batch | {"clip": batch["clip"].permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)}
    assert torch.equal(on_device(last, SMALL, "cpu"), on_device(batch, SMALL, "cpu"))


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_targets_hold_the_smoothing() -> None:
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    assert soft_targets(torch.tensor([1]), 3, 0.0).tolist() == [[0, 1, 0]]


def numbered(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips whose pixels all hold the clip's number, and their targets."""
    clips = torch.arange(size).float().view(-1, 1, 1, 1, 1).expand(size, 3, 2, 24, 36).contiguous()
    return clips, soft_targets(torch.arange(size), size, 0.0)


def test_mixup_blends_each_clip_with_its_opposite_by_one_share() -> None:
    clips, targets = numbered(4)
    kept = clips.clone()
    mixed, soft = mix(clips, targets, rng(3), cutmix=0.0)
    share = float(soft[0, 0])
    assert 0 < share < 1
    for i in range(4):
        expected = torch.zeros(4)
        expected[i], expected[3 - i] = share, 1 - share
        torch.testing.assert_close(soft[i], expected)
        torch.testing.assert_close(mixed[i], torch.full_like(mixed[i], share * i + (1 - share) * (3 - i)))
    assert torch.equal(clips, kept)


def test_cutmix_pastes_one_box_into_all_frames_and_counts_its_pixels() -> None:
    clips, targets = numbered(4)
    kept = clips.clone()
    shares = []
    for seed in range(200):
        mixed, soft = mix(clips, targets, rng(seed), mixup=0.0)
        pasted = mixed[0] == 3
        assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted))  # the same in all channels and frames
        assert torch.equal(mixed, torch.where(pasted, clips.flip(0), clips))
        rows, columns = pasted[0, 0].any(1).sum(), pasted[0, 0].any(0).sum()
        assert pasted[0, 0].sum() == rows * columns  # a box
        assert float(soft[0, 3]) == pytest.approx(float(pasted.float().mean()), abs=1e-6)
        shares.append(float(soft[0, 0]))
    assert min(shares) < 0.2 and max(shares) > 0.98
    assert torch.equal(clips, kept)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 5), smoothing=st.sampled_from([0.0, 0.1]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_targets_sum_to_one(seed: int, size: int, smoothing: float) -> None:
    clips, _ = numbered(size)
    _, soft = mix(clips, soft_targets(torch.arange(size), size, smoothing), rng(seed))
    torch.testing.assert_close(soft.sum(1), torch.ones(size))
    assert (soft >= 0).all()


def test_half_of_the_batches_are_cut_and_shares_are_beta_distributed() -> None:
    clips, targets = numbered(2)
    values = [set(mix(clips, targets, rng(seed))[0][0].unique().tolist()) for seed in range(1000)]
    assert abs(np.mean([one <= {0.0, 1.0} for one in values]) - 0.5) < 0.05
    shares = [float(mix(clips, targets, rng(seed), cutmix=0.0)[1][0, 0]) for seed in range(2000)]
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 (2 * 0.8 + 1)).
    assert abs(np.mean(shares) - 0.5) < 0.02 and abs(np.var(shares) - 1 / 10.4) < 0.005


def test_mixing_is_decided_by_its_generator_and_may_be_off() -> None:
    clips, targets = numbered(3)
    one, other = mix(clips, targets, rng(5)), mix(clips, targets, rng(5))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    off = mix(clips, targets, rng(5), mixup=0.0, cutmix=0.0)
    assert torch.equal(off[0], clips) and torch.equal(off[1], targets)
