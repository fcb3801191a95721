"""Training batches and test views from real worker processes: what a sample is depends on its key alone."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from assets import H264, Asset, damage_packet, numbers_in, picture
from PIL import Image
from torch import Tensor

from hiera_video.data import dataset as dataset_module
from hiera_video.data import views as views_module
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.loader import ClipLoader
from hiera_video.data.sampling import keyed_rng, segment_clips
from hiera_video.data.views import load_views
from hiera_video.data.views import test_views as views_for_test
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import FINETUNE, PRETRAIN, Augment, ClipSpec

SPEC = ClipSpec(num_frames=4, frame_stride=4, size=(32, 32), resize=40)
#: The whole picture, unturned: frames can be told by their numbers.
PLAIN = Augment(crop_area=(1.0, 1.0), crop_aspect=(4 / 3, 4 / 3), flip=0.0, num_ops=0, erasing=0.0)
NUM_VIDEOS = 9
BAD = (2, 5)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> VideoList:
    """Nine readable videos of three classes."""
    folder = tmp_path_factory.mktemp("good")
    paths = [Asset(f"{i}.mp4", num_frames=40 + 3 * i, options={"g": "20"}).write(folder) for i in range(NUM_VIDEOS)]
    return VideoList.make([str(path) for path in paths], [i % 3 for i in range(NUM_VIDEOS)], ["a", "b", "c"])


@pytest.fixture(scope="module")
def mixed(good: VideoList, tmp_path_factory: pytest.TempPathFactory) -> VideoList:
    """The same, of which two are not readable."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.mp4").write_text("this is no video\n" * 200)
    paths = [good.path(i) for i in range(NUM_VIDEOS)]
    paths[BAD[0]], paths[BAD[1]] = str(folder / "text.mp4"), str(folder / "missing.mp4")
    return VideoList.make(paths, good.labels, good.classes)


def take(loader: ClipLoader, num_batches: int) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = []
    while len(batches) < num_batches:
        for batch in loader:
            batches.append(batch)
            if len(batches) == num_batches:
                break
    return batches


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
            assert same, name


def frames_shown(clip: Tensor) -> list[int]:
    """Of uint8 [C, T, h, w] in the plain augmentation."""
    return numbers_in(clip.permute(1, 2, 3, 0).numpy())


def test_two_epochs_are_the_same_with_any_number_of_workers_bad_files_among_them(mixed: VideoList) -> None:
    runs = []
    for workers in (0, 1, 3):
        loader = ClipLoader(
            ClipDataset(mixed, SPEC, augment=FINETUNE, num_clips=2, seed=3), batch_size=2, num_workers=workers
        )
        runs.append((take(loader, 2 * len(loader)), [problem.path for problem in loader.problems]))
        assert loader.epoch == 2
        loader.close()
    for batches, problems in runs[1:]:
        assert_same(batches, runs[0][0])
        assert problems == runs[0][1]
    assert set(runs[0][1]) == {mixed.path(index) for index in BAD}


def seeded_loader(videos: VideoList, num_workers: int) -> ClipLoader:
    return ClipLoader(ClipDataset(videos, SPEC, augment=FINETUNE, seed=1), batch_size=2, num_workers=num_workers)


@pytest.fixture(scope="module")
def uninterrupted(mixed: VideoList) -> list[dict[str, Any]]:
    """The first nine batches of a loader, of which four make an epoch."""
    return take(seeded_loader(mixed, 0), 9)


@pytest.mark.parametrize("stop", [3, 6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 4))])
def test_a_restored_position_gives_the_next_batch_bit_for_bit(
    mixed: VideoList, uninterrupted: list[dict[str, Any]], stop: int
) -> None:
    whole, first = uninterrupted, seeded_loader(mixed, 2)
    assert_same(take(first, stop), whole[:stop])
    state = first.state_dict()
    first.close()
    second = seeded_loader(mixed, 1)
    second.load_state_dict(state)
    assert [problem.path for problem in second.problems] == [problem.path for problem in first.problems]
    assert_same(take(second, 9 - stop), whole[stop:])


