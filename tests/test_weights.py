"""Weights: every layout loads with equal outputs, nothing unsafe or unfit does, and what is fetched is held to."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from reference import reference_fields
from safetensors.torch import load_file, save_file
from shelf import Shelf
from torch import Tensor

from hiera_video.errors import OutputError, RequestError, SizeError, UnknownModel, WeightsError
from hiera_video.models import zoo
from hiera_video.models.architecture import Architecture, MAEArchitecture, mae_form
from hiera_video.models.checkpoints import io as weights
from hiera_video.models.checkpoints.formats import IMAGE_FORM
from hiera_video.models.checkpoints.saving import config_of, push_to_hub, save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.published import Checkpoint
from hiera_video.models.zoo import create_model, from_pretrained, list_models, mae_from_pretrained
from hiera_video.spec import IMAGE_SPEC, ClipSpec

VIDEO = Architecture(input_size=(4, 64, 64), embed_dim=16, stages=(1, 1, 2, 1), num_classes=5, head_init_scale=1.0)
IMAGE = Architecture(
    **{**IMAGE_FORM, "input_size": (64, 64), "num_classes": 5}, embed_dim=16, stages=(1, 1, 2, 1), head_init_scale=1.0
)
DECODER = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}
MAE = mae_form(VIDEO, **DECODER)
IMAGE_MAE = mae_form(IMAGE, **DECODER)
NAME = "hiera_atom_4x64"
TAG = f"{NAME}.mae_k400_ft_k400"


@pytest.fixture(autouse=True)
def atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny architectures beside the published ones, with checkpoints on the hub and on the authors' server."""
    monkeypatch.setitem(zoo.ARCHITECTURES, NAME, VIDEO)
    monkeypatch.setitem(zoo.ARCHITECTURES, "hiera_atom_64", IMAGE)
    monkeypatch.setitem(zoo.MAE_ARCHITECTURES, f"mae_{NAME}", MAE)
    monkeypatch.setitem(zoo.MAE_ARCHITECTURES, "mae_hiera_atom_64", IMAGE_MAE)
    facts = {"spec": ClipSpec(num_frames=4, size=(64, 64), resize=73), "num_classes": 5}
    published = Checkpoint(hub=f"facebook/{TAG}", url=zoo.AUTHORS + "hiera_atom_4x64.pth", **facts)  # type: ignore[arg-type]
    monkeypatch.setitem(zoo.CHECKPOINTS, TAG, published)
    mae = replace(published, hub=f"facebook/{NAME}.mae_k400", url=zoo.AUTHORS + "mae_hiera_atom_4x64.pth")
    monkeypatch.setitem(zoo.CHECKPOINTS, f"{NAME}.mae_k400", replace(mae, encoder_only=True))
    monkeypatch.setitem(zoo.CHECKPOINTS, f"mae_{NAME}.mae_k400", replace(mae, hub=f"facebook/mae_{NAME}.mae_k400"))
    image = replace(published, hub=None, url=zoo.AUTHORS + "hiera_atom_64.pth", spec=IMAGE_SPEC)
    monkeypatch.setitem(zoo.CHECKPOINTS, "hiera_atom_64.mae_in1k_ft_in1k", image)
    torch.manual_seed(0)


def reference(arch: Architecture, **changes: Any) -> torch.nn.Module:
    """The reference package's classifier of the same form, in training mode: its evaluation mode applies softmax."""
    hiera = pytest.importorskip("hiera")
    fields = reference_fields(arch)
    model: torch.nn.Module = hiera.Hiera(**{**fields, **changes})
    return model.train()


def published(path: Path, model: torch.nn.Module) -> Path:
    """``model`` as the authors publish: a ``.pth`` with its tensors under ``model_state``."""
    torch.save({"model_state": model.state_dict()}, path)
    return path


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Layouts


def test_a_published_pth_loads_strictly_and_gives_the_references_logits(tmp_path: Path) -> None:
    theirs, clip = reference(VIDEO), torch.randn(2, 3, 4, 64, 64)
    ours = from_pretrained(published(tmp_path / "hiera_atom_4x64.pth", theirs))
    assert ours.arch == replace(VIDEO, head_init_scale=1.0)
    assert ours.spec == ClipSpec(num_frames=4, size=(64, 64), resize=73)
    assert not ours.training
    assert_close(ours(clip), theirs(clip))


