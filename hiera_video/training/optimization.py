"""What a recipe's numbers come to on a given list of videos, and the optimizer and learning rates that follow.

timm has the parameter groups and the schedule; the rules are those of SlowFast (``slowfast/utils/lr_policy.py``):
learning rates scale with the videos of a step, whatever the repeats, and the schedule is computed for every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hiera_video.errors import RequestError
from hiera_video.models.trunk import HieraTrunk
from hiera_video.training.durations import duration_of, steps_of
from hiera_video.training.recipe import Optim, Run

if TYPE_CHECKING:  # timm takes three seconds to import, and a run without steps needs none of it
    from timm.scheduler import CosineLRScheduler


@dataclass(frozen=True)
class Plan:
    """A run in steps of the optimizer. ``accumulate``: batches of each process that make a step. Learning rates are
    those of ``videos_per_step`` videos; ``clips_per_step`` counts the repeats too.
    """

    steps: int
    warmup: int
    steps_per_pass: int
    videos_per_step: int
    num_processes: int
    accumulate: int
    clips_per_step: int
    lr: float
    warmup_lr: float
    end_lr: float
    save_every: int
    evaluate_every: int
    picture_every: int
    log_every: int

    def passes(self, step: int) -> float:
        """Walks over the list of videos after ``step`` steps."""
        return step / self.steps_per_pass


def plan_run(optim: Optim, run: Run, *, num_videos: int, repeats: int, num_processes: int) -> Plan:
    """What ``run`` means for ``num_videos`` videos, each seen ``repeats`` times a pass, in ``num_processes`` processes.

    Raises :class:`RequestError` where the processes' batches do not make up a step.
    """
    at_once, trains = run.batch_size * num_processes, duration_of(run.duration)[0] > 0
    if trains and run.videos_per_step % at_once:
        raise RequestError(
            f"run.videos_per_step is {run.videos_per_step}, which {num_processes} processes of run.batch_size "
            f"{run.batch_size} cannot make up: it must be a multiple of {at_once}"
        )
    steps_per_pass = num_videos // run.videos_per_step
    if trains and not steps_per_pass:
        raise RequestError(
            f"{num_videos} videos do not fill one step of run.videos_per_step {run.videos_per_step}: lower it"
        )

    def steps(field: str, duration: str, total: int | None = None) -> int:
        return steps_of(duration, steps_per_pass=max(1, steps_per_pass), repeats=repeats, total=total, field=field)

    total = steps("run.duration", run.duration)
    warmup = steps("optim.warmup", optim.warmup, total)
    if optim.warmup.endswith("%") or not total:
        warmup = min(warmup, max(0, total - 1))
    if total and not warmup < total:
        raise RequestError(f"optim.warmup {optim.warmup} is {warmup} steps, and the whole run {total}: shorten it")
    scale = run.videos_per_step / optim.lr_videos
    every = ("save_every", "evaluate_every", "picture_every", "log_every")
    return Plan(
        steps=total,
        warmup=warmup,
        steps_per_pass=max(1, steps_per_pass),
        videos_per_step=run.videos_per_step,
        num_processes=num_processes,
        accumulate=run.videos_per_step // at_once,
        clips_per_step=run.videos_per_step * repeats,
        lr=optim.lr * scale,
        warmup_lr=optim.warmup_lr * scale,
        end_lr=optim.end_lr * scale,
        **{name: max(1, steps(f"run.{name}", getattr(run, name), total)) for name in every},
    )


def describe_plan(plan: Plan, optim: Optim, *, num_videos: int, repeats: int) -> str:
    """Two lines for the log: how long the run is in every unit, and what the learning rate came to."""
    if not plan.steps:
        return f"no training: the head alone is fitted, to {num_videos} videos"
    passes = plan.passes(plan.steps)
    together = f"{plan.clips_per_step} clips: {plan.accumulate} batches in each of {plan.num_processes} processes"
    return (
        f"{plan.steps} steps of {plan.videos_per_step} videos ({together}) over {num_videos} videos: {passes:.4g} "
        f"passes = {passes * repeats:.4g} effective epochs = {plan.steps * plan.clips_per_step} clips; "
        f"warm-up {plan.warmup} steps\n"
        f"learning rate {optim.lr:g} for {optim.lr_videos} videos a step is {plan.lr:.4g} for {plan.videos_per_step}, "
        f"from {plan.warmup_lr:.2g} in the warm-up, to {plan.end_lr:.2g} at the end"
    )


def param_groups(model: HieraTrunk, optim: Optim) -> list[dict[str, Any]]:
    """Parameters by weight decay and, where there is layer-wise decay, by layer, each with its ``lr_scale``.

    No weight decay on parameters of one axis and on those that ``model.no_weight_decay()`` names. Layer ids are 0 for
    the embeddings, i + 1 for block i, depth + 1 for norm and head, and a rate is scaled by
    ``layer_decay ** (depth + 1 - id)`` (SlowFast).
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    if optim.layer_decay == 1:
        return param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=model.no_weight_decay())
    return param_groups_layer_decay(
        model,
        weight_decay=optim.weight_decay,
        no_weight_decay_list=model.no_weight_decay(),
        layer_decay=optim.layer_decay,
    )


def build_optimizer(groups: list[dict[str, Any]], optim: Optim, lr: float) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum; ``lr`` is the scaled rate at its height."""
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, nesterov=optim.momentum > 0)
    # Fused: on CPUs too the step takes a fraction of the time (a fifth of an MAE step of the base model, else).
    return torch.optim.AdamW(groups, lr=lr, betas=optim.betas, eps=1e-8, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, plan: Plan) -> CosineLRScheduler:
    """Linear warm-up, then a cosine over what remains; ``schedule.step_update(step)`` sets the rates of a step."""
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler(
        optimizer,
        t_initial=plan.steps - plan.warmup,
        lr_min=plan.end_lr,
        warmup_t=plan.warmup,
        warmup_lr_init=plan.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
