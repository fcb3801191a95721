"""What the benchmarks share: alternating rounds, medians and ratios within a round, the machine, the JSON file."""

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


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What the figures depend on: the processor, its cores, and the versions of Python and of these packages."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "versions": versions}


def write_json(path: Path | None, result: Any) -> None:
    """Writes everything measured, where a file is named."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
