"""Time and memory of a video of hours, extracted and classified over time, in this checkout and in another one.

    git worktree add ../before HEAD~1
    python scripts/benchmarks/long_video.py --folder /tmp/long --against ../before --output long_video.json

Makes a file of ``minutes`` (H.264, 320 x 240, 30 fps) by repeating a coded minute packet by packet, without coding it
again (kept, and used again; ``--video`` takes another one), and runs ``hiera-video extract`` and ``hiera-video classify
--timeline`` on it in processes of their own, in ``rounds`` whose order alternates. A second and shorter file of two
minutes tells what a video's length adds to memory. Memory is that of the job with all of its children at their peak,
pages that they share counted once (PSS; RSS where the system does not tell), looked at every ``INTERVAL_S``; seconds
are those of the whole command, imports included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
from common import in_turn, machine, machine_text, markdown_table, write_both
from extract import make
from jsonargparse import auto_cli
from race import Tree

INTERVAL_S = 0.25
SHORT_MINUTES = 2
HERE = Path(__file__).parents[2]
#: By job, the words after ``hiera-video``; ``{video}`` and ``{output}`` stand for paths.
JOBS = {
    "extract": ("extract", "{video}", "--output", "{output}"),
    "classify --timeline": ("classify", "{video}", "--timeline", "{output}"),
}
PACKAGES = ("torch", "av", "numpy")


def repeat(source: Path, target: Path, times: int) -> None:
    """The packets of a file one time after the other, their time stamps shifted."""
    part = target.with_suffix(".part.mp4")
    with av.open(str(source)) as reading, av.open(str(part), "w") as writing:
        stream = reading.streams.video[0]
        copied = writing.add_stream_from_template(stream)
        length = stream.duration
        assert length is not None and stream.time_base is not None
        for number in range(times):
            reading.seek(0)
            for packet in reading.demux(stream):
                if packet.dts is None or packet.pts is None:  # the end
                    continue
                packet.pts += number * length
                packet.dts += number * length
                packet.stream = copied
                writing.mux(packet)
    part.replace(target)


def make_long(folder: Path, minutes: int) -> Path:
    """A file of so many minutes."""
    target = folder / f"{minutes}min.mp4"
    if not target.exists():
        (minute,) = make(folder, 1, 60)
        repeat(minute, target, minutes)
    return target


def measured(tree: Path, words: list[str]) -> dict[str, float]:
    """``seconds`` and ``peak_mb`` of ``hiera-video WORDS`` by the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    command = [sys.executable, "-m", "hiera_video.cli", *words]
    begin, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, cwd=tree, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while True:
            try:
                child.wait(INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, Tree(child.pid).memory_mb(1)["all_mb"])
        seconds = time.perf_counter() - begin
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{tree}: hiera-video {' '.join(words)}\n{said.read()}")
    return {"seconds": seconds, "peak_mb": peak}


def version(tree: Path) -> str:
    """The commit of a checkout, after it was seen that its package is what runs."""
    code = "import hiera_video; print(hiera_video.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    if Path(ran.stdout.strip()).parents[1] != tree.resolve():
        raise SystemExit(f"{tree} is no checkout: {ran.stdout.strip()} would run")
    words = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def report(result: dict[str, Any]) -> str:
    """The machine and a table in Markdown, a row for each job and checkout."""
    trees = list(result["checkouts"])
    rows = []
    for job, runs in result["jobs"].items():
        for tree in trees:
            long = {key: statistics.median(run[key] for run in runs[tree]["long"]) for key in ("seconds", "peak_mb")}
            short = statistics.median(run["peak_mb"] for run in runs[tree]["short"])
            first = statistics.median(run["seconds"] for run in runs[trees[0]]["long"])
            times = [f"{long['seconds']:.1f}", f"{first / long['seconds']:.2f}"]
            speed = f"{60 * result['minutes'] / long['seconds']:.0f}"
            memory = [f"{long['peak_mb']:.0f}", f"{long['peak_mb'] - short:+.0f}"]
            rows.append([job, f"{tree} ({result['checkouts'][tree]})", *times, speed, *memory])
    header = ("job", "checkout", "seconds", "times as fast", "seconds of video a second", "peak MB")
    table = markdown_table((*header, f"MB beyond a video of {SHORT_MINUTES} minutes"), rows)
    what = f"a video of {result['minutes']} minutes, {result['rounds']} rounds, medians"
    return f"{machine_text(result['machine'])}; {what}.\n\n{table}"


def main(
    folder: Path,
    against: Path | None = None,
    minutes: int = 120,
    rounds: int = 3,
    video: Path | None = None,
    model: str | None = None,
    output: Path | None = None,
) -> None:
    """Prints a line for each run, then a table. ``folder``: of made files; ``against``: a checkout to be compared with,
    which comes first in the table; ``video``: a file in place of the made one; ``model``: in place of the jobs' own;
    ``output``: JSON, and the table as .md.
    """
    trees = ({"before": against} if against else {}) | {"this" if against is None else "after": HERE}
    checkouts = {name: version(tree) for name, tree in trees.items()}
    files = {"long": video or make_long(folder, minutes), "short": make_long(folder, SHORT_MINUTES)}
    if video:
        with av.open(str(video)) as container:
            minutes = round((container.duration or 0) / av.time_base / 60)
    jobs: dict[str, Any] = {job: {name: {"long": [], "short": []} for name in trees} for job in JOBS}
    chosen = ["--model", model] if model else []
    for number in range(rounds):
        for job, words in JOBS.items():
            for name in in_turn(trees, number):
                for length, file in files.items():
                    with tempfile.TemporaryDirectory() as temporary:
                        places = {"video": str(file.resolve()), "output": str(Path(temporary) / "output")}
                        run = measured(trees[name], [word.format(**places) for word in words] + chosen)
                    jobs[job][name][length].append(run)
                    print(f"round {number + 1}: {job}, {name}, {length} {run['seconds']:.1f} s", end="")
                    print(f", {run['peak_mb']:.0f} MB", flush=True)
    result = {"machine": machine(PACKAGES), "minutes": minutes, "rounds": rounds, "checkouts": checkouts, "jobs": jobs}
    write_both(output, result, report(result))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
