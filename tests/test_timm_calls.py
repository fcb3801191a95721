"""What timm's tests ask of a model, asked of each Hiera name: timm's calls have timm's meanings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import FeatureInfo

from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.published import ARCHITECTURES
from hiera_video.models.zoo import create_model, from_pretrained, list_models

NAMES = list_models("hiera_*")
#: One block a stage, few channels and small pictures: names differ in heads, axes, windows and embeddings.
SMALL: dict[str, Any] = {"stages": (1, 1, 1, 1)}


def size_of(name: str) -> tuple[int, ...]:
    return (4, 64, 64) if "16x" in name else (64, 64)


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    width = 16 * ARCHITECTURES[name].num_heads
    return create_model(name, input_size=size_of(name), embed_dim=width, **SMALL, **options).eval()


def clip_for(name: str, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, *size_of(name), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_forward_gives_logits_and_features_and_the_head_give_them_too(name: str) -> None:
    model, clip = small(name, num_classes=42), clip_for(name)
    with torch.no_grad():
        logits, features = model(clip), model.forward_features(clip)
    assert logits.shape == (2, 42) and logits.isfinite().all()
    assert features.shape[-1] == model.num_features == model.head_hidden_size
    torch.testing.assert_close(model.forward_head(features), logits)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_is_found_reset_and_left_out(name: str) -> None:
    model, clip = small(name, num_classes=9), clip_for(name)
    assert model.get_classifier().out_features == model.num_classes == 9
    model.reset_classifier(5, "avg")
    assert model(clip).shape == (2, 5) and model.num_classes == 5
    model.reset_classifier(0)
    without = small(name, num_classes=0)
    assert model(clip).shape == without(clip).shape == (2, model.num_features)
    assert without.num_classes == 0 and isinstance(without.get_classifier(), torch.nn.Identity)
    with pytest.raises(RequestError, match="global_pool 'max' must be avg"):
        model.reset_classifier(5, "max")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = small(name, num_classes=4).train()
    with torch.no_grad():  # a head of nearly zero would give gradients of nearly zero
        model.head.projection.weight.normal_()
    model(clip_for(name)).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_a_net_of_features_has_timms_info_and_the_models_maps(name: str) -> None:
    whole, clip = small(name), clip_for(name)
    with torch.no_grad():
        expected = whole.forward_intermediates(clip, intermediates_only=True)
        for indices in (None, (0, 2), [1]):
            net: Any = small(name, features_only=True, **({} if indices is None else {"out_indices": indices}))
            chosen = [0, 1, 2, 3] if indices is None else list(indices)
            maps = net(clip)
            for number, stage in enumerate(chosen):
                torch.testing.assert_close(maps[number], expected[stage])
            assert isinstance(net.feature_info, FeatureInfo)
            assert net.feature_info.channels() == [expected[stage].shape[1] for stage in chosen]
            assert net.feature_info.reduction() == [size_of(name)[-1] // expected[stage].shape[-1] for stage in chosen]
            assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in whole.parameters())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_traced_and_exported(name: str) -> None:
    model, clip = small(name, num_classes=3), clip_for(name)
    with torch.no_grad():
        expected = model(clip)
        traced = torch.jit.trace(model, clip, check_trace=False)
        torch.testing.assert_close(traced(clip), expected)
        program = torch.export.export(model, (clip,))
        torch.testing.assert_close(program.module()(clip), expected)


@pytest.mark.parametrize("name", NAMES)
def test_facts_about_pixels_are_those_that_timm_resolves(name: str) -> None:
    model = small(name, num_classes=3, in_chans=4, drop_rate=0.3)
    assert model(clip_for(name, channels=4)).shape == (2, 3) and len(model.spec.mean) == 4
    assert model.head.dropout.p == 0.3
    plain = small(name, num_classes=7)
    for cfg in (plain.pretrained_cfg, plain.default_cfg):
        assert (cfg["first_conv"], cfg["classifier"]) == ("patch_embed.proj", "head.projection")
        assert plain.get_parameter(f"{cfg['classifier']}.weight").shape[0] == cfg["num_classes"]
    resolved = resolve_data_config(model=plain)
    assert (resolved["mean"], resolved["std"]) == (plain.spec.mean, plain.spec.std)
    assert math.isclose(resolved["crop_pct"], min(plain.spec.size) / plain.spec.resize)


@pytest.mark.parametrize("name", timm.list_models("hiera_*"))
def test_maps_and_logits_equal_timms_of_every_name(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    fields = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1), "num_classes": 9}
    theirs = timm.create_model(name, **fields).eval()
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if parameter.ndim == 1 or "pos_embed" in parameter_name or "head" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    windows = "abswin" in name
    arch = create_model("hiera_tiny_224", **{key: fields[key] for key in ("embed_dim", "stages")}).arch
    side = theirs.tokens_spatial_shape[0] * 4
    more: dict[str, Any] = {"input_size": (side, side)}
    if windows:
        background = tuple(theirs.pos_embed.shape[2:])
        more |= {"abs_win_pos_embed": True, "global_pos_size": background, "pos_antialias": True, "layer_scale": 1e-5}
        more |= {"expand_proj": theirs.blocks[1].proj is not None}
    ours = from_pretrained(tmp_path / "timm.pth", arch=replace(arch, num_classes=9, **more))
    clip = torch.randn(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-4, atol=1e-5)
        for kind in (True, False):
            pairs = zip(
                ours.forward_intermediates(clip, coarse=kind, intermediates_only=True),
                theirs.forward_intermediates(clip, coarse=kind, intermediates_only=True),
                strict=True,
            )
            for our_map, their_map in pairs:
                torch.testing.assert_close(our_map, their_map, rtol=1e-4, atol=1e-4)


def test_other_channels_start_from_the_weights_of_three(tmp_path: Any) -> None:
    model = small("hiera_tiny_224", num_classes=3)
    folder = save_pretrained(model, tmp_path / "model")
    grey = torch.randn(1, 1, 64, 64)
    one = from_pretrained(folder, in_chans=1)
    assert isinstance(one, Hiera)
    with torch.no_grad():
        torch.testing.assert_close(one(grey), model(grey.expand(-1, 3, -1, -1)))
    assert from_pretrained(folder, in_chans=6)(torch.randn(1, 6, 64, 64)).shape == (1, 3)


IMAGES = [name for name in NAMES if "16x" not in name and ARCHITECTURES[name].windows is None]


@pytest.mark.parametrize(("name", "classes"), [(IMAGES[0], 0), *((name, 7) for name in IMAGES)])
def test_a_folder_in_timms_layout_is_timms_and_comes_back(name: str, classes: int, tmp_path: Path) -> None:
    model, clip = small(name, num_classes=classes), clip_for(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.labels, model.license = [f"class {index}" for index in range(classes)] or None, "apache-2.0"
    folder = model.save_pretrained(tmp_path / "model", layout="timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    again = from_pretrained(folder)
    assert (again.arch, again.labels, again.license) == (model.arch, model.labels, model.license)
    with torch.no_grad():
        expected = model(clip)
        assert (theirs(clip) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(again(clip), expected)


def test_the_method_writes_our_folder_and_timms_layout_refuses_what_timm_has_not(tmp_path: Path) -> None:
    video, sam2 = small("hiera_base_16x224"), small("hiera_tiny_1024")
    assert from_pretrained(video.save_pretrained(tmp_path / "ours")).arch == video.arch
    with pytest.raises(RequestError, match="layout 'onnx' must be ours or timm"):
        video.save_pretrained(tmp_path / "other", layout="onnx")
    relu = create_model("hiera_tiny_224", **SMALL, embed_dim=16, hidden_act="relu")
    mae = create_model("mae_hiera_tiny_224", **SMALL, embed_dim=16)
    for model in (video, sam2, relu, mae):
        with pytest.raises(RequestError, match="timm's layout holds classifiers of images with timm's own parts"):
            model.save_pretrained(tmp_path / "other", layout="timm")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hiera_tiny_224", {}),
        ("hiera_tiny_224", {"num_heads": 2, "img_size": 64}),  # heads are not seen in the tensors
        ("hiera_small_abswin_256", {"img_size": 64}),
        ("hieradet_small", {"window_spec": (8, 4, 8, 4), "global_att_blocks": ()}),
    ],
)
def test_what_timms_own_folder_says_of_a_model_counts(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5, **options).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    timm.models.save_for_hf(theirs, tmp_path)
    ours = from_pretrained(tmp_path)
    side = 64 if "img_size" in options or name == "hieradet_small" else 224
    clip = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected, maps = theirs(clip), theirs.forward_intermediates(clip, intermediates_only=True)
        assert (ours(clip) - expected).abs().max() <= 1e-4 * expected.abs().max()
        for ours_map, their_map in zip(ours.forward_intermediates(clip)[1], maps, strict=True):
            assert (ours_map - their_map).abs().max() <= 1e-4 * their_map.abs().max()


def test_many_labels_are_kept_in_timms_layout(tmp_path: Path) -> None:
    model = small("hiera_tiny_224", num_classes=3)
    model.multi_label = True
    assert from_pretrained(model.save_pretrained(tmp_path, layout="timm")).multi_label