def test_a_pth_under_another_name_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    theirs = reference(VIDEO, input_size=(8, 96, 96), num_classes=7)
    ours = from_pretrained(published(tmp_path / "mine.pth", theirs))
    assert (ours.arch.input_size, ours.arch.num_classes, ours.spec.num_frames) == ((8, 96, 96), 7, 8)
    assert_close(ours(clip := torch.randn(1, 3, 8, 96, 96)), theirs(clip))


def test_the_authors_hub_folder_loads(tmp_path: Path) -> None:
    theirs = reference(VIDEO)
    theirs.save_pretrained(tmp_path, config=theirs.config)  # type: ignore[operator]
    ours = from_pretrained(tmp_path)
    assert ours.arch == VIDEO
    assert_close(ours(clip := torch.randn(2, 3, 4, 64, 64)), theirs(clip))
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert same(from_pretrained(tmp_path), ours)


def transformers_config(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.HieraConfig(
        **{"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": [64, 64], "initializer_range": 0.2, **changes}
    )


def test_transformers_classifier_gives_equal_logits_and_labels_at_its_own_size_and_at_another(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers_config(id2label={0: "ant", 1: "bee", 2: "cat"}, layer_norm_eps=1e-5, hidden_act="relu")
    theirs = transformers.HieraForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, position_resize="plain")
    assert ours.labels == ["ant", "bee", "cat"]
    with torch.no_grad():
        assert_close(ours(image := torch.randn(2, 3, 64, 64)), theirs(image).logits, 1e-4)
        wide = torch.randn(1, 3, 96, 128)
        expected = theirs(wide, interpolate_pos_encoding=True).logits
        assert_close(ours(wide), expected, 1e-4)
        built = from_pretrained(tmp_path, position_resize="plain", input_size=(96, 128))
        assert_close(built(wide), expected, 1e-4)
        assert built.arch.input_size == built.spec.size == (96, 128)


def test_transformers_bare_model_and_mae_give_their_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bare = transformers.HieraModel(transformers_config()).eval()
    bare.save_pretrained(tmp_path / "bare")
    ours = from_pretrained(tmp_path / "bare", num_classes=3)
    with torch.no_grad():
        image = torch.randn(2, 3, 64, 64)
        embedding = ours.forward_head(ours.forward_features(image), pre_logits=True)
        assert_close(embedding, bare(image).pooler_output, 1e-4)
    config = transformers_config(
        num_query_pool=2, decoder_hidden_size=32, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.0
    )
    mae = transformers.HieraForPreTraining(config).eval()
    mae.save_pretrained(tmp_path / "mae")
    ours = from_pretrained(tmp_path / "mae", num_classes=3)
    assert (ours.arch.q_pool, ours.arch.num_classes) == (3, 3)
    last = mae.hiera.encoder.stages[3].layers[0].mlp.fc1.weight
    assert torch.equal(ours.state_dict()["blocks.4.mlp.fc1.weight"], last)


def test_timm_gives_equal_logits_with_its_config_and_as_bare_tensors(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(
        "hiera_tiny_224", embed_dim=16, stages=(1, 1, 2, 1), img_size=(64, 64), num_classes=5
    ).eval()
    torch.nn.init.normal_(theirs.head.fc.weight)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    image = torch.randn(2, 3, 64, 64)
    assert_close(from_pretrained(tmp_path / "model.safetensors")(image), theirs(image))
    cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 64, 64], "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "hiera_tiny_224", "pretrained_cfg": cfg}))
    ours = from_pretrained(tmp_path)
    assert_close(ours(image), theirs(image))
    assert (ours.spec.mean, ours.spec.size, ours.spec.resize) == ((0.5, 0.5, 0.5), (64, 64), 71)


def test_an_mae_file_leaves_exactly_norm_and_head_new(tmp_path: Path) -> None:
    hiera_mae = pytest.importorskip("hiera.hiera_mae")
    fields = reference_fields(VIDEO, "head_dropout", "head_init_scale")
    theirs = hiera_mae.MaskedAutoencoderHiera(**{**fields, "q_pool": 2}, decoder_embed_dim=32, decoder_depth=1)
    ours = from_pretrained(published(tmp_path / "mae_hiera_atom_4x64.pth", theirs))
    own, state = ours.state_dict(), theirs.state_dict()
    new = {key for key in own if key not in state or not torch.equal(own[key], state[key])}
    assert new == {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
    assert ours.arch == VIDEO


def test_our_folder_reads_back_equal(tmp_path: Path) -> None:
    model = Hiera(replace(VIDEO, drop_path_rate=0.1, hidden_act="relu"), ClipSpec(num_frames=4, frame_stride=2.5))
    model.labels, model.position_resize = ["a", "b", "c", "d", "é"], "plain"
    vars(model).update(views="3x1", license="apache-2.0")
    again = from_pretrained(save_pretrained(model, tmp_path / "new" / "folder"))
    assert same(again, model)
    assert config_of(again) == config_of(model)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert (config["embed_dim"], config["clip"]["frame_stride"], config["views"]) == (16, 2.5, "3x1")
    assert "license: apache-2.0" in (tmp_path / "new" / "folder" / "README.md").read_text()


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_pretrained(Hiera(VIDEO), tmp_path / "file")


# The MAE


def mae_reference(arch: MAEArchitecture) -> torch.nn.Module:
    """The reference's MAE of the same form; its own constructor pools once more than published ones."""
    hiera_mae = pytest.importorskip("hiera.hiera_mae")
    model: torch.nn.Module = hiera_mae.MaskedAutoencoderHiera(
        **reference_fields(arch, "head_dropout", "head_init_scale", "mask_ratio")
    )
    return model


def mae_of(arch: MAEArchitecture = MAE) -> HieraMAE:
    model = HieraMAE(
        arch, ClipSpec(num_frames=4, size=(64, 64), resize=73) if len(arch.input_size) == 3 else IMAGE_SPEC
    )
    model.license = "cc-by-nc-4.0"
    return model.eval()


def same_loss(first: HieraMAE, second: Any, *, batch: int = 2) -> bool:
    clip = torch.randn(batch, 3, *first.arch.input_size)
    keep = random_keep(batch, first.num_mask_units(), 0.5)
    loss = second(clip, mask=keep)[0] if not isinstance(second, HieraMAE) else second(clip, keep).loss
    return bool(torch.isclose(first(clip, keep).loss, loss, rtol=1e-5))


def test_a_published_mae_pth_gives_the_references_loss_its_decoder_read_off_the_tensors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for arch, name in ((MAE, "hiera_atom_4x64"), (IMAGE_MAE, "anything")):
        theirs = mae_reference(arch)
        ours = mae_from_pretrained(published(tmp_path / f"mae_{name}.pth", theirs), decoder_num_heads=4)
        assert ours.arch == arch
        assert not ours.training and caplog.messages == []
        assert same_loss(ours, theirs)


def test_an_mae_file_gives_its_encoder_and_one_line_says_what_was_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = published(tmp_path / "mae_hiera_atom_4x64.pth", mae_reference(MAE))
    from_pretrained(path, num_classes=3)
    assert caplog.messages == [
        f"the decoder of {path} was left behind: 38 tensors (decoder_*, encoder_norm, mask_token, "
        f"multi_scale_fusion_heads); a new norm and head of 3 classes start untrained"
    ]


def test_our_mae_folder_reads_back_equal_and_gives_its_encoder(tmp_path: Path) -> None:
    model = mae_of(replace(MAE, mask_ratio=0.75, q_pool=1, drop_path_rate=0.1))
    model.position_resize = "plain"
    folder = save_pretrained(model, tmp_path)
    (folder / "checkpoints").mkdir()
    (folder / "recipe.yaml").write_text("")
    again = mae_from_pretrained(folder)
    assert same(again, model) and config_of(again) == config_of(model)
    config = json.loads((folder / "config.json").read_text())
    assert (config["mask_ratio"], config["decoder_depth"], config["format_version"]) == (0.75, 2, 1)
    assert not {"labels", "views"} & config.keys()
    card = (folder / "README.md").read_text()
    assert "masked autoencoder" in card and "license: cc-by-nc-4.0" in card and "mae_from_pretrained" in card
    encoder = from_pretrained(folder, num_classes=3)
    assert encoder.arch == replace(VIDEO, num_classes=3, drop_path_rate=0.1)
    assert (encoder.spec, encoder.position_resize, encoder.license) == (model.spec, "plain", "cc-by-nc-4.0")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in trunk_of(encoder).items())


def trunk_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith(("pos_embed", "patch_embed", "blocks."))}


