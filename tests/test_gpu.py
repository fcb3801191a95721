"""On a GPU: what it computes is what the CPU computes, and nothing waits for it unasked.

Waiting is also watched without a GPU, on torch's meta device: tensors there have no values, and copies to it are seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_sets import finetuning, write_colours

from hiera_video.data.loader import Made
from hiera_video.data.on_device import on_device
from hiera_video.data.views import Views
from hiera_video.models import attention
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, MAEArchitecture, random_keep
from hiera_video.spec import ClipSpec
from hiera_video.tasks.classify.classifier import Scorer
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.tasks.features.extractor import _values as feature_values
from hiera_video.tasks.train.classifier import ClassStep
from hiera_video.tasks.train.finetune import finetune
from hiera_video.tasks.train.pretrain import MAEStep, Masking
from hiera_video.tasks.train.teacher import ModelTeacher
from hiera_video.training.devices import autocast, pick_precision
from hiera_video.training.recipe import Finetuning, Loss
from hiera_video.training.recipe_file import load_recipe

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SPEC = ClipSpec(num_frames=4, size=(64, 64), resize=64)
ARCH = replace(TINY, input_size=(4, 64, 64), q_pool=2)
MAE_ARCH = MAEArchitecture(**vars(ARCH), mask_ratio=0.5, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def models(device: str = "cpu") -> tuple[Hiera, HieraMAE]:
    torch.manual_seed(0)
    return Hiera(ARCH, SPEC).to(device), HieraMAE(MAE_ARCH, SPEC).to(device)


def batch_of(count: int, erased: bool = False) -> Any:
    """A training batch as it leaves the loader; every second clip is mirrored, and has a box erased."""
    box = torch.tensor([8, 16, 20, 24]) * erased
    return {
        "clip": torch.randint(0, 256, (count, 3, 4, 64, 64), dtype=torch.uint8),
        "flip": torch.arange(count) % 2 == 0,
        "erase": torch.stack([box * (row % 2) for row in range(count)]),
        "noise_seed": torch.arange(count),
        "label": torch.arange(count) % 6,
        "path": ["clip.mp4"] * count,
        **{name: torch.arange(count) for name in ("epoch", "index", "repeat")},
    }


def jobs(device: str) -> dict[str, Callable[[], object]]:
    """What is done again and again: scores, features, views cut; training steps up to where their figures are read."""
    where, (classifier, mae) = torch.device(device), models(device)
    dtype = torch.bfloat16
    batch, parameters = batch_of(4), [*classifier.parameters(), *mae.parameters()]
    classify = ClassStep(Loss(mixup=0.8, cutmix=1.0, label_smoothing=0.1), SPEC, 6, 0, where)
    pretrain = MAEStep(SPEC, Masking(0, mae.num_mask_units(), 0.5, 0.5), where)
    scorer = Scorer(classifier, SPEC, where, dtype)
    extractor = FeatureExtractor.__new__(FeatureExtractor)  # whose device is not one that users name
    extractor._values = feature_values
    extractor.model, extractor.device, extractor.precision = classifier, where, dtype
    frames, rows = torch.zeros(3, 9, 64, 80, dtype=torch.uint8), torch.arange(8).view(2, 4)
    views = Views(frames, rows, [(0, 0), (0, 16)], (64, 64), np.zeros((4, 4)), 1.0)
    teacher, long = ModelTeacher(classifier), torch.zeros(2, 3, 8, 64, 64, device=device)

    def step(make: Any, model: nn.Module) -> None:
        with autocast(where, dtype):
            loss = make(model, batch, (0, 0))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)

    return {
        "scores": lambda: scorer(batch["clip"]),
        "features": lambda: extractor.features(views.to(device).clips, ["embedding", "statistics", "stage2"]),
        "views": lambda: views.to(device).clips,
        "teacher": lambda: teacher(long),
        "masked": lambda: classifier(on_device(batch, SPEC, where), np.arange(8) % 2 == np.zeros((4, 1))),
        "fine-tuning": lambda: step(classify, classifier.train()),
        "pre-training": lambda: step(pretrain, mae.train()),
    }


JOBS = ("scores", "features", "views", "teacher", "masked", "fine-tuning", "pre-training")


class Waits(TorchDispatchMode):
    """Notes what would wait for a device: values read, and copies that are not queued."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket._qualified_op_name.removeprefix("aten::")
        out = func(*args, **kwargs)
        given = {
            leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor) and leaf.ndim
        }
        queued = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique") and "meta" in given:
            self.noted.append(name)
        if given == {"cpu", "meta"} and not queued:
            self.noted.append(name)
        return out


@pytest.mark.parametrize("job", JOBS)
def test_nothing_is_copied_to_a_device_or_read_from_it_while_the_host_waits(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *how, **more: nullcontext())  # the meta device knows none
    run = jobs("meta")[job]
    with Waits() as waits:
        run()
    assert waits.noted == []


def test_the_watch_sees_what_waits() -> None:
    device, host = torch.zeros(4, 4, device="meta"), torch.zeros(4, dtype=torch.int64)
    with Waits() as waits:
        host.to("meta", non_blocking=True)
        assert waits.noted == []
        host.to("meta")
        device[host]
        with pytest.raises(Exception, match="meta"):
            device.sum().item()
    assert waits.noted == ["_to_copy", "index"]


