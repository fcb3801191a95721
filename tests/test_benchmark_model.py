"""The model's benchmark at small sizes: what it compares, what it writes, and what it makes of files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmarks" / "model.py"
WEIGHTS = 4 * 54_900_000 / 2**20  # MiB, of mae_hiera_tiny_224 at 64 pixels: gradients alone take as much
pytest.importorskip("hiera")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location("benchmark_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_model", module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[2]))
    return module


def run(script: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command.split()])
    script.main()


@pytest.mark.slow  # it loads timm and transformers
def test_every_peer_of_an_image_model_has_our_weights_and_gradients(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    run(script, monkeypatch, f"--task finetune --model hiera_tiny_224 --size 64 --rounds 3 --no-memory --json {file}")
    (result,) = json.loads(file.read_text())
    rows, printed = result["rows"], capsys.readouterr().out
    assert list(rows) == ["ours", "reference", "timm", "transformers"]
    for name, row in rows.items():
        assert row["differences"]["output"] < 1e-5 and row["differences"]["gradient"] < 1e-4
        assert row["flops_per_second"] * row["seconds"]["median"] == pytest.approx(result["flops"])
        assert row["clips_per_second"] * row["seconds"]["median"] == pytest.approx(2)
        assert f" | {name} | {row['clips_per_second']:.3g} | " in printed
    assert rows["timm"]["speed_over"]["timm"]["median"] == 1
    assert 0.02 < rows["ours"]["speed_over"]["reference"]["median"] < 50


@pytest.mark.slow
def test_memory_is_that_of_a_process_for_each(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    run(script, monkeypatch, f"--task mae --model hiera_tiny_224 --size 64 --batch-size 1 --rounds 1 --json {file}")
    (result,) = json.loads(file.read_text())
    assert list(result["rows"]) == ["ours", "reference"]
    for row in result["rows"].values():
        assert WEIGHTS < row["memory"]["step"] < 2 * WEIGHTS
        assert 4 * WEIGHTS < row["memory"]["peak"] < 10 * WEIGHTS  # weights, gradients, two moments; libraries


@pytest.mark.slow  # it runs itself again
def test_ours_also_runs_in_other_precisions_and_with_instructions_masked(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    also = "--peers reference --also auto autocast bf16 --masked SSE41"
    run(script, monkeypatch, f"--model hiera_tiny_224 --size 64 --rounds 2 --no-memory {also} --json {file}")
    free, masked = json.loads(file.read_text())
    assert free["machine"]["onednn_at_most"] is None and masked["machine"]["onednn_at_most"] == "SSE41"
    for result in (free, masked):
        rows = result["rows"]
        assert list(rows) == ["ours", "reference", "ours auto", "ours autocast", "ours bf16"]
        assert [rows[name]["precision"] for name in ("reference", "ours autocast", "ours bf16")] == [
            "fp32",
            *["bf16"] * 2,
        ]
        assert list(rows["ours auto"]["speed_over"]) == ["ours", "reference"]
    assert masked["rows"]["ours auto"]["precision"] == "fp32"


def test_flops_are_those_of_the_paper(script: Any) -> None:
    case = script.Case("inference", "hiera_base_16x224", (16, 224, 224), 1, "fp32", "cpu")
    assert script.flops(case) / 2e9 == pytest.approx(102, rel=0.02)  # the paper counts multiply-adds


def test_other_weights_are_refused(script: Any) -> None:
    case = script.Case("inference", "hiera_tiny_224", (64, 64), 1, "fp32", "cpu")
    contenders = {name: script.Contender(case, name) for name in ("ours", "reference")}
    contenders["reference"].model.head.act_func = torch.nn.Softmax(dim=-1)
    with pytest.raises(SystemExit, match=r"hiera_tiny_224, reference: output is .* away, more than 1e-05"):
        script.agree(case, contenders, strict=True)


def test_files_become_a_table_and_a_picture(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for frames, side in ((8, 224), (16, 224), (16, 112)):
        seconds = {"median": 0.1 * frames, "quartile_low": 0.1, "quartile_high": 0.2}
        row = {"seconds": seconds, "clips_per_second": 1 / seconds["median"], "flops_per_second": 1e11}
        row |= {"times_floor": 1.5, "memory": None, "speed_over": {"reference": {"median": 1.25}}}
        case = script.Case("inference", "hiera_base_16x224", (frames, side, side), 1, "fp32", "cpu")
        ceiling = {"flops": 2e11, "ceiling_flops_per_second": 1.5e11}
        results.append({"case": script.asdict(case), "rows": {"ours": row}} | ceiling)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    run(script, monkeypatch, f"--show {file} --picture {tmp_path / 'cost.png'}")
    shown = "| inference, hiera_base_16x224, 8x224x224, fp32, 1 | ours | 1.25 | 100 | 1.50 |  | reference 1.25 |"
    assert shown in capsys.readouterr().out
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
