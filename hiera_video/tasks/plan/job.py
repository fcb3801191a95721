"""What a job will cost before it is begun: steps, FLOPs, memory, bytes, decoder cores, hours, and what limits it.

On this machine its parts are measured (calibrate) and multiplied. For a GPU that is not here files are decoded as the
job decodes them, FLOPs are counted, and a share of the published peak is taken for its speed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from hiera_video.errors import RequestError
from hiera_video.tasks.plan.measure import Part
from hiera_video.tasks.plan.parts import Calibration, calibrate
from hiera_video.tasks.records import FlatRecord, Results
from hiera_video.training.devices import name_of

#: Published peaks of dense products in TFLOP/s, in bf16 and in fp32 without tensor cores (NVIDIA's data sheets; SXM).
GPUS: dict[str, tuple[float, float]] = {
    "a10": (125, 31.2),
    "a100": (312, 19.5),
    "b200": (2250, 75),
    "h100": (989, 67),
    "h200": (989, 67),
    "l4": (121, 30.3),
    "l40s": (362, 91.6),
    "rtx4090": (165, 82.6),
}
Gpu = Literal["a10", "a100", "b200", "h100", "h200", "l4", "l40s", "rtx4090"]
#: Seconds of all measurements together, start-up aside.
SECONDS = 20.0
#: Bytes and seconds of files at most by which the disk is measured.
DISK_BYTES, DISK_S = 2**26, 1.0
#: Bad files that are named.
MAX_NAMED = 10

#: What to change, by what limits.
ADVICE = {
    "decoding": "decoding limits: give it {cores:.1f} cores ({workers} workers now), smaller videos (hiera-video data "
    "shards --short-side 256), or more data.repeats in training",
    "model": "the model limits: take a GPU or a faster one (--gpu h100 tells), a smaller model, or fewer clips",
    "disk": "the disk limits: copy the videos to one that is faster, or into shards (hiera-video data shards)",
}


@dataclass(frozen=True)
class Planned(FlatRecord):
    """What a job will cost.

    ``steps``: of the optimizer, else batches. ``memory``: the most bytes of all processes; None for a GPU that is not
    here. ``bytes``: read from files, each time that they are read. ``decoder_cores``: that decode as fast as the model
    computes. ``limit``: decoding, model or disk. ``parts``: see :class:`Part`.
    """

    job: str
    device: str
    precision: str
    how: str
    steps: int
    flops: float
    memory: int | None
    bytes: int
    decoder_cores: float
    hours: float
    limit: str
    advice: str
    parts: list[Part]
    error: str | None = None

    tabular = False

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [{name: value for name, value in self.to_dict().items() if name != "parts"}]

    def text(self) -> str:
        """A table for people."""
        seconds = 3600 * self.hours
        lasts = (
            f"{seconds:.0f} s"
            if seconds < 600
            else f"{seconds / 60:.0f} min"
            if seconds < 36000
            else f"{self.hours:.1f} h"
        )
        lines = {
            "job": f"{self.job} on {self.device} in {self.precision}, {self.how}",
            "steps": f"{self.steps:,}",
            "FLOPs": f"{self.flops:.3g}",
            "memory": "not measured: the model did not run" if self.memory is None else f"{self.memory / 1e9:.2f} GB",
            "read": f"{self.bytes / 1e9:.3g} GB",
            "decoder cores": f"{self.decoder_cores:.1f} keep up with the model",
            "time": lasts,
            "limit": self.advice,
        }
        lines |= {
            part.what: f"{part.count:,} of {part.each or part.model:.3g} s, decoding {part.decoding:.3g} core s, "
            f"model {part.model:.3g} s; once {part.once:.1f} s"
            for part in self.parts
        }
        lines |= {"cannot be read": self.error} if self.error else {}
        width = max(map(len, lines))
        return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def plan(
    job: Literal["pretrain", "finetune", "evaluate", "extract"],
    request: Any,
    *,
    gpu: Gpu | None = None,
    gpu_share: float = 0.25,
) -> Results[Planned]:
    """Predict what a job will cost, from measurements of about 20 s on this machine; nothing of it is done.

    Start-up is counted from the beginning of this process: call it in a new one.

    Args:
        job: pretrain, finetune, evaluate or extract, with its own options behind it.
        request: The job's recipe, or of extract its arguments by name.
        gpu: Plan for one such GPU in place of this machine's device; decoders are those of this machine.
        gpu_share: The share of the GPU's published peak that is reached.

    Returns:
        One record.

    Raises:
        RequestError: The job would be refused, or cannot be planned.
        UnreadableVideo: No file can be read.
        WeightsError: The model cannot be had.
    """
    if not 0 < gpu_share <= 1:
        raise RequestError(f"gpu_share is {gpu_share:g}, but is above 0 and at most 1")
    return Results(1, _planned(job, request, gpu, gpu_share))


def _planned(job: str, request: Any, gpu: Gpu | None, share: float) -> Iterator[Planned]:
    costs = calibrate(job, request, seconds=SECONDS, run_model=gpu is None)
    precision, how, parts = name_of(costs.precision), "measured here", costs.parts
    if gpu is not None:
        asked = request["precision"] if job == "extract" else request.run.precision
        precision = "bf16" if asked == "auto" else asked
        rate = 1e12 * share * GPUS[gpu][precision == "fp32"]
        how = f"not measured: {share:.0%} of the published peak of {GPUS[gpu][precision == 'fp32']:g} TFLOP/s"
        parts = [_on(part, part.flops / rate, costs) for part in parts]
    total = sum(part.count * part.each + part.once for part in parts) + costs.ready
    num_bytes = round(sum(looked.bytes * times for looked, times in costs.files))
    decoding, model = (
        sum(part.count * value for part, value in zip(parts, values, strict=True))
        for values in ([part.decoding for part in parts], [part.model for part in parts])
    )
    cores = decoding / model if model else 0.0
    shares = {"decoding": decoding / _decoders(costs), "model": model, "disk": _disk_seconds(costs.paths, num_bytes)}
    limit = max(shares, key=lambda name: shares[name])
    bad = {path: reason for looked, _ in costs.files for path, reason in looked.bad.items()}
    yield Planned(
        job=job,
        device=gpu or str(costs.device),
        precision=precision,
        how=how,
        steps=costs.steps,
        flops=float(sum(part.count * part.flops for part in parts)),
        memory=None if gpu else round(costs.memory),
        bytes=num_bytes,
        decoder_cores=cores,
        hours=max(total, shares["disk"]) / 3600,
        limit=limit,
        advice=ADVICE[limit].format(cores=cores, workers=costs.workers),
        parts=parts,
        error=_told(bad),
    )


def _decoders(costs: Calibration) -> int:
    """Cores that decode at once."""
    return min(max(1, costs.workers), os.cpu_count() or 1)


def _on(part: Part, model: float, costs: Calibration) -> Part:
    """A part with the model on another device; without workers this process decodes, and the model waits."""
    decoding = part.decoding / _decoders(costs)
    each = max(model, decoding) if costs.workers else model + decoding
    return Part(part.what, part.count, each, part.decoding, model, part.flops, part.once)


def _disk_seconds(paths: Sequence[str], num_bytes: int) -> float:
    """Of reading so many bytes from the disk, by some files that are not in memory; 0 where that cannot be told."""
    done, began = 0, time.perf_counter()
    for path in paths:
        with suppress(OSError, AttributeError), open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            done += len(file.read(DISK_BYTES))
        if done >= DISK_BYTES or time.perf_counter() - began > DISK_S:
            break
    return num_bytes * (time.perf_counter() - began) / done if done else 0.0


def _told(bad: dict[str, str]) -> str | None:
    """Which files are bad, and why, in one sentence."""
    named = [reason if path in reason else f"{path}: {reason}" for path, reason in list(bad.items())[:MAX_NAMED]]
    more = f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
    return "; ".join(named) + more if bad else None
