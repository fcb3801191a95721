"""The loop of every training: data, forward, backward, step, log, evaluate, save, from top to bottom in one method.

It knows no task: ``step(model, batch)`` gives the loss, ``evaluate(model)`` the figures that tell the best model, and
``export(model)`` writes it. Randomness inside the model (dropout, drop path) is seeded anew for every batch from (seed,
step, batch, rank); what a sample is, the loader's keys decide. So a run that goes on from a checkpoint is the same run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from hiera_video.data.dataset import Problem
from hiera_video.data.loader import Batch
from hiera_video.data.sampling import keyed_rng
from hiera_video.errors import RequestError, TrainingStopped
from hiera_video.training.accelerator import distributed
from hiera_video.training.bad_videos import list_bad, too_many_bad
from hiera_video.training.checkpointing import latest, restore, save
from hiera_video.training.metrics import Metrics, Writer
from hiera_video.training.optimization import Plan, build_optimizer, build_schedule
from hiera_video.training.recipe import Finetuning, Pretraining

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

log = logging.getLogger("hiera_video")

#: (step, batch within it): a key for draws that a step makes of its own.
Draw = tuple[int, int]


class Loader(Protocol):
    """What the loop needs of a loader; each iteration is the rest of an epoch."""

    problems: list[Problem]

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@dataclass
class Training:
    """A run and all its parts; :meth:`run` trains and yields figures as they come.

    ``evaluate``, ``export`` and ``show`` are called in all processes, with the average of the weights where there is
    one (``optim.ema``).

    Args:
        model: The trained module.
        step: ``step(model, batch, draw)`` gives ``{"loss": scalar, ...}``; all of it is logged.
        loader: The batches of this process.
        groups: The model's parameters, for the optimizer.
        recipe: Gives ``optim``, ``run`` and ``data.max_bad_share``.
        plan: The run in steps.
        accelerator: The run's processes.
        num_videos: Length of the list.
        evaluate: Gives the figures of a model; None: there is no validation.
        best: The figure by which the best model is chosen: the model is exported whenever it is greater than ever
            before. None: at each save.
        export: Writes the model.
        show: ``show(model, step)`` draws pictures.
        judge_first: Whether the model is judged before the first step too: a fitted head may be the best there is.
    """

    model: nn.Module
    step: Callable[[nn.Module, Batch, Draw], Mapping[str, Tensor]]
    loader: Loader
    groups: list[dict[str, Any]]
    recipe: Pretraining | Finetuning
    plan: Plan
    accelerator: Accelerator
    num_videos: int
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    best: str | None = None
    export: Callable[[nn.Module], object] | None = None
    show: Callable[[nn.Module, int], object] | None = None
    judge_first: bool = False

    done: int = field(default=0, init=False)
    bad: int = field(default=0, init=False)
    best_value: float | None = field(default=None, init=False)
    recent_losses: list[float] = field(default_factory=list, init=False)
    average: nn.Module | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.optim, self.options = self.recipe.optim, self.recipe.run
        self.optimizer = build_optimizer(self.groups, self.optim, self.plan.lr)
        self.schedule = build_schedule(self.optimizer, self.plan)

    def run(self) -> Iterator[Metrics]:
        """Trains for ``plan.steps`` steps, or for what a checkpoint has left of them.

        Yields:
            Figures of training and of each evaluation, and at the end a record of kind "done".

        Raises:
            TrainingStopped: The loss is not finite or explodes (the optimizer's step is not made), or too many videos
                cannot be read.
            KeyboardInterrupt: SIGTERM or SIGINT came; the state was saved.
        """
        plan, accelerator, model = self.plan, self.accelerator, self.model
        if self.options.shard and self.optim.ema is not None:
            raise RequestError("optim.ema is not possible with run.shard: leave one of them out")
        model.to(accelerator.device)
        mean = self._average_of(model)
        self.average = None if mean is None else mean.module
        judged = model if self.average is None else self.average
        self._resume()
        wrapped = distributed(model, self.options, accelerator)
        optimizer = accelerator.prepare_optimizer(self.optimizer)
        batches = _endless(self.loader)
        model.train()
        with _signals() as signals, Writer(self.output, self.done, plan, accelerator, self.options.tracker) as writer:
            if self.judge_first and self.evaluate is not None and not self.done:
                yield writer.write(Metrics("val", 0, 0.0, self._evaluate(judged)))
            while self.done < plan.steps:
                # data, forward, backward
                self.schedule.step_update(self.done)
                sums, files = self._gradients(wrapped, batches, writer)

                # step
                figures, stop, bad = self._read(sums, signals)
                self._guard(figures, sums, files)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.done += 1
                if mean is not None:
                    mean.update(model, step=self.done)

                # log, evaluate, save
                lr = max(group["lr"] for group in optimizer.param_groups)
                if (record := writer.add(self.done, figures, lr)) is not None:
                    yield record
                if bad > self.bad:
                    self.bad = bad
                    self._count_bad()
                ends = self.done == plan.steps
                if self.show is not None and (ends or self.done % plan.picture_every == 0):
                    self.show(judged, self.done)
                if self.evaluate is not None and (ends or self.done % plan.evaluate_every == 0):
                    yield writer.write(Metrics("val", self.done, plan.passes(self.done), self._evaluate(judged)))
                if ends or stop or self.done % plan.save_every == 0:
                    self._save(judged)
                if stop and not ends:
                    log.info("stopped after step %d, saved in %s; the same command goes on", self.done, self.output)
                    raise KeyboardInterrupt
        yield self._finish(judged)

    def _finish(self, judged: nn.Module) -> Metrics:
        self.loader.close()
        if self.best is not None and self.best_value is None and self.export is not None:
            log.warning("no video of the validation list could be read: the last weights are kept, not the best")
            self.export(judged)
        self._list_bad(self._problems())
        best = {} if self.best_value is None else {f"best_{self.best}": self.best_value}
        return Metrics("done", self.done, self.plan.passes(self.done), best)

    @property
    def output(self) -> Path | None:
        """The run's folder."""
        return None if self.options.output is None else Path(self.options.output)

    def _gradients(
        self, wrapped: nn.Module, batches: Iterator[Batch], writer: Writer
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Adds up the gradients of the step's batches; means of what ``step`` returned, and the files it was about."""
        sums: dict[str, Tensor] = {}
        files: list[str] = []
        for part in range(self.plan.accumulate):
            started = time.perf_counter()
            batch = next(batches)
            writer.waited += time.perf_counter() - started
            files += batch["path"]
            key = keyed_rng(self.options.seed, self.done, part, self.accelerator.process_index)
            torch.manual_seed(int(key.integers(2**63)))
            waits = part + 1 < self.plan.accumulate and not self.options.shard
            # Gradients of a batch that is not the step's last stay in their process.
            with self.accelerator.no_sync(wrapped) if waits else contextlib.nullcontext():
                with self.accelerator.autocast():
                    values = self.step(wrapped, batch, (self.done, part))
                self.accelerator.backward(values["loss"] / self.plan.accumulate)
            for name, value in values.items():
                mean = value.detach().float() / self.plan.accumulate
                sums[name] = sums[name] + mean if name in sums else mean
        return sums, files

    def _read(self, sums: dict[str, Tensor], signals: list[int]) -> tuple[dict[str, float], bool, int]:
        """Clips the gradients, and reads the one time that a step waits for the device: means over the processes, the
        gradients' norm before clipping, whether any process was told to stop, how many files each replaced, added up.
        """
        self.accelerator.unscale_gradients()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        limit = math.inf if self.optim.clip_norm is None else self.optim.clip_norm
        norm: Any = nn.utils.clip_grad_norm_(parameters, limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        bad = sum(problem.replaced for problem in self.loader.problems)
        marks = torch.tensor([float(bool(signals)), float(bad)]).to(norm.device, non_blocking=True)
        everywhere: Any = self.accelerator.reduce(torch.cat([torch.stack(list(sums.values())), marks]), "sum")
        *values, stop, all_bad, length = torch.cat([everywhere, norm.detach().float().view(1)]).tolist()
        figures = {name: value / self.accelerator.num_processes for name, value in zip(sums, values, strict=True)}
        return {**figures, "grad_norm": length}, stop > 0, round(all_bad)

    def _guard(self, figures: dict[str, float], sums: dict[str, Tensor], files: list[str]) -> None:
        """Raises :class:`TrainingStopped` for a loss or gradient that nothing should be learned from."""
        loss, factor = figures["loss"], self.optim.explosion_factor
        full = len(self.recent_losses) == 5
        # With a loss scaler an infinite gradient is the scaler's to handle: it leaves the step out.
        finite_norm = self.accelerator.scaler is not None or math.isfinite(figures["grad_norm"])
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif factor is not None and full and loss > factor * statistics.fmean(self.recent_losses):
            what = f"the loss is {loss:.4g}, more than {factor:g} times the mean of the five steps before"
        elif not finite_norm:
            what = f"the norm of the gradient is {figures['grad_norm']}"
        else:
            self.recent_losses = [*self.recent_losses[-4:], loss]
            return
        suspect = math.isfinite(loss) or not math.isfinite(sums["loss"].item())
        named = gather_object(sorted(set(files)) if suspect else [])
        raise TrainingStopped(
            f"step {self.done + 1}: {what}; the step was not made. Look at its videos, lower optim.lr or set "
            f"run.precision fp32: {', '.join(named)}"
        )

    def _evaluate(self, judged: nn.Module) -> dict[str, float]:
        assert self.evaluate is not None
        figures = self.evaluate(judged)
        self.model.train()
        value = math.nan if self.best is None else figures[self.best]
        if not math.isnan(value) and (self.best_value is None or value > self.best_value):  # nan: nothing was readable
            self.best_value = value
            if self.export is not None:
                self.export(judged)
        return figures

    def _save(self, judged: nn.Module) -> None:
        if self.output is None:
            return
        state = {
            "step": self.done,
            "best_value": self.best_value,
            "recent_losses": self.recent_losses,
            "steps": self.plan.steps,
            "videos_per_step": self.plan.videos_per_step,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "loader": self.loader.state_dict() | {"problems": [asdict(problem) for problem in self._problems()]},
        }
        save(
            self.output,
            state,
            model=self.model,
            optimizer=self.optimizer,
            average=self.average,
            keep=self.options.keep_checkpoints,
            is_main=self.accelerator.is_main_process,
        )
        if self.export is not None and self.best is None:
            self.export(judged)
        self.accelerator.wait_for_everyone()

    def _average_of(self, model: nn.Module) -> ModelEmaV3 | None:
        """The mean of a model's weights over steps, where the recipe asks for it."""
        if self.optim.ema is None:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(model, decay=self.optim.ema, use_warmup=True)

    def _resume(self) -> None:
        """Puts everything to where the newest checkpoint was, and says so."""
        main = self.accelerator.is_main_process
        folder = latest(self.output) if self.output is not None and main else None
        (folder,) = broadcast_object_list([folder])
        if folder is None:
            return
        state = restore(folder, model=self.model, optimizer=self.optimizer, average=self.average)
        was = f"{state['steps']} steps of {state['videos_per_step']} videos"
        now = f"{self.plan.steps} steps of {self.plan.videos_per_step} videos"
        if was != now:
            raise RequestError(f"{folder} is of a run of {was}, this one is of {now}: the list of videos has changed")
        self.loader.load_state_dict(state["loader"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.done, self.best_value, self.recent_losses = state["step"], state["best_value"], state["recent_losses"]
        if main:
            log.info("going on from %s: step %d of %d", folder, self.done, self.plan.steps)

    def _problems(self) -> list[Problem]:
        """The bad files of all processes, each once."""
        problems: list[Problem] = gather_object(list(self.loader.problems))
        return list({problem.path: problem for problem in problems}.values())

    def _list_bad(self, problems: list[Problem]) -> None:
        if self.accelerator.is_main_process:
            list_bad(problems, self.output)

    def _count_bad(self) -> None:
        """Raises :class:`TrainingStopped` where too many files cannot be read."""
        problems = self._problems()
        stopped = too_many_bad(problems, self.num_videos, self.recipe.data.max_bad_share)
        if stopped is not None:
            self._list_bad(problems)
            raise stopped


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGTERM and SIGINT that have come, so that a step is finished and saved; a second SIGINT interrupts at once.

    Outside the main thread they are left alone.
    """
    received: list[int] = []
    before = {}

    def mark(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, mark)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
