"""What a command says in a terminal: results above one bar, tables with headers, an answer to Ctrl-C at once."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from hiera_video.cells import table
from hiera_video.cli import main

#: A main thread that is busy without ever looking for signals, as in a large product.
BUSY = """
import hashlib
from hiera_video.terminal import answer_interrupts
answer_interrupts()
print("busy", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def shown(output: str) -> list[str]:
    """The lines that a terminal shows: behind a carriage return a line is written over from its start."""
    lines = []
    for line in re.sub(r"\r+\n", "\n", output).split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_the_first_interrupt_is_answered_at_once_and_a_second_one_ends_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"busy\n"
        time.sleep(0.5)  # until it is
        end = threading.Timer(30, process.kill)  # or a process that answers none would run for minutes
        end.start()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"\n"
        assert b"stopping; what is done is kept (Ctrl-C again ends at once)" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        end.cancel()


def test_in_a_terminal_results_stand_above_the_bar_and_nothing_is_overwritten(tiny_model: Path, videos: Path) -> None:
    terminal, end = pty.openpty()
    ioctl(end, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [str(videos / "a.mp4"), "missing.mp4", str(videos / "b" / "vp9.webm"), "--top-k", "1"]
    command = [sys.executable, "-m", "hiera_video.cli", "classify", *words, "--model", str(tiny_model)]
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end)
    os.close(end)
    parts = []
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so where the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    assert process.wait(timeout=60) == 1
    lines = shown(b"".join(parts).decode())
    first = next(number for number, line in enumerate(lines) if line.startswith(f"{videos / 'a.mp4'}"))
    assert re.fullmatch(r"  +\d+\.\d%  [a-f]", lines[first + 1])
    assert lines[first + 2] == "missing.mp4"
    assert lines[first + 3].startswith("  error: missing.mp4 cannot be read")
    assert lines[first + 4].startswith(f"{videos / 'b' / 'vp9.webm'}")
    assert re.fullmatch(r"  +\d+\.\d%  [a-f]", lines[first + 5])
    assert lines[first + 6].startswith("100%|") and "3/3" in lines[first + 6]


def test_several_records_are_a_table_with_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "hiera_base_*16x224"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "params_m", "gflop", "input", "checkpoints"]
    assert first.split()[:4] == ["hiera_base_16x224", "51.09", "101.70", "16x224x224"]
    assert header.index("gflop") + len("gflop") == first.index("101.70") + 6 == second.index("132.30") + 6
    assert main(["models", "hiera_base_16x224"]) == 0
    assert capsys.readouterr().out.startswith("hiera_base_16x224  ")  # one alone is a line


def test_a_table_has_dashes_for_what_is_not_there_and_one_number_of_decimals_a_column() -> None:
    rows = [{"name": "a", "top1": 0.5, "map": None, "n": 3}, {"name": "bc", "top1": 1, "map": 0.25, "n": 12}]
    assert table(rows) == "name    top1     map   n\na     0.5000       -   3\nbc    1.0000  0.2500  12"
