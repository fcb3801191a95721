"""The model's benchmark, one pair of the smallest published MAE: what it compares, what it prints, its JSON."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_model.py"
pytest.importorskip("hiera")


def test_a_training_step_is_compared_in_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"--task mae --model hiera_tiny_224 --batch-size 1 --pairs 1 --json {tmp_path / 'result.json'}"
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command.split()])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    result = json.loads((tmp_path / "result.json").read_text())
    ratio = result["ours_clips_per_second"]["median"] / result["peer_clips_per_second"]["median"]
    assert result["ratio"]["median"] == pytest.approx(ratio)
    gradients = 4 * 55_020_896 / 2**20  # MiB: no step does with less
    assert all(gradients < result[f"{side}_memory"]["step"] < 2 * gradients for side in ("peer", "ours"))
    assert f"ratio {ratio:14.3f}" in capsys.readouterr().out
