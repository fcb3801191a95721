"""torch.compile: one graph for each form of the models, one for all batch sizes, and the numbers of the eager model.

Graphs are tested with a backend that runs them as they are, which takes seconds; images have the same code. What the
real one makes of them is slow, and tested by hand. Both compare the gradients of every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from hiera_video import FeatureExtractor, VideoClassifier
from hiera_video.cli import main
from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import IMAGE_FORM
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.tasks.classify.classifier import score_clips
from hiera_video.training.devices import compiled

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


# --- jobs -------------------------------------------------------------------------------------------------------------


def clips(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What makes something of the graphs: a backend that runs them as they are, or the real one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    return request.param


def test_a_compiled_scorer_has_one_graph_for_every_batch_and_the_scores_of_the_model(
    tiny_model: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hiera_video")
    plain = VideoClassifier.from_pretrained(tiny_model).scorer
    program = replace(plain, run=compiled(plain.model, plain.device))
    assert caplog.text.count("compiling the model: the first batch takes a minute or more") == 1
    for count in (7, 1):  # batches of 3, 3 and 1, and a clip alone
        np.testing.assert_allclose(
            score_clips(program, clips(count), 3), score_clips(plain, clips(count), 3), atol=1e-6
        )


def test_two_threads_share_the_graph_of_compiled_features(tiny_model: Path, backend: str) -> None:
    plain = FeatureExtractor.from_pretrained(tiny_model)
    compiled = FeatureExtractor.from_pretrained(tiny_model, compile=True)
    names = ["embedding", "stage2"]
    batches = [clips(count) for count in (2, 4, 4, 1)]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as lanes:
        answers = list(lanes.map(partial(compiled.features, names=names), batches))
    for batch, answer in zip(batches, answers, strict=True):
        for name, values in plain.features(batch, names).items():
            np.testing.assert_allclose(answer[name], values, atol=1e-5)
    with pytest.raises(RequestError, match="crop none has clips of many sizes, a compiled model takes one"):
        compiled.walk(crop="none")


def test_compile_is_refused_where_there_is_no_compiler(
    tiny_model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/such/g++"))
    output = str(tmp_path / "features")
    assert main(["extract", str(videos / "a.mp4"), "--output", output, "--model", str(tiny_model), "--compile"]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "compile" in line]
    assert "torch cannot compile here (InvalidCxxCompiler: No working C++ compiler found" in message
    assert message.endswith("install a C++ compiler (g++), or leave out compile")


@pytest.mark.slow  # two jobs by the real compiler
def test_compiled_jobs_answer_what_the_others_do(tiny_model: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"{videos / 'a.mp4'} 0\n{videos / 'b' / 'vp9.webm'} 1\n")
    answers = []
    for is_compiled in (False, True):
        folder = tmp_path / str(is_compiled)
        evaluate = ["evaluate", "--val", str(tmp_path / "list.csv"), "--output", str(folder / "val")]
        evaluate += ["--run.compile", str(is_compiled).lower(), "--data.views", "1x1", "--run.batch_size", "3"]
        extract = ["extract", str(videos / "b"), "--output", str(folder / "features"), "--features", "embedding,stage1"]
        extract += ["--format", "npz", "--picture", str(folder / "maps.png")]
        for job in (evaluate, [*extract, *["--compile"] * is_compiled]):
            assert main([*job, "--model", str(tiny_model)]) == 0
        scores = pq.read_table(folder / "val" / "scores.parquet").to_pandas()
        maps = [np.load(file) for file in sorted((folder / "features").rglob("*.npz"))]
        answers.append(
            [
                *(np.stack(scores[name]) for name in scores.columns if name == "scores"),
                *(window[name] for window in maps for name in window.files),
            ]
        )
    plain, compiled_ones = answers
    assert len(plain) > 4
    for expected, got in zip(plain, compiled_ones, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
