"""What is chosen for one's own videos, by how many there are and what their classes are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_sets import write_colours

from hiera_video.errors import RequestError
from hiera_video.models.zoo import BUILT_IN
from hiera_video.tasks.train.data import lists_of
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.own_pretraining import own_pretraining
from hiera_video.tasks.train.own_videos import own_recipe
from hiera_video.tasks.train.pretrain import pretrain
from hiera_video.training.optimization import plan_run


def listed(folder: Path, count: int, classes: list[str]) -> str:
    """A list of ``count`` videos that need not be there."""
    rows = [f"{number}.mp4,{classes[number % len(classes)]}" for number in range(count)]
    (folder / "train.csv").write_text("\n".join(["path,label", *rows]))
    return str(folder / "train.csv")


MANY = [f"class {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("count", "passes", "repeats", "lr", "drop_path", "dropout", "mixing", "frozen"),
    [
        (150, "10pass", 1, 1e-3, 0.0, 0.0, (0.0, 0.0), 3),
        (500, "30pass", 2, 5e-4, 0.1, 0.5, (0.2, 0.0), 0),
        (5_000, "40pass", 2, 5e-4, 0.2, 0.5, (0.8, 1.0), 0),
        (50_000, "25pass", 2, 4e-4, 0.2, 0.3, (0.8, 1.0), 0),
    ],
)
def test_the_number_of_videos_decides(
    count: int,
    passes: str,
    repeats: int,
    lr: float,
    drop_path: float,
    dropout: float,
    mixing: tuple[float, float],
    frozen: int,
    tmp_path: Path,
) -> None:
    recipe = own_recipe({"data.train": listed(tmp_path, count, MANY), "run.duration": passes, "model.head": "linear"})
    assert (recipe.run.duration, recipe.data.repeats) == (passes, repeats)
    assert (recipe.optim.lr, recipe.optim.lr_videos) == (lr, 256 // repeats)
    assert (recipe.model.drop_path_rate, recipe.model.head_dropout) == (drop_path, dropout)
    assert (recipe.loss.mixup, recipe.loss.cutmix) == mixing
    assert (recipe.model.freeze_stages, recipe.model.fit_head) == (frozen, frozen > 0)
    plan_run(recipe.optim, recipe.run, num_videos=count, repeats=repeats, num_processes=1)


def test_a_small_model_and_few_videos_are_a_fitted_head_and_steps_are_whole_frames(tmp_path: Path) -> None:
    recipe = own_recipe({"data.train": str(write_colours(tmp_path, 3, seed=0))})
    assert (recipe.model.head, recipe.model.fit_head, recipe.run.duration) == ("best", True, "0pass")
    assert recipe.data.frame_stride == int(recipe.data.frame_stride or 0) >= 1
    assert recipe.data.target_fps == pytest.approx(30, abs=0.1)


def test_without_validation_videos_a_share_of_each_class_is_held_out_by_file(tmp_path: Path) -> None:
    rows = [f"{number // 2}.mp4,{'ab'[number // 20]},{number % 2},{number % 2 + 1}" for number in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,start,end", *rows]))
    changes = {"data.train": str(tmp_path / "train.csv"), "model.head": "linear"}
    recipe = own_recipe(changes)
    lists = lists_of(recipe.data)
    assert lists.train is not None and lists.val is not None
    learned, judged = ({videos.path(index) for index in range(len(videos))} for videos in (lists.train, lists.val))
    assert len(lists.val) == 4 and np.bincount(lists.val.labels).tolist() == [2, 2]
    assert not learned & judged and len(learned | judged) == 20
    assert any("no --val: 4 videos are held out" in note for note in vars(recipe)["_read"].notes)
    assert lists_of(own_recipe(changes | {"data.hold_out": "0"}).data).val is None
    (tmp_path / "train.csv").write_text("path,label\none.mp4,a\ntwo.mp4,b\n")  # nothing to spare
    assert lists_of(own_recipe(changes).data).val is None


def test_classes_of_uneven_size_weigh_alike(tmp_path: Path) -> None:
    (tmp_path / "uneven.csv").write_text("path,label\n" + "a.mp4,a\n" * 8 + "b.mp4,b\n" * 2)
    assert own_recipe({"data.train": str(tmp_path / "uneven.csv")}).loss.class_weights == "balanced"


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [8, 30, 500])
def test_any_number_of_processes_makes_up_a_step(
    world: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    recipe = own_recipe({"data.train": listed(tmp_path, count, ["a", "b"])})
    plan = plan_run(recipe.optim, recipe.run, num_videos=count, repeats=1, num_processes=world)
    assert plan.videos_per_step <= count


def test_few_classes_are_not_mixed(tmp_path: Path) -> None:
    recipe = own_recipe({"data.train": listed(tmp_path, 5_000, ["a", "b"])})
    assert (recipe.loss.mixup, recipe.loss.cutmix) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("classes", "flip"),
    [
        (["turn_left", "turn_right"], 0.0),
        (["Roll clockwise", "rest"], 0.0),
        (["leftovers", "bright"], 0.5),
        (["jump", "run"], 0.5),
    ],
)
def test_classes_with_a_direction_are_not_mirrored(classes: list[str], flip: float, tmp_path: Path) -> None:
    assert own_recipe({"data.train": listed(tmp_path, 500, classes)}).augment.flip == flip


def test_videos_shorter_than_a_clip_get_half_the_stride_and_what_is_given_stays(tmp_path: Path) -> None:
    folder = str(write_colours(tmp_path, 3, seed=0))  # of 1.3 s
    linear = {"data.train": folder, "model.head": "linear"}
    assert own_recipe(linear).data.frame_stride is None  # the general model's clip is 1.28 s
    assert own_recipe(linear | {"model.start": BUILT_IN}).data.frame_stride == 2  # and this one's 2.1 s
    assert own_recipe({"data.train": folder, "data.frame_stride": "3"}).data.frame_stride == 3
    changed = own_recipe({"data.train": folder, "optim.lr": "0.1", "run.duration": "3pass"})
    assert (changed.optim.lr, changed.run.duration) == (0.1, "3pass")


def test_a_flat_folder_without_labels_is_enough_for_an_mae_and_too_little_for_classes(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "classes", 2, seed=0)
    (tmp_path / "flat").mkdir()
    for path in folder.glob("*/*.mp4"):
        path.rename(tmp_path / "flat" / f"{path.parent.name}_{path.name}")
    flat = str(tmp_path / "flat")
    recipe = own_pretraining({"data.train": flat, "run.duration": "2st", "data.num_workers": "0"})
    assert (recipe.model.start, recipe.run.videos_per_step) == ("hiera_nano_16x64.general", 6)
    (*_, done) = pretrain(replace(recipe, run=replace(recipe.run, output=str(tmp_path / "mae"))))
    assert done.kind == "done" and done.step == 2
    with pytest.raises(RequestError, match="6 videos have no label; fine-tuning needs one for each"):
        list(finetune(own_recipe({"data.train": flat})))
