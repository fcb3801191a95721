"""What the benchmarks share: alternating rounds, medians and ratios within a round, the machine, files of results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: What bf16 and int8 products of a processor depend on, x86's and Arm's.
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "i8mm", "bf16", "sve"),
)


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """The order of one round: every second one runs backwards, so that what else the machine does hits all alike."""
    return list(names)[:: -1 if number % 2 else 1]


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "quartile_low": low, "quartile_high": high}


def ratio(mine: list[float], others: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within a round."""
    return spread([mine_s / other_s for mine_s, other_s in zip(mine, others, strict=True)])


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if (info.exists())
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of :data:`INSTRUCTION_SETS` that the processor has, as Linux names them; elsewhere nothing is known."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in INSTRUCTION_SETS if name in flags]


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What the figures depend on: the processor, its cores and instruction sets, what oneDNN may use of them, and the
    versions of Python and of these packages.
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "onednn_at_most": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "versions": versions,
    }


def machine_text(facts: dict[str, Any]) -> str:
    """What :func:`machine` says, in one line."""
    sets = " ".join(facts["instruction_sets"]) or "instruction sets unknown"
    masked = f" (oneDNN at most {facts['onednn_at_most']})" if facts["onednn_at_most"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, {sets}{masked}; {versions}"


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    header = list(header)
    lines = [header, ["-"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_json(path: Path | None, result: Any) -> None:
    """Writes everything measured, where a file is named."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")


def write_both(path: Path | None, result: Any, report: str) -> None:
    """Prints the report; where a file is named, writes everything measured to it, and the report beside it as .md."""
    print(report)
    write_json(path, result)
    if path is not None:
        path.with_suffix(".md").write_text(report + "\n")
