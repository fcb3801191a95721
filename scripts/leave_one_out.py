"""Fine-tunes on all groups of videos but one and judges on that one, for each group: leave one person out.

    python scripts/leave_one_out.py --videos WEIZMANN --output FOLDS --pattern '([a-z]+)_' --groups daria,denis,eli,ido

``videos`` has a folder for each class. A group is what ``--pattern`` finds in the name of a file. Each fold is the two
commands that a user gives: ``finetune --train REST --output RUN``, then ``evaluate --val GROUP --model RUN``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

from jsonargparse import auto_cli

COMMAND = [sys.executable, "-m", "hiera_video.cli"]


def leave_one_out(videos: Path, output: Path, pattern: str, groups: str = "", options: str = "") -> None:
    """Prints a line for each fold and the mean.

    Args:
        videos: Class folders.
        output: Where folds are made and runs written; a fold whose run is there is not repeated.
        pattern: A regular expression; its first bracket is the group.
        groups: Groups to take, with commas. Default: all.
        options: More words for ``finetune``.
    """
    group_of = {file: match[1] for file in sorted(videos.glob("*/*")) if (match := re.match(pattern, file.name))}
    chosen = groups.split(",") if groups else sorted(set(group_of.values()))
    shares = []
    for group in chosen:
        for file, other in group_of.items():
            if other in chosen:
                link = output / group / ("val" if other == group else "train") / file.parent.name / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(file.resolve())
        fold, began = output / group, time.monotonic()
        _run("finetune", "--train", fold / "train", "--output", fold / "run", *options.split())
        seconds = time.monotonic() - began
        answer = _run("evaluate", "--val", fold / "val", "--model", fold / "run", "--format", "json")
        shares.append(float(json.loads(answer)[0]["top1"]))
        print(f"{group:12s} {shares[-1]:6.1%}  fitted in {seconds:.0f} s", flush=True)
    print(f"{'mean':12s} {fmean(shares):6.1%}  of {len(shares)}")


def _run(*words: object) -> str:
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    auto_cli(leave_one_out, as_positional=False)
