"""Our clip loader beside PyTorchVideo's, torchcodec's and one that decodes for each view as SlowFast's does.

All take the same clips of the same files in one run, round by round with the order alternating, so that what else the
machine does hits all alike; figures are medians over the rounds, ratios are taken within a round. The script makes
its own files, which takes minutes once, and takes a folder of real ones beside them. Run from a checkout:

    python scripts/benchmarks/loader.py --folder /tmp/clips --files ../shared/videos --output loader.json

What a row is. *train*: random 16x4 clips at 30 fps, random resized crop to 224, flip. *test*: 5 clips x 3 crops of a
video. *floor*: PyAV alone on the same clips, one thread, in as many processes as the loaders have workers: open, seek
to the keyframe before, decode to the last frame, no RGB. CPU seconds are those of the whole process tree.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_files import CLIPS, CROPS, SPEC, File, Work, make_set, real_files
from common import machine, machine_text, markdown_table, ratio, spread, write_json
from peers import TEST, TRAIN
from race import race

from hiera_video.data.sampling import test_clips

VIDEOS_PER_BATCH = 2  # in training: small, so that little is under way when the time begins and ends
PACKAGES = ("av", "decord2", "torchcodec", "pytorchvideo", "torch", "torchvision", "numpy")


def counted(work: Work, views: Work, rounds: int) -> dict[str, float]:
    """Frames that a decoder must decode for a training clip, and by what factor fewer it must where a line of the
    comparison allows it: what the files' keyframes allow, over the very draws of the rounds.

    Four clips of a video singly, over all four at once; 5x3 views of a video, each by itself (15 decodes), or clip by
    clip at PyTorchVideo's own starts (5 decodes), over all at once.
    """
    single = four = together = 0
    for epoch in range(rounds):
        for index in work.timed_entries:
            file = work.files[index]
            rows = [work.train_row(index, repeat, epoch) for repeat in range(4)]
            frames = [file.decoded(row) for row in rows]
            single, four = single + frames[0], four + sum(frames)
            together += file.decoded(np.concatenate(rows))
    once = per_view = per_clip = 0
    for index in views.timed_entries:
        file = views.files[index]
        rows = list(test_clips(file.times, SPEC, CLIPS))
        once += file.decoded(np.concatenate(rows))
        per_view += CROPS * sum(file.decoded(row) for row in rows)
        room = max(0.0, file.times[-1] - file.times[0] - SPEC.span)
        for start in file.times[0] + room * np.arange(CLIPS) / CLIPS:
            first, stop = np.searchsorted(file.times, [start, start + SPEC.span])
            per_clip += file.decoded(np.arange(first, stop))
    return {
        "per clip": single / rounds / len(work.timed_entries),
        "train ours-4-clips/ours": four / together,
        "test ours/decode-per-view": per_view / once,
        "test ours/pytorchvideo": per_clip / once,
    }


def fastest(results: dict[str, Any], start: str) -> str:
    """The contestant of this beginning of a name that is fastest on these files; "" without one."""
    found = [name for name in results if name.startswith(start)]
    return max(found, key=lambda name: statistics.median(results[name]["rates"]), default="")


#: Table, contestant, what is compared, with which other, the limit: what the loader is held to. None: no limit.
LINES: list[tuple[str, str, str, str, float | None]] = [
    ("train", "ours", "rates", "pytorchvideo", 1.3),
    ("train", "ours-fast", "rates", "pytorchvideo", 1.7),
    ("train", "ours", "costs", "floor", 1.2),
    ("train", "ours-4-clips", "rates", "ours", 1.8),
    ("test", "ours", "rates", "pytorchvideo", 0.8),  # of what counted frames allow
    ("test", "ours", "rates", "decode-per-view", 0.8),
    ("train", "ours", "rates", "torchcodec", None),
    ("train", "ours", "rates", "decode-per-view", None),
    ("train", "ours-not-isolated", "rates", "ours", None),
    ("train", "ours-not-isolated", "costs", "ours", None),
    ("test", "ours", "rates", "torchcodec", None),
    ("test", "ours-not-isolated", "rates", "ours", None),
]


def compare(tables: dict[str, dict[str, Any]], bounds: dict[str, float]) -> list[dict[str, Any]]:
    """One of :data:`LINES` each: ``line``, ``ratio``, ``bound`` by counted frames, ``limit``, and whether it holds."""
    lines = []
    for table, mine, what, other, limit in LINES:
        results = tables[table]
        peer = fastest(results, other) if other == "pytorchvideo" else other
        if mine not in results or peer not in results:
            continue
        bound = bounds.get(f"{table} {mine}/{other}")
        if table == "test" and limit is not None and bound is not None:
            limit *= bound
        value = ratio(results[mine][what], results[peer][what])
        holds = limit is None or (value["median"] <= limit if what == "costs" else value["median"] >= limit)
        line = f"{table}: {mine} / {peer}, {'per second' if what == 'rates' else 'CPU'}"
        lines.append({"line": line, "ratio": value, "bound": bound, "limit": limit, "holds": holds})
    return lines


def print_table(title: str, results: dict[str, Any]) -> None:
    print(f"\n{title:46}{'[quartiles]':>16}{'CPU s':>9}{'/ floor':>9}{'MB/worker':>11}{'MB all':>8}{'start s':>9}")
    for name, result in results.items():
        speed, cost = spread(result["rates"]), statistics.median(result["costs"])
        quartiles = f"[{speed['quartile_low']:.2f}, {speed['quartile_high']:.2f}]"
        over = f"{ratio(result['costs'], results['floor']['costs'])['median']:.2f}" if "floor" in results else ""
        worker, whole = (result["memory"].get(key, 0.0) for key in ("worker_mb", "all_mb"))
        start_up = statistics.median(result["start_up"])
        print(f"  {name:32}{speed['median']:12.2f}{quartiles:>16}{cost:9.4f}{over:>9}", end="")
        print(f"{worker:11.0f}{whole:8.0f}{start_up:9.1f}")


def print_lines(lines: list[dict[str, Any]]) -> None:
    print(f"\n{'ratios within a round':64}{'median':>8}{'[quartiles]':>16}{'bound':>7}{'limit':>7}")
    for line in lines:
        value = line["ratio"]
        quartiles = f"[{value['quartile_low']:.2f}, {value['quartile_high']:.2f}]"
        numbers = [f"{line[key]:.2f}" if line[key] is not None else "" for key in ("bound", "limit")]
        verdict = "" if line["limit"] is None else "  holds" if line["holds"] else "  MISSED"
        print(f"  {line['line']:62}{value['median']:8.2f}{quartiles:>16}{numbers[0]:>7}{numbers[1]:>7}{verdict}")


def benchmark(title: str, files: list[File], options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one set of files, printed and as it goes into the JSON file."""
    workers, test_rounds = options.workers, min(options.rounds, options.test_rounds)
    work = Work.of(files, options.clips, batch_size=VIDEOS_PER_BATCH, extra=2 * workers, num_workers=workers)
    views = Work.of(files, options.videos, batch_size=1, extra=0, num_workers=workers)
    train = race({name: TRAIN[name] for name in TRAIN if name in options.only}, work, options.rounds, 1)
    test = race({name: TEST[name] for name in TEST if name in options.only}, views, test_rounds, CLIPS * CROPS)
    bounds = counted(work, views, options.rounds)
    lines = compare({"train": train, "test": test}, bounds)

    keys = sorted({file.num_keyframes for file in files})
    print(f"\n== {title}: {len(files)} files with {keys[0]} to {keys[-1]} keyframes")
    print("frames that a decoder must decode: " + ", ".join(f"{name} {value:.2f}" for name, value in bounds.items()))
    print_table(f"train clips/s, {options.rounds} rounds of {len(work.timed_entries)}", train)
    print_table(f"5x3 test videos/s, {test_rounds} rounds of {len(views.timed_entries)}", test)
    print_lines(lines)
    facts = [{"path": file.path, "frames": len(file.times), "keyframes": file.num_keyframes} for file in files]
    return {"files": facts, "counted_frames": bounds, "train": train, "test": test, "lines": lines}


