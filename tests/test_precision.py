"""What precision auto is: by the device, the processor's instructions, the model's width, and what a job began with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from hiera_video import ClipSpec, Hiera, VideoClassifier, extract, save_pretrained
from hiera_video.cli import main
from hiera_video.tasks.features.extractor import FeatureExtractor
from hiera_video.training import devices
from hiera_video.training.devices import bf16_pays, in_lanes, kept_precision, pick_precision

CPU = torch.device("cpu")


@pytest.fixture
def wide() -> Hiera:
    """As wide as tiny: its third stage has 384 channels."""
    torch.manual_seed(0)
    return Hiera(replace(TINY, embed_dim=96), ClipSpec(num_frames=4, size=(32, 32), resize=36)).eval()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """One with instructions for bf16, whose product takes so many seconds in each dtype."""
    seconds = {"float32": 0.004, "bfloat16": 0.001}
    monkeypatch.setattr(devices, "_has_bf16", lambda: True)
    monkeypatch.setattr(devices, "_product_s", lambda width, dtype: seconds[str(dtype).removeprefix("torch.")])
    bf16_pays.cache_clear()
    yield seconds
    bf16_pays.cache_clear()


def test_a_processor_with_the_instructions_computes_wide_models_in_bf16_and_says_so(
    wide: Hiera, processor: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hiera_video")
    classifier = VideoClassifier(wide)
    assert classifier.precision == FeatureExtractor(wide).precision == torch.bfloat16
    assert caplog.text.count("computing in bfloat16, which this processor is faster in") == 1
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}  # the model is not changed
    assert VideoClassifier(wide, precision="fp32").precision == torch.float32


def test_bf16_needs_the_instructions_a_wide_model_and_no_veto_by_the_measurement(
    processor: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pick_precision("auto", CPU, width=384) == torch.bfloat16
    assert pick_precision("auto", CPU, width=160) == torch.float32  # the built-in models
    assert pick_precision("auto", CPU) == torch.float32  # training
    processor["bfloat16"] = 0.0039
    bf16_pays.cache_clear()
    assert pick_precision("auto", CPU, width=384) == torch.float32
    monkeypatch.setattr(devices, "_has_bf16", lambda: False)
    processor["bfloat16"] = 0.0001
    bf16_pays.cache_clear()
    assert pick_precision("auto", CPU, width=384) == torch.float32


def test_the_measurement_is_of_a_product_that_is_short_whatever_the_width() -> None:
    for width in (384, 1024):
        assert 0 < devices._product_s(width, torch.float32) < 1


def test_answers_in_half_the_precision_are_those_of_single_precision_within_its_rounding(
    wide: Hiera, videos: Path
) -> None:
    exact = VideoClassifier(wide, precision="fp32")
    half = VideoClassifier(wide, precision="bf16")
    clips = torch.randint(0, 256, (4, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(half.scores(clips), exact.scores(clips), atol=0.02)


def test_a_job_that_goes_on_keeps_what_auto_was(
    wide: Hiera, processor: dict[str, float], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept_precision("auto", "bfloat16") == "bf16" and kept_precision("auto", None) == "auto"
    assert kept_precision("fp32", "bfloat16") == "fp32"  # what is asked for by name is compared, and refused
    wide.labels = list("abcdef")
    model = str(save_pretrained(wide, tmp_path / "wide"))
    (tmp_path / "list.csv").write_text(f"{videos / 'a.mp4'} 0\n{videos / 'b' / 'vp9.webm'} 1\n")
    evaluate = ["evaluate", "--val", str(tmp_path / "list.csv"), "--model", model, "--output", str(tmp_path / "val")]
    evaluate += ["--data.views", "1x1"]
    list(extract([str(videos / "a.mp4")], output=tmp_path / "features", model=model))
    assert main(evaluate) == 0
    bf16_pays.cache_clear()
    processor["bfloat16"] = 1.0  # another machine
    list(extract([str(videos / "b" / "vp9.webm")], output=tmp_path / "features", model=model))
    assert main(evaluate) == 0
    for name in ("features/extraction.json", "val/result.json"):
        assert json.loads((tmp_path / name).read_text())["precision"] == "bfloat16"
    capsys.readouterr()
    assert main([*evaluate, "--run.precision", "fp32"]) == 2
    assert "precision was bfloat16, is now float32" in capsys.readouterr().err


def test_one_batch_has_all_threads_several_share_them_and_come_in_order() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert list(in_lanes(lambda number: (number, torch.get_num_threads()), [7])) == [(7, 4)]
        assert list(in_lanes(lambda number: (number, torch.get_num_threads()), range(5))) == [(n, 2) for n in range(5)]
        assert torch.get_num_threads() == 4
        assert list(in_lanes(str, [])) == []
    finally:
        torch.set_num_threads(threads)


def test_large_clips_go_one_by_one_through_a_lane_of_a_cpu_small_ones_together() -> None:
    large, small = ClipSpec(num_frames=16, size=(224, 224)), ClipSpec(num_frames=16, size=(64, 64), resize=64)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [devices.lane_size(8, cpu, spec) for spec in (large, small)] == [1, 8]
    assert devices.lane_size(2, cpu, small) == 2
    assert devices.lane_size(8, gpu, large) == 8
