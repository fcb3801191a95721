"""Recipes: what is read from YAML and changed by dotted name, one sentence for each mistake, and those that ship."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hiera_video import files
from hiera_video.errors import RequestError
from hiera_video.models.zoo import list_models
from hiera_video.spec import FINETUNE, PRETRAIN
from hiera_video.training.durations import steps_of
from hiera_video.training.recipe import (
    Data,
    Evaluation,
    FinetuneModel,
    Finetuning,
    Generate,
    Optim,
    Pretraining,
    PretrainModel,
    Run,
    check,
)
from hiera_video.training.recipe_file import KINDS, difference, load_recipe, to_yaml

#: The least that a recipe of each job says.
LEAST = """
data: {train: videos}
model: {start: NAME}
optim: {lr: 8e-4, lr_videos: 512}
run: {duration: 10pass, videos_per_step: 8, batch_size: 4}
"""


def written(folder: Path, text: str = LEAST) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def refusal(kind: Any, config: Any = None, changes: Any = (), **rest: Any) -> str:
    """The sentence with which a recipe is refused."""
    with pytest.raises(RequestError) as caught:
        load_recipe(kind, config, changes, **rest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_a_file_leaves_out_has_the_defaults_of_its_job(tmp_path: Path) -> None:
    optim = Optim(lr=8e-4, lr_videos=512)
    run = Run(duration="10pass", videos_per_step=8, batch_size=4)
    assert load_recipe(Pretraining, written(tmp_path)) == Pretraining(
        data=Data(train="videos"), augment=PRETRAIN, model=PretrainModel(start="NAME"), optim=optim, run=run
    )
    assert load_recipe(Finetuning, written(tmp_path)) == Finetuning(
        data=Data(train="videos"), augment=FINETUNE, model=FinetuneModel(start="NAME"), optim=optim, run=run
    )


def test_a_section_that_names_one_field_keeps_the_others_of_its_job(tmp_path: Path) -> None:
    recipe = load_recipe(Pretraining, written(tmp_path, LEAST + "augment: {flip: 0}\n"))
    assert recipe.augment == dataclasses.replace(PRETRAIN, flip=0.0)


def test_a_heading_with_nothing_below_it_says_nothing(tmp_path: Path) -> None:
    assert load_recipe(Finetuning, written(tmp_path, LEAST + "augment:\nloss:\n")).augment == FINETUNE


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", "1", 1.0),
        ("optim.betas", "0.9,0.95", (0.9, 0.95)),
        ("optim.betas", "[0.9, 0.95]", (0.9, 0.95)),
        ("optim.clip_norm", "null", None),
        ("optim.optimizer", "sgd", "sgd"),
        ("run.seed", "7", 7),
        ("run.compile", "true", True),
        ("run.shard", "False", False),
        ("run.output", "2024", "2024"),
        ("run.tracker", "none", None),
        ("run.duration", "5000st", "5000st"),
        ("data.num_frames", "32", 32),
        ("data.train", "a: b", "a: b"),
        ("data.max_bad_share", "0", 0.0),
        ("augment.crop_area", "0.5,1", (0.5, 1.0)),
        ("loss.class_weights", "none", "none"),
    ],
)
def test_words_of_a_command_line_become_values(name: str, word: str, value: object, tmp_path: Path) -> None:
    recipe = load_recipe(Finetuning, written(tmp_path), {name: word})
    section, field = name.split(".")
    found = getattr(getattr(recipe, section), field)
    assert found == value and type(found) is type(value)


def test_yaml_says_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = LEAST.replace("8e-4", "1e-3") + "augment: {crop_area: [5e-1, 1], flip: 0}\n"
    recipe = load_recipe(Finetuning, written(tmp_path, text))
    assert recipe.optim.lr == 1e-3 and recipe.augment.crop_area == (0.5, 1.0) and isinstance(recipe.augment.flip, float)


def test_changes_go_over_the_file_and_the_file_over_the_base(tmp_path: Path) -> None:
    base = load_recipe(Finetuning, written(tmp_path), {"optim.lr": "1", "run.seed": "1", "data.fold": "1"})
    file = written(tmp_path, "run: {seed: 2}\ndata: {fold: 2}\n")
    recipe = load_recipe(Finetuning, file, [("data.fold", "3")], base=base)
    assert (recipe.optim.lr, recipe.run.seed, recipe.data.fold) == (1.0, 2, 3)


def test_generated_clips_are_switched_on_by_a_field_and_off_by_null(tmp_path: Path) -> None:
    videos = load_recipe(Finetuning, written(tmp_path))
    generated = load_recipe(Finetuning, None, {"data.train": "null", "data.generate.coded": "10"}, base=videos)
    assert generated.data.generate == Generate(coded=10) and generated.data.train is None
    back = load_recipe(Finetuning, None, {"data.train": "videos", "data.generate": "null"}, base=generated)
    assert back == videos


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("lr: 8e-4", "lrr: 8e-4", "there is no field 'optim.lrr'; did you mean optim.lr?"),
        ("optim:", "optin:", "there is no field 'optin.lr'; did you mean optim.lr?"),
        ("optim:", "zzz:", "there is no field 'zzz.lr'; did you mean optim.lr?"),
        ("lr_videos", "quux", "there is no field 'optim.quux'; there are optim.optimizer, optim.lr, "),
        ("lr: 8e-4, ", "", "the field optim.lr is missing: it must be a number"),
        ("lr: 8e-4", "lr: fast", "optim.lr is 'fast', but must be a number"),
        ("lr: 8e-4", "lr: nan", "optim.lr is 'nan', but must be a number"),
        ("lr: 8e-4", "lr:", "optim.lr is None, but must be a number"),
        ("lr: 8e-4", "lr: true", "optim.lr is True, but must be a number"),
        ("batch_size: 4", "batch_size: 4.5", "run.batch_size is 4.5, but must be a whole number"),
        ("batch_size: 4", "batch_size: '4'", "run.batch_size is '4', but must be a whole number"),
        ("batch_size: 4", "batch_size: 4, compile: 1", "run.compile is 1, but must be true or false"),
        ("train: videos", "train: 2024", "data.train is 2024, but must be text, or null"),
        ("train: videos", "train: ''", "data.train is '', but must be text, or null"),
        (
            "train: videos",
            "train: videos, sampling: sparse",
            "data.sampling is 'sparse', but must be one of dense, seg",
        ),
        ("lr: 8e-4", "lr: 8e-4, betas: 0.9", "optim.betas is 0.9, but must be 2 numbers, such as [0.5, 1]"),
        ("lr: 8e-4", "lr: 8e-4, betas: [0.9]", "optim.betas is [0.9], but must be 2 numbers"),
        ("duration: 10pass", "duration: 10", "run.duration is 10, but a duration needs a unit: ep (effective epochs"),
        ("{start: NAME}", "NAME", "model is 'NAME', but must be a section with fields"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence_that_names_file_field_value_and_remedy(
    old: str, new: str, sentence: str, tmp_path: Path
) -> None:
    assert old in LEAST
    file = written(tmp_path, LEAST.replace(old, new))
    assert refusal(Finetuning, file).startswith(f"{file}: {sentence}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optim.lrr": "1"}, "there is no field 'optim.lrr'; did you mean optim.lr?"),
        ({"lr": "1"}, "there is no field 'lr'; did you mean optim.lr?"),
        ({"run.lr": "1"}, "there is no field 'run.lr'; did you mean optim.lr?"),
        ({"model.mask_ratio": "0.9"}, "there is no field 'model.mask_ratio'; there are model.start, model.drop"),
        ({"optim.lr": "fast"}, "optim.lr is 'fast', but must be a number"),
        ({"optim.lr": ""}, "optim.lr is '', but must be a number"),
        ({"run.compile": "yes"}, "run.compile is 'yes', but must be true or false"),
        ({"run.seed": "1e3"}, "run.seed is '1e3', but must be a whole number"),
        (
            {"run.save_every": "10"},
            "run.save_every is '10', but a duration needs a unit: ep (effective epochs, each re",
        ),
        ({"run.save_every": "10 epochs"}, "run.save_every is '10 epochs', but a duration needs a unit"),
        ({"run.duration": "5%"}, "run.duration is '5%', but must say how long the run is: 10pass, 5000st"),
        ({"run.duration": "0ep"}, "run.duration is '0ep', but only model.fit_head leaves a model then"),
        ({"data.views": "5x2"}, "data.views is '5x2', but must be clips x crops, such as 5x3 (1 or 3 crops)"),
        ({"model.views": "5"}, "model.views is '5', but must be clips x crops"),
        ({"data.train": "null"}, "there is nothing to learn from: name a card, folder or file as data.train"),
        ({"data.generate.coded": "9"}, "data.train and data.generate are both given: learn from videos, or from "),
        ({"data.generate": "on"}, "data.generate is 'on', but must be a section with fields, or null"),
        ({"optim.lr": "0"}, "optim.lr is 0.0, but must be above 0"),
        ({"optim.betas": "0.9,1"}, "optim.betas is [0.9, 1.0], but must be at least 0 and below 1"),
        ({"optim.layer_decay": "0"}, "optim.layer_decay is 0.0, but must be above 0 and at most 1"),
        ({"optim.explosion_factor": "1"}, "optim.explosion_factor is 1.0, but must be above 1"),
        ({"run.batch_size": "0"}, "run.batch_size is 0, but must be at least 1"),
        ({"run.seed": "-1"}, "run.seed is -1, but must be at least 0"),
        ({"augment.flip": "1.5"}, "augment.flip is 1.5, but must be from 0 to 1"),
        ({"augment.magnitude": "11"}, "augment.magnitude is 11.0, but must be from 0 to 10"),
        ({"augment.crop_area": "1,0.5"}, "augment.crop_area is [1.0, 0.5], but must be two shares, the smaller first"),
        ({"augment.crop_aspect": "0,1"}, "augment.crop_aspect is [0.0, 1.0], but must be two numbers above 0, the sm"),
        ({"model.drop_path_rate": "1"}, "model.drop_path_rate is 1.0, but must be at least 0 and below 1"),
    ],
)
def test_a_wrong_change_is_one_sentence(changes: dict[str, str], sentence: str, tmp_path: Path) -> None:
    assert refusal(Finetuning, written(tmp_path), changes).startswith(sentence)


def test_a_mask_that_hides_nothing_is_refused(tmp_path: Path) -> None:
    sentence = refusal(Pretraining, written(tmp_path), {"model.mask_ratio": "1"})
    assert sentence == "model.mask_ratio is 1.0, but must be above 0 and below 1"


def test_a_file_that_is_no_recipe_says_what_it_is_instead(tmp_path: Path) -> None:
    broken = written(tmp_path, "data: [")
    assert refusal(Pretraining, broken).startswith(f"{broken} is no readable YAML: ")
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(b"\x89PNG\xff")
    assert refusal(Pretraining, picture).startswith(f"{picture} is no readable YAML: ")
    date = written(tmp_path, "data: 2026-13-45")
    assert refusal(Pretraining, date).startswith(f"{date} is no readable YAML: ")
    jobs = written(tmp_path, "job: [pretrain]\n" + LEAST)
    assert refusal(Pretraining, jobs) == f"{jobs}: job is ['pretrain'], but must be pretrain"
    words = written(tmp_path, "- just\n- words\n")
    assert (
        refusal(Pretraining, words)
        == f"{words} is no recipe: expected the sections data, augment, model, loss, optim, run"
    )
    missing = tmp_path / "none.yaml"
    assert refusal(Pretraining, missing).startswith(f"there is no file {missing}; a recipe can be named too: ")


def test_a_misspelt_recipe_is_told_the_nearest() -> None:
    assert refusal(Pretraining, "mae_k400_bse") == "there is no recipe 'mae_k400_bse'; did you mean mae_k400_base?"


def test_the_recipe_of_another_job_is_sent_there(tmp_path: Path) -> None:
    """By the line that says the job, or by the fields where there is none."""
    other = written(tmp_path, "job: pretrain\n" + LEAST)
    sentence = f"{other} is a recipe of pretrain, not of finetune: hiera-video pretrain --config {other}"
    assert refusal(Finetuning, other) == sentence
    written(tmp_path, LEAST.replace("NAME", "NAME, mask_ratio: 0.9"))
    assert refusal(Finetuning, other) == sentence
    written(tmp_path, LEAST + "loss: {mixup: 0.8}\n")
    assert refusal(Pretraining, other).startswith(f"{other} is a recipe of finetune, not of pretrain")
    assert refusal(Evaluation, other).startswith(f"{other} is a recipe of finetune, not of evaluate")


def test_evaluation_needs_something_to_evaluate_on() -> None:
    assert refusal(Evaluation) == "there is nothing to evaluate on: name a card, folder or file as data.source (--val)"
    assert load_recipe(Evaluation, None, {"data.source": "videos"}).model.start is None


def test_a_recipe_made_in_python_is_checked_too(tmp_path: Path) -> None:
    recipe = load_recipe(Pretraining, written(tmp_path))
    check(recipe)
    changed = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, duration="10"))
    with pytest.raises(RequestError, match=r"run.duration is '10', but a duration needs a unit"):
        check(changed)


# --- durations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("150ep", 75 * 940),
        ("75pass", 75 * 940),
        ("0.5pass", 470),
        ("5000st", 5000),
        ("10%", 100),
        ("0.01%", 1),
        ("0%", 0),
        ("0pass", 0),
        ("10 pass", 9400),
    ],
)
def test_durations_in_steps(duration: str, steps: int) -> None:
    """An effective epoch counts each of two repeats, so it is half a walk over the list."""
    assert steps_of(duration, steps_per_pass=940, repeats=2, total=1000, field="run.duration") == steps


def test_durations_without_a_unit_or_a_whole_are_refused() -> None:
    with pytest.raises(RequestError, match=r"optim.warmup is '5', but a duration needs a unit: .* such as 10pass$"):
        steps_of("5", steps_per_pass=1, repeats=1, field="optim.warmup")
    with pytest.raises(
        RequestError, match=r"run.duration is '5%', but a share needs a whole: say it in ep, pass or st"
    ):
        steps_of("5%", steps_per_pass=1, repeats=1, field="run.duration")


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_difference_that_matters_is_named_and_others_are_not(tmp_path: Path) -> None:
    old = load_recipe(Finetuning, written(tmp_path))
    free = {"run.output": "elsewhere", "data.root": "/data", "data.num_workers": "1", "run.save_every": "5st"}
    free |= {"run.batch_size": "2", "run.tracker": "wandb", "run.compile": "true", "data.time_limit": "9"}
    assert difference(old, load_recipe(Finetuning, None, free, base=old)) == []
    new = {"optim.lr": "2e-3", "run.precision": "bf16", "optim.betas": "0.9,0.95", "data.num_frames": "8"}
    assert difference(old, load_recipe(Finetuning, None, new, base=old)) == [
        "data.num_frames was null, is now 8",
        "optim.lr was 0.0008, is now 0.002",
        "optim.betas was [0.9, 0.999], is now [0.9, 0.95]",
        "run.precision was auto, is now bf16",
    ]


# --- recipes that ship ------------------------------------------------------------------------------------------------

SIZES = ("tiny", "small", "base", "base_plus", "large", "huge")
PUBLISHED = (
    [f"{job}_{data}_{size}" for job in ("mae", "finetune") for data in ("k400", "in1k") for size in SIZES]
    + [f"finetune_{data}_{size}" for data in ("k600", "k700") for size in ("large", "huge")]
    + ["mae_ssv2_large", "finetune_ssv2_large", "finetune_ssv2_large_32", "finetune_ucf101_base"]
    + ["finetune_hmdb51_base", "evaluate_k400", "evaluate_ssv2", "evaluate_in1k"]
)
OURS = [name for name in files.names("configs") if name.startswith(("general", "creatures"))]


def shipped(name: str) -> tuple[Path, Pretraining | Finetuning | Evaluation]:
    file = files.find("configs", name)
    job = yaml.safe_load(file.read_text()).get("job", "finetune")
    return file, load_recipe(KINDS[job], name)  # type: ignore[type-var]


def test_there_is_a_recipe_for_every_published_result() -> None:
    assert sorted(files.names("configs")) == sorted(PUBLISHED + OURS)


@pytest.mark.parametrize("name", PUBLISHED + OURS)
def test_a_recipe_loads_and_is_written_out_whole(name: str, tmp_path: Path) -> None:
    _, recipe = shipped(name)
    again = written(tmp_path, to_yaml(recipe))
    assert load_recipe(type(recipe), again) == recipe  # type: ignore[type-var]


@pytest.mark.parametrize("name", PUBLISHED + OURS)
def test_a_recipe_says_its_command_and_the_source_of_every_value(name: str) -> None:
    """Its head: command, hardware and hours, what to expect, whether we ran it. It fits on a screen or two."""
    file, recipe = shipped(name)
    lines = file.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert head == lines[: len(head)] and len(lines) < 80
    assert head[0].startswith(f"# hiera-video {recipe.job} --config {name}")
    text = " ".join(line.lstrip("# ") for line in head)
    assert name in OURS or ("Hardware" in text and "Expected: " in text)
    assert ("We never ran this recipe." in text) == (name in PUBLISHED)
    for line in lines[len(head) + 1 :]:  # below the line that names the job
        assert re.fullmatch(r"\w+:|(  )*[\w.]+: \S.*?  # \S.*", line), line


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("evaluate")])
def test_a_recipe_names_a_model_and_its_rate_is_for_its_own_step(name: str) -> None:
    _, recipe = shipped(name)
    assert isinstance(recipe, (Pretraining, Finetuning))
    assert recipe.optim.lr_videos == recipe.run.videos_per_step
    assert recipe.run.videos_per_step % recipe.run.batch_size == 0
    assert recipe.run.output == f"runs/{name}"
    start = recipe.model.start
    if start.startswith("runs/"):  # made by another recipe, or by one for Kinetics-400 with other videos
        assert start.removeprefix("runs/").replace("k600", "k400").replace("k700", "k400") in PUBLISHED
    else:
        # The tables of models speak of MAE names with their prefix.
        assert start.removeprefix("mae_") in [*list_models(), *list_models(pretrained=True)]


@pytest.mark.parametrize("size", SIZES)
def test_passes_of_kinetics_are_those_of_the_published_code(size: str) -> None:
    """Epochs of the paper count repeats: 800 passes of MAE with 30 of warm-up, 75 or 50 of fine-tuning with 5."""
    _, mae = shipped(f"mae_k400_{size}")
    _, finetune = shipped(f"finetune_k400_{size}")
    for recipe, passes, warmup in ((mae, 800, 30), (finetune, 50 if size in ("large", "huge") else 75, 5)):
        assert isinstance(recipe, (Pretraining, Finetuning))
        for duration, expected in ((recipe.run.duration, passes), (recipe.optim.warmup, warmup)):
            assert steps_of(duration, steps_per_pass=100, repeats=recipe.data.repeats) == 100 * expected


def test_directions_are_not_flipped_and_are_sampled_over_the_whole_video() -> None:
    for name in ("mae_ssv2_large", "finetune_ssv2_large", "finetune_ssv2_large_32"):
        _, recipe = shipped(name)
        assert isinstance(recipe, (Pretraining, Finetuning))
        assert (recipe.augment.flip, recipe.data.sampling, recipe.data.repeats) == (0.0, "segments", 1)
