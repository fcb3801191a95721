"""torch.compile: one graph for each form of the models, one for all batch sizes, and the numbers of the eager model.

Graphs are tested with a backend that runs them as they are, which takes seconds; images have the same code. What the
real one makes of them is slow, and tested by hand. Both compare the gradients of every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import IMAGE_FORM
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep

BLOCKS: dict[str, Any] = {"embed_dim": 16, "stages": (1, 1, 1, 1)}
VIDEO: dict[str, Any] = {"input_size": (4, 64, 96), **BLOCKS}
IMAGE: dict[str, Any] = {**IMAGE_FORM, "input_size": (64, 96), **BLOCKS}
DECODER: dict[str, Any] = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4, "mask_ratio": 0.7}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    form = VIDEO if kind.endswith("video") else IMAGE
    if kind.startswith("mae"):
        return HieraMAE(MAEArchitecture(**form, **DECODER))
    return Hiera(Architecture(**form | {"num_classes": 5}))


def loss_of(model: nn.Module, run: Any, batch: int, *, dynamic: bool = False) -> Tensor:
    """A scalar of ``run``, which is ``model`` or its compiled form, for a batch that depends on its size alone."""
    generator = torch.Generator().manual_seed(batch)
    inputs = [torch.randn(batch, 3, *model.arch.input_size, generator=generator)]
    if isinstance(model, HieraMAE):
        inputs.append(random_keep(batch, model.num_mask_units(), model.arch.mask_ratio, generator=generator))
    if dynamic:
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
    out = run(*inputs)
    return out.loss if isinstance(model, HieraMAE) else nn.functional.cross_entropy(out, torch.arange(batch) % 5)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, compiled: Any, batch: int, *, dynamic: bool = False) -> None:
    expected = loss_of(model, model, batch)
    wanted = gradients(model, expected)
    got = loss_of(model, compiled, batch, dynamic=dynamic)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    found = gradients(model, got)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.slow  # half a minute of tracing
@pytest.mark.parametrize("kind", ["mae_video", pytest.param("video", marks=pytest.mark.slow)])
def test_training_is_one_graph_for_every_batch_size(kind: str) -> None:
    model = build(kind).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        assert_same(model, compiled, batch, dynamic=True)


@pytest.mark.slow  # a quarter of a minute of tracing
def test_blocks_may_be_computed_again_in_a_compiled_backward() -> None:
    model = build("video").train()
    model.set_grad_checkpointing()
    assert_same(model, torch.compile(model, fullgraph=True, backend="aot_eager"), 2)


def test_inference_and_drop_path_are_one_graph() -> None:
    torch.manual_seed(0)
    model = Hiera(Architecture(**VIDEO, num_classes=5, drop_path_rate=0.2))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    clip = torch.randn(2, 3, 4, 64, 96)
    compiled(clip).sum().backward()
    torch._dynamo.reset()
    model.eval()
    with torch.no_grad():
        assert torch.allclose(compiled(clip), model(clip), atol=1e-6)


@pytest.mark.slow  # as long
def test_a_mask_drawn_inside_and_a_numpy_one_are_in_the_graph() -> None:
    model = build("mae_video")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    clip = torch.randn(2, 3, 4, 64, 96)
    drawn = compiled(clip)
    assert drawn.loss.isfinite() and drawn.keep.sum(dim=1).tolist() == [3, 3]
    torch._dynamo.reset()
    keep = random_keep(2, model.num_mask_units(), 0.7)
    out = compiled(clip, np.asarray(keep))
    assert out.loss.item() == pytest.approx(model(clip, keep).loss.item(), rel=1e-5)


@pytest.mark.slow  # as long
def test_a_compiled_mae_refuses_another_number_of_units() -> None:
    model = build("mae_video")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="keep must show 3 mask units a row"):
        compiled(torch.randn(2, 3, 4, 64, 96), random_keep(2, model.num_mask_units(), 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mae_video", "mae_image", "video", "image"])
def test_compiled_numbers_are_the_eager_ones(kind: str) -> None:
    model = build(kind).train()
    compiled = torch.compile(model, fullgraph=True)
    for batch in (2, 3, 5):
        assert_same(model, compiled, batch, dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["mae_video", "video"])
def test_compiled_under_autocast_is_near_fp32(kind: str, dtype: torch.dtype) -> None:
    model = build(kind).train()
    expected = loss_of(model, model, 2)
    compiled = torch.compile(model, fullgraph=True)
    with torch.autocast("cpu", dtype):
        got = loss_of(model, compiled, 2)
    assert got.item() == pytest.approx(expected.item(), rel=2e-2)
    assert all(gradient.isfinite().all() for gradient in gradients(model, got).values())
