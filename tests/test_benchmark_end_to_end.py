"""The benchmark from end to end at a tiny scale: all contenders see the same frames, and what a run writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiera_video.data.reading.mp4 import write_mp4

SCRIPTS = Path(__file__).parents[1] / "scripts" / "benchmarks"
pytest.importorskip("torchcodec")
pytest.importorskip("transformers")
NAMES = ["ours", "videomae", "vjepa2", "swin3d"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))  # as Python does for a script
    for name in ("end_to_end", "extract", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import end_to_end

    return end_to_end


def grey(frame: int) -> int:
    return 20 + 37 * frame % 200


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """90 frames, each of a grey that no neighbour has."""
    frames = [np.full((64, 64, 3), grey(number), np.uint8) for number in range(90)]
    write_mp4(tmp_path / "0003s.mp4", frames, 30, crf=10)
    return tmp_path / "0003s.mp4"


@pytest.mark.slow  # it loads transformers' pipelines
@pytest.mark.parametrize("name", NAMES)
def test_every_contender_sees_the_frames_of_our_one_view(script: Any, clip: Path, name: str) -> None:
    contender = script.BUILDERS[name](script.SCALES["tiny"])
    shown: list[torch.Tensor] = []

    def keep(_: object, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        shown.append(next(iter([*given, *named.values()])))

    contender.model.register_forward_pre_hook(keep, with_kwargs=True)
    assert len(contender.classify([str(clip)])) == 1
    (seen,) = shown
    assert tuple(seen.shape[1:]) == contender.shape
    means = seen[0].float().mean(dim=(0, 2, 3) if contender.shape[0] == 3 else (1, 2, 3))
    expected = [grey(frame) for frame in script.frames_of(90, 30)]
    assert np.corrcoef(means.numpy(), expected)[0, 1] > 0.999


@pytest.mark.slow
def test_a_run_writes_rates_ratios_and_the_work_of_each(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    script.main(tmp_path, num_clips=1, seconds=1, rounds=2, only=("ours", "swin3d"), scale="tiny", output=output)
    result = json.loads(output.read_text())
    assert list(result["rows"]) == ["ours", "swin3d"] and result["machine"]["instruction_sets"] is not None
    for row in result["rows"].values():
        assert len(row["seconds"]) == 2
        assert row["gflop_per_clip"] > 0.01 and row["clips_per_second"]["median"] > 0
    assert result["rows"]["ours"]["ours_is_faster"]["median"] == 1
    table = output.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert "| swin3d | torchvision's swin3d, width 8, fp32 |" in table


@pytest.mark.slow  # it builds a large model
def test_the_base_scale_costs_what_the_papers_say(script: Any) -> None:
    with torch.device("meta"):  # no weights are drawn
        model = script.swin3d(script.SCALES["base"])
    assert script.gflop(model) / 2 == pytest.approx(140.667, rel=0.01)  # torchvision counts multiply-adds
    assert script.num_weights(model.model) == 88_048_984


def test_bf16_is_called_slow_where_the_processor_has_no_instructions_for_it(script: Any) -> None:
    assert "slow here" in script.bf16_note(["avx2", "avx512f"])
    assert "has instructions" in script.bf16_note(["avx512f", "avx512_bf16", "amx_tile"])
