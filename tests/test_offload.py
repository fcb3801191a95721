"""The forward of every model in several threads, and under accelerate's hooks, which put weights in place for it.

Every parameter must be read inside the forward of the module that owns it: what is read beside it is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from hiera_video.models.architecture import Architecture, mae_form
from hiera_video.models.checkpoints.formats import IMAGE_FORM
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep

BLOCKS: dict[str, Any] = {"embed_dim": 8, "stages": (1, 1, 1), "q_pool": 2, "mask_unit_attn": (True, True, False)}
VIDEO = Architecture(input_size=(4, 32, 48), mask_unit_size=(1, 4, 4), num_classes=5, **BLOCKS)
IMAGE = Architecture(**IMAGE_FORM | {"input_size": (32, 48), "mask_unit_size": (4, 4), **BLOCKS})

KINDS = ["video", "masked video", "image", "mae video"]
Model = Hiera | HieraMAE


def build(kind: str) -> Model:
    arch = VIDEO if kind.endswith("video") else IMAGE
    if kind.startswith("mae"):
        return HieraMAE(mae_form(arch, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=4)).eval()
    return Hiera(arch).eval()


def trained(kind: str) -> Model:
    """A model with weights of which none is a constant, so that a missing one is seen."""
    torch.manual_seed(0)
    model = build(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return model


def answer(kind: str, model: Model, seed: int) -> Tensor:
    """What ``model`` answers to clips that depend on ``seed`` alone: logits, or the loss and the predictions."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(2, 3, *model.arch.input_size, generator=generator)
    keep = random_keep(2, model.num_mask_units(), 0.5, generator=generator)
    with torch.no_grad():
        if isinstance(model, HieraMAE):
            out = model(clip, keep)
            return torch.cat([out.loss.flatten(), out.prediction.flatten()])
        return model(clip, keep if kind.startswith("masked") else None)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_get_what_one_after_another_gets(kind: str) -> None:
    model = trained(kind)
    expected = [answer(kind, model, seed) for seed in range(12)]

    def wrong(thread: int) -> list[int]:
        """Seeds whose answer differs in one of 24 calls, each thread beginning at another one."""
        seeds = [(call + 5 * thread) % 12 for call in range(24)]
        return [seed for seed in seeds if not torch.equal(answer(kind, model, seed), expected[seed])]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(wrong, range(8))) == [[]] * 8


def test_attentions_asked_for_in_several_threads_do_not_mix() -> None:
    model = trained("video")
    clips = [torch.randn(1, 3, 4, 32, 48, generator=torch.Generator().manual_seed(seed)) for seed in range(16)]
    expected = [model.forward_attentions(clip) for clip in clips]
    with ThreadPoolExecutor(8) as threads:
        for attentions, alone in zip(threads.map(model.forward_attentions, clips), expected, strict=True):
            assert len(attentions) == len(alone) == 3
            assert all(torch.equal(a, b) for a, b in zip(attentions, alone, strict=True))


def to_memory(model: Model, folder: Path) -> Model:
    accelerate.cpu_offload(model, execution_device="cpu")
    return model


def to_disk(model: Model, folder: Path) -> Model:
    accelerate.disk_offload(model, str(folder), execution_device="cpu")
    return model


def parts_on_disk(model: Model, on_disk: Callable[[str], bool]) -> dict[str, str]:
    """A device map of each child, each block apart; parameters of the model itself stay in memory."""
    names = [name for name, _ in model.named_children() if not name.endswith("blocks")]
    names += [name for name, module in model.named_modules() if module.__class__.__name__ == "Block"]
    own = {name: "cpu" for name, _ in model.named_parameters(recurse=False)}
    return own | {name: "disk" if on_disk(name) else "cpu" for name in names}


def embedding_to_disk(model: Model, folder: Path) -> Model:
    places = parts_on_disk(model, lambda name: name in ("patch_embed", "blocks.1", "decoder_blocks.0"))
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    return model


def all_but_embedding_to_disk(model: Model, folder: Path) -> Model:
    places = parts_on_disk(model, lambda name: name != "patch_embed")
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    return model


def loaded_partly_to_disk(model: Model, folder: Path) -> Model:
    """The same weights out of a file into a model that never had any, of which accelerate puts a part on disk."""
    file = save_pretrained(model, folder / "saved") / "model.safetensors"
    room = sum(parameter.nbytes for parameter in model.parameters()) * 9 // 10
    with accelerate.init_empty_weights():
        empty: Model = type(model)(model.arch).eval()
    places = accelerate.infer_auto_device_map(empty, max_memory={"cpu": room}, no_split_module_classes=["Block"])
    assert set(places.values()) == {"cpu", "disk"}
    accelerate.load_checkpoint_and_dispatch(
        empty, str(file), device_map=places, offload_folder=str(folder / "parts"), force_hooks=True
    )
    return empty


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", [to_memory, to_disk, embedding_to_disk, all_but_embedding_to_disk, loaded_partly_to_disk]
)
def test_weights_that_accelerate_keeps_elsewhere_give_the_same_answers(
    kind: str, place: Callable[[Model, Path], Model], tmp_path: Path
) -> None:
    model = trained(kind)
    expected = [answer(kind, model, seed) for seed in range(2)]
    model = place(model, tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert all(torch.equal(answer(kind, model, seed), expected[seed]) for seed in range(2))
