"""transformers' names around our model: field by field as transformers' own Hiera, and at home with its tools.

Tolerance: 1e-4, that of transformers' own tests; what is found is below 1e-5.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assets import H264, LONG_MKV
from PIL import Image
from torch import Tensor

import hiera_video
from hiera_video.errors import HieraVideoError, RequestError, SizeError, UnreadableVideo
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.spec import IMAGE_SPEC

transformers = pytest.importorskip("transformers")

from hiera_video import hf  # noqa: E402  # it needs transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TOLERANCE = 1e-4
BUILT_IN = "hiera_nano_16x64.camera_motion"
#: The configuration of transformers' own tests, with a stage of two blocks.
SMALL: dict[str, Any] = {"embed_dim": 8, "image_size": (64, 64), "depths": (1, 2, 1, 1), "mlp_ratio": 1.0}
DECODER = {"decoder_hidden_size": 8, "decoder_depth": 2, "decoder_num_heads": 2}
VIDEO: dict[str, Any] = {**SMALL, "image_size": (4, 64, 64)}
KINDS = ["HieraModel", "HieraForPreTraining", "HieraForImageClassification"]


def randomized(model: Any) -> Any:
    """With weights large enough that each of them counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def theirs_and_ours(kind: str, folder: Path, **config: Any) -> tuple[Any, Any]:
    """transformers' own model with random weights, saved in its layout, and ours read from there."""
    torch.manual_seed(0)
    theirs = randomized(getattr(transformers, kind)(transformers.HieraConfig(**{**SMALL, **config})))
    theirs.save_pretrained(folder)
    ours, report = getattr(hf, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs, ours


def largest_difference(found: Any, expected: Any) -> float:
    """Over all fields of two outputs, which must have the same fields, shapes and dtypes."""
    assert list(found) == list(expected)
    differences = [0.0]
    for name in expected:
        one, other = ([value] if isinstance(value, Tensor) else value for value in (found[name], expected[name]))
        for ours, theirs in zip(one, other, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
            differences.append((ours.double() - theirs.double()).abs().max().item())
    return max(differences)


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- the examples of transformers' documentation; ``library`` is transformers or ours


def configuration_example(library: Any) -> Any:
    configuration = library.HieraConfig()
    return library.HieraModel(configuration).config


def model_example(library: Any, folder: Path, image: Image.Image) -> Any:
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = library.HieraModel.from_pretrained(folder)
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs)


def pretraining_example(library: Any, folder: Path, image: Image.Image) -> Any:
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = library.HieraForPreTraining.from_pretrained(folder)
    inputs = image_processor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    assert list(outputs.logits.shape) == [1, 196, 768] and outputs.loss.ndim == 0
    return outputs


def classification_example(library: Any, folder: Path, image: Image.Image) -> Any:
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = library.HieraForImageClassification.from_pretrained(folder)
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_label = logits.argmax(-1).item()
    print(model.config.id2label[predicted_label])
    return {"logits": logits}


EXAMPLES: dict[str, tuple[str, dict[str, Any], Callable[[Any, Path, Image.Image], Any]]] = {
    "base": ("HieraModel", {}, model_example),
    "pretraining": ("HieraForPreTraining", {**DECODER, "num_query_pool": 2}, pretraining_example),
    "classification": (
        "HieraForImageClassification",
        {"id2label": {0: "cat", 1: "dog", 2: "bird"}},
        classification_example,
    ),
}


def test_the_configuration_has_their_fields_and_defaults() -> None:
    ours, theirs = (configuration_example(library).to_dict() for library in (hf, transformers))
    assert (ours.pop("model_type"), theirs.pop("model_type")) == ("hiera_video", "hiera")
    assert {name: ours[name] for name in theirs} == theirs


def test_a_configuration_of_theirs_is_read(tmp_path: Path) -> None:
    transformers.HieraConfig(**SMALL, num_labels=3, out_indices=[1, 2]).save_pretrained(tmp_path)
    config = hf.HieraConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.num_labels, config.out_features) == ("hiera_video", 3, ["stage1", "stage2"])
    assert config.hidden_size == 64 and config.facts().position_resize == "plain"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_their_documentation_gives_the_same(
    example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, config, run = EXAMPLES[example]
    theirs_and_ours(kind, tmp_path, embed_dim=96, image_size=(224, 224), depths=(1, 1, 1, 1), mlp_ratio=4.0, **config)
    transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    answers, lines = [], []
    for library in (hf, transformers):
        torch.manual_seed(2)  # for the mask
        answers.append(run(library, tmp_path, Image.fromarray(noise)))
        lines.append(capsys.readouterr().out)
    assert largest_difference(*answers) < TOLERANCE and lines[0] == lines[1]


# --- field by field


@pytest.mark.parametrize("num_query_pool", [3, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_theirs(kind: str, num_query_pool: int, tmp_path: Path) -> None:
    config = {**DECODER, "num_labels": 5, "num_query_pool": num_query_pool, "num_heads": (1, 1, 1, 1)}
    theirs, ours = theirs_and_ours(kind, tmp_path, **config)
    images = pixels(3, 3, 64, 64)
    for attentions, hidden, interpolate, given in itertools.product((None, True), repeat=4):
        asked: dict[str, Any] = {"output_attentions": attentions, "output_hidden_states": hidden}
        asked["interpolate_pos_encoding"] = interpolate
        if given and kind == "HieraForImageClassification":
            asked["labels"] = torch.tensor([1, 4, 0])
        elif given:
            asked["noise"] = pixels(3, 4)
        answers = []
        for model in (ours, theirs):
            torch.manual_seed(3)
            with torch.no_grad():
                answers.append(model(images, **asked))
        assert largest_difference(*answers) < TOLERANCE
        torch.manual_seed(3)
        with torch.no_grad():
            parts = ours(images, return_dict=False, **asked)
        assert largest_difference(dict(zip(answers[0], parts, strict=True)), answers[0]) == 0


def test_the_configuration_decides_what_is_not_asked_for(tmp_path: Path) -> None:
    theirs, ours = theirs_and_ours("HieraModel", tmp_path, output_attentions=True, output_hidden_states=True)
    found, expected = (model(pixels(1, 3, 64, 64)) for model in (ours, theirs))
    assert len(found) == 5 and largest_difference(found, expected) < TOLERANCE


def test_an_encoder_in_mae_mode_is_theirs() -> None:
    config = {**SMALL, "mask_ratio": 0.5, "num_query_pool": 2}
    theirs = randomized(transformers.HieraModel(transformers.HieraConfig(**config), is_mae=True))
    ours = hf.HieraModel(hf.HieraConfig(**config), is_mae=True).eval()
    ours.load_state_dict(hf.HieraModel.named(hiera_video.models.checkpoints.formats.convert(theirs.state_dict())))
    asked = {"noise": pixels(2, 4), "output_attentions": True, "output_hidden_states": True}
    assert largest_difference(*(model(pixels(2, 3, 64, 64), **asked) for model in (ours, theirs))) < TOLERANCE


def test_positions_are_interpolated_as_theirs_are_and_only_when_asked(tmp_path: Path) -> None:
    theirs, ours = theirs_and_ours("HieraModel", tmp_path)
    for size in ((96, 96), (32, 128)):
        asked = {"interpolate_pos_encoding": True, "output_attentions": True}
        found, expected = (model(pixels(2, 3, *size), **asked) for model in (ours, theirs))
        assert largest_difference(found, expected) < TOLERANCE
    maps = ours(pixels(1, 3, 96, 32), interpolate_pos_encoding=True, output_hidden_states=True).reshaped_hidden_states
    assert [tuple(one.shape[1:3]) for one in maps] == [(24, 8), (24, 8), (12, 4), (6, 2), (3, 1)]
    with pytest.raises(
        SizeError, match=r"^pixel_values are 96x96, the model's 64x64; pass interpolate_pos_encoding=True$"
    ):
        ours(pixels(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"num_labels": 5}, torch.tensor([1, 4])),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0])),
        ({"num_labels": 5}, torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 0]])),
        ({"num_labels": 5, "problem_type": "regression"}, pixels(2, 5)),
    ],
)
def test_labels_decide_the_loss_as_theirs_do(config: dict[str, Any], labels: Tensor, tmp_path: Path) -> None:
    theirs, ours = theirs_and_ours("HieraForImageClassification", tmp_path, **config)
    found, expected = (model(pixels(2, 3, 64, 64), labels=labels) for model in (ours, theirs))
    assert largest_difference(found, expected) < TOLERANCE and ours.config.problem_type == theirs.config.problem_type