# --- what a first run on a GPU would have met ------------------------------------------------------------------------


def test_more_windows_than_a_kernel_takes_are_attended_to_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mae = models()
    clip, keep = torch.randn(3, 3, 4, 64, 64), random_keep(3, 8, 0.5, generator=torch.Generator().manual_seed(0))
    before = model(clip), mae(clip, keep).loss
    counts: list[int] = []
    plain = F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        counts.append(len(query))
        return plain(query, key, value)

    monkeypatch.setattr(attention, "MOST_WINDOWS", 7)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    torch.testing.assert_close((model(clip), mae(clip, keep).loss), before)
    assert max(counts) == 7 and sum(counts[:4]) == 3 * 8


def test_batches_of_a_worker_are_pinned_on_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pinning = importlib.import_module("torch.utils.data._utils.pin_memory")
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 1)
    batch = {"label": torch.zeros(2), "path": ["a.mp4", "b.mp4"], "problems": []}
    pinned = pinning.pin_memory(Made(batch))  # type: ignore[arg-type]
    assert pinned.batch["label"].tolist() == [1, 1] and pinned.batch["path"] == batch["path"]
    assert pinning.pin_memory(Made(None, "no video")) == Made(None, "no video")


def test_auto_is_fp32_on_a_gpu_that_only_emulates_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_precision("auto", torch.device("cuda")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert pick_precision("auto", torch.device("cuda")) == torch.bfloat16


# --- on a GPU --------------------------------------------------------------------------------------------------------


def answers(device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Logits, loss, and their gradients' parts, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    clip, keep = torch.randn(4, 3, 4, 64, 64, generator=generator), random_keep(4, 8, 0.5, generator=generator).numpy()
    found: dict[str, Tensor] = {}
    for name, model in zip(("classifier", "mae"), models(device), strict=True):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            out = model(clip.to(device)) if name == "classifier" else model(clip.to(device), keep).loss
        out.float().square().sum().backward()
        found[name] = out.detach().float().cpu()
        found |= {f"{name}.{key}": p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None}
    return found


@gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2), ("float16", 0.2)])
def test_a_gpu_computes_what_the_cpu_computes(dtype: str, tolerance: float) -> None:
    expected = answers("cpu")
    with torch.backends.cudnn.flags(allow_tf32=False):
        computed = answers("cuda", getattr(torch, dtype))
    assert computed.keys() == expected.keys()
    for name, value in computed.items():
        assert (value - expected[name]).norm() <= tolerance * expected[name].norm() + 1e-6, name


@gpu
@pytest.mark.parametrize("job", JOBS)
def test_nothing_waits_for_the_gpu(job: str) -> None:
    run = jobs("cuda")[job]
    run()  # libraries load their parts, which waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_clips_are_mirrored_normalised_and_erased_alike_on_both() -> None:
    batch = batch_of(4, erased=True)
    host, device = on_device(batch, SPEC, "cpu"), on_device(batch, SPEC, "cuda")
    again, device = on_device(batch, SPEC, "cuda").cpu(), device.cpu()
    assert torch.equal(again, device)  # the noise too
    erased = torch.zeros_like(host, dtype=torch.bool)
    erased[1::2, :, :, 8:28, 16:40] = True
    torch.testing.assert_close(device[~erased], host[~erased])
    assert abs(device[erased].mean()) < 0.05 and abs(device[erased].std() - 1) < 0.05


@gpu
def test_more_windows_than_65535_go_through_the_gpu() -> None:
    windows = torch.randn(70_000, 1, 4, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mixed = attention.attend(windows, windows, windows)
    mixed.float().sum().backward()
    last = windows[-9:].detach().float()
    weights = (last @ last.transpose(-2, -1) / 4).softmax(dim=-1)
    torch.testing.assert_close(mixed[-9:].float(), weights @ last, atol=2e-2, rtol=2e-2)


@gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_run_that_goes_on_with_its_scaler_is_the_same_run(
    tmp_path: Path, tiny_model: Path, precision: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    train = write_colours(tmp_path / "train", 6, seed=0)
    how = {"run.duration": "8st", "run.save_every": "4st", "run.precision": precision, "run.device": "cuda"}
    made: dict[str, dict[str, Tensor]] = {}
    for name in ("whole", "halved"):
        changes = finetuning(train, tiny_model) | how | {"run.output": str(tmp_path / name)}
        if name == "halved":
            records = finetune(load_recipe(Finetuning, changes=changes))
            while next(records).step < 5:
                pass
            records.close()  # type: ignore[attr-defined]
        list(finetune(load_recipe(Finetuning, changes=changes)))
        made[name] = load_file(tmp_path / name / "checkpoints" / "step_00000008" / "model.safetensors")
    scale = [(tmp_path / name / "checkpoints" / "step_00000008" / "state.json").read_text() for name in made]
    assert scale[0].split('"scaler"')[1].split('"loader"')[0] == scale[1].split('"scaler"')[1].split('"loader"')[0]
    for key, value in made["whole"].items():
        torch.testing.assert_close(made["halved"][key], value, atol=1e-4, rtol=1e-3)
