"""Checks and measures everything on a GPU, each part in a process of its own, and writes one JSON and one page.

A part that fails, dies or takes too long is told, and the others run all the same. Run from a checkout, by
scripts/check_gpu.sh, which brings what is not installed:

    python scripts/check_gpu.py --output gpu_check                 # under 9 minutes on one H100
    python scripts/check_gpu.py --output gpu_check --device cpu    # tiny models in place of the published ones
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from gpu_page import page, verdicts

#: The functions of benchmarks/gpu_parts.py, and how many seconds each may take. Compiling comes last: it takes what the
#: others leave.
PARTS = {
    "machine": 60,
    "tests": 110,
    "parity": 60,
    "throughput": 170,
    "extraction": 60,
    "resumed": 60,
    "parallel": 60,
    "compiled": 500,
}
#: Seconds of the whole, so that 10 minutes suffice for starting and writing too.
BUDGET_S = 525.0


def child(name: str, file: Path, settings: dict[str, Any]) -> None:
    """Runs a part in this process, a row of the file for each figure that it yields: what is done outlives its end."""
    os.setsid()  # so that it can be ended with all that it started
    with file.open("a", encoding="utf-8", buffering=1) as rows:
        try:
            import gpu_parts  # here, not in the parent: a process that has begun with CUDA cannot be forked

            for row in getattr(gpu_parts, name)(settings):
                rows.write(json.dumps(row) + "\n")
                print(f"{name}: {row}", flush=True)
        except BaseException as error:  # the benchmark ends with SystemExit where models differ
            rows.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            traceback.print_exc()
            sys.exit(1)


def run(name: str, limit: float, settings: dict[str, Any]) -> dict[str, Any]:
    """One part to its end, or to its limit in seconds: how it ended, its seconds, its figures."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="check_gpu_") as folder:
        file = Path(folder) / "rows.jsonl"
        settings = settings | {"folder": folder, "deadline": time.time() + limit}
        process = multiprocessing.get_context("fork").Process(target=child, args=(name, file, settings))
        process.start()
        process.join(limit)
        status = "done"
        if process.is_alive():
            status = f"took more than {limit:.0f} s"
        if process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    errors = [row["error"] for row in rows if "error" in row]
    if status == "done" and process.exitcode:
        status = "failed" if errors else f"died ({process.exitcode})"
    if errors:
        status += f": {errors[-1][:300]}"
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where all parts are done and all aims are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait for each other
        with suppress(ImportError):  # the parts will say what is missing
            for module in ("gpu_parts", "hiera", "matplotlib.figure", "timm.optim", "timm.scheduler"):
                importlib.import_module(module)  # once for all of them
    ends, parts = time.monotonic() + options.budget, {}
    for name in [name for name in PARTS if name in options.parts]:
        limit = min(PARTS[name], ends - time.monotonic())
        if limit < 5:
            parts[name] = {"status": "no time was left", "seconds": 0.0, "rows": []}
        else:
            parts[name] = run(name, limit, {"device": options.device, "parts": parts})
        lines = verdicts(parts)
        found = {"device": options.device, "parts": parts, "verdicts": lines}
        (options.output / "check_gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (options.output / "check_gpu.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