def test_the_loss_on_raw_pixels_is_theirs(tmp_path: Path) -> None:
    theirs, ours = theirs_and_ours("HieraForPreTraining", tmp_path, **DECODER, normalize_pixel_loss=False)
    found, expected = (model(pixels(2, 3, 64, 64), noise=pixels(2, 4)) for model in (ours, theirs))
    assert largest_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("hidden_act", ["relu", "silu", "gelu_new"])
def test_activations_are_theirs(hidden_act: str, tmp_path: Path) -> None:
    theirs, ours = theirs_and_ours("HieraModel", tmp_path, hidden_act=hidden_act)
    assert largest_difference(*(model(pixels(1, 3, 64, 64)) for model in (ours, theirs))) < TOLERANCE


def test_selu_which_they_name_and_do_not_have_works() -> None:
    assert isinstance(hf.HieraModel(hf.HieraConfig(**SMALL, hidden_act="selu")).trunk.blocks[0].mlp.act, torch.nn.SELU)


def test_new_weights_start_as_theirs() -> None:
    """Compared where draws cannot be: biases and norms exactly, matrices by their spread."""
    config = {**SMALL, **DECODER, "initializer_range": 0.05, "layer_norm_init": 0.7, "image_size": (128, 128)}
    theirs = transformers.HieraForPreTraining(transformers.HieraConfig(**config))
    ours = hf.HieraForPreTraining(hf.HieraConfig(**config))
    expected = hf.HieraForPreTraining.named(hiera_video.models.checkpoints.formats.convert(theirs.state_dict()))
    for name, value in ours.state_dict().items():
        if value.ndim == 1:
            assert torch.equal(value, expected[name]), name
        elif value.numel() > 500:
            assert value.std().item() == pytest.approx(expected[name].std().item(), rel=0.1), name


