"""Figures of a run: the record, and what becomes of it: progress bar, ``metrics.jsonl``, tracker."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from hiera_video.cells import cells
from hiera_video.files import replacing
from hiera_video.training.optimization import Plan


@dataclass(frozen=True)
class Metrics:
    """Figures after ``step`` steps. ``kind``: "train" (means since the last ones), "val", or "done"."""

    kind: str
    step: int
    passes: float
    values: dict[str, float]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """One flat mapping, as it stands in ``metrics.jsonl``."""
        return {"kind": self.kind, "step": self.step, "passes": round(self.passes, 4), **self.values}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]

    def text(self) -> str:
        """One line."""
        return cells(self.to_dict())


def read_metrics(file: Path, *, until: float = float("inf")) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` up to a step, without what a killed process left half-written."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            record = json.loads(line)
            if record["step"] <= until:
                records.append(record)
        except (ValueError, KeyError, TypeError):
            continue
    return records


class Writer:
    """Counts steps and writes records, in the main process; ``waited`` are seconds spent waiting for data."""

    def __init__(
        self, output: Path | None, step: int, plan: Plan, accelerator: Accelerator, tracker: str | None
    ) -> None:
        self.plan, self.accelerator, self.tracker = plan, accelerator, tracker
        self.file = output / "metrics.jsonl" if output is not None and accelerator.is_main_process else None
        if self.file is not None and self.file.is_file():  # what was written after the checkpoint comes again
            kept = read_metrics(self.file, until=step) if step else []
            with replacing(self.file) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        quiet = None if accelerator.is_main_process else True
        self.bar = tqdm(total=plan.steps, initial=step, unit="step", file=sys.stderr, disable=quiet)
        self.since, self.waited = time.perf_counter(), 0.0
        self.recent: list[dict[str, float]] = []

    def __enter__(self) -> Writer:
        if self.tracker is not None:
            self.accelerator.init_trackers("hiera_video")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
        if self.tracker is not None:
            self.accelerator.end_training()

    def add(self, step: int, figures: dict[str, float], lr: float) -> Metrics | None:
        """Counts a step in; every ``log_every`` of them, and before an evaluation, gives a record of their means."""
        self.recent.append(figures)
        self.bar.update()
        plan = self.plan
        if step % plan.log_every and step % plan.evaluate_every and step != plan.steps:
            return None
        seconds = time.perf_counter() - self.since
        values = {name: statistics.fmean(one[name] for one in self.recent) for name in figures}
        values["lr"] = lr
        values["clips_per_s"] = round(len(self.recent) * plan.clips_per_step / seconds, 2)
        values["data_wait"] = round(self.waited / seconds, 4)
        if torch.cuda.is_available():
            values["gpu_mem_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.4g}, {values['clips_per_s']:.3g} clips/s, waiting {values['data_wait']:.0%}"
        )
        self.recent = []
        return self.write(Metrics("train", step, plan.passes(step), values))

    def write(self, record: Metrics) -> Metrics:
        """Appends a record to the run's files; the next steps' time begins here."""
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record.to_dict()) + "\n")
        if self.tracker is not None:
            named = {f"{record.kind}/{name}": value for name, value in record.values.items()}
            self.accelerator.log(named, step=record.step)
        self.since, self.waited = time.perf_counter(), 0.0
        return record
