"""PyTorchVideo's samplers give the clips that PyTorchVideo's own decoder gives, and its lists become ours."""

from __future__ import annotations

import importlib.util
import pickle
import random
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytorchvideo
import torch
from assets import H264, Asset, numbers_in
from pytorchvideo.data.clip_sampling import make_clip_sampler
from pytorchvideo.data.encoded_video import EncodedVideo
from pytorchvideo.data.labeled_video_paths import LabeledVideoPaths

from hiera_video.data.pytorchvideo import from_clip_sampler, from_labeled_paths
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec

FOUR = ClipSpec(num_frames=4)
CINEMA = Asset("cinema.mp4", num_frames=60, fps=Fraction(24000, 1001), options={"g": "24"})
SHORT = Asset("short.mp4", num_frames=10, fps=Fraction(25))

SAMPLERS = {
    "random": ("random", 0.8),
    "several random ones": ("random_multi", 0.5, 3),
    "uniform": ("uniform", 0.5),
    "uniform, by a fraction that divides the video": ("uniform", Fraction(1, 2)),
    "uniform, overlapping": ("uniform", Fraction(2, 3), Fraction(1, 3)),
    "uniform, the last one moved back": ("uniform", 0.8, 0.8, True),
    "a number of clips": ("constant_clips_per_video", Fraction(4, 5), 3),
    "a number of clips, each augmented twice": ("constant_clips_per_video", 0.8, 2, 2),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {asset.name: asset.write(folder) for asset in (H264, CINEMA, SHORT)}


@pytest.fixture(scope="module")
def functional() -> ModuleType:
    """``pytorchvideo/transforms/functional.py`` alone: its package does not import on today's torchvision."""
    path = Path(pytorchvideo.__file__).parent / "transforms" / "functional.py"
    spec = importlib.util.spec_from_file_location("functional", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_clips(path: Path, sampler: Any, seed: int, functional: ModuleType) -> list[list[int]]:
    """The numbers in the frames that PyTorchVideo decodes and keeps, clip by clip, as its LabeledVideoDataset does."""
    random.seed(int(np.random.default_rng(seed).integers(2**63)))
    video = EncodedVideo.from_path(str(path), decode_audio=False)
    shown: list[list[int]] = []
    end, last = 0.0, [False]
    while not last[-1]:
        start, end, _, _, last = sampler(end, video.duration, {})
        starts, ends, last = (one if isinstance(one, list) else [one] for one in (start, end, last))
        for first, behind in zip(starts, ends, strict=True):
            frames = video.get_clip(first, behind)["video"]
            frames = functional.uniform_temporal_subsample(frames, FOUR.num_frames)
            shown.append(numbers_in(frames.permute(1, 2, 3, 0).to(torch.uint8).numpy()))
    video.close()
    return shown


@pytest.mark.parametrize("name", [H264.name, CINEMA.name, SHORT.name])
@pytest.mark.parametrize("arguments", SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler_gives_the_clips_that_pytorchvideo_decodes(
    files: dict[str, Path], functional: ModuleType, name: str, arguments: tuple[Any, ...]
) -> None:
    expected = their_clips(files[name], make_clip_sampler(*arguments), 7, functional)
    with open_video(files[name]) as video:
        rows = from_clip_sampler(make_clip_sampler(*arguments), FOUR)(video.times, np.random.default_rng(7))
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


TIMES = np.arange(90) / 30


def test_worked_example() -> None:
    sample = from_clip_sampler(make_clip_sampler("constant_clips_per_video", 1, 2), FOUR)
    # Room for starts is 2 s, cut in two: [0, 1) and [1, 2) s.
    assert sample(TIMES, np.random.default_rng(0)).tolist() == [[0, 9, 19, 29], [30, 39, 49, 59]]


def test_times_count_from_the_first_frame() -> None:
    sample = from_clip_sampler(make_clip_sampler("uniform", 0.5), FOUR)
    rng = np.random.default_rng
    np.testing.assert_array_equal(sample(TIMES + 8.333, rng(0)), sample(TIMES, rng(0)))


def test_draws_follow_the_key_and_leave_the_global_state_alone() -> None:
    sample = from_clip_sampler(make_clip_sampler("random", 0.5), FOUR)
    random.seed(1)
    expected = random.random()
    random.seed(1)
    one, other = (sample(TIMES, np.random.default_rng(seed)) for seed in (3, 4))
    assert random.random() == expected
    np.testing.assert_array_equal(one, sample(TIMES, np.random.default_rng(3)))
    assert one.tolist() != other.tolist()


def test_a_sampler_left_in_the_middle_of_a_video_begins_anew() -> None:
    sampler = make_clip_sampler("constant_clips_per_video", 1, 3)
    expected = from_clip_sampler(sampler, FOUR)(TIMES, np.random.default_rng(0))
    sampler(0.0, 3.0, {})
    np.testing.assert_array_equal(from_clip_sampler(sampler, FOUR)(TIMES, np.random.default_rng(0)), expected)


def test_a_clip_between_two_frames_shows_the_earlier() -> None:
    sample = from_clip_sampler(make_clip_sampler("uniform", Fraction(1, 60)), FOUR)
    # Every second clip of half a frame's duration begins between frames.
    assert sample(TIMES[:2], np.random.default_rng(0)).tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    assert from_clip_sampler(make_clip_sampler("random", 2.0), FOUR)([5.0], np.random.default_rng(0)).tolist() == [
        [0, 0, 0, 0]
    ]


def test_it_travels_to_worker_processes() -> None:
    sample = from_clip_sampler(make_clip_sampler("random", 0.5), FOUR)
    rows = pickle.loads(pickle.dumps(sample))(TIMES, np.random.default_rng(3))
    np.testing.assert_array_equal(rows, sample(TIMES, np.random.default_rng(3)))


def test_labeled_video_paths_become_a_list(tmp_path: Path) -> None:
    for name in ("run/a.mp4", "run/b.mp4", "walk/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    videos = from_labeled_paths(LabeledVideoPaths.from_directory(str(tmp_path)), ["run", "walk"])
    assert [(videos.path(i), videos.label(i)) for i in range(len(videos))] == [
        (f"{tmp_path}/run/a.mp4", 0),
        (f"{tmp_path}/run/b.mp4", 0),
        (f"{tmp_path}/walk/c.mp4", 1),
    ]
    assert videos.classes == ["run", "walk"]


def test_pairs_become_a_list_with_numbers_for_names() -> None:
    videos = from_labeled_paths([("a.mp4", {"label": 2}), ("b.mp4", {"label": -1})])
    assert (videos.classes, videos.labels.tolist()) == (["0", "1", "2"], [2, -1])


def test_an_entry_without_a_number_is_one_sentence() -> None:
    with pytest.raises(RequestError, match=r"entry 1 \(b.mp4\) has the label 'run', but needs a class's number"):
        from_labeled_paths([("a.mp4", {"label": 0}), ("b.mp4", {"label": "run"})])