# --- the backbone


def test_maps_of_the_backbone_are_in_spatial_order() -> None:
    config = hf.HieraConfig(**SMALL, out_features=["stem", "stage1", "stage2", "stage4"])
    backbone = randomized(hf.HieraBackbone(config))
    model = hf.HieraModel(config).eval()
    model.load_state_dict(backbone.state_dict(), strict=False)
    images = pixels(2, 3, 64, 64)
    found = backbone(images, output_hidden_states=True, output_attentions=True)
    expected = model(images, output_hidden_states=True, output_attentions=True)
    assert backbone.channels == [8, 8, 16, 64] and backbone.out_features == config.out_features
    for index, maps in zip(config.out_indices, found.feature_maps, strict=True):
        normed = backbone.hidden_states_norms[config.stage_names[index]](expected.reshaped_hidden_states[index])
        torch.testing.assert_close(maps, normed.movedim(-1, 1))
    for name in ("hidden_states", "attentions"):
        assert largest_difference({name: found[name]}, {name: expected[name]}) == 0


def test_a_backbone_in_their_layout_is_read(tmp_path: Path) -> None:
    """Its maps have the shapes of theirs; not the values, since theirs never unrolls its tokens."""
    theirs, ours = theirs_and_ours("HieraBackbone", tmp_path, out_indices=[1, 3])
    found, expected = (model(pixels(1, 3, 64, 64)).feature_maps for model in (ours, theirs))
    assert [one.shape for one in found] == [one.shape for one in expected]
    assert torch.equal(ours.hidden_states_norms["stage3"].weight, theirs.hidden_states_norms["stage3"].weight)


# --- video


