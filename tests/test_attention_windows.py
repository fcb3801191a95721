"""Absolute-window embeddings, layer scale and windows of any size: SAM 2's trunk and timm's abswin beside their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import TINY
from safetensors.torch import save_file
from torch import Tensor
from transformers import Sam2HieraDetConfig, Sam2VisionConfig, Sam2VisionModel
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

from hiera_video import hf
from hiera_video.errors import RequestError
from hiera_video.models.architecture import MAEArchitecture
from hiera_video.models.attention_windows import walk_units
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec

#: Named sizes of SAM 2: width, blocks, heads, background, windows, global blocks (its configs).
SAM2 = {
    "tiny": (96, (1, 2, 7, 2), 1, 7, (8, 4, 14, 7), (5, 7, 9)),
    "small": (96, (1, 2, 11, 2), 1, 7, (8, 4, 14, 7), (7, 10, 13)),
    "base_plus": (112, (2, 3, 16, 3), 2, 14, (8, 4, 14, 7), (12, 16, 20)),
    "large": (144, (2, 6, 36, 4), 2, 7, (8, 4, 16, 8), (23, 33, 43)),
}


@torch.no_grad()
def shaken(model: Any) -> Any:
    """Random values everywhere: zeros and ones would hide what is left out."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "pos_embed" in name:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def sam2_config(name: str) -> Sam2HieraDetConfig:
    width, blocks, heads, background, windows, everything = SAM2[name]
    return Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=heads,
        blocks_per_stage=list(blocks),
        embed_dim_per_stage=[width * 2**stage for stage in range(4)],
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
        window_positional_embedding_background_size=[background, background],
        window_size_per_stage=list(windows),
        global_attention_blocks=list(everything),
        image_size=[64, 64],
    )


def authors_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of the trunk as the authors' files have them, and a tensor of the neck beside."""
    pairs = (("patch_embed.projection", "patch_embed.proj"), ("layer_norm", "norm"))
    pairs += (("mlp.proj_in", "mlp.layers.0"), ("mlp.proj_out", "mlp.layers.1"))
    renamed = {}
    for key, value in state.items():
        for theirs, name in pairs:
            key = key.replace(theirs, name)
        renamed[f"image_encoder.trunk.{key}"] = value
    return renamed | {"image_encoder.neck.convs.0.conv.weight": torch.zeros(2, 2, 1, 1)}


def assert_maps_equal(ours: Hiera, theirs: Any, size: tuple[int, int], tolerance: float = 1e-4) -> None:
    clip = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = ours.forward_intermediates(clip, output_fmt="NHWC", intermediates_only=True)
        expected = theirs(clip).intermediate_hidden_states
    for ours_map, their_map in zip(maps, expected, strict=True):
        assert ours_map.shape == their_map.shape
        assert (ours_map - their_map).abs().max() <= tolerance * their_map.abs().max()


@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("small", "base_plus", "large"))]
)
def test_sam_2s_trunk_is_read_from_the_authors_file_and_equals_transformers(name: str, tmp_path: Path) -> None:
    theirs = shaken(Sam2HieraDetModel(sam2_config(name)))
    torch.save({"model": authors_names(theirs.state_dict())}, tmp_path / "sam2.pt")
    ours = from_pretrained(tmp_path / "sam2.pt")
    assert (ours.arch.windows, ours.arch.global_blocks) == SAM2[name][4:]
    assert_maps_equal(ours, theirs, (64, 96))  # padded windows; one model takes every size
    assert_maps_equal(ours, theirs, (224, 224))  # windows are mask units and everything


@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 1024])
@pytest.mark.parametrize("name", SAM2)
def test_sam_2s_trunk_equals_transformers_at_its_own_sizes(name: str, size: int, tmp_path: Path) -> None:
    theirs = shaken(Sam2HieraDetModel(sam2_config(name)))
    torch.save({"model": authors_names(theirs.state_dict())}, tmp_path / "sam2.pt")
    assert_maps_equal(from_pretrained(tmp_path / "sam2.pt"), theirs, (size, size))


