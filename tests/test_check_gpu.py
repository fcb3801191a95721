"""scripts/check_gpu.py on a CPU: what it finds, that a missed aim is said, and that no part hides the others."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = (ROOT / "scripts", ROOT / "scripts" / "benchmarks")
TASKS = ("inference", "mae", "finetune")


def check(output: Path, changes: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """Runs the script after some changes: its exit status, its JSON and its page."""
    code = f"{textwrap.dedent(changes)}\nimport check_gpu, sys; sys.exit(check_gpu.main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *SCRIPTS))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "--output", str(output), *options]
    ended = subprocess.run(command, cwd=output.parent, env=environment, capture_output=True, text=True)
    assert (output / "check_gpu.json").exists(), ended.stderr
    found = json.loads((output / "check_gpu.json").read_text())
    return ended.returncode, found, (output / "check_gpu.md").read_text()


@pytest.fixture
def gpu_page(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("gpu_page", SCRIPTS[1] / "gpu_page.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_runs_on_a_cpu_with_tiny_models(tmp_path: Path) -> None:
    pytest.importorskip("hiera")
    code, found, page = check(tmp_path / "out", "", "--device", "cpu")
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(found["parts"], "done")
    rows = {name: [row for row in part["rows"] if "verdict" not in row] for name, part in found["parts"].items()}
    assert rows["tests"][0]["pytest"].startswith("3 skipped")
    assert {(row["task"], row["precision"]) for row in rows["parity"]} == {
        ("inference", "bf16"),
        ("mae", "bf16"),
        ("inference", "fp16"),
    }
    assert all(0 < row["ours_from_fp32"] < 0.02 for row in rows["parity"])
    assert [(row["task"], row["size"]) for row in rows["throughput"]] == [
        (task, size) for size in ("base", "large", "huge") for task in TASKS
    ]
    for row in rows["throughput"]:
        assert row["clips_per_second"] > 0 and row["speed_over_reference"] > 0 and row["differs"]["output"] < 1e-5
    assert rows["compiled"][0]["mode"] == "compiled" and rows["compiled"][0]["differs"]["output"] < 1e-5
    (extracted,) = rows["extraction"]
    assert extracted["windows"] > 0 and 0 <= extracted["idle_share"] < 1
    assert rows["resumed"][0]["difference"] == 0
    assert {(row["task"], row["how"]) for row in rows["parallel"]} == {
        (task, how) for task in ("mae", "finetune") for how in ("DDP", "FSDP2")
    }
    judged = [
        line for line in found["verdicts"] if not line["what"].startswith(("base, inf", "large", "huge", "base, mae s"))
    ]
    assert [line["what"] for line in judged if not line["met"]] == []
    (share,) = [line for line in found["verdicts"] if line["what"] == "huge, inference, share of the published peak"]
    assert (share["value"], share["met"], code) == (None, False, 1)
    assert "| huge, inference, share of the published peak | not measured | at least 0.4 | MISSED |" in page
    assert "Tiny models stand in for the published ones here" in page


FAKE = """
import os, sys, time, types, signal
parts = types.ModuleType("gpu_parts")
def machine(settings): yield {"name": "NVIDIA H200"}
def tests(settings): yield {"done": 1}; raise RuntimeError("CUDA error: an illegal memory access")
def parity(settings): yield {"done": 1}; os.kill(os.getpid(), signal.SIGKILL)
def throughput(settings):
    yield {"task": "inference", "size": "base", "clips_per_second": 1499.0, "share_of_peak": 0.3}
    yield {"task": "inference", "size": "large", "clips_per_second": 451.0, "share_of_peak": 0.41}
    yield {"task": "mae", "size": "base", "speed_over_reference": 3.2}
def extraction(settings): yield {"done": 1}; time.sleep(60)
def resumed(settings): sys.exit("models differ")
def parallel(settings): yield {"seen": sorted(settings["parts"])}
def compiled(settings): yield {"task": "inference", "size": "base", "clips_per_second": 1600.0}
for part in (machine, tests, parity, throughput, extraction, resumed, parallel, compiled):
    setattr(parts, part.__name__, part)
sys.modules["gpu_parts"] = parts
import check_gpu
check_gpu.PARTS["extraction"] = 5
"""


def test_a_part_that_fails_dies_or_hangs_is_told_and_the_others_run(tmp_path: Path) -> None:
    code, found, page = check(tmp_path / "out", FAKE)
    assert {name: part["status"] for name, part in found["parts"].items()} == {
        "machine": "done",
        "tests": "failed: RuntimeError: CUDA error: an illegal memory access",
        "parity": "died (-9)",
        "throughput": "done",
        "extraction": "took more than 5 s",
        "resumed": "failed: SystemExit: models differ",
        "parallel": "done",
        "compiled": "done",
    }
    assert all({"done": 1} in found["parts"][name]["rows"] for name in ("tests", "parity", "extraction"))
    assert "resumed" in found["parts"]["parallel"]["rows"][0]["seen"]
    assert code == 1
    for line in (
        "| part tests | failed: RuntimeError: CUDA error: an illegal memory access | is done | MISSED |",
        "| base, inference, clips/s | 1600 | at least 1500 | met |",  # compiled
        "| large, inference, clips/s | 451 | at least 450 | met |",
        "| huge, inference, clips/s | not measured | at least 190 | MISSED |",
        "| base, MAE step, times the reference's speed | 3.2 | at least 3 | met |",
        "| large, inference, share of the published peak | 0.41 | at least 0.4 | met |",
        "of 16 lines are met, 8 MISSED.",
    ):
        assert line in page


def test_a_missed_aim_is_reported_by_the_aims_of_the_device(gpu_page: Any) -> None:
    row = {"task": "inference", "size": "base", "clips_per_second": 1300.0}
    for device, aim, met in (
        ("NVIDIA H100 80GB HBM3", 1200, True),
        ("NVIDIA H200", 1500, False),
        ("other", 1200, True),
    ):
        parts = {"machine": {"status": "done", "seconds": 1, "rows": [{"name": device}]}}
        parts["throughput"] = {"status": "done", "seconds": 1, "rows": [row]}
        lines = {line["what"]: line for line in gpu_page.verdicts(parts)}
        assert (lines["base, inference, clips/s"]["aim"], lines["base, inference, clips/s"]["met"]) == (aim, met)
    assert gpu_page.peak_of("NVIDIA H100 80GB HBM3") == gpu_page.peak_of("NVIDIA H200") == 989.4e12
    assert gpu_page.peak_of("NVIDIA H100 PCIe") == 756e12 and gpu_page.peak_of("AMD EPYC") is None