@pytest.mark.slow  # six starts of workers; the splits of a step are in the fast tests
def test_a_position_survives_another_number_of_processes(good: VideoList) -> None:
    def loader(batch_size: int, rank: int, num_processes: int) -> ClipLoader:
        dataset = ClipDataset(good, SPEC, augment=PRETRAIN, isolate=False)
        return ClipLoader(dataset, batch_size, num_workers=0, rank=rank, num_processes=num_processes)

    alone = take(loader(4, 0, 1), 2)
    pair = [take(loader(2, rank, 2), 1)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([batch["clip"] for batch in pair]), alone[0]["clip"])
    later = [loader(1, rank, 4) for rank in range(4)]
    for one in later:
        one.load_state_dict({"seed": 0, "num_videos": NUM_VIDEOS, "epoch": 0, "videos": 4, "problems": []})
    assert torch.equal(torch.cat([take(one, 1)[0]["clip"] for one in later]), alone[1]["clip"])


SPLITS = [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)]


def steps_of(
    videos: VideoList, split: tuple[int, int, int], num_steps: int, state: dict[str, Any] | None = None
) -> tuple[list[dict[tuple[int, int], Tensor]], dict[str, Any]]:
    """(epoch, index) -> clip for each step, put together from all processes; and the position behind the last."""
    batch_size, num_processes, accumulate = split
    steps: list[dict[tuple[int, int], Tensor]] = [{} for _ in range(num_steps)]
    for rank in range(num_processes):
        dataset = ClipDataset(videos, SPEC, augment=FINETUNE, isolate=False)
        numbers = {"rank": rank, "num_processes": num_processes, "accumulate": accumulate}
        loader = ClipLoader(dataset, batch_size, num_workers=0, **numbers)
        assert (len(loader), loader.videos_per_step) == (2, 4)
        if state is not None:
            loader.load_state_dict(state)
        for number, batch in enumerate(take(loader, num_steps * accumulate)):
            keys = zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True)
            steps[number // accumulate].update(zip(keys, batch["clip"], strict=True))
    return steps, loader.state_dict()


@pytest.mark.parametrize(
    "split",
    [*SPLITS[:2], SPLITS[3], *(pytest.param(split, marks=pytest.mark.slow) for split in SPLITS[2::2])],
)
def test_a_step_is_the_same_part_of_the_epoch_however_it_is_split(good: VideoList, split: tuple[int, int, int]) -> None:
    orders = [keyed_rng(0, epoch).permutation(NUM_VIDEOS).tolist() for epoch in (0, 1)]
    expected = [{(epoch, i) for i in orders[epoch][first : first + 4]} for epoch in (0, 1) for first in (0, 4)]
    assert [set(step) for step in steps_of(good, split, 4)[0]] == expected


@pytest.fixture(scope="module")
def four_steps(good: VideoList) -> list[dict[tuple[int, int], Tensor]]:
    """Two epochs in one process."""
    return steps_of(good, SPLITS[0], 4)[0]


@pytest.mark.parametrize(
    "split", [SPLITS[3], *(pytest.param(split, marks=pytest.mark.slow) for split in (*SPLITS[1:3], SPLITS[4]))]
)
def test_a_position_between_steps_goes_on_with_any_other_split(
    good: VideoList, four_steps: list[dict[tuple[int, int], Tensor]], split: tuple[int, int, int]
) -> None:
    whole = four_steps
    first, state = steps_of(good, split, 1)
    later, _ = steps_of(good, SPLITS[SPLITS.index(split) - 1], 3, state)
    for step, expected in zip(first + later, whole, strict=True):
        assert step.keys() == expected.keys()
        assert all(torch.equal(step[key], expected[key]) for key in step)


def test_a_position_inside_a_step_is_that_before_it_while_iterating_goes_on_behind_the_last_batch(
    good: VideoList,
) -> None:
    def loader() -> ClipLoader:
        return ClipLoader(ClipDataset(good, SPEC, augment=PLAIN, isolate=False), 2, num_workers=0, accumulate=2)

    whole, first, second = take(loader(), 4), loader(), loader()
    assert_same(take(first, 3), whole[:3])
    assert (first.state_dict()["epoch"], first.state_dict()["videos"]) == (0, 4)
    second.load_state_dict(first.state_dict())
    assert_same(take(second, 2), whole[2:])
    first.close()
    assert_same(take(first, 1), whole[3:])
    assert first.epoch == 1


def test_an_epoch_takes_each_video_once_in_an_order_of_its_own(good: VideoList) -> None:
    loader = ClipLoader(ClipDataset(good, SPEC, augment=PLAIN, isolate=False), batch_size=3, num_workers=0)
    epochs = [torch.cat([batch["index"] for batch in loader]).tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(NUM_VIDEOS))
    assert epochs[0] != epochs[1]
    still = ClipLoader(ClipDataset(good, SPEC, augment=PLAIN, isolate=False), 3, num_workers=0, shuffle=False)
    assert torch.cat([batch["index"] for batch in still]).tolist() == list(range(NUM_VIDEOS))


def test_a_bad_file_is_replaced_in_its_slot_and_every_other_slot_stays(good: VideoList, mixed: VideoList) -> None:
    def epoch(videos: VideoList) -> tuple[list[dict[str, Any]], ClipLoader]:
        loader = ClipLoader(ClipDataset(videos, SPEC, augment=FINETUNE, isolate=False), batch_size=3, num_workers=0)
        return list(loader), loader

    (expected, _), (batches, loader) = epoch(good), epoch(mixed)
    for one, other in zip(expected, batches, strict=True):
        for slot in range(3):
            if int(one["index"][slot]) in BAD:
                assert int(other["index"][slot]) not in BAD
                assert int(other["label"][slot]) == int(other["index"][slot]) % 3
                assert other["path"][slot] == mixed.path(int(other["index"][slot]))
            else:
                assert torch.equal(one["clip"][slot], other["clip"][slot])
    reasons = {os.path.basename(problem.path): problem.reason for problem in loader.problems}
    assert "is not a video that FFmpeg can open" in reasons["text.mp4"]
    assert "cannot be read (No such file or directory)" in reasons["missing.mp4"]
    assert all(problem.replaced for problem in loader.problems)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_can_end_the_run_in_one_sentence(mixed: VideoList, workers: int) -> None:
    dataset = ClipDataset(mixed, SPEC, augment=PLAIN, on_error="raise")
    with pytest.raises(UnreadableVideo, match=r"^\S+ (is not a video that FFmpeg can open|cannot be read) \([^\n]*\.$"):
        take(ClipLoader(dataset, 3, num_workers=workers), 3)


def test_a_list_of_bad_files_only_ends_the_run(tmp_path: Path) -> None:
    videos = VideoList.make([str(tmp_path / f"{i}.mp4") for i in range(4)], [0] * 4, ["a"])
    with pytest.raises(UnreadableVideo, match=r"^21 videos drawn one after the other cannot be read: check the folder"):
        take(ClipLoader(ClipDataset(videos, SPEC), 2, num_workers=1), 1)


def test_a_file_of_which_only_a_part_can_be_read_is_used_and_listed(tmp_path: Path) -> None:
    path = damage_packet(H264.write(tmp_path), 40)
    videos = VideoList.make([str(path)], [0], ["a"])
    spec = SPEC.replace(num_frames=90, frame_stride=1)
    loader = ClipLoader(ClipDataset(videos, spec, augment=PLAIN), 1, num_workers=0)
    (batch,) = loader
    assert batch["path"] == [str(path)]
    assert [(problem.path, problem.replaced) for problem in loader.problems] == [(str(path), False)]
    assert "cannot be decoded" in loader.problems[0].reason


def test_several_clips_of_a_video_cost_one_open_and_one_pass(good: VideoList, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    asked: list[list[int]] = []
    opener, read = views_module.open_video, dataset_module.Video.read
    monkeypatch.setattr(views_module, "open_video", lambda path, **rest: opened.append(path) or opener(path, **rest))
    monkeypatch.setattr(
        dataset_module.Video,
        "read",
        lambda self, wanted, side: asked.append(wanted.tolist()) or read(self, wanted, side),
    )
    sample = ClipDataset(good, SPEC, augment=PLAIN, num_clips=4, isolate=False)[0, 8]
    assert opened == [good.path(8)]
    shown = [frames_shown(clip) for clip in sample["clip"]]
    assert asked == [sorted({number for row in shown for number in row})]
    assert len({row[0] for row in shown}) > 1
    assert sample["repeat"].tolist() == [0, 1, 2, 3]


def test_one_clip_augmented_twice_shows_the_same_frames_in_other_crops(good: VideoList) -> None:
    plain = ClipDataset(good, SPEC, augment=PLAIN, num_augments=2, isolate=False)[0, 8]["clip"]
    assert frames_shown(plain[0]) == frames_shown(plain[1])
    varied = ClipDataset(good, SPEC, augment=FINETUNE, num_augments=2, isolate=False)[0, 8]["clip"]
    assert not torch.equal(varied[0], varied[1])


def test_a_clip_is_a_function_of_seed_epoch_index_and_repeat(good: VideoList) -> None:
    def clip(seed: int, epoch: int, index: int, num_clips: int = 1) -> Tensor:
        dataset = ClipDataset(good, SPEC, augment=FINETUNE, seed=seed, num_clips=num_clips, isolate=False)
        return dataset[epoch, index]["clip"][-1]

    base = clip(0, 0, 8)
    assert torch.equal(base, clip(0, 0, 8))
    for other in (clip(1, 0, 8), clip(0, 1, 8), clip(0, 0, 7), clip(0, 0, 8, num_clips=2)):
        assert not torch.equal(base, other)


def test_a_segment_shows_only_its_own_frames(tmp_path: Path) -> None:
    path = str(H264.write(tmp_path))  # 3 s
    videos = VideoList.make([path] * 2, [0, 1], ["a", "b"], starts=[1.0, 2.0], ends=[2.0, 2.5])
    dataset = ClipDataset(videos, SPEC, augment=PLAIN, isolate=False)
    for epoch in range(5):
        assert all(30 <= number < 60 for number in frames_shown(dataset[epoch, 0]["clip"][0]))
        assert all(60 <= number < 75 for number in frames_shown(dataset[epoch, 1]["clip"][0]))
    views = list(views_for_test(videos, SPEC, 2, 1, num_workers=0))
    assert [view["label"] for view in views] == [0, 1]
    assert views[0]["clips"].shape == (2, 3, 4, 32, 32)


def test_another_sampler_takes_the_place_of_the_dense_rule(good: VideoList) -> None:
    dataset = ClipDataset(
        good, SPEC, augment=PLAIN, isolate=False, sample=lambda times, rng: segment_clips(times, SPEC, rng)
    )
    shown = frames_shown(dataset[0, 8]["clip"][0])
    assert shown == sorted(shown) and shown[-1] - shown[0] > 30  # over the whole of 64 frames


def test_fast_decoding_gives_clips_from_neighbouring_frames(good: VideoList) -> None:
    exact = ClipDataset(good, SPEC, augment=PLAIN)[0, 8]["clip"][0]
    fast = ClipDataset(good, SPEC, augment=PLAIN, decode="fast")[0, 8]["clip"][0]
    assert np.abs(np.subtract(frames_shown(exact), frames_shown(fast))).max() <= 2


def test_a_batch_travels_as_uint8_with_what_is_left_to_do(good: VideoList) -> None:
    loader = ClipLoader(ClipDataset(good, SPEC, augment=FINETUNE, num_clips=2), batch_size=3, num_workers=1)
    batch = next(iter(loader))
    assert batch["clip"].shape == (6, 3, 4, 32, 32) and batch["clip"].dtype == torch.uint8
    assert {
        name: tuple(batch[name].shape) for name in ("flip", "erase", "noise_seed", "label", "index", "repeat", "epoch")
    } == {
        "flip": (6,),
        "erase": (6, 4),
        "noise_seed": (6,),
        "label": (6,),
        "index": (6,),
        "repeat": (6,),
        "epoch": (6,),
    }
    assert len(batch["path"]) == 6 and batch["repeat"].tolist() == [0, 1] * 3


def test_multi_label_targets_come_along(good: VideoList) -> None:
    targets = np.eye(4)[np.arange(NUM_VIDEOS) % 4] + np.eye(4)[(np.arange(NUM_VIDEOS) + 1) % 4]
    videos = VideoList.make([good.path(i) for i in range(NUM_VIDEOS)], targets, list("abcd"))
    batch = next(
        iter(ClipLoader(ClipDataset(videos, SPEC, augment=PLAIN, num_clips=2, isolate=False), 2, num_workers=0))
    )
    assert batch["label"].dtype == torch.float32
    np.testing.assert_array_equal(batch["label"], targets[batch["index"]])


def test_a_workers_decoder_that_is_killed_costs_nothing(good: VideoList) -> None:
    def loader(workers: int) -> ClipLoader:
        return ClipLoader(ClipDataset(good, SPEC, augment=PRETRAIN), batch_size=1, num_workers=workers)

    expected, running = take(loader(0), 9), loader(2)
    batches = take(running, 1)
    children = [one for one in psutil.Process().children(recursive=True) if "serve(" in " ".join(one.cmdline())]
    mine = [one for one in children if one.parent() is not None and one.parent().pid != os.getpid()]
    assert mine
    for child in mine:
        os.kill(child.pid, signal.SIGKILL)
    batches += take(running, 8)
    assert_same(batches, expected)
    assert running.problems == []


def test_a_position_of_another_run_is_refused(good: VideoList) -> None:
    loader = ClipLoader(ClipDataset(good, SPEC, seed=1), 2)
    with pytest.raises(
        RequestError, match=r"^the position to go on from has seed 0, the data 1: it is another run's\.$"
    ):
        loader.load_state_dict({"seed": 0, "num_videos": NUM_VIDEOS, "epoch": 0, "videos": 0, "problems": []})


def test_a_step_larger_than_the_list_is_refused(good: VideoList) -> None:
    sentence = "9 videos do not fill one step of 12 (batch_size 2 x num_processes 2 x accumulate 3): lower one of the"
    with pytest.raises(RequestError, match=f"^{re.escape(sentence)} three\\.$"):
        ClipLoader(ClipDataset(good, SPEC), 2, num_processes=2, accumulate=3)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"accumulate": 0}, {"rank": 2, "num_processes": 2}])