def test_a_video_model_is_ours_with_time_in_front() -> None:
    torch.manual_seed(0)
    config = hf.HieraConfig(**VIDEO, num_labels=5)
    model = randomized(hf.HieraForVideoClassification(config))
    native = hf.to_native(model)
    assert isinstance(native, Hiera) and config.num_frames == 4 and config.patch_stride == (2, 4, 4)
    clips = pixels(2, 4, 3, 64, 64)
    found = model(clips, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(found.logits, native(clips.transpose(1, 2)))
    tokens, maps = native.forward_intermediates(clips.transpose(1, 2), output_fmt="NHWC")
    for one, other in zip(found.reshaped_hidden_states[1:], maps, strict=True):
        torch.testing.assert_close(one, other)
    assert found.reshaped_hidden_states[0].shape == (2, 2, 16, 16, 8)
    torch.testing.assert_close(found.hidden_states[-1], tokens)
    weights = [native.forward_attentions(clips.transpose(1, 2))[block] for block in (0, 2, 3, 4)]
    assert [one.shape for one in found.attentions] == [one.transpose(1, 2).shape for one in weights]
    assert all(one.sum(-1).sub(1).abs().max() < 1e-5 for one in found.attentions)


def test_a_video_autoencoder_is_ours() -> None:
    torch.manual_seed(0)
    config = hf.HieraConfig(**VIDEO, **DECODER, num_query_pool=2, mask_ratio=0.75)
    model = randomized(hf.HieraForPreTraining(config))
    native = hf.to_native(model)
    assert isinstance(native, HieraMAE)
    clips, noise = pixels(2, 4, 3, 64, 64), pixels(2, 8)
    found = model(clips, noise=noise, output_hidden_states=True)
    keep = noise.argsort(dim=1).argsort(dim=1) < 2
    expected = native(clips.transpose(1, 2), keep, all_positions=True)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.prediction)
    assert found.bool_masked_pos.sum().item() == 2 * 2 * 4 and found.logits.shape == (2, 32, 768)
    assert found.reshaped_hidden_states[0].shape == (2, 2, 1, 8, 8, 8)


def test_a_video_backbone_gives_maps_with_time() -> None:
    backbone = hf.HieraBackbone(hf.HieraConfig(**VIDEO, out_indices=[2, 4]))
    maps = backbone(pixels(1, 4, 3, 64, 64)).feature_maps
    assert [tuple(one.shape) for one in maps] == [(1, 16, 2, 8, 8), (1, 64, 2, 2, 2)]


def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = hf.HieraForVideoClassification(hf.HieraConfig(**VIDEO, num_labels=3)).train()
    asked = {"labels": torch.tensor([2]), "output_hidden_states": True, "output_attentions": True}
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(pixels(1, 4, 3, 64, 64), **asked).loss.backward()
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters()})
    assert model.is_gradient_checkpointing
    torch.testing.assert_close(*gradients)


def test_a_request_that_cannot_be_met_is_refused_in_one_sentence() -> None:
    config = hf.HieraConfig(**VIDEO)
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: hf.HieraModel(config)(pixels(1, 3, 64, 64)),
            "pixel_values of this model are [batch, frames, channels, height, width], not of shape [1, 3, 64, 64]",
        ),
        (lambda: hf.HieraModel(config)(), "You have to specify pixel_values"),
        (
            lambda: hf.HieraForImageClassification(config),
            "HieraForImageClassification needs an image_size of 2 numbers in its HieraConfig, not (4, 64, 64)",
        ),
        (
            lambda: hf.HieraForPreTraining(config),
            "pretraining needs decoder_hidden_size, decoder_depth, decoder_num_heads in its HieraConfig",
        ),
        (
            lambda: hf.HieraModel(hf.HieraConfig(**{**SMALL, "masked_unit_size": (16, 16)})),
            "this HieraConfig cannot be used: mask_unit_size (16, 16) must be q_stride to the power 3: (8, 8)",
        ),
        (
            lambda: hf.HieraModel(hf.HieraConfig(**{**SMALL, "num_heads": (1, 2, 2, 4)})),
            "this HieraConfig cannot be used: num_heads [1, 2, 2, 4] does not grow by one factor",
        ),
        (
            lambda: hf.to_native(hf.HieraModel(config)),
            "HieraModel has no head and no decoder: our models have one of them",
        ),
    ]
    for request, message in cases:
        with pytest.raises(HieraVideoError) as refusal:
            request()
        assert str(refusal.value) == message


