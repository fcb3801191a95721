"""The curves of a run, drawn while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from hiera_video.training.metrics import Metrics, read_metrics
from hiera_video.training.optimization import Plan
from hiera_video.visual.curves import draw_curves

#: Seconds between two drawings of the curves.
REDRAW_S = 30.0


def with_curves(
    records: Iterator[Metrics], output: Path | None, plan: Plan, accelerator: Accelerator
) -> Iterator[Metrics]:
    """Passes on what is worth a line (evaluations, and training figures as often), and keeps ``curves.png`` fresh."""
    drawn = -REDRAW_S
    for record in records:
        fresh = record.kind != "train" or record.step % plan.evaluate_every == 0
        late = time.monotonic() - drawn > REDRAW_S
        if output is not None and accelerator.is_main_process and (record.kind == "done" or (fresh and late)):
            draw_curves(read_metrics(output / "metrics.jsonl"), output / "curves.png")
            drawn = time.monotonic()
        if fresh:
            yield record
