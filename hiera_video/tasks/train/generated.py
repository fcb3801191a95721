"""Train the built-in model on clips that are generated on the fly: how the camera moves, the flow, the look of things.

From labels alone a small video Hiera learns no motion (docs/results/general.md). So a linear head on each stage's map
predicts the optical flow, which the generator knows exactly; and others tell what an image network says of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from hiera_video.data.camera_motion.batches import MotionLoader
from hiera_video.data.camera_motion.generator import LABELS
from hiera_video.data.loader import Batch
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.spec import ClipSpec
from hiera_video.tasks.train.classifier import ClassStep, starting_classifier, train_classifier
from hiera_video.tasks.train.data import check_files, judging, lists_of
from hiera_video.tasks.train.teacher import Imitation, Taught, Teacher, pixels, taught_dim, teacher_of
from hiera_video.training.accelerator import prepare
from hiera_video.training.loop import Draw
from hiera_video.training.metrics import Metrics
from hiera_video.training.optimization import Plan, param_groups
from hiera_video.training.recipe import Finetuning, Loss
from hiera_video.training.run_folder import open_run

#: Generated clips have no list to walk over: a "pass" of theirs is this many steps.
GENERATED_STEPS = 100


def train_on_generated(recipe: Finetuning, accelerator: Accelerator) -> Iterator[Metrics]:
    """Trains a classifier of camera motion by a recipe with ``data.generate``.

    Args:
        recipe: Of the run; ``data.val`` names videos of camera motion to validate on.
        accelerator: The run's processes.

    Yields:
        Figures of the run.

    Raises:
        RequestError: The recipe makes no run.
        TrainingStopped: The loss is not finite or explodes.
    """
    run, classes = recipe.run, list(LABELS)
    if run.shard:
        raise RequestError("run.shard is for large models, and data.generate for small ones: leave one of them out")
    lists = lists_of(recipe.data)
    check_files(lists, recipe.data)
    val = None if lists.val is None else judging(lists.val, classes, recipe.data)
    num_videos = GENERATED_STEPS * run.videos_per_step
    with open_run(recipe, num_videos, accelerator, []) as (recipe, plan):
        model = starting_classifier(recipe, classes)
        model.freeze_stages(recipe.model.freeze_stages)
        prepare(model, run)
        groups = param_groups(model, recipe.optim)
        teacher = teacher_of(None, recipe, accelerator.device)
        trained = WithTargets(model, None if teacher is None else taught_dim(teacher, model.spec, accelerator.device))
        groups.append({"params": [*trained.flow.parameters(), *trained.imitation.parameters()], "lr_scale": 1.0})
        with accelerator.main_process_first():  # it makes coded clips that the others then find
            loader = motion_loader(recipe, model.spec, plan, accelerator)
        classify = ClassStep(recipe.loss, model.spec, len(classes), run.seed, accelerator.device)
        yield from train_classifier(
            recipe,
            plan,
            accelerator,
            trained=trained,
            groups=groups,
            step=GeneratedStep(classify, teacher, recipe.loss, plan.steps),
            loader=loader,
            num_videos=num_videos,
            val=val,
            classifier_of=lambda module: module.model,
        )


def motion_loader(recipe: Finetuning, spec: ClipSpec, plan: Plan, accelerator: Accelerator) -> MotionLoader:
    """The generated batches of this process.

    Args:
        recipe: Of the run, with its ``run.output``, where coded clips are kept.
        spec: The model's input facts.
        plan: The run in steps.
        accelerator: The run's processes.

    Returns:
        The loader.

    Raises:
        RequestError: Clips cannot be made so.
    """
    generate, run = recipe.data.generate, recipe.run
    assert generate is not None and run.output is not None
    return MotionLoader(
        spec,
        run.batch_size,
        seed=run.seed,
        steps_per_epoch=GENERATED_STEPS,
        total_steps=plan.steps,
        num_pictures=generate.pictures,
        photographs=None if generate.photographs is None else Path(generate.photographs),
        num_coded=generate.coded,
        coded_share=generate.coded_share,
        growing=generate.growing,
        num_workers=recipe.data.num_workers,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        accumulate=plan.accumulate,
        cache=Path(run.output),
    )


@dataclass
class GeneratedStep:
    """The step of a classifier, with the losses on the flow and on the teacher's features beside it.

    Args:
        classify: The classifier's step.
        teacher: Who is imitated, if anyone.
        loss: The weights.
        steps: The steps of the run.
    """

    classify: ClassStep
    teacher: Teacher | None
    loss: Loss
    steps: int

    def __call__(self, model: nn.Module, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        clip, label, target = self.classify.inputs(batch, draw)
        taught = None if self.teacher is None else self.teacher(pixels(self.classify.spec, clip))
        logits, flow_loss, teacher_loss = model(clip, batch["flow"].to(clip.device, non_blocking=True), taught)
        figures = self.classify.figures(logits, label, target)
        first, last = self.loss.flow_weight
        weight = first + (last - first) * draw[0] / self.steps
        loss = figures["loss"] + weight * flow_loss
        figures = {**figures, "class_loss": figures["loss"], "flow_loss": flow_loss}
        if teacher_loss is not None:
            loss, figures["teacher_loss"] = loss + self.loss.teacher_weight * teacher_loss, teacher_loss
        return {**figures, "loss": loss}


class WithTargets(nn.Module):
    """A classifier with linear heads that tell the optical flow on each stage's map, and a teacher's features.

    Args:
        model: The classifier.
        taught_dim: Channels of the teacher's features; None: nobody teaches.
    """

    def __init__(self, model: Hiera, taught_dim: int | None) -> None:
        super().__init__()
        self.model = model
        dims = model.arch.dims
        self.flow = nn.ModuleList(nn.Linear(dim, 4) for dim in dims)
        self.imitation = nn.Module() if taught_dim is None else Imitation(dims[-1], dims[-2], taught_dim)

    def forward(self, clip: Tensor, flow: Tensor, taught: Taught | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """All answers.

        Args:
            clip: float32 [B, C, T, h, w].
            flow: float32 [B, 4, T / 2, h / 4, w / 4].
            taught: What the teacher says of the clip.

        Returns:
            Logits [B, K]; the loss on the flow, averaged over stages, as a share of what predicting no flow would
            give; and that on the teacher's features, in the embedding and the map of the last stage but one. Flow is
            compared on a scale that is logarithmic above 0.8 % of the window per frame: slow motions count too.
        """
        tokens, maps = self.model.forward_intermediates(clip, output_fmt="NHWC")
        target = flow.sign() * (flow.abs() / 0.008).log1p()
        losses = []
        for head, features in zip(self.flow, maps, strict=True):
            _, frames, height, width, _ = features.shape
            goal = F.adaptive_avg_pool3d(target, (frames, height, width)).permute(0, 2, 3, 4, 1)
            guess = head(F.layer_norm(features, features.shape[-1:]))
            losses.append(F.smooth_l1_loss(guess, goal) / F.smooth_l1_loss(torch.zeros_like(goal), goal))
        imitated = None
        if taught is not None:
            time = taught.frame // self.model.arch.patch_stride[0]
            embedding = self.model.forward_head(tokens, pre_logits=True)
            imitated = self.imitation(embedding, maps[-2][:, time], taught)
        return self.model.forward_head(tokens), torch.stack(losses).mean(), imitated