# --- saved, read and converted


def test_auto_classes_give_ours_and_theirs_stay_theirs(tmp_path: Path) -> None:
    model = randomized(hf.HieraForVideoClassification(hf.HieraConfig(**VIDEO, num_labels=3)))
    model.save_pretrained(tmp_path)
    hf.HieraVideoProcessor({**hiera_video.ClipSpec(num_frames=4).to_dict()}).save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is hf.HieraConfig and config.image_size == (4, 64, 64)
    again = transformers.AutoModelForVideoClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(pixels(1, 4, 3, 64, 64)).logits, model(pixels(1, 4, 3, 64, 64)).logits)
    encoder = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(encoder.trunk.norm.weight, model.hiera.trunk.norm.weight)
    backbone = hf.HieraBackbone.from_pretrained(tmp_path)
    assert torch.equal(backbone.trunk.blocks[1].attn.qkv.weight, model.hiera.trunk.blocks[1].attn.qkv.weight)
    made = {
        transformers.AutoModelForPreTraining: (hf.HieraForPreTraining, hf.HieraConfig(**SMALL, **DECODER)),
        transformers.AutoModelForImageClassification: (hf.HieraForImageClassification, hf.HieraConfig(**SMALL)),
        transformers.AutoBackbone: (hf.HieraBackbone, config),
        transformers.AutoModel: (transformers.HieraModel, transformers.HieraConfig(**SMALL)),
    }
    assert all(type(auto.from_config(one)) is kind for auto, (kind, one) in made.items())
    assert type(transformers.AutoVideoProcessor.from_pretrained(tmp_path)) is hf.HieraVideoProcessor


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_model_is_written_in_their_layout(kind: str, tmp_path: Path) -> None:
    config = hf.HieraConfig(**SMALL, **DECODER, num_labels=3, num_query_pool=2, clip=IMAGE_SPEC.to_dict())
    ours = randomized(getattr(hf, kind)(config))
    hf.save_as(ours, tmp_path, layout="hiera")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "hiera"
    answers = []
    for model in (theirs, ours):
        torch.manual_seed(0)
        answers.append(model(pixels(1, 3, 64, 64), output_hidden_states=True))
    assert largest_difference(*answers) < TOLERANCE
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 256
    with pytest.raises(RequestError, match=r"^transformers' hiera layout holds images alone: .* of 3 dimensions$"):
        hf.save_as(hf.HieraModel(hf.HieraConfig(**VIDEO)), tmp_path, layout="hiera")


def test_our_folder_and_the_authors_file_become_this_form_and_back(tiny_model: Path, tmp_path: Path) -> None:
    native = hiera_video.from_pretrained(tiny_model)
    model = hf.HieraForVideoClassification.from_pretrained(tiny_model)
    clips = pixels(2, 4, 3, 32, 32)
    expected = native(clips.transpose(1, 2))
    assert torch.equal(model(clips).logits, expected) and torch.equal(hf.from_native(native)(clips).logits, expected)
    assert model.config.id2label == dict(enumerate("abcdef"))
    model.save_pretrained(tmp_path / "form")
    hf.save_as(model, tmp_path / "ours", layout="ours")
    hf.save_as(model, tmp_path / "authors.pth", layout="authors")
    for again in (hiera_video.from_pretrained(tmp_path / "form"), hiera_video.from_pretrained(tmp_path / "ours")):
        assert (again.arch, again.spec, again.labels) == (native.arch, native.spec, native.labels)
        assert (again.views, again.position_resize) == (native.views, native.position_resize)
        assert torch.equal(again(clips.transpose(1, 2)), expected)
    again = hiera_video.from_pretrained(tmp_path / "authors.pth", arch=native.arch)
    assert torch.equal(again(clips.transpose(1, 2)), expected)
    assert set(torch.load(tmp_path / "authors.pth")["model_state"]) == set(native.state_dict())


