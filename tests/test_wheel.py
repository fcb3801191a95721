"""The package as strangers get it: what the wheel holds, and that it works with the checkout out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_the_package_its_recipes_cards_and_weights_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        size = sum(info.file_size for info in archive.infolist())
    sources = {path for path in (ROOT / "hiera_video").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {str(path.relative_to(ROOT)) for path in sources}
    for room in ("configs", "datasets"):
        expected |= {f"hiera_video/{room}/{path.name}" for path in (ROOT / room).iterdir()}
    assert names == expected
    assert size < 13_000_000


@pytest.mark.slow  # an environment of its own
def test_it_answers_and_finds_its_recipes_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((ROOT / "docs" / "zoom_in.mp4").read_bytes())

    def run(*argv: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *argv]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    code = "import hiera_video, hiera_video.files as r; print(hiera_video.__file__, *r.names('datasets'))"
    where, *cards = run("-c", code).split()
    assert Path(where).is_relative_to(tmp_path) and "kinetics400" in cards
    answer = json.loads(run("-m", "hiera_video.cli", "classify", str(clip), "--format", "json"))
    assert answer[0]["predictions"][0]["label"] == "zoom_in"
    shown = run("-m", "hiera_video.cli", "pretrain", "--config", "mae_k400_base", "--data.root", "x", "--print-config")
    recipe = yaml.safe_load(shown)
    assert recipe["model"]["start"] == "mae_hiera_base_16x224" and recipe["data"]["root"] == "x"