def test_a_classifier_becomes_an_mae_with_a_new_decoder_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Hiera(VIDEO)
    folder = save_pretrained(model, tmp_path / "classifier")
    mae = mae_from_pretrained(folder, **DECODER)
    assert mae.arch == MAE
    assert caplog.messages == [
        f"{folder} has no decoder: a new one starts untrained; left behind: 4 tensors (head, norm)"
    ]
    back = from_pretrained(save_pretrained(mae, tmp_path / "mae"))
    assert back.arch == VIDEO
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in trunk_of(model).items())


def test_another_size_resizes_the_decoders_positions_too(tmp_path: Path) -> None:
    path = save_pretrained(mae_of(), tmp_path)
    clip, keep = torch.randn(1, 3, 8, 96, 128), random_keep(1, 4 * 3 * 4, 0.9)
    for way in ("window", "plain"):
        flown = mae_from_pretrained(path, position_resize=way)
        built = mae_from_pretrained(path, position_resize=way, input_size=(8, 96, 128))
        assert built.decoder_pos_embed.shape == (1, 4 * 6 * 8, 32)
        assert torch.isclose(flown(clip, keep).loss, built(clip, keep).loss, rtol=1e-5)
    assert (built.spec.num_frames, built.spec.size) == (8, (96, 128))