def test_an_authors_folder_and_another_head_are_read(tmp_path: Path) -> None:
    native = hiera_video.create_model("hiera_nano_16x64", num_classes=4, input_size=(4, 32, 32), stages=(1, 1, 1, 1))
    torch.save({"model_state": native.state_dict()}, tmp_path / "pytorch_model.bin")
    fields = ("input_size", "embed_dim", "stages", "num_classes", "q_stride", "mask_unit_size", "patch_kernel")
    config = {name: getattr(native.arch, name) for name in (*fields, "patch_stride", "patch_padding", "sep_pos_embed")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    clips = pixels(1, 4, 3, 32, 32)
    model = hf.HieraForVideoClassification.from_pretrained(tmp_path)
    assert torch.equal(model(clips).logits, native.eval()(clips.transpose(1, 2)))
    other = hf.HieraForVideoClassification.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert other(clips).logits.shape == (1, 9)


def test_an_autoencoder_goes_both_ways(tiny_mae: Path, tmp_path: Path) -> None:
    native = hiera_video.mae_from_pretrained(tiny_mae)
    model = hf.HieraForPreTraining.from_pretrained(tiny_mae)
    model.save_pretrained(tmp_path)
    again = hiera_video.mae_from_pretrained(tmp_path)
    assert (replace(again.arch, num_classes=400), again.spec) == (replace(native.arch, num_classes=400), native.spec)
    clips, noise = pixels(2, 4, 3, 64, 64), pixels(2, 8)
    expected = native(clips.transpose(1, 2), noise.argsort(dim=1).argsort(dim=1) < 4).loss
    assert torch.equal(
        model(clips, noise=noise).loss, again(clips.transpose(1, 2), noise.argsort(1).argsort(1) < 4).loss
    )
    torch.testing.assert_close(model(clips, noise=noise).loss, expected)


# --- videos in, training, the pipeline


def test_the_processor_cuts_the_view_that_classify_looks_at(tmp_path: Path) -> None:
    spec = hiera_video.from_pretrained(BUILT_IN).spec
    processor = hf.HieraVideoProcessor.from_pretrained(BUILT_IN)
    assert processor.spec == spec and list(processor.image_mean) == [0.45] * 3 and processor.num_frames == 16
    path = LONG_MKV.write(tmp_path)
    expected = spec.normalize(hiera_video.load_views(path, spec, 1, 1).clips).transpose(1, 2)
    for videos in (path, str(path), [path]):
        found = processor(videos, num_frames=16, do_sample_frames=True, return_tensors="pt")
        assert list(found) == ["pixel_values"] and torch.equal(found["pixel_values"], expected)
    with hiera_video.open_video(path) as video:
        frames = video.frames(np.arange(90)).pixels
    metadata = {"total_num_frames": 90, "fps": 30.0}
    for video in (frames, torch.from_numpy(frames).movedim(-1, 1), [Image.fromarray(one) for one in frames]):
        found = processor(video, do_sample_frames=True, video_metadata=metadata, return_tensors="pt")
        assert torch.equal(found["pixel_values"], expected)
    assert processor(frames[:8], return_tensors="pt")["pixel_values"].shape == (1, 8, 3, 64, 64)
    assert processor(path, num_frames=8, return_tensors="np")["pixel_values"].shape == (1, 8, 3, 64, 64)
    with pytest.raises(RequestError, match=r"^frames must be uint8 from 0 to 255, not float64$"):
        processor(frames / 255)
    with pytest.raises(RequestError, match=r"^num_frames follows from clip: change that$"):
        hf.HieraVideoProcessor.from_pretrained(BUILT_IN, num_frames=8)
    with pytest.raises(UnreadableVideo):
        processor(str(tmp_path / "none.mp4"))


def test_the_pipeline_answers_as_classify(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hf.HieraForVideoClassification.from_pretrained(BUILT_IN).save_pretrained(tmp_path)
    hf.HieraVideoProcessor.from_pretrained(BUILT_IN).save_pretrained(tmp_path)
    paths = [str(H264.write(tmp_path)), str(LONG_MKV.write(tmp_path))]
    answers = transformers.pipeline("video-classification", model=str(tmp_path))(paths, top_k=3)
    expected = hiera_video.classify(paths, model=BUILT_IN, views="1x1", top_k=3, batch_size=1)
    for found, wanted in zip(answers, expected, strict=True):
        assert [one["label"] for one in found] == [one.label for one in wanted.predictions]
        assert [one["score"] for one in found] == pytest.approx([one.score for one in wanted.predictions], abs=1e-6)
    assert "not supported" not in caplog.text


def test_the_trainer_trains_saves_and_reads_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = torch.arange(8) % 2
    clips = pixels(8, 4, 3, 32, 32) * 0.1 + labels.view(8, 1, 1, 1, 1)
    data = [{"pixel_values": clip, "labels": int(label)} for clip, label in zip(clips, labels, strict=True)]
    model = hf.HieraForVideoClassification(hf.HieraConfig(**{**VIDEO, "image_size": (4, 32, 32)}))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        gradient_checkpointing=True,
        logging_steps=4,
        save_steps=6,
        report_to=[],
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )
    processor = hf.HieraVideoProcessor(hiera_video.ClipSpec(num_frames=4, size=(32, 32), resize=32))
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=processor)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.evaluate()["eval_loss"] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    again = hf.HieraForVideoClassification.from_pretrained(tmp_path / "saved")
    model.eval()
    torch.testing.assert_close(again(clips).logits, model(clips).logits)
    assert hf.HieraVideoProcessor.from_pretrained(tmp_path / "saved").spec == processor.spec
    half = transformers.AutoModelForVideoClassification.from_pretrained(tmp_path / "run" / "checkpoint-6")
    assert not torch.allclose(half(clips).logits, model(clips).logits)