def test_numbers_that_make_no_step_are_refused(good: VideoList, wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=r"^batch_size \d, accumulate \d, rank \d of \d: at least one video a batch"):
        ClipLoader(ClipDataset(good, SPEC), **{"batch_size": 1, **wrong})
    with pytest.raises(RequestError, match="num_workers is -1, but is at least 0"):
        ClipLoader(ClipDataset(good, SPEC), 1, num_workers=-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_views_come_in_order_and_nothing_is_replaced(mixed: VideoList, workers: int) -> None:
    answers = list(views_for_test(mixed, SPEC, 2, 3, num_workers=workers))
    assert [answer["index"] for answer in answers] == list(range(NUM_VIDEOS))
    for index, answer in enumerate(answers):
        assert (answer["path"], answer["label"]) == (mixed.path(index), index % 3)
        if index in BAD:
            assert answer["clips"] is None and answer["error"].startswith(mixed.path(index))
        else:
            assert torch.equal(answer["clips"], load_views(mixed.path(index), SPEC, 2, 3).clips)
            assert answer["error"] is None


def test_some_videos_can_be_asked_for(good: VideoList) -> None:
    answers = views_for_test(good, SPEC, 1, 1, num_workers=0, isolate=False, indices=[7, 2])
    assert [answer["index"] for answer in answers] == [7, 2]


def test_folders_of_pictures_are_videos_too(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(60):
        Image.fromarray(picture(number, 48, 64)).save(folder / f"{number:05d}.jpg", quality=95)
    videos = VideoList.make([str(folder)], [0], ["a"])
    (batch,) = ClipLoader(ClipDataset(videos, SPEC, augment=PLAIN, fps=30), 1, num_workers=1)
    shown = frames_shown(batch["clip"][0])
    assert np.diff(shown).tolist() == [5, 5, 5]  # 16 / 30 s in four frames, the ends included
    (answer,) = views_for_test(videos, SPEC, 2, 3, fps=30, num_workers=0)
    assert answer["clips"].shape == (6, 3, 4, 32, 32)