def test_a_decoder_of_another_form_than_asked_for_is_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_pretrained(mae_of(), tmp_path)
    other = mae_from_pretrained(path, decoder_depth=1, mask_ratio=0.8)
    assert (other.arch.decoder_depth, other.arch.decoder_embed_dim, other.arch.mask_ratio) == (1, 32, 0.8)
    assert [message.partition(": ")[0] for message in caplog.messages] == [
        f"the decoder of {path} does not fit and was left behind"
    ]


def test_an_image_mae_starts_a_video_mae_with_a_new_decoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_pretrained(mae_of(IMAGE_MAE), tmp_path)
    video = mae_from_pretrained(path, arch=MAE)
    assert video.arch == MAE and "does not fit and was left behind" in caplog.text
    assert video.spec.mean == IMAGE_SPEC.mean and video.spec.num_frames == 4
    assert torch.equal(video.pos_embed_spatial, mae_from_pretrained(path).pos_embed)
    assert from_pretrained(path, arch=f"mae_{NAME}").arch == VIDEO


def test_transformers_mae_gives_an_equal_loss(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers_config(
        num_query_pool=2, decoder_hidden_size=32, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5
    )
    theirs = transformers.HieraForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = mae_from_pretrained(tmp_path)
    assert (ours.arch.decoder_depth, ours.arch.decoder_num_heads, ours.arch.mask_ratio) == (1, 2, 0.5)
    image = torch.randn(2, 3, 64, 64)
    noise = torch.rand(2, 4)
    keep = noise.argsort(dim=1).argsort(dim=1) < 2  # it shows the units of the smallest noise
    with torch.no_grad():
        assert torch.isclose(ours(image, keep).loss, theirs(image, noise=noise).loss, rtol=1e-4)


def test_the_authors_mae_folder_whose_config_leaves_the_decoder_out(tmp_path: Path) -> None:
    theirs = mae_reference(IMAGE_MAE)
    fields = {key: value for key, value in theirs.config.items() if key != "norm_layer"}  # type: ignore[union-attr, operator]
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert mae_from_pretrained(tmp_path, decoder_num_heads=4).arch == replace(IMAGE_MAE, head_init_scale=0.001)
    assert from_pretrained(tmp_path).arch == replace(IMAGE, head_init_scale=0.001)


def test_an_mae_is_created_by_name() -> None:
    model = create_model(f"mae_{NAME}", mask_ratio=0.8, decoder_depth=1, input_size=(2, 64, 64))
    assert isinstance(model, HieraMAE) and model.training
    assert model.arch == replace(MAE, mask_ratio=0.8, decoder_depth=1, input_size=(2, 64, 64))
    assert create_model(f"mae_{NAME}.mae_k400").spec == ClipSpec(num_frames=4, size=(64, 64), resize=73)
    published_form = zoo.MAE_ARCHITECTURES["mae_hiera_base_16x224"]
    assert published_form == MAEArchitecture() and (published_form.q_pool, published_form.mask_ratio) == (2, 0.9)
    assert zoo.MAE_ARCHITECTURES["mae_hiera_huge_224"].mask_ratio == 0.6
    assert zoo.MAE_ARCHITECTURES["mae_hiera_tiny_16x224"].mask_ratio == 0.9
    with pytest.raises(RequestError, match=f"mae_{NAME} has no classes: leave num_classes out"):
        create_model(f"mae_{NAME}", num_classes=3)
    with pytest.raises(RequestError, match="no field 'decoder_deph'; did you mean decoder_depth"):
        create_model(f"mae_{NAME}", decoder_deph=3)


def test_an_mae_is_fetched_by_its_name_or_its_encoders(shelf: Shelf, tmp_path: Path) -> None:
    model = mae_of()
    save_pretrained(model, tmp_path / "saved")
    shelf.put(f"facebook/mae_{NAME}.mae_k400", tmp_path / "saved")
    for found in (
        create_model(f"mae_{NAME}", pretrained=True),
        mae_from_pretrained(f"mae_{NAME}.mae_k400"),
        mae_from_pretrained(f"facebook/mae_{NAME}.mae_k400"),
        mae_from_pretrained(f"{NAME}.mae_k400", decoder_num_heads=4),
    ):
        assert isinstance(found, HieraMAE) and same(found, model)
    encoder = from_pretrained(f"mae_{NAME}.mae_k400")
    assert encoder.arch == VIDEO
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in trunk_of(encoder).items())


