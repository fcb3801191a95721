"""Every command and every Python block of the README and of docs/data.md runs, and prints what it says it prints."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shelf import Shelf

from hiera_video.cli import main
from hiera_video.models.weights import save_pretrained
from hiera_video.models.zoo import create_model

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/data.md")


def blocks(language: str) -> list[str]:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines of shell blocks, without those that install or test: .ci/run runs them as they stand."""
    lines = [part.strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("hiera-video ")]


@pytest.fixture
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with docs/, a folder of videos, and one of class folders, as the pages' commands expect."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mp4").symlink_to(ROOT / "docs" / "zoom_in.mp4")
    for name in ("in", "out"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "clip.mp4").symlink_to(ROOT / "docs" / "zoom_in.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 4
    assert "hiera-video classify docs/zoom_in.mp4" in commands()


@pytest.mark.parametrize("command", [command for command in commands() if "--model hiera_base" not in command])
def test_each_command_runs(command: str, in_a_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out or "--output" in command


def test_the_first_command_prints_what_the_readme_shows(in_a_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["classify", "docs/zoom_in.mp4"])
    printed, shown = capsys.readouterr().out.splitlines(), blocks("text")[0].splitlines()
    assert printed[0] == shown[0]
    assert len(printed) == len(shown)
    (score, label), (shown_score, shown_label) = printed[1].split(), shown[1].split()
    assert label == shown_label == "zoom_in"
    assert float(score.rstrip("%")) == pytest.approx(float(shown_score.rstrip("%")), abs=1)  # processors round apart


def test_a_kinetics_model_is_fetched_and_answers(shelf: Shelf, in_a_copy: Path) -> None:
    """The command as it stands, with a hub on loopback that serves random weights under the published name."""
    (command,) = [command for command in commands() if "--model hiera_base" in command]
    torch.manual_seed(0)
    model = create_model("hiera_base_16x224").half()
    shelf.put("facebook/hiera_base_16x224.mae_k400_ft_k400", save_pretrained(model, in_a_copy / "hub"))
    environment = os.environ | {"HF_ENDPOINT": shelf.url, "HF_HOME": str(in_a_copy / "home"), "HF_HUB_OFFLINE": "0"}
    argv = [sys.executable, "-m", "hiera_video.cli", *shlex.split(command)[1:]]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC 4.0" in done.stderr or "cc-by-nc-4.0" in done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_each_python_block_runs(in_a_copy: Path) -> None:
    for block in blocks("python"):
        exec(compile(block, "a page", "exec"), {})
