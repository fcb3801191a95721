"""Every command and every Python block of the README and of the guides runs, and prints what it says it prints.

A page's commands run one after another in one folder, as a reader would type them. Trainings are made short
(``QUICK``). A recipe for data or processes that are not here is resolved and shown instead; see ``stand_in``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shelf import Shelf
from training_sets import write_video

from hiera_video.cli import main
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.zoo import create_model

ROOT = Path(__file__).parents[1]
GUIDES = ("classify", "coming_from", "data", "export", "features", "training", "transformers")
PAGES = ("README.md", *(f"docs/guides/{name}.md" for name in GUIDES))
#: Commands that are not run here, by how they begin, and why.
NOT_RUN = (
    ("pip install", ".ci/run installs and tests as the README says"),
    ("pytest", ".ci/run installs and tests as the README says"),
    ("hiera-video classify videos/ --model hiera_base", "test_a_kinetics_model_is_fetched_and_answers runs it"),
    ("hiera-video data prepare /data", "needs Kinetics; tests/test_prepare_kinetics.py runs it on a made copy"),
    ("hiera-video data shards kinetics400", "needs Kinetics; tests/test_shards.py runs it on made videos"),
    ("hiera-video data check kinetics400", "needs Kinetics; tests/test_check.py runs it on a small one"),
    ("hiera-video classify 0", "needs a camera; tests/test_live.py runs it on a stream"),
    ("hiera-video serve", "does not end; tests/test_serve.py opens it"),
    ("sbatch", "needs a Slurm cluster"),
    ("trtexec", "needs TensorRT and a GPU"),
    ("hiera-video extract films/", "needs a GPU; tests/test_cuda_decoder.py runs its code on the processor"),
    ("scripts/launch_ssh.sh", "needs machines that ssh reaches"),
)
#: Packages that a block shows and no extra brings.
OTHERS = ("fiftyone", "lancedb", "qdrant_client")
#: Where Kinetics lies in the pages.
ELSEWHERE = "/data/"
#: Added to a training that is run.
QUICK = ["--run.duration", "2pass", "--data.num_workers", "0"]


def blocks(language: str, pages: tuple[str, ...] = PAGES) -> list[str]:
    text = "".join((ROOT / page).read_text() for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(*pages: str) -> list[str]:
    """The lines of shell blocks, in order."""
    parts = [part for block in blocks("bash", pages) for line in block.splitlines() for part in line.split("&&")]
    return [part.partition("  #")[0].strip() for part in parts]


def stand_in(command: str) -> tuple[list[str], Path | None]:
    """What is run in a command's place, as arguments of ``main``, and the file that its output goes to.

    Of a launcher what it would start, tests/test_processes.py starts several; with a recipe for data or processes that
    are not here ``--print-config``, which resolves and checks it.
    """
    words, _, file = command.partition(" > ")
    argv = shlex.split(words)
    launched = argv[0] in ("torchrun", "accelerate")
    argv = argv[argv.index("hiera_video.cli") + 1 :] if launched else argv[1:]
    if launched or ELSEWHERE in command:
        argv += ["--print-config"] if "--print-config" not in argv else []
    elif argv[0] == "pretrain" or (argv[0] == "finetune" and "--model.head" in argv):
        argv += QUICK
    elif argv[0] == "finetune":  # a fitted head, which is quick
        argv += [*QUICK[2:], "--data.size", "32"]
    elif argv[0] == "evaluate":
        argv += QUICK[2:]
    return argv, Path(file) if file else None


@pytest.fixture
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with docs/, a folder of videos, and one of class folders, as the pages' commands expect."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mp4").symlink_to(ROOT / "docs" / "zoom_in.mp4")
    (tmp_path / "list.txt").write_text("videos/clip.mp4\ndocs/zoom_in.mp4\n")
    for name in ("in", "out"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "clip.mp4").symlink_to(ROOT / "docs" / "zoom_in.mp4")
    monkeypatch.setattr("hiera_video.tasks.plan.job.SECONDS", 1.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def with_classes(in_a_copy: Path) -> Path:
    """The same with videos/train and videos/val, in each three tiny videos of two classes, and an export."""
    zoom = {"type": "timelinelabels", "value": {"ranges": [{"start": 1, "end": 20}], "timelinelabels": ["zoom"]}}
    task = {"id": 1, "data": {"video": "clip.mp4"}, "annotations": [{"result": [zoom]}]}
    (in_a_copy / "project.json").write_text(json.dumps([task]))
    for split in ("train", "val"):
        for number, name in enumerate(("jump", "swim")):
            (in_a_copy / "videos" / split / name).mkdir(parents=True)
            for index in range(3):
                rng = np.random.default_rng((split == "val", number, index))
                picture = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
                frames = [np.roll(picture, shift, axis=number) for shift in range(20)]
                write_video(in_a_copy / "videos" / split / name / f"{index}.mp4", frames)
    return in_a_copy


def test_the_readme_shows_commands() -> None:
    shown = commands("README.md")
    assert "hiera-video classify docs/zoom_in.mp4" in shown
    for job in ("classify", "pretrain", "finetune", "evaluate", "extract"):
        assert any(command.startswith(f"hiera-video {job} ") for command in shown), job


@pytest.mark.parametrize(("begins", "why"), NOT_RUN)
def test_what_is_not_run_is_there(begins: str, why: str) -> None:
    assert why and any(command.startswith(begins) for command in commands(*PAGES))


#: The README in the fast tests, the guides in the slow ones.
FAST_AND_SLOW = [page if page == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in PAGES]


@pytest.mark.parametrize("page", FAST_AND_SLOW)
def test_the_commands_of_a_page_run_one_after_another(page: str, with_classes: Path) -> None:
    for command in commands(page):
        if command.startswith(tuple(begins for begins, _ in NOT_RUN)):
            continue
        argv, file = stand_in(command)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(argv) == 0, command
        assert printed.getvalue() or "--output" in command, command
        if file is not None:
            file.write_text(printed.getvalue())


def test_the_first_command_prints_what_the_readme_shows(in_a_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["classify", "docs/zoom_in.mp4"])
    printed, shown = capsys.readouterr().out.splitlines(), blocks("text")[0].splitlines()
    assert printed[0] == shown[0]
    assert len(printed) == len(shown)
    (score, label), (shown_score, shown_label) = printed[1].split(), shown[1].split()
    assert label == shown_label == "zoom_in"
    assert float(score.rstrip("%")) == pytest.approx(float(shown_score.rstrip("%")), abs=1)  # processors round apart


@pytest.mark.slow  # 200 MB of weights are made and fetched
def test_a_kinetics_model_is_fetched_and_answers(shelf: Shelf, in_a_copy: Path) -> None:
    """The command, with one view for 15; a hub on loopback serves random weights under the published name."""
    (command,) = [command for command in commands(*PAGES) if "classify videos/ --model hiera_base" in command]
    torch.manual_seed(0)
    model = create_model("hiera_base_16x224").half()
    shelf.put("facebook/hiera_base_16x224.mae_k400_ft_k400", save_pretrained(model, in_a_copy / "hub"))
    environment = os.environ | {"HF_ENDPOINT": shelf.url, "HF_HOME": str(in_a_copy / "home"), "HF_HUB_OFFLINE": "0"}
    argv = [sys.executable, "-m", "hiera_video.cli", *shlex.split(command)[1:], "--views", "1x1"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC 4.0" in done.stderr or "cc-by-nc-4.0" in done.stderr
    assert len(done.stdout.splitlines()) == 6


@pytest.mark.parametrize("page", FAST_AND_SLOW)
def test_each_python_block_runs(page: str, with_classes: Path) -> None:
    for block in blocks("python", (page,)):
        if not re.search(rf"^(import|from) ({'|'.join(OTHERS)})\b", block, flags=re.MULTILINE):
            exec(compile(block, "a page", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("package", OTHERS)
def test_each_block_of_another_package_runs_where_it_is_installed(package: str, in_a_copy: Path) -> None:
    other = pytest.importorskip(package)
    (block,) = (block for block in blocks("python") if re.search(rf"^(import|from) {package}\b", block, re.MULTILINE))
    try:
        exec(compile(block, "a page", "exec"), {})
    except Exception as error:
        if package == "fiftyone" and isinstance(error, other.core.config.FiftyOneConfigError):
            pytest.skip("fiftyone has no MongoDB here")
        raise