# What does not fit


def test_another_num_classes_makes_the_head_new_and_says_so_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = published(tmp_path / "hiera_atom_4x64.pth", reference(VIDEO))
    first, other = from_pretrained(path), from_pretrained(path, num_classes=3)
    assert caplog.messages == [f"{path} has 5 classes: a new head of 3 classes starts untrained"]
    assert other(torch.zeros(1, 3, 4, 64, 64)).shape == (1, 3)
    assert torch.equal(first.norm.weight, other.norm.weight)


def test_a_mismatch_lists_missing_unexpected_and_mis_shaped_names() -> None:
    model = Hiera(VIDEO)
    state = {f"other.{index}": torch.zeros(1) for index in range(6)} | model.state_dict()
    del state["norm.bias"]
    state["norm.weight"] = torch.zeros(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        weights.load_state(model, state, source="x.pth")
    assert str(caught.value) == (
        "x.pth does not fit this architecture: 1 missing (norm.bias); "
        "6 unexpected (other.0, other.1, other.2, other.3, ...); 1 mis-shaped (norm.weight (3,) instead of (128,))"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = published(tmp_path / "x.pth", reference(VIDEO))
    with pytest.raises(WeightsError, match=r"does not fit this architecture: \d+ missing \(.*mis-shaped"):
        from_pretrained(path, arch="hiera_nano_16x64")
    wider = published(tmp_path / "y.pth", reference(VIDEO, embed_dim=24))
    with pytest.raises(WeightsError, match=r"without a name here \(embed_dim 24, stages \(1, 1, 2, 1\)"):
        from_pretrained(wider)
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "z.safetensors")
    with pytest.raises(WeightsError, match="holds no Hiera"):
        from_pretrained(tmp_path / "z.safetensors")


class Payload:
    """Unpickled with code allowed, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle 2", "pickle 4"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trap, path = tmp_path / "made_by_the_payload", tmp_path / "evil.pth"
    content = {"model_state": {"norm.weight": torch.zeros(1)}, "extra": Payload(trap)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Payload(trap)}, protocol=int(form[-1])))
    with pytest.raises(WeightsError, match=r"pickle with code in it.*was not run") as caught:
        from_pretrained(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = published(tmp_path / "whole.pth", reference(VIDEO)).read_bytes()
    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    files = {
        "truncated.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"hello",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1",
        "cut.safetensors": (tmp_path / "a.safetensors").read_bytes()[:100],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="damaged") as caught:
            from_pretrained(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        from_pretrained(tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"gone\.pth does not exist"):
        from_pretrained(str(tmp_path / "gone.pth"))
    with pytest.raises(WeightsError, match="no model folder"):
        from_pretrained(tmp_path)


def test_configs_that_cannot_be_used_name_the_reason(tmp_path: Path) -> None:
    save_pretrained(Hiera(VIDEO), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, reason in (
        ({"format_version": 99}, "format_version 99 is newer"),
        ({"embed_dimm": 3}, "embed_dimm"),
        ({"q_pool": 7}, "q_pool 7 must be"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=reason):
            from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="of no known layout"):
        from_pretrained(tmp_path)


# Names


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownModel, match=r"no model is called 'hiera_bse_16x224'; .*hiera_base_16x224"):
        create_model("hiera_bse_16x224")
    with pytest.raises(UnknownModel, match=r"'hiera_bse_16x224.mae_k400'.*hiera_base_16x224.mae_k400"):
        from_pretrained("hiera_bse_16x224.mae_k400")
    with pytest.raises(UnknownModel, match="has no checkpoint 'mae_k40'; the nearest: mae_k400"):
        create_model("hiera_base_16x224", checkpoint="mae_k40")
    with pytest.raises(UnknownModel, match=r"hiera_tiny_16x224 has no pretrained weights.*'mae_in1k_ft_in1k'"):
        from_pretrained("hiera_tiny_16x224")
    with pytest.raises(RequestError, match="no field 'embed_dm'; did you mean embed_dim"):
        create_model(NAME, embed_dm=3)
    with pytest.raises(SizeError, match=r"\(frames, height, width\)"):
        create_model(NAME, input_size=(64, 64))
    with pytest.raises(RequestError, match="position_resize 'cubic' must be one of window, plain"):
        create_model(NAME, position_resize="cubic")


def test_list_models_takes_patterns_and_lists_checkpoints() -> None:
    assert list_models("hiera_b*16x224") == ["hiera_base_16x224", "hiera_base_plus_16x224"]
    assert {"hiera_nano_16x64.camera_motion", "hiera_nano_16x64.general"} <= {*list_models(pretrained=True)}
    known = {**zoo.ARCHITECTURES, **zoo.MAE_ARCHITECTURES}
    assert all(name.partition(".")[0] in known for name in zoo.CHECKPOINTS)
    assert list_models("mae_hiera_b*16x224") == ["mae_hiera_base_16x224", "mae_hiera_base_plus_16x224"]
    assert "mae_hiera_nano_16x64" in list_models()


def test_published_checkpoints_have_the_published_names_and_addresses() -> None:
    base = {
        name: (entry.hub, entry.url, entry.metric, entry.labels, entry.encoder_only)
        for name, entry in zoo.CHECKPOINTS.items()
        if "hiera_base_16x224" in name
    }
    files = "https://dl.fbaipublicfiles.com/hiera/"
    tuned, encoder, mae = (
        "hiera_base_16x224.mae_k400_ft_k400",
        "hiera_base_16x224.mae_k400",
        "mae_hiera_base_16x224.mae_k400",
    )
    metric = "Kinetics-400 top-1 84.0 % (5x3 views)"
    assert base == {
        tuned: (f"facebook/{tuned}", f"{files}hiera_base_16x224.pth", metric, "kinetics400", False),
        encoder: (f"facebook/{encoder}", f"{files}mae_hiera_base_16x224.pth", None, None, True),
        mae: (f"facebook/{mae}", f"{files}mae_hiera_base_16x224.pth", None, None, False),
    }
    image = zoo.CHECKPOINTS["hiera_tiny_224.mae_in1k_ft_in1k"]
    assert (image.metric, image.num_classes, image.views) == ("ImageNet-1K top-1 82.8 %", 1000, "1x1")
    assert len(zoo.CHECKPOINTS) == 3 * 10 + 2 + 4 + 8 + 4  # ours, timm's, SAM 2's, and the four atoms of these tests


def test_published_labels_are_in_the_order_of_the_heads() -> None:
    kinetics = zoo.labels_of("kinetics400")
    assert (len(kinetics), kinetics[125], kinetics[363]) == (400, "feeding goats", "training dog")
    assert len(zoo.labels_of("imagenet1k")) == 1000


def test_fewer_frames_keep_the_span_of_a_clip() -> None:
    model = create_model(TAG, input_size=(2, 96, 64), num_classes=2, drop_path_rate=0.2)
    assert (model.spec.num_frames, model.spec.span, model.spec.size) == (2, ClipSpec(num_frames=4).span, (96, 64))
    assert model.arch.drop_path_rate == 0.2


def test_another_input_size_stores_resized_positions(tmp_path: Path) -> None:
    path = published(tmp_path / "hiera_atom_4x64.pth", reference(VIDEO))
    clip = torch.randn(1, 3, 6, 96, 64)
    for way in ("window", "plain"):
        flown = from_pretrained(path, position_resize=way)
        built = from_pretrained(path, position_resize=way, input_size=(6, 96, 64))
        assert built.arch.input_size == (6, 96, 64)
        assert_close(built(clip), flown(clip))


def test_image_weights_inflate_so_that_a_still_clip_has_the_images_tokens(tmp_path: Path) -> None:
    path = published(tmp_path / "hiera_atom_64.pth", reference(IMAGE))
    video, image = from_pretrained(path, arch=NAME), from_pretrained(path)
    assert (video.arch, video.spec.mean, video.spec.num_frames) == (VIDEO, IMAGE_SPEC.mean, 4)
    picture = torch.randn(1, 3, 64, 64)
    clip = picture[:, :, None].repeat(1, 1, 4, 1, 1)
    tokens = video.patch_embed(clip) + video.position_embedding((2, 16, 16))
    expected = image.patch_embed(picture) + image.position_embedding((16, 16))
    assert_close(tokens.unflatten(1, (2, 256))[:, 1], expected)
    assert torch.equal(video.pos_embed_temporal, torch.zeros(1, 2, 16))


# Fetching


def test_a_hub_repository_is_fetched_through_hf_endpoint(shelf: Shelf, tmp_path: Path) -> None:
    theirs = reference(VIDEO)
    theirs.save_pretrained(tmp_path / "saved", config=theirs.config)  # type: ignore[operator]
    shelf.put("someone/tiny", tmp_path / "saved")
    code = "from hiera_video.models.zoo import from_pretrained; print(from_pretrained('someone/tiny').arch)"
    environment = {**os.environ, "HF_ENDPOINT": shelf.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == str(VIDEO), run.stderr
    shelf.asked.clear()
    assert same(from_pretrained("someone/tiny", local_files_only=True), from_pretrained(tmp_path / "saved"))
    assert not [path for path in shelf.asked if "/resolve/" in path]


def test_a_published_checkpoint_comes_from_the_hub_first_with_its_licence_said_once(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Hiera(VIDEO)
    save_pretrained(model, tmp_path / "saved")
    shelf.put(f"facebook/{TAG}", tmp_path / "saved")
    assert same(create_model(NAME, pretrained=True, checkpoint="mae_k400_ft_k400"), model)
    assert capsys.readouterr().err.count("CC BY-NC 4.0") == 1
    assert same(from_pretrained(TAG, local_files_only=True), model)
    assert same(from_pretrained(f"facebook/{TAG}"), model)
    assert "CC BY-NC" not in capsys.readouterr().err
    assert not [path for path in shelf.asked if "/hiera/" in path]


def test_the_hubs_untrained_norm_and_head_of_an_mae_encoder_are_not_taken(shelf: Shelf, tmp_path: Path) -> None:
    model = Hiera(VIDEO)
    torch.nn.init.constant_(model.norm.weight, 7.0)
    save_pretrained(model, tmp_path / "saved")
    shelf.put(f"facebook/{NAME}.mae_k400", tmp_path / "saved")
    ours = create_model(f"{NAME}.mae_k400", pretrained=True)
    assert torch.equal(ours.norm.weight, torch.ones(128))
    kernel = "patch_embed.proj.weight"
    assert torch.equal(ours.state_dict()[kernel], model.state_dict()[kernel])


def test_a_file_in_the_hubs_cache_is_held_to_the_hubs_digest(shelf: Shelf, tmp_path: Path) -> None:
    save_pretrained(Hiera(VIDEO), tmp_path / "saved")
    shelf.put(f"facebook/{TAG}", tmp_path / "saved")
    from_pretrained(TAG)
    (file,) = (tmp_path / "home" / "hub").rglob("model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().chmod(0o644)
    file.resolve().write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged: its SHA-256"):
        from_pretrained(TAG)


def test_the_authors_pth_is_the_second_source_and_its_checksum_is_kept(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Hiera(VIDEO)
    content = published(tmp_path / "x.pth", model).read_bytes()
    shelf.files["/hiera/hiera_atom_4x64.pth"] = content
    assert same(from_pretrained(TAG), model)
    assert "CC BY-NC 4.0" in capsys.readouterr().err
    cached = tmp_path / "home" / "hiera_video" / "hiera_atom_4x64.pth"
    record = cached.with_name(cached.name + ".sha256")
    assert record.read_text().strip() == hashlib.sha256(content).hexdigest()
    assert same(from_pretrained(TAG, local_files_only=True), model)

    cached.write_bytes(content[:-1] + b"x")
    with pytest.raises(WeightsError, match="has changed: its SHA-256 is"):
        from_pretrained(TAG)
    cached.unlink()
    shelf.files["/hiera/hiera_atom_4x64.pth"] = content + b"x"
    with pytest.raises(WeightsError, match="is not what it was"):
        from_pretrained(TAG)
    assert [path.name for path in cached.parent.iterdir()] == [record.name]


def test_a_download_that_breaks_off_is_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["/hiera/hiera_atom_4x64.pth"] = published(tmp_path / "x.pth", Hiera(VIDEO)).read_bytes()
    shelf.cut = True
    with pytest.raises(WeightsError, match=r"broke off after \d+ of \d+ bytes"):
        from_pretrained(TAG)
    assert list((tmp_path / "home" / "hiera_video").iterdir()) == []


def test_a_checksum_in_the_table_counts_from_the_first_download(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.files["/hiera/hiera_atom_4x64.pth"] = published(tmp_path / "x.pth", Hiera(VIDEO)).read_bytes()
    monkeypatch.setitem(zoo.CHECKPOINTS, TAG, replace(zoo.CHECKPOINTS[TAG], sha256="0" * 64))
    with pytest.raises(WeightsError, match="is not what it was"):
        from_pretrained(TAG)


def test_image_weights_are_fetched_for_a_video_model_by_the_images_tag(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files["/hiera/hiera_atom_64.pth"] = published(tmp_path / "x.pth", Hiera(IMAGE)).read_bytes()
    model = create_model(NAME, pretrained=True, checkpoint="mae_in1k_ft_in1k", num_classes=9)
    assert model.arch == replace(VIDEO, num_classes=9)
    assert model.pos_embed_temporal.abs().max() == 0
    assert same_trunk(model, from_pretrained(f"{NAME}.mae_in1k_ft_in1k"))


def same_trunk(first: Hiera, second: Hiera) -> bool:
    return all(
        torch.equal(value, second.state_dict()[key])
        for key, value in first.state_dict().items()
        if not key.startswith("head.")
    )


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_one_sentence_comes_at_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HIERA_VIDEO_WEIGHTS_URL", "http://127.0.0.1:9/")
    with pytest.raises(WeightsError) as caught:
        create_model(NAME, pretrained=True)
    message = str(caught.value)
    assert message.startswith(f"{TAG} could not be fetched (")
    assert ("offline mode is on" in message) == offline
    assert message.endswith("connect to the network, or download it elsewhere and name its file")
    with pytest.raises(WeightsError, match="someone/tiny is no folder here and could not be had from the hub"):
        from_pretrained("someone/tiny")


def test_push_to_hub_uploads_our_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def upload(self: object, *, repo_id: str, folder_path: str, **kwargs: Any) -> SimpleNamespace:
        seen.update(repo=repo_id, tensors=load_file(Path(folder_path) / "model.safetensors"), **kwargs)
        return SimpleNamespace()

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **kwargs: seen.update(made=repo_id))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    model = Hiera(VIDEO)
    push_to_hub(model, "me/mine", commit_message="first")
    assert (seen["made"], seen["repo"], seen["commit_message"]) == ("me/mine", "me/mine", "first")
    assert seen["tensors"].keys() == model.state_dict().keys()
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **kwargs: 1 / 0)
    with pytest.raises(OutputError, match="me/mine cannot be written on"):
        push_to_hub(model, "me/mine")