def table_of(sets: dict[str, Any]) -> str:
    """A table in Markdown, a row for each contender, medians of each set of files."""
    columns = [
        ("train", "rates", "train clips/s"),
        ("train", "costs", "CPU s a clip"),
        ("test", "rates", "5x3 videos/s"),
    ]
    header = [""] + [f"{text}, {Path(title).name}" for title in sets for *_, text in columns]
    rows = []
    for name in dict.fromkeys([*TRAIN, *TEST]):
        cells = []
        for measured in sets.values():
            for table, what, _ in columns:
                values = measured[table].get(name, {}).get(what)
                cells.append(f"{statistics.median(values):.3g}" if values else "")
        if any(cells):
            rows.append([name, *cells])
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the generated files are kept (a temporary folder)")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="real files: its H.264 ones of at least 8 s")
    parser.add_argument("--num-files", type=int, default=30, help="generated files; 0: only --files")
    parser.add_argument("--seconds", type=float, default=10, help="length of a generated file")
    parser.add_argument("--clips", type=int, default=48, help="training clips in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=4, help="test videos in a round")
    parser.add_argument("--test-rounds", type=int, default=3, help="at most this many rounds of tests")
    parser.add_argument("--workers", type=int, default=2)
    names = list(dict.fromkeys([*TRAIN, *TEST]))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON of everything measured, a table as .md")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # decoder processes inherit it
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as temporary:
        made = make_set(options.folder or Path(temporary), options.num_files, options.seconds)
        sets = {"generated": [File.read(str(path)) for path in made]}
        if options.files:
            sets[str(options.files)] = real_files(options.files)
        on = machine(PACKAGES)
        print(f"{machine_text(on)}; {options.workers} workers", flush=True)
        result = {"machine": on, "workers": options.workers}
        result["sets"] = {title: benchmark(title, files, options) for title, files in sets.items() if files}
    write_json(options.output, result)
    if options.output:
        options.output.with_suffix(".md").write_text(f"{machine_text(on)}\n\n{table_of(result['sets'])}\n")


if __name__ == "__main__":
    main()