def test_transformers_folder_of_sam_2_is_read_and_saved_as_ours_again(tmp_path: Path) -> None:
    theirs = shaken(Sam2VisionModel(Sam2VisionConfig(backbone_config=sam2_config("tiny").to_dict())))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    assert ours.arch.num_classes == 0 and ours.arch.global_blocks == (5, 7, 9) and ours.license == "apache-2.0"
    assert_maps_equal(ours, theirs.backbone, (64, 64))
    with torch.no_grad():  # a grid of 18 x 25, no multiple of anything: transformers' own class cannot
        assert [tuple(one.shape[2:]) for one in ours.forward_intermediates(torch.randn(1, 3, 72, 100))[1]] == [
            (18, 25),
            (9, 12),
            (4, 6),
            (2, 3),
        ]
    again = from_pretrained(save_pretrained(ours, tmp_path / "ours"))
    assert again.arch == ours.arch
    hf.from_native(ours).save_pretrained(tmp_path / "hf")
    eager = hf.HieraForImageClassification.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    seen = eager(torch.zeros(1, 3, 72, 64), interpolate_pos_encoding=True, output_hidden_states=True)
    assert [one.shape[1:3] for one in seen.reshaped_hidden_states] == [(18, 16), (18, 16), (9, 8), (4, 4), (2, 2)]
    assert torch.autograd.grad(seen.logits[0, 0], seen.hidden_states[1])[0].abs().max() > 0
    from_hf = from_pretrained(tmp_path / "hf")
    assert from_hf.arch == ours.arch
    assert_maps_equal(from_hf, theirs.backbone, (64, 64))
    hf.save_as(hf.from_native(ours), tmp_path / "sam2", layout="sam2")
    back = Sam2HieraDetModel.from_pretrained(tmp_path / "sam2").eval()
    assert_maps_equal(ours, back, (64, 64), tolerance=0.0)
    assert from_pretrained(tmp_path / "sam2").arch == ours.arch
    with pytest.raises(RequestError, match="transformers' sam2 layout holds"):
        hf.save_as(hf.from_native(Hiera(TINY)), tmp_path / "other", layout="sam2")
    assert_maps_equal(again, theirs.backbone, (64, 64))
    again.set_grad_checkpointing()
    *_, last = again.train().stages(torch.randn(1, 3, 72, 64))
    last.tokens.sum().backward()
    for name, parameter in again.named_parameters():
        assert name.startswith(("norm.", "head.")) or parameter.grad is not None, name


