"""The loop: what a recipe's numbers come to, what stops a run, and that a run which goes on is the same run."""

from __future__ import annotations

import json
import math
import os
import resource
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_sets import finetuning, pretraining, write_colours

import hiera_video
from hiera_video.data.loader import Batch
from hiera_video.errors import OutputError, RequestError, TrainingStopped
from hiera_video.files import names
from hiera_video.tasks.classify.classifier import VideoClassifier
from hiera_video.tasks.train.classifier import ClassStep, balanced_weights, starting_classifier
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.pretrain import Masking, pretrain, starting_mae
from hiera_video.training.loop import Draw, Training
from hiera_video.training.metrics import Metrics, read_metrics
from hiera_video.training.optimization import build_optimizer, build_schedule, param_groups, plan_run
from hiera_video.training.recipe import Evaluation, Finetuning, Optim, Pretraining, Run
from hiera_video.training.recipe_file import load_recipe


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (12 of each of three colours, and one that cannot be read) and val/ (4 of each)."""
    folder = tmp_path_factory.mktemp("colours")
    write_colours(folder / "train", 12, seed=0, bad=True)
    write_colours(folder / "val", 4, seed=1)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without an output are written below the working folder."""
    monkeypatch.chdir(tmp_path)


def run_finetune(changes: dict[str, str]) -> list[Metrics]:
    return list(finetune(load_recipe(Finetuning, changes=changes)))


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Everything that a finished run leaves of its state."""
    (last,) = sorted((output / "checkpoints").iterdir())[-1:]
    found = {path.name: load_file(path) for path in last.glob("*.safetensors")}
    found["optimizer"] = {
        f"{name}.{key}": value
        for name, state in torch.load(last / "optimizer.pt", weights_only=True)["state"].items()
        for key, value in state.items()
    }
    return {f"{file}/{name}": value for file, tensors in found.items() for name, value in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_k400_base_recipe_comes_to_the_published_schedule() -> None:
    """75 passes, 5 of warm-up; linear from 1e-8 to 8e-4 at step 5 passes, cosine to 1e-5, whatever the processes."""
    recipe = load_recipe(Finetuning, "finetune_k400_base", {"data.root": "/k400"})
    for processes in (1, 8, 32):
        run = replace(recipe.run, batch_size=256 // 32)
        plan = plan_run(recipe.optim, run, num_videos=240_258, repeats=recipe.data.repeats, num_processes=processes)
        per_pass = 240_258 // 256
        assert (plan.steps_per_pass, plan.steps, plan.warmup) == (per_pass, 75 * per_pass, 5 * per_pass)
        assert plan.accumulate * processes * run.batch_size == 256
        assert plan.clips_per_step == 512
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=plan.lr)
    schedule = build_schedule(optimizer, plan)

    def lr_at(step: int) -> float:
        schedule.step_update(step)
        return float(optimizer.param_groups[0]["lr"])

    assert lr_at(0) == pytest.approx(1e-8)
    assert lr_at(plan.warmup // 2) == pytest.approx(8e-4 / 2, rel=1e-3)
    assert lr_at(plan.warmup) == pytest.approx(8e-4)
    for share in (0.25, 0.5, 0.9, 1.0):
        step = plan.warmup + round(share * (plan.steps - plan.warmup))
        assert lr_at(step) == pytest.approx(1e-5 + (8e-4 - 1e-5) * (1 + math.cos(math.pi * share)) / 2, rel=1e-3)


def test_learning_rates_scale_with_videos_and_not_with_repeats() -> None:
    optim = Optim(lr=8e-4, lr_videos=256, warmup_lr=1e-8, end_lr=1e-5)
    run = Run(duration="2pass", videos_per_step=64, batch_size=8)
    for repeats in (1, 4):
        plan = plan_run(optim, run, num_videos=640, repeats=repeats, num_processes=2)
        assert (plan.lr, plan.warmup_lr, plan.end_lr) == pytest.approx((2e-4, 2.5e-9, 2.5e-6))
        assert (plan.steps, plan.accumulate, plan.clips_per_step) == (20, 4, 64 * repeats)


def test_parameter_groups_follow_the_stated_rule() -> None:
    """Embeddings 0, block i i + 1, norm and head depth + 1; decay to the power of depth + 1 - id."""
    with torch.device("meta"):
        model = hiera_video.create_model("hiera_base_16x224")
    optim = load_recipe(Finetuning, "finetune_k400_base", {"data.root": "/k400"}).optim
    names_of = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in param_groups(model, optim):
        for parameter in group["params"]:
            name = names_of[id(parameter)]
            seen.add(name)
            layer = 25 if name.startswith(("norm", "head")) else 0
            layer = int(name.split(".")[1]) + 1 if name.startswith("blocks") else layer
            expected = min(1, 0.8 ** (25 - layer))
            assert group["lr_scale"] == pytest.approx(expected), name
            spared = parameter.ndim == 1 or name.startswith("pos_embed")
            assert group["weight_decay"] == (0 if spared else 0.05), name
    assert seen == set(names_of.values())


@pytest.mark.parametrize("name", names("configs"))
def test_every_recipe_builds_its_model_and_schedule(name: str, tmp_path: Path) -> None:
    text = (hiera_video.files.find("configs", name)).read_text()
    kind = Pretraining if "\njob: pretrain" in f"\n{text}" or name.startswith("mae_") else Finetuning
    kind = Evaluation if name.startswith("evaluate") else kind
    recipe = load_recipe(kind, name, {"data.root": str(tmp_path)} if "generate:" not in text else {})
    if isinstance(recipe, Evaluation):
        assert recipe.data.source is not None
        return
    start = recipe.model.start.partition(".")[0]
    arch = start if start in hiera_video.list_models() else "hiera_tiny_16x224"
    arch = f"mae_{arch}" if isinstance(recipe, Pretraining) and not arch.startswith("mae_") else arch
    recipe = replace(recipe, model=replace(recipe.model, start=arch))
    with torch.device("meta"):
        if isinstance(recipe, Pretraining):
            model = starting_mae(recipe)
        else:
            model = starting_classifier(recipe, [str(number) for number in range(10)])
    plan = plan_run(recipe.optim, recipe.run, num_videos=240_000, repeats=recipe.data.repeats, num_processes=1)
    optimizer = build_optimizer(param_groups(model, recipe.optim), recipe.optim, plan.lr)
    build_schedule(optimizer, plan).step_update(plan.steps)
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(plan.end_lr)


def test_videos_that_fill_no_step_and_batches_that_make_up_none_are_refused() -> None:
    optim = Optim(lr=1.0, lr_videos=8)
    run = Run(duration="2pass", videos_per_step=64, batch_size=8)
    with pytest.raises(RequestError, match=r"^20 videos do not fill one step of run.videos_per_step 64: lower it$"):
        plan_run(optim, run, num_videos=20, repeats=1, num_processes=1)
    with pytest.raises(RequestError, match=r"videos_per_step is 64, which 3 processes of run.batch_size 8 cannot make"):
        plan_run(optim, run, num_videos=640, repeats=1, num_processes=3)
    with pytest.raises(RequestError, match=r"optim.warmup 5pass is 50 steps, and the whole run 20: shorten it"):
        plan_run(replace(optim, warmup="5pass"), run, num_videos=640, repeats=1, num_processes=1)


def test_masks_are_functions_of_their_key() -> None:
    masking = Masking(seed=3, num_units=98, mask_ratio=0.9, decode_ratio=0.5)
    rows = [(0, 5, 0), (0, 5, 1), (1, 5, 0)]
    drawn = masking.draw(rows)
    assert (drawn["keep"].sum(axis=1) == 9).all() and (drawn["decode"].sum(axis=1) == 44).all()
    assert not (drawn["keep"] & drawn["decode"]).any()
    assert len({row.tobytes() for row in drawn["keep"]}) == 3
    assert (masking.draw(rows[1:2])["keep"][0] == drawn["keep"][1]).all()
    assert "decode" not in replace(masking, decode_ratio=1.0).draw(rows)


def test_balanced_weights_make_every_class_count_alike() -> None:
    videos = hiera_video.VideoList.make(["a"] * 4, [0, 0, 0, 1], ["x", "y"])
    assert balanced_weights(videos).tolist() == pytest.approx([4 / 6, 2.0])
    several = hiera_video.VideoList.make(
        ["a"] * 4, np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.float32), ["x", "y"]
    )
    assert balanced_weights(several).tolist() == pytest.approx([1 / 3, 3.0])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(colours: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A whole run, and the changes that make its recipe."""
    output = tmp_path_factory.mktemp("run")
    changes = finetuning(colours / "train", tiny_model, run__output=str(output), data__val=str(colours / "val"))
    run_finetune(changes)
    return output, changes


