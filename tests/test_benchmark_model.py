"""The model's benchmark, one pair of the smallest published MAE: what it compares, what it prints, its JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_model.py"
GRADIENTS = 4 * 55_020_896 / 2**20  # MiB, of mae_hiera_tiny_224: no step does with less
pytest.importorskip("hiera")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module. Memory is measured of ours alone: the reference's process would take as long again."""
    spec = importlib.util.spec_from_file_location("benchmark_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    measure = module.memory_in_child
    peer = {"step": 4 * GRADIENTS, "peak": 8 * GRADIENTS}
    monkeypatch.setattr(module, "memory_in_child", lambda side, *of: measure(side, *of) if side == "ours" else peer)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    return module


def test_a_training_step_is_compared_in_time_and_memory(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    command = f"--task mae --model hiera_tiny_224 --batch-size 1 --pairs 1 --json {output}"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command.split()])
    script.main()
    result = json.loads(output.read_text())
    ratio = result["ours_clips_per_second"]["median"] / result["peer_clips_per_second"]["median"]
    assert result["ratio"]["median"] == pytest.approx(ratio)
    assert GRADIENTS < result["ours_memory"]["step"] < 2 * GRADIENTS
    assert 1 / 4 < result["memory_ratio"]["step"] < 2 / 4
    printed = capsys.readouterr().out
    assert f"\nratio{ratio:21.3f} [" in printed
    assert f"\nmemory ratio{result['memory_ratio']['step']:14.3f} for a step" in printed