@pytest.mark.parametrize(
    "name", ["hiera_small_abswin_256", pytest.param("hiera_base_abswin_256", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("classes", [7, 0])
def test_timms_abswin_is_read_with_its_config_and_without(name: str, classes: int, tmp_path: Path) -> None:
    theirs = shaken(timm.create_model(name, num_classes=classes))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = from_pretrained(tmp_path / "model.safetensors", num_classes=classes)
    (tmp_path / "folder").mkdir()
    save_file(theirs.state_dict(), tmp_path / "folder" / "model.safetensors")
    cfg = {"input_size": [3, 256, 256], "license": "apache-2.0", "crop_pct": 0.95}
    config = {"architecture": name, "num_classes": classes, "pretrained_cfg": cfg}
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    folder = from_pretrained(tmp_path / "folder")
    assert folder.arch == ours.arch and folder.license == "apache-2.0" and folder.spec.size == (256, 256)
    clip = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, maps = theirs(clip), theirs.forward_intermediates(clip, intermediates_only=True)
        assert (ours(clip) - expected).abs().max() <= 1e-4 * expected.abs().max()
        for ours_map, their_map in zip(ours.forward_intermediates(clip)[1], maps, strict=True):
            assert (ours_map - their_map).abs().max() <= 1e-4 * their_map.abs().max()


def test_timms_hieradet_small_has_sam_2s_windows_layer_scale_and_a_head(tmp_path: Path) -> None:
    theirs = shaken(timm.create_model("hieradet_small", num_classes=7))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = from_pretrained(tmp_path / "model.safetensors")
    clip = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, maps = theirs(clip), theirs.forward_intermediates(clip, intermediates_only=True)
        assert (ours(clip) - expected).abs().max() <= 1e-4 * expected.abs().max()
        for ours_map, their_map in zip(ours.forward_intermediates(clip)[1], maps, strict=True):
            assert (ours_map - their_map).abs().max() <= 1e-4 * their_map.abs().max()


@pytest.mark.parametrize("size", [(64, 96), (224, 224)])
def test_timms_form_of_sam_2_is_read(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = shaken(timm.create_model("sam2_hiera_tiny", num_classes=0))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    cfg = {"input_size": [3, 896, 896], "license": "apache-2.0", "crop_pct": 1.0}
    config = {"architecture": "sam2_hiera_tiny", "num_classes": 0, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = from_pretrained(tmp_path)
    assert ours.arch.num_classes == 0 and ours.spec.size == (896, 896)
    clip = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.forward_intermediates(clip, intermediates_only=True)
        for our_map, their_map in zip(ours.forward_intermediates(clip)[1], expected, strict=True):
            assert (our_map - their_map).abs().max() <= 1e-4 * their_map.abs().max()
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-3, atol=1e-4)


# --- our own models with them -----------------------------------------------------------------------------------------

ABSWIN = {"abs_win_pos_embed": True, "layer_scale": 0.1}


@pytest.mark.parametrize(
    ("size", "other", "background", "fields"),
    [
        ((4, 32, 32), (8, 64, 32), (3, 3), {}),
        ((4, 32, 32), (8, 64, 32), (2, 3, 3), {"sep_pos_embed": False}),
    ],
)
def test_one_video_model_with_absolute_windows_takes_any_size(
    size: tuple[int, ...], other: tuple[int, ...], background: tuple[int, ...], fields: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    arch = replace(TINY, input_size=size, global_pos_size=background, **ABSWIN, **fields)  # type: ignore[arg-type]
    model = Hiera(arch, ClipSpec(num_frames=4, size=(32, 32), resize=36)).eval()
    assert model(torch.randn(1, 3, *size)).shape == model(torch.randn(1, 3, *other)).shape
    clip = torch.randn(1, 3, *other)
    again = from_pretrained(save_pretrained(model, tmp_path / "model"), input_size=other)
    torch.testing.assert_close(again(clip), model(clip))
    grid = again.arch.token_grid(other)
    table = again.position_embedding(grid).view(*grid, -1)
    unit = arch.mask_unit_size[-1]
    if arch.sep_pos_embed:  # what repeats is the window, what does not the background
        background_map = F.interpolate(model.pos_embed, size=grid[1:], mode="bicubic")[0].permute(1, 2, 0)
        rest = table[0] - model.pos_embed_temporal[0, 0] - background_map
        torch.testing.assert_close(rest[:unit, :unit], rest[unit : 2 * unit, :unit])


def test_an_mae_with_absolute_windows_trains_its_embeddings_and_becomes_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = {**vars(TINY), "input_size": (4, 64, 64), "q_pool": 2, "global_pos_size": (3, 3), **ABSWIN}
    arch = MAEArchitecture(**fields, mask_ratio=0.5, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    mae = HieraMAE(arch, ClipSpec(num_frames=4, size=(64, 64), resize=64))
    mae(torch.randn(2, 3, 4, 64, 64)).loss.backward()
    for name in ("pos_embed", "pos_embed_window", "pos_embed_temporal"):
        assert mae.get_parameter(name).grad is not None and mae.get_parameter(name).grad.abs().sum() > 0
    model = from_pretrained(save_pretrained(mae.eval(), tmp_path / "mae"), num_classes=3)
    assert torch.equal(model.pos_embed_window, mae.pos_embed_window)
    assert {"pos_embed", "pos_embed_window"} <= model.no_weight_decay()


def test_a_video_model_starts_from_an_image_model_with_absolute_windows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = shaken(Sam2HieraDetModel(sam2_config("tiny")))
    torch.save({"model": authors_names(theirs.state_dict())}, tmp_path / "sam2.pt")
    image = from_pretrained(tmp_path / "sam2.pt")
    with caplog.at_level("WARNING", logger="hiera_video"):
        video = from_pretrained(tmp_path / "sam2.pt", arch="hiera_tiny_16x224")
    assert "inflated (arXiv 1705.07750, section 2): patch filters are repeated over 3 frames" in caplog.text
    assert "its windows of attention become mask units and everything" in caplog.text
    assert video.arch.windows is None and video.arch.abs_win_pos_embed and video.arch.num_classes == 400
    picture = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    still = picture[:, :, None].expand(-1, -1, 16, -1, -1)
    with torch.no_grad():  # a still clip has the image's first map at every time but the padded ends
        expected, seen = image.forward_intermediates(picture)[1][0], video.forward_intermediates(still)[1][0]
    assert (seen[:, :, 3] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_windows_cannot_do_is_one_sentence() -> None:
    fields = {**IMAGE, "global_pos_size": (2, 2), "abs_win_pos_embed": True, "windows": (8, 4, 7, 7)}
    arch = replace(TINY, input_size=(64, 64), **fields)
    model = Hiera(arch)
    assert not walk_units(arch, (16, 16))
    with pytest.raises(RequestError, match="masks and attentions need a size at which the model's windows are"):
        model(torch.randn(1, 3, 64, 64), random_keep(1, 4, 0.5))
    with pytest.raises(RequestError, match=r"windows \(8, 4\) must have 4 numbers, one per stage"):
        replace(arch, windows=(8, 4))
    with pytest.raises(RequestError, match=r"global_pos_size \(2,\) must have 2 numbers, one per axis"):
        replace(arch, global_pos_size=(2,))


IMAGE: dict[str, Any] = {
    **{"q_stride": (2, 2), "mask_unit_size": (8, 8), "patch_kernel": (7, 7), "patch_stride": (4, 4)},
    **{"patch_padding": (3, 3), "sep_pos_embed": False},
}
