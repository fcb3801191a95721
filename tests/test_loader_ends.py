"""A program that uses a loader ends when it is done: real processes, with workers that wait for more to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from training_sets import write_colours

import hiera_video

#: Under any load; a program that hangs waits for ever.
LIMIT_S = 60

TOP = """
import os, sys, time
import torch
import hiera_video

def loader():
    videos = hiera_video.list_videos("train")
    dataset = hiera_video.ClipDataset(videos, hiera_video.ClipSpec(num_frames=4, size=(32, 32), resize=40))
    return hiera_video.ClipLoader(dataset, batch_size=2)

def said(text):
    print(text, flush=True)
"""
PROGRAMS = {
    "the epoch is over": "for batch in loader: pass",
    "left by break": "for batch in loader: break",
    "an iterator is left over": "batches = iter(loader); next(batches)",
    "an exception": "for batch in loader: raise RuntimeError('mine')",
    "sys.exit": "for batch in loader: sys.exit(3)",
    "a program that waits": "next(iter(loader)); said('waits'); time.sleep(600)",
}
CODES = {"an exception": 1, "sys.exit": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    write_colours(folder / "train", 3, seed=0)
    return folder


def program(folder: Path, text: str, method: str = "fork") -> list[str]:
    """A script that makes a loader and does ``text`` with it, at module level but for the guard that spawn needs."""
    lines = [TOP, "if __name__ == '__main__':", f"    torch.multiprocessing.set_start_method({method!r})"]
    lines += ["    loader = loader()", f"    {text}" if "for" not in text else "    exec(" + repr(text) + ")"]
    script = folder / f"{abs(hash((text, method)))}.py"
    script.write_text("\n".join([*lines, "    said('done')", ""]))
    return [sys.executable, str(script)]


def start(argv: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(argv, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said, once it and all that it started are gone."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    limit = time.monotonic() + 20
    while (left := of_session(process.pid)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not left
    return out, err


def of_session(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    alive = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess, PermissionError):
            continue
    return alive


@pytest.mark.parametrize(
    ("way", "method"),
    [
        *((way, "fork") for way in ("the epoch is over", "an exception")),
        *(
            pytest.param(way, "fork", marks=pytest.mark.slow)  # five seconds each
            for way in PROGRAMS
            if way not in ("a program that waits", "the epoch is over", "an exception")
        ),
        pytest.param("left by break", "spawn", marks=pytest.mark.slow),
        pytest.param("the epoch is over", "spawn", marks=pytest.mark.slow),  # this start method imports all of it again
    ],
)
def test_a_program_ends_with_no_close(way: str, method: str, folder: Path) -> None:
    process = start(program(folder, PROGRAMS[way], method), folder)
    _, err = finish(process)
    assert process.returncode == CODES.get(way, 0), err
    assert "Traceback" not in err or way == "an exception"


def test_ctrl_c_ends_a_program_and_its_workers(folder: Path) -> None:
    process = start(program(folder, PROGRAMS["a program that waits"]), folder)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, err = finish(process)
    assert process.returncode == -signal.SIGINT and err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow  # a program of its own
def test_sigterm_to_the_workers_alone_ends_nothing(folder: Path) -> None:
    """Slurm signals every process of a job: the main one finishes its step, for which it needs batches."""
    text = "next(iter(loader)); said('waits'); sys.stdin.read(1); list(loader)"
    process = subprocess.Popen(
        program(folder, text), cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        for child in psutil.Process(process.pid).children():
            child.terminate()
        out, _ = process.communicate("x", timeout=LIMIT_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "done\n")


def test_the_loader_program_of_the_readme_ends(folder: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "ClipLoader" in code]
    process = start([sys.executable, "-c", code], folder)
    _, err = finish(process)
    assert (process.returncode, err) == (0, "")


def test_an_iteration_that_was_interrupted_goes_on_where_it_stood(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: a cell is interrupted, and run again."""
    import hiera_video

    videos = hiera_video.list_videos(folder / "train")
    spec = hiera_video.ClipSpec(num_frames=4, size=(32, 32), resize=40)

    def loader() -> hiera_video.ClipLoader:
        return hiera_video.ClipLoader(hiera_video.ClipDataset(videos, spec), 2, num_workers=1)

    whole = [batch["index"].tolist() for batch in loader()]
    interrupted = loader()
    batches = iter(interrupted)
    seen = [next(batches)["index"].tolist()]
    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    seen += [batch["index"].tolist() for batch in interrupted]
    interrupted.close()
    assert seen == whole


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