# --- transformers stays optional


def test_without_transformers_the_package_works_and_this_part_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import hiera_video\n"
        "try:\n    import hiera_video.hf\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == 'hiera_video.hf needs transformers, 5.11 or newer: pip install "hiera-video[transformers]"\n'


def test_shapes_are_those_that_transformers_own_tests_of_hiera_expect() -> None:
    """Model, backbone with and without ``out_indices``, grey pictures, attentions, numbers of outputs."""
    small: dict[str, Any] = {"embed_dim": 8, "image_size": [64, 64], "mlp_ratio": 1.0, "depths": [1] * 4}
    small |= {"num_heads": [1] * 4, "decoder_hidden_size": 2, "decoder_depth": 1, "decoder_num_heads": 1}
    config = hf.HieraConfig(**small)
    assert hf.HieraModel(config).eval()(pixels(3, 3, 64, 64)).last_hidden_state.shape == (3, 4, 64)
    for indices in (config.out_indices, None):
        config.out_indices = indices
        backbone = hf.HieraBackbone(config).eval()
        maps = backbone(pixels(3, 3, 64, 64)).feature_maps
        assert len(maps) == len(backbone.channels) == 1 and maps[0].shape == (3, backbone.channels[-1], 2, 2)
    for channels in (3, 1):
        config = hf.HieraConfig(**small, num_channels=channels)
        logits = hf.HieraForPreTraining(config).eval()(pixels(3, channels, 64, 64)).logits
        assert logits.shape == (3, 4, channels * 32**2)
    for kind in (hf.HieraModel, hf.HieraBackbone, hf.HieraForImageClassification, hf.HieraForPreTraining):
        config = hf.HieraConfig(**small)
        visible = int(4 * (1 - config.mask_ratio)) if kind is hf.HieraForPreTraining else 4
        model = kind(config).eval()
        seen = model(pixels(3, 3, 64, 64), output_attentions=True)
        assert len(seen.attentions) == 4 and seen.attentions[0].shape[-4:] == (1, visible, 64, 64)
        both = model(pixels(3, 3, 64, 64), output_attentions=True, output_hidden_states=True)
        assert len(both) == len(seen) + (1 if kind is hf.HieraBackbone else 2)
        assert len(both.hidden_states) == 5 and both.hidden_states[0].shape[-2:] == (64 * visible, 8)
        if kind is not hf.HieraBackbone:
            assert both.reshaped_hidden_states[0].view(3, -1, 8).shape[1] == 64 * visible