def test_a_run_leaves_a_model_that_classifies_its_recipe_figures_and_curves(
    finished: tuple[Path, dict[str, str]], colours: Path
) -> None:
    output, _ = finished
    records = read_metrics(output / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in train] == list(range(1, 33))
    assert {"loss", "train_top1", "grad_norm", "lr", "clips_per_s", "data_wait"} <= train[0].keys()
    val = [record for record in records if record["kind"] == "val"]
    assert max(record["top1"] for record in val) >= 0.9
    assert {record["videos"] for record in val} == {12}
    assert (output / "curves.png").stat().st_size > 10_000
    assert "bad.mp4" in (output / "bad_videos.txt").read_text()
    assert len(list((output / "checkpoints").iterdir())) == 2
    classifier = hiera_video.VideoClassifier.from_pretrained(output)
    assert classifier.labels == ["blue", "green", "red"]
    assert classifier(colours / "val" / "green" / "0.mp4").predictions[0].label == "green"


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(
    finished: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, changes = finished
    changes = changes | {"run.output": str(tmp_path)}
    read = Training._read
    calls = []

    def interrupted(self: Training, *arguments: object) -> object:
        calls.append(self.done)
        if len(calls) == 11:
            raise InterruptedError
        return read(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_read", interrupted)
    with pytest.raises(InterruptedError):
        run_finetune(changes)
    run_finetune(changes)
    assert calls[10:13] == [10, 8, 9]
    assert same(weights(tmp_path), weights(output))
    mine, theirs = (
        [{key: value for key, value in record.items() if key not in ("clips_per_s", "data_wait")} for record in records]
        for records in (read_metrics(tmp_path / "metrics.jsonl"), read_metrics(output / "metrics.jsonl"))
    )
    assert mine == theirs


def test_a_finished_run_is_done_at_once(finished: tuple[Path, dict[str, str]]) -> None:
    output, changes = finished
    before = weights(output)
    assert [record.kind for record in run_finetune(changes)] == ["done"]
    assert same(weights(output), before)


def test_another_recipe_is_refused_in_a_run_folder(finished: tuple[Path, dict[str, str]]) -> None:
    output, changes = finished
    with pytest.raises(RequestError, match=r"holds a run of another recipe: optim.lr was 0.003, is now 0.001; go on"):
        run_finetune(changes | {"optim.lr": "1e-3"})
    with pytest.raises(RequestError, match=r"is a run of another kind"):
        list(
            pretrain(
                load_recipe(
                    Pretraining,
                    changes=pretraining(
                        Path("x"),
                        "y",
                        run__output=str(output),
                        data__train=changes["data.train"],
                        model__start="mae_hiera_nano_16x64",
                    ),
                )
            )
        )


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_files(
    colours: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ClassStep.__call__

    def broken(self: ClassStep, model: torch.nn.Module, batch: Batch, draw: Draw) -> dict[str, torch.Tensor]:
        figures = call(self, model, batch, draw)
        return {**figures, "loss": figures["loss"] * (float("nan") if draw == (5, 1) else 1)}

    monkeypatch.setattr(ClassStep, "__call__", broken)
    options = {"run__output": str(tmp_path), "run__save_every": "4st", "data__num_workers": "0"}
    changes = finetuning(colours / "train", tiny_model, **options)
    with pytest.raises(TrainingStopped, match=r"^step 6: the loss is nan; the step was not made.*train/\w+/\d+\.mp4"):
        run_finetune(changes)
    state = json.loads((tmp_path / "checkpoints" / "step_00000004" / "state.json").read_text())
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_a_loss_that_explodes_stops_the_run(colours: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ClassStep.__call__

    def growing(self: ClassStep, model: torch.nn.Module, batch: Batch, draw: Draw) -> dict[str, torch.Tensor]:
        figures = call(self, model, batch, draw)
        return {**figures, "loss": figures["loss"] * (5 if draw[0] == 8 else 1)}

    monkeypatch.setattr(ClassStep, "__call__", growing)
    changes = finetuning(colours / "train", tiny_model, optim__explosion_factor="2", data__num_workers="0")
    with pytest.raises(TrainingStopped, match=r"^step 9: the loss is [\d.]+, more than 2 times the mean of the five"):
        run_finetune(changes)


def test_too_many_bad_videos_stop_the_run_with_the_list(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "train", 3, seed=2)
    for number in range(5):
        (folder / "green" / f"bad{number}.mp4").write_text("no video")
    changes = finetuning(folder, tiny_model, run__output=str(tmp_path / "run"), data__num_workers="0")
    with pytest.raises(
        TrainingStopped, match=r"\d of 14 videos cannot be read, more than data.max_bad_share 0.05: .*bad"
    ):
        run_finetune(changes)
    assert "bad" in (tmp_path / "run" / "bad_videos.txt").read_text()


@pytest.mark.slow  # a training on a small disk
def test_a_full_disk_ends_the_run_with_the_checkpoint_before_it_whole(
    colours: Path, tiny_model: Path, tmp_path: Path
) -> None:
    changes = finetuning(
        colours / "train",
        tiny_model,
        run__output=str(tmp_path),
        data__num_workers="0",
        run__duration="9st",
        run__save_every="4st",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    records = finetune(load_recipe(Finetuning, changes=changes | {"run.evaluate_every": "1st"}))
    for record in records:
        if record.step == 5:
            break
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the weights are larger, the figures are not
        with pytest.raises(OutputError, match=r"step_00000008 cannot be written .*the checkpoint before it is whole"):
            list(records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
    run_finetune(changes | {"run.evaluate_every": "1st"})


def test_a_fitted_head_is_judged_before_the_first_step_and_kept_where_it_is_the_best(
    colours: Path, tiny_model: Path, tmp_path: Path
) -> None:
    changes = finetuning(
        colours / "train",
        tiny_model,
        data__val=str(colours / "val"),
        data__num_workers="0",
        model__fit_head="true",
        optim__lr="3",  # after a step nothing is right but by chance
        run__duration="4st",
        run__evaluate_every="2st",
        run__output=str(tmp_path / "run"),
    )
    records = run_finetune(changes)
    val = {record.step: record.values["top1"] for record in records if record.kind == "val"}
    assert min(val) == 0 and val[0] > 0.9 > val[4] and records[-1].values["best_top1"] == val[0]
    answer = VideoClassifier.from_pretrained(tmp_path / "run")(colours / "val" / "green" / "0.mp4")
    assert answer.predictions[0].label == "green"
    assert "Judged on the 12 videos" in (tmp_path / "run" / "report.md").read_text()


def test_frozen_stages_stay_as_they_were(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    run_finetune(
        finetuning(
            colours / "train", tiny_model, run__output=str(tmp_path), model__freeze_stages="3", run__duration="4st"
        )
    )
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    changed = {
        name for name in after if after[name].shape != before[name].shape or not torch.equal(after[name], before[name])
    }
    assert changed and all(name.startswith(("blocks.3", "norm", "head")) for name in changed)


@pytest.mark.slow  # two trainings; test_compile computes blocks again
def test_activation_checkpointing_changes_nothing(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("false", "true"):
        run_finetune(
            finetuning(
                colours / "train",
                tiny_model,
                run__output=str(tmp_path / name),
                run__grad_checkpointing=name,
                run__duration="3st",
                data__num_workers="0",
            )
        )
    one, other = (weights(tmp_path / name) for name in ("false", "true"))
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-6) for name in one)


@pytest.mark.slow  # 40 steps; the loss itself is test_own_videos'
def test_several_labels_a_video_train_with_binary_cross_entropy(
    colours: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        rows = [
            f"{split}/{name}/{number}.mp4,{name};{'dark' if name == 'blue' else 'light'}"
            for name in ("red", "green", "blue")
            for number in range(4)
        ]
        (colours / f"{split}.csv").write_text("\n".join(["path,labels", *rows]))
    changes = finetuning(
        colours / "train.csv",
        tiny_model,
        data__val=str(colours / "val.csv"),
        loss__class_weights="balanced",
        data__num_workers="0",
        run__duration="40st",
        run__save_every="40st",
        run__evaluate_every="20st",
    )
    val = [record.values for record in run_finetune(changes) if record.kind == "val"]
    assert val[-1]["map"] > 0.7 and val[-1]["videos"] == 12


def test_an_mae_learns_shows_itself_and_becomes_a_classifier(colours: Path, tiny_mae: Path, tmp_path: Path) -> None:
    changes = pretraining(
        colours / "train",
        tiny_mae,
        run__output=str(tmp_path / "mae"),
        data__val=str(colours / "val"),
        run__picture_every="16st",
        run__evaluate_every="16st",
        run__save_every="16st",
        model__decode_ratio="0.5",
        run__tracker="tensorboard",
    )
    list(pretrain(load_recipe(Pretraining, changes=changes)))
    output = tmp_path / "mae"
    val = [record["loss"] for record in read_metrics(output / "metrics.jsonl") if record["kind"] == "val"]
    assert val[1] < val[0]
    assert {path.name for path in (output / "pictures").iterdir()} >= {"step_00000016.png", "step_00000016.mp4"}
    assert list(output.rglob("events.out.tfevents.*"))
    start = starting_classifier(
        load_recipe(Finetuning, changes=finetuning(colours / "train", output)), ["blue", "green", "red"]
    )
    encoder = load_file(output / "model.safetensors")
    assert all(
        torch.equal(value, encoder[name]) for name, value in start.state_dict().items() if name.startswith("blocks")
    )


def test_bf16_trains_and_keeps_weights_in_fp32(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    changes = finetuning(colours / "train", tiny_model, run__precision="bf16", run__duration="2st")
    run_finetune(changes | {"run.output": str(tmp_path), "data.num_workers": "0"})
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}


def test_what_this_machine_lacks_is_refused(colours: Path, tiny_model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for field, value, message in (
        ("run.device", "cuda", r"run.device 'cuda' is not there; this machine has cpu"),
        ("run.device", "cpu:0", r"run.device 'cpu:0' has a number: say cpu, and choose GPUs by CUDA_VISIBLE_DEVICES"),
        ("run.precision", "fp16", r"run.precision fp16 needs a GPU"),
        ("run.tracker", "nonsense", r"run.tracker 'nonsense' is unknown: .*tensorboard"),
        ("run.shard", "true", r"run.shard needs several processes: start with torchrun"),
    ):
        with pytest.raises(RequestError, match=message):
            run_finetune(finetuning(colours / "train", tiny_model) | {field: value, "optim.ema": "null"})


# --- the folder of a run ----------------------------------------------------------------------------------------------


def short(colours: Path, start: Path, **changes: str) -> dict[str, str]:
    """A run of 4 steps without an output."""
    return finetuning(colours / "train", start, data__num_workers="0", run__duration="4st", run__save_every="2st") | {
        name.replace("__", "."): value for name, value in changes.items()
    }


def test_a_run_without_an_output_goes_on_in_its_folder_until_it_is_done(
    colours: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, today = Path(f"runs/train-{date.today()}"), date.today()
    records = finetune(load_recipe(Finetuning, changes=short(colours, tiny_model, run__evaluate_every="1st")))
    assert next(records).step == 1
    assert [path.name for path in Path("runs").iterdir()] == [f"train-{today}"]
    # The same command beside a run that goes on, and another recipe, have folders of their own.
    run_finetune(short(colours, tiny_model, run__evaluate_every="1st"))
    run_finetune(short(colours, tiny_model, optim__lr="1e-4"))
    next(records)
    next(records)
    records.close()  # after step 3: the newest checkpoint is that of step 2
    assert {path.name for path in Path("runs").iterdir()} == {first.name, f"{first.name}-2", f"{first.name}-3"}
    caplog.clear()
    run_finetune(short(colours, tiny_model))
    messages = [record.getMessage() for record in caplog.records if record.name == "hiera_video"]
    assert messages[0] == f"the run is in {first}; when it is done: hiera-video classify VIDEO --model {first}"
    assert f"going on from {first}/checkpoints/step_00000002: step 2 of 4" in messages
    assert messages[-1] == f"done: the model is in {first}. Next: hiera-video classify VIDEO --model {first}"
    assert hiera_video.from_pretrained(first).labels == ["blue", "green", "red"]
    run_finetune(short(colours, tiny_model))
    assert Path(f"runs/train-{today}-4/model.safetensors").is_file()


def test_a_second_run_in_the_same_folder_is_refused(colours: Path, tiny_model: Path, tmp_path: Path) -> None:
    changes = short(colours, tiny_model, run__output=str(tmp_path / "run"))
    records = finetune(load_recipe(Finetuning, changes=changes))
    next(records)
    with pytest.raises(RequestError, match=r"^another run is writing run into \S+: wait for it, or end it$"):
        run_finetune(changes)
    records.close()


def test_files_of_a_run_have_the_permissions_that_the_umask_gives(
    colours: Path, tiny_model: Path, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        run_finetune(short(colours, tiny_model, run__output=str(tmp_path / "run")))
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o750"}
    assert {path.name: oct(mode) for path, mode in modes.items() if path.is_file() and mode != 0o640} == {}


# --- what is learned from ---------------------------------------------------------------------------------------------


def test_a_class_folder_without_videos_is_refused(tmp_path: Path, tiny_model: Path, colours: Path) -> None:
    folder = write_colours(tmp_path, 1, seed=0)
    (folder / "violet").mkdir()
    with pytest.raises(RequestError, match=r"has no videos of the class 'violet': add some, or take the class away"):
        run_finetune(finetuning(folder, tiny_model))


def test_a_validation_class_that_training_lacks_is_refused(tmp_path: Path, tiny_model: Path, colours: Path) -> None:
    folder = write_colours(tmp_path, 1, seed=0)
    (folder / "red").rename(folder / "reddish")
    with pytest.raises(RequestError, match=r"has the class 'reddish', which .*train lacks; its nearest is 'red'"):
        run_finetune(finetuning(colours / "train", tiny_model, data__val=str(folder)))


def test_a_list_of_which_no_file_is_there_is_refused_before_the_run(
    tmp_path: Path, tiny_model: Path, colours: Path
) -> None:
    (tmp_path / "val.csv").write_text("path,label\nx.mp4,red\ny.mp4,blue\n")
    message = r"^data.val \S+val.csv: none of 2 videos is there, the first of them \S+x.mp4; check the paths in it$"
    with pytest.raises(RequestError, match=message):
        run_finetune(short(colours, tiny_model, data__val=str(tmp_path / "val.csv")))
    with pytest.raises(RequestError, match=r"^data.train \S+val.csv: none of 2 videos is there"):
        run_finetune(short(colours, tiny_model, data__train=str(tmp_path / "val.csv")))
    assert not Path("runs").exists()


def test_a_validation_list_by_which_no_best_model_can_be_told_is_refused(
    tmp_path: Path, tiny_model: Path, colours: Path
) -> None:
    rows = "".join(f"{colours}/val/red/{number}.mp4,\n" for number in range(3))
    (tmp_path / "val.csv").write_text(f"path,labels\n{rows}")
    with pytest.raises(RequestError, match=r"val.csv: no video has a label, so the best model cannot be told"):
        run_finetune(short(colours, tiny_model, data__val=str(tmp_path / "val.csv")))


def test_a_run_whose_validation_videos_are_all_broken_keeps_its_last_weights(
    tmp_path: Path, tiny_model: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "val" / "red").mkdir(parents=True)
    (tmp_path / "val" / "red" / "0.mp4").write_text("no video")
    run_finetune(short(colours, tiny_model, data__val=str(tmp_path / "val"), run__output=str(tmp_path / "run")))
    assert "no video of the validation list could be read: the last weights are kept" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_model_that_is_read_once_is_the_one_that_is_read_again(tiny_model: Path, colours: Path) -> None:
    changes = finetuning(colours / "train", tiny_model, data__size="64", data__num_frames="8")
    recipe = load_recipe(Finetuning, changes=changes)
    model = starting_classifier(recipe, ["a", "b"], hiera_video.from_pretrained(tiny_model))
    torch.manual_seed(0)
    config = {"drop_path_rate": 0.1, "head_dropout": 0.1, "head_init_scale": 0.001}
    hiera_video.from_pretrained(tiny_model, **config)
    twice = hiera_video.from_pretrained(tiny_model, input_size=(8, 64, 64), **config)
    twice.reset_classifier(2)
    assert same(model.state_dict(), twice.state_dict())
    assert (model.spec, model.views) == (twice.spec, twice.views)


@pytest.mark.slow  # it needs the finished run of 40 steps
def test_a_head_of_the_very_same_classes_goes_on_and_another_is_new(
    finished: tuple[Path, dict[str, str]], colours: Path
) -> None:
    output, _ = finished
    recipe = load_recipe(Finetuning, changes=finetuning(colours / "train", output))
    trained = load_file(output / "model.safetensors")["head.projection.weight"]
    assert torch.equal(starting_classifier(recipe, ["blue", "green", "red"]).head.projection.weight, trained)
    assert not torch.equal(starting_classifier(recipe, ["blue", "green", "rot"]).head.projection.weight, trained)
