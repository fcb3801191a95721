"""Several processes are one run: real torchrun, two CPU processes, gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_sets import write_colours

import hiera_video
from hiera_video.training.metrics import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


pytestmark = pytest.mark.slow  # torchrun starts two processes four times, each of which imports torch


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_mae: Path) -> dict[int, Path]:
    """Where tests/two_processes.py has written, by number of processes."""
    folder = tmp_path_factory.mktemp("both")
    write_colours(folder / "data" / "train", 12, seed=0, bad=True)
    write_colours(folder / "data" / "val", 4, seed=1)
    (folder / "data" / "val" / "blue" / "bad.mp4").write_text("no video")
    script = Path(__file__).with_name("two_processes.py")
    outputs = {}
    for count, start in ((1, [sys.executable]), (2, TORCHRUN)):
        outputs[count] = folder / str(count)
        outputs[count].mkdir()
        argv = [*start, str(script), str(outputs[count]), str(folder / "data"), str(tiny_model), str(tiny_mae)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    return outputs


def test_two_processes_have_the_losses_of_one(both: dict[int, Path]) -> None:
    one, two = (read_metrics(both[count] / "plain" / "metrics.jsonl") for count in (1, 2))
    losses = [[record["loss"] for record in records if record["kind"] == "train"] for records in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 16
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_sharded_evaluation_counts_every_video_once(both: dict[int, Path]) -> None:
    one, two = (
        [record for record in read_metrics(both[count] / "plain" / "metrics.jsonl") if record["kind"] == "val"]
        for count in (1, 2)
    )
    assert one == two
    assert {(record["videos"], record["listed"]) for record in two} == {(12, 13)}


def test_two_processes_together_see_the_samples_and_masks_of_one(both: dict[int, Path]) -> None:
    one = json.loads((both[1] / "seen_1_0.json").read_text())
    parts = [json.loads((both[2] / f"seen_2_{rank}.json").read_text()) for rank in (0, 1)]
    assert all(len(part) == len(one) // 2 for part in parts)
    assert sorted(parts[0] + parts[1]) == sorted(one)


def test_a_sharded_model_trains_and_is_saved_whole(both: dict[int, Path], tiny_model: Path) -> None:
    """FSDP2 (fully_shard), two steps; the folder classifies, and the losses are those of the plain run."""
    output = both[2] / "sharded"
    plain, sharded = (
        [record["loss"] for record in read_metrics(both[2] / name / "metrics.jsonl") if record["kind"] == "train"]
        for name in ("plain", "sharded")
    )
    assert sharded[0] == pytest.approx(plain[0], rel=1e-5)
    state = torch.load(output / "checkpoints" / "step_00000002" / "optimizer.pt", weights_only=True)["state"]
    names = load_file(output / "checkpoints" / "step_00000002" / "model.safetensors").keys()
    assert state.keys() == names
    model = hiera_video.from_pretrained(output)
    assert model.labels == ["blue", "green", "red"]
    before = load_file(tiny_model / "model.safetensors")
    assert all(value.shape == before[name].shape for name, value in model.state_dict().items() if "head" not in name)
