"""What the logits are made of: heads on the last stage, attentive heads, and heads fitted to statistics of stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from assets import H264
from conftest import TINY
from torch import Tensor
from training_sets import write_colours

from hiera_video.cli import main
from hiera_video.errors import RequestError
from hiera_video.hf.conversion import from_native, to_native
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.heads import token_statistics
from hiera_video.models.hiera import Hiera
from hiera_video.models.unroll import StageTokens
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.tasks.export import export
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.tasks.features.linear_layer import _discriminants, solve, temperature_of
from hiera_video.tasks.features.recordings import recordings
from hiera_video.tasks.train.classifier import starting_classifier
from hiera_video.tasks.train.head_alone import with_linear_head
from hiera_video.training.metrics import read_metrics
from hiera_video.training.recipe import FinetuneModel, Finetuning, Optim, Run


def model_with(head: str, **fields: object) -> Hiera:
    torch.manual_seed(0)
    arch = replace(TINY, head=head, **fields)  # type: ignore[arg-type]
    return Hiera(arch, ClipSpec(num_frames=8, size=(32, 64), resize=36)).eval()


def clips(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def test_statistics_are_those_of_the_maps() -> None:
    model = model_with("stages", head_stages=(2, 1), head_strides=(1, 2))
    clip = clips(8, 32, 64)
    expected = []
    for stride, parts in ((1, (clip[:, :, :4], clip[:, :, 4:])), (2, (clip[:, :, ::2],))):
        looks = []
        for part in parts:
            maps = dict(zip((1, 2), model.forward_intermediates(part, [0, 1], output_fmt="NHWC")[1], strict=True))
            row = []
            for stage in (2, 1):
                tokens = maps[stage].detach().numpy()
                for values in (tokens, np.diff(tokens, axis=1)):
                    flat = values.reshape(len(values), -1, values.shape[-1])
                    row += [flat.mean(axis=1), flat.std(axis=1), flat.max(axis=1)]
            looks.append(np.concatenate(row, axis=1))
        expected.append(np.mean(looks, axis=0))
        assert stride in model.arch.head_strides
    found = model.statistics(clip).detach().numpy()
    assert found.shape == (2, model.arch.num_statistics)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)


def test_a_picture_has_no_differences() -> None:
    assert token_statistics(StageTokens(torch.ones(2, 4, 4, 5), (4, 4), ((2, 2),))).shape == (2, 15)


@pytest.mark.parametrize("head", ["attentive", "stages", "readout"])
def test_a_head_is_saved_and_read_back_here_and_in_transformers_form(head: str, tmp_path: Path) -> None:
    model = model_with(head, head_strides=(1, 2) if head == "stages" else (1,), readout_dim=24)
    clip = clips(8, 32, 64) if head == "stages" else clips(4, 32, 32)
    logits = model(clip)
    again = from_pretrained(save_pretrained(model, tmp_path / "ours"))
    assert again.arch == model.arch and torch.equal(again(clip), logits)
    other = from_native(model)
    assert torch.allclose(other(clip.transpose(1, 2)).logits, logits, atol=1e-6)
    assert torch.equal(to_native(other)(clip), logits)


def test_an_attentive_head_sees_tokens_in_any_order_and_weighs_them() -> None:
    model = model_with("attentive")
    tokens = model.forward_features(clips(4, 32, 32))
    assert torch.allclose(model.forward_head(tokens), model.forward_head(tokens.flip(1)), atol=1e-6)
    assert model.forward_head(tokens, pre_logits=True).shape == (2, model.num_features)


@pytest.mark.parametrize("head", ["stages", "readout"])
def test_a_head_of_stages_refuses_tokens_and_masks_in_one_sentence(head: str) -> None:
    model = model_with(head)
    with pytest.raises(RequestError, match="sees statistics of stages, not the last tokens"):
        model.forward_head(torch.zeros(1, 4, model.num_features))
    with pytest.raises(RequestError, match="sees whole clips: leave keep out"):
        model(clips(8, 32, 64), torch.ones(2, 16, dtype=torch.bool))


@pytest.mark.parametrize("head", ["linear", "attentive", "stages", "readout"])
def test_without_classes_the_answer_is_the_embedding(head: str) -> None:
    model, clip = model_with(head), clips(4, 32, 32)
    embedding = model.embedding(clip)
    model.reset_classifier(0)
    assert torch.allclose(model(clip), model.eval().embedding(clip)) and embedding.shape == (2, model.head_features)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"head": "deep"}, "head 'deep' must be one of linear, attentive, stages, readout"),
        ({"head_stages": (1, 7)}, r"head_stages \(1, 7\) must be stages from 1 to 4"),
        ({"head": "readout", "head_strides": (1, 2)}, "a readout sees every frame"),
        ({"readout_dim": 0}, "readout_dim 0 must be at least 1"),
        ({"head_strides": (0,)}, r"head_strides \(0,\) must be numbers of frames, at least 1"),
    ],
)
def test_a_head_that_cannot_be_is_one_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        replace(TINY, **fields)  # type: ignore[arg-type]


def test_a_readout_is_a_layer_on_statistics_and_the_mean_and_stays_with_its_trunk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_with("readout", head_stages=(2,), readout_dim=24, num_classes=0)
    clip = clips(4, 32, 32)
    *_, last = model.stages(clip)
    seen = torch.cat([model.statistics(clip), model.norm(last.tokens.flatten(1, -2).mean(dim=1))], dim=1)
    weight, bias = model.state_dict()["head.readout.weight"], model.state_dict()["head.readout.bias"]
    expected = F.linear(seen, weight, bias)
    torch.testing.assert_close(model(clip), expected)
    folder = save_pretrained(model, tmp_path / "model")
    again = from_pretrained(folder)
    torch.testing.assert_close(again(clip), expected)
    assert (again.arch.num_classes, again.new_head, caplog.messages) == (0, False, [])
    classes = from_pretrained(folder, num_classes=3)  # a new layer on the same embedding
    torch.testing.assert_close(classes.embedding(clip), expected)
    assert classes(clip).shape == (2, 3) and classes.new_head and "a new head of 3 classes starts" in caplog.text
    plain = from_pretrained(folder, head="linear")
    assert plain(clip).shape == (2, plain.num_features)


def test_a_run_that_trains_leaves_the_readout_and_one_that_fits_a_head_keeps_it(tmp_path: Path) -> None:
    model = model_with("readout", readout_dim=24, num_classes=0)
    model.spec = ClipSpec(num_frames=4, size=(32, 32), resize=36)
    folder = str(save_pretrained(model, tmp_path / "model"))
    optim, run = Optim(lr=1, lr_videos=1), Run(duration="2pass", videos_per_step=1, batch_size=1)
    recipe = Finetuning(model=FinetuneModel(start=folder), optim=optim, run=run)
    assert starting_classifier(recipe, ["a", "b"]).arch.head == "linear"
    fitted = FinetuneModel(start=folder, head="best", head_strides=(1, 2), fit_head=True)
    recipe = replace(recipe, model=fitted, run=replace(run, duration="0pass"))
    assert starting_classifier(recipe, ["a", "b"]).arch.head == "stages"
    (other,) = with_linear_head(recipe, ["a", "b"], None)
    assert (other.arch.head, other.head_features, other.arch.num_classes) == ("readout", 24, 2)


def test_what_has_no_classes_is_refused_where_an_answer_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, clip = write_colours(tmp_path / "videos", 1, seed=0), H264.write(tmp_path)
    for words in (["classify", str(clip)], ["evaluate", "--val", str(folder)]):
        assert main([*words, "--model", "hiera_nano_16x64.general"]) == 2
        assert "the model has no classes: extract features with it, or start from it" in capsys.readouterr().err


def test_features_and_exports_are_those_of_the_head(tmp_path: Path) -> None:
    folder = save_pretrained(model_with("stages"), tmp_path / "model")
    (row,) = list(FeatureExtractor.from_pretrained(folder)(H264.write(tmp_path), window=1.0))[:1]
    assert row.embedding is not None and row.embedding.shape == (model_with("stages").arch.num_statistics,)
    (exported,) = export(str(folder), output=tmp_path / "model.pt2", format="torch-export")
    assert exported.input == "Bx3x8x32x64"


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_discriminants_find_the_direction_that_covariance_hides() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise = rng.normal(size=(200, 1)) * 1.5
    values = np.concatenate([noise + labels[:, None], noise, rng.normal(size=(200, 3))], axis=1).astype(np.float32)
    weight, bias = solve(torch.from_numpy(values), labels, 2)
    named = (torch.from_numpy(values) @ weight.T + bias).argmax(dim=1).numpy()
    alone = (values[:, 0] > values[:, 0].mean()) == labels
    assert (named == labels).mean() > alone.mean() + 0.05
    assert weight[1, 0] > 0 > weight[1, 1]


def test_a_class_of_few_clips_counts_as_much_as_one_of_many() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 190 + [1] * 10)
    values = torch.from_numpy((rng.normal(size=(200, 2)) + labels[:, None]).astype(np.float32))
    weight, bias = _discriminants(values, labels, 2)
    named = (values @ weight.T + bias).argmax(dim=1).numpy()
    assert (named[labels == 1] == 1).mean() > 0.6


def test_a_head_that_knows_the_classes_moves_no_further_than_the_videos_ask() -> None:
    known = (torch.tensor([[2.0, 0.0, 1.0], [-2.0, 0.0, -1.0]]), torch.zeros(2))
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    agreed = (values @ known[0].T).argmax(dim=1).numpy()
    weight, _ = solve(values, agreed, 2, known)
    assert F.cosine_similarity(weight.flatten(), known[0].flatten(), dim=0) > 0.98
    of_another = (values[:, 1] < 0).long().numpy()  # what the head does not look at
    weight, bias = solve(values, of_another, 2, known)
    assert ((values @ weight.T + bias).argmax(dim=1).numpy() == of_another).mean() > 0.8
    several = np.stack([of_another, agreed], axis=1).astype(np.float32)
    weight, bias = solve(values, several, 2, known)
    assert (((values @ weight.T + bias) > 0).numpy() == several).mean() > 0.8


def test_a_head_of_the_same_classes_is_kept_in_any_order(tmp_path: Path) -> None:
    model = model_with("linear", num_classes=3)
    model.labels = ["b", "c", "a"]
    save_pretrained(model, tmp_path)
    recipe = Finetuning(
        model=FinetuneModel(start=str(tmp_path)),
        optim=Optim(lr=1.0, lr_videos=1),
        run=Run(duration="1pass", videos_per_step=1, batch_size=1),
    )
    clip = clips(4, 32, 32)
    kept = starting_classifier(recipe, ["a", "b", "c"]).eval()
    assert not kept.new_head and torch.equal(kept(clip), model(clip)[:, [2, 0, 1]])
    assert starting_classifier(recipe, ["a", "b", "d"]).new_head


def test_a_temperature_makes_scores_say_how_often_they_are_right() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert temperature_of(torch.tensor([[50.0, 0.0]] * 4), labels) > 20


def test_one_file_and_its_copies_are_one_recording() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 40))
    rows[3] = rows[0] + 0.01
    groups = recordings(np.array([0, 1, 1, 2, 3]), rows)
    assert groups[1] == groups[2] and groups[0] == groups[3] and len(set(groups.tolist())) == 3


def test_a_run_without_validation_videos_is_judged_by_cross_validation_and_done_at_once_again(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = write_colours(tmp_path / "videos", 4, seed=0), tmp_path / "run"
    argv = ["finetune", "--train", str(folder), "--model", str(tiny_model), "--output", str(output)]
    argv += ["--data.num_workers", "1", "--data.size", "32", "--data.num_frames", "4"]
    assert main(argv) == 0
    records = read_metrics(output / "metrics.jsonl")
    assert [record["kind"] for record in records] == ["val", "done"] and records[0]["videos"] >= 9
    assert "Judged by cross-validation" in (output / "report.md").read_text()
    written = (output / "model.safetensors").stat().st_mtime_ns
    assert main(argv) == 0
    assert (output / "model.safetensors").stat().st_mtime_ns == written


def test_videos_that_cannot_be_read_are_listed_and_too_many_stop_the_run(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_colours(tmp_path / "videos", 4, seed=0, bad=True), tmp_path / "run"
    argv = ["finetune", "--train", str(folder), "--val", str(folder), "--model", str(tiny_model)]
    argv += ["--data.num_workers", "1", "--data.size", "32", "--data.num_frames", "4"]
    assert main([*argv, "--output", str(output)]) == 0
    assert "1 videos could not be read" in caplog.text and "bad.mp4: " in (output / "bad_videos.txt").read_text()
    for name in ("blue", "green"):
        (folder / name / "bad.mp4").write_text("no video")
    capsys.readouterr()
    assert main([*argv, "--output", str(tmp_path / "other")]) != 0
    assert "3 of 15 videos cannot be read, more than data.max_bad_share 0.05" in capsys.readouterr().err
    assert not (tmp_path / "other" / "model.safetensors").exists()


def test_a_class_of_one_clip_leaves_a_model_and_says_that_nothing_tells_how_good_it_is(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = write_colours(tmp_path / "videos", 2, seed=0), tmp_path / "run"
    (folder / "red" / "1.mp4").unlink()
    argv = ["finetune", "--train", str(folder), "--model", str(tiny_model), "--output", str(output)]
    assert main([*argv, "--data.num_workers", "1", "--data.size", "32", "--data.num_frames", "4"]) == 0
    assert "Nothing tells how good it is: a class is of one recording alone" in caplog.text
    assert read_metrics(output / "metrics.jsonl") == [{"kind": "done", "step": 0, "passes": 0.0}]
    assert "red 1" in (output / "report.md").read_text()


def test_other_speeds_make_another_head_and_a_head_on_stages_goes_on_as_one(tmp_path: Path) -> None:
    folder = str(save_pretrained(model_with("stages"), tmp_path / "model"))
    model = FinetuneModel(start=folder, head="best", head_strides=(1, 2), fit_head=True)
    recipe = Finetuning(
        model=model, optim=Optim(lr=1, lr_videos=1), run=Run(duration="0pass", videos_per_step=1, batch_size=1)
    )
    assert starting_classifier(recipe, ["a", "b"]).arch.head_strides == (1, 2)
    assert with_linear_head(recipe, ["a", "b"], None) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model.head", "deep"], "model.head is 'deep', but"),
        (["--model.head", "stages", "--run.duration", "2pass"], "model.head stages is fitted, not trained"),
    ],
)
def test_a_wrong_head_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_colours(tmp_path, 1, seed=0)
    assert main(["finetune", "--train", str(folder), "--model", str(tiny_model), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_one_class_alone_is_refused(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_colours(tmp_path, 2, seed=0)
    (tmp_path / "alone").mkdir()
    (Path(folder) / "red").rename(tmp_path / "alone" / "red")
    assert main(["finetune", "--train", str(tmp_path / "alone"), "--model", str(tiny_model)]) == 2
    assert "has the class 'red' alone: two are needed to tell apart" in capsys.readouterr().err
