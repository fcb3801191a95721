"""What a job will cost before it is begun: steps, FLOPs, memory, bytes, decoder cores, hours, and what limits it.

On this machine its parts are measured (Costs) and multiplied. For a GPU that is not here files are decoded as the
job decodes them, FLOPs are counted, and a share of the published peak is taken for its speed.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch

from hiera_video.errors import RequestError
from hiera_video.tasks.plan.measure import Costs, Part, clock
from hiera_video.tasks.records import FlatRecord, Results
from hiera_video.training.devices import name_of

Gpu = Literal["a10", "a100", "b200", "h100", "h200", "l4", "l40s", "rtx4090"]
#: Published peaks of dense products in TFLOP/s, in bf16 or fp16, and in fp32 (NVIDIA's data sheets; SXM).
PEAKS: dict[Gpu, tuple[float, float]] = {"a10": (125, 31.2), "a100": (312, 19.5), "b200": (2250, 75), "h100": (989, 67)}
PEAKS |= {"h200": (989, 67), "l4": (121, 30.3), "l40s": (362, 91.6), "rtx4090": (165, 82.6)}
#: Seconds of all measurements together, start-up aside.
SECONDS = 20.0
#: Bytes and seconds of files, at most, by which the disk is measured.
DISK_BYTES, DISK_S = 2**26, 1.0
#: Bad files that are named.
MAX_NAMED = 10
#: What to change, by what limits.
ADVICE = {
    "decoding": "decoding limits: more cores and workers, smaller videos (data shards --short-side), or data.repeats",
    "model": "the model limits: a GPU or a faster one (--gpu h100 tells), a smaller model, or fewer clips",
    "disk": "the disk limits: copy the videos to a faster one, or into shards (hiera-video data shards)",
}


@dataclass(frozen=True)
class Planned(FlatRecord):
    """What a job will cost.

    ``steps``: of the optimizer, else batches. ``memory``: the most bytes of all processes; None for a GPU that is not
    here, as is ``gpu_memory``, the most bytes on a GPU. ``bytes``: read from files, each time that they are read.
    ``decoder_cores``: that decode as fast as the model computes. ``limit``: decoding, model or disk, and what to
    change. ``parts``: see :class:`Part`.
    """

    job: str
    steps: int
    flops: float
    memory: int | None
    gpu_memory: int | None
    bytes: int
    decoder_cores: float
    hours: float
    limit: str
    parts: list[Part]
    error: str | None = None

    tabular = False

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [{name: value for name, value in self.to_dict().items() if name != "parts"}]

    def text(self) -> str:
        """A table for people."""
        lines = {name: value for name, value in self.rows()[0].items() if value is not None} | {
            "flops": f"{self.flops:.3g}"
        }
        lines |= {name: f"{lines[name] / 1e9:.3g} GB" for name in ("memory", "gpu_memory", "bytes") if name in lines}
        lines |= {
            "decoder_cores": f"{self.decoder_cores:.2g}",
            "hours": f"{self.hours:.3g} ({3600 * self.hours:.0f} s)",
        }
        for part in self.parts:
            seconds = f"{part.each:.3g} s each (decoding {part.decoding:.2g} core s, model {part.model:.2g} s)"
            lines[part.what] = f"{part.count} of {seconds}, once {part.once:.3g} s"
        return "\n".join(f"{name:{max(map(len, lines))}}  {value}" for name, value in lines.items())


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


def _costs_of(job: str, request: Any, run_model: bool) -> Costs:
    """Measures a job's parts; nothing is imported that the job does not import, since that takes time and memory."""
    log = logging.getLogger("hiera_video")
    level = log.level
    log.setLevel(logging.WARNING)  # without what a short run says of itself
    try:
        name = {"extract": "extraction:extraction", "evaluate": "scoring:evaluation"}.get(job, "steps:training")
        module, _, function = name.partition(":")
        costs = getattr(importlib.import_module(f"hiera_video.tasks.plan.{module}"), function)
        return cast(Costs, costs(request, SECONDS, run_model))
    finally:
        log.setLevel(level)


def _planned(job: str, request: Any, gpu: Gpu | None, share: float) -> Iterator[Planned]:
    costs = _costs_of(job, request, gpu is None)
    where = f"{costs.device} in {name_of(costs.precision)}, measured"
    decoders, parts, memory = min(max(1, costs.workers), os.cpu_count() or 1), costs.parts, costs.memory()
    if gpu is not None:
        asked = request["precision"] if job == "extract" else request.run.precision
        peak, kind = PEAKS[gpu][asked == "fp32"], "bf16" if asked == "auto" else asked
        where = f"{gpu} in {kind}, not measured: {share:.0%} of the published peak of {peak:g} TFLOP/s"
        parts = [_at(part, part.flops / (share * peak * 1e12), decoders, costs.workers) for part in parts]
    decoding = sum(part.count * part.decoding for part in parts)
    model = sum(part.count * part.model for part in parts)
    disk = costs.bytes * _disk_seconds(costs)
    seconds = {"decoding": decoding / decoders, "model": model, "disk": disk}
    total = costs.ready + sum(part.count * part.each + part.once for part in parts)
    named = "; ".join(list(costs.bad.values())[:MAX_NAMED])
    more = f"; and {len(costs.bad) - MAX_NAMED} more" if len(costs.bad) > MAX_NAMED else ""
    yield Planned(
        job=f"{job} on {where}",
        steps=costs.steps,
        flops=float(sum(part.count * part.flops for part in parts)),
        memory=memory if gpu is None else None,
        gpu_memory=torch.cuda.max_memory_allocated() if gpu is None and costs.device.type == "cuda" else None,
        bytes=round(costs.bytes),
        decoder_cores=decoding / model if model else 0.0,
        hours=max(total, disk) / 3600,
        limit=ADVICE[max(seconds, key=lambda name: seconds[name])],
        parts=parts,
        error=named + more or None,
    )


def _at(part: Part, model: float, decoders: int, workers: int) -> Part:
    """A part with the model on another device; without workers this process decodes, and the model waits."""
    decoding = part.decoding / decoders
    return replace(part, each=max(model, decoding) if workers else model + decoding, model=model)


def _disk_seconds(costs: Costs) -> float:
    """Of a byte from the disk, by some files that are put out of memory; 0 where that cannot be told."""
    done, began = 0, clock()
    for path in costs.paths:
        with suppress(OSError, AttributeError), open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            done += len(file.read(DISK_BYTES))
        if done >= DISK_BYTES or clock() - began > DISK_S:
            break
    return (clock() - began) / done if done else 0.0
