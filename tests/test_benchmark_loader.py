"""The loader's benchmark, in a run of seconds: its own file and a real one, ours beside others, its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from assets import H264

pytestmark = pytest.mark.slow  # the script itself is run, which loads every contestant
SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmarks" / "loader.py"
CONTESTANTS = ["ours", "pytorchvideo-pyav", "decode-per-view", "floor"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For generated files, with one there already (a copy that the script must keep), and of real files: one of 10 s
    with keyframes 100 apart, one that is too short, one that is no video.
    """
    made, real = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("real")
    replace(H264, name="01_360p_1s.mp4").write(made)
    replace(H264, name="long.mp4", num_frames=300, options={"g": "100", "sc_threshold": "0", "bf": "0"}).write(real)
    H264.write(real)
    (real / "notes.txt").write_text("no video")
    return made, real


@pytest.fixture(scope="module")
def run(folders: tuple[Path, Path]) -> tuple[str, dict[str, Any]]:
    """What a small run prints, and its JSON."""
    made, real = folders
    output = made / "result.json"
    command = f"--folder {made} --num-files 2 --seconds 1 --files {real} --clips 2 --rounds 1 --videos 1 --workers 1"
    answer = subprocess.run(
        [sys.executable, SCRIPT, *command.split(), "--output", output, "--only", *CONTESTANTS],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])},
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout, json.loads(output.read_text())


def test_files_that_are_there_are_kept_and_missing_ones_made(
    run: tuple[str, dict[str, Any]], folders: tuple[Path, Path]
) -> None:
    files = run[1]["sets"]["generated"]["files"]
    assert [(Path(file["path"]).name, file["frames"]) for file in files] == [
        ("00_240p_1s.mp4", 30),
        ("01_360p_1s.mp4", 90),
    ]
    assert not list(folders[0].glob("*.part"))


def test_real_files_that_are_long_and_h264_are_taken(
    run: tuple[str, dict[str, Any]], folders: tuple[Path, Path]
) -> None:
    assert run[1]["sets"][str(folders[1])]["files"] == [
        {"path": str(folders[1] / "long.mp4"), "frames": 300, "keyframes": 3}
    ]


def test_every_contestant_is_measured_in_both_tables(run: tuple[str, dict[str, Any]]) -> None:
    for measured in run[1]["sets"].values():
        assert list(measured["train"]) == CONTESTANTS
        assert list(measured["test"]) == ["ours", "pytorchvideo-pyav", "decode-per-view"]
        for result in [*measured["train"].values(), *measured["test"].values()]:
            assert len(result["rates"]) == len(result["costs"]) == 1
            assert result["rates"][0] > 0 and result["costs"][0] >= 0
        # The system counts in ticks of 10 ms, and a round here may be shorter; all of them together are not.
        assert sum(result["costs"][0] for result in measured["train"].values()) > 0


def test_frames_that_must_be_decoded_are_counted_from_the_keyframes(
    run: tuple[str, dict[str, Any]], folders: tuple[Path, Path]
) -> None:
    # Clips of 64 frames begin at 0, 59, 118, 177, 236, keyframes at 0, 100, 200: each alone costs 64, 123, 82, 141,
    # 100 frames, three times, and all of them together the whole file.
    counted = run[1]["sets"][str(folders[1])]["counted_frames"]
    assert counted["test ours/decode-per-view"] == pytest.approx(3 * (64 + 123 + 82 + 141 + 100) / 300, rel=0.01)


def test_ratios_are_printed_beside_their_bounds_and_limits(run: tuple[str, dict[str, Any]]) -> None:
    printed, result = run
    for measured in result["sets"].values():
        assert [line["line"] for line in measured["lines"]] == [
            "train: ours / pytorchvideo-pyav, per second",
            "train: ours / floor, CPU",
            "test: ours / pytorchvideo-pyav, per second",
            "test: ours / decode-per-view, per second",
            "train: ours / decode-per-view, per second",
        ]
        assert all(line["line"] in printed for line in measured["lines"])
        bounds = measured["counted_frames"]
        assert [line["limit"] for line in measured["lines"]] == pytest.approx(
            [1.3, 1.2, 0.8 * bounds["test ours/pytorchvideo"], 0.8 * bounds["test ours/decode-per-view"], None]
        )
