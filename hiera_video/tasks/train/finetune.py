"""Fine-tune a classifier on labelled videos: by a published recipe, or on one's own folders."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from hiera_video.data.camera_motion.batches import MotionLoader
from hiera_video.data.camera_motion.generator import LABELS
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.on_device import mix, on_device, soft_targets
from hiera_video.data.sampling import keyed_rng
from hiera_video.data.views import load_ahead, segments_of
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import create_model, from_pretrained, list_models
from hiera_video.spec import ClipSpec, parse_views
from hiera_video.tasks.classify.pipeline import Scorer, score_views
from hiera_video.tasks.evaluate.metrics import gather, match_classes, metrics, put_together
from hiera_video.tasks.train.curves import with_curves
from hiera_video.tasks.train.linear_head import fit_head
from hiera_video.training import setup as runs
from hiera_video.training.checkpointing import latest
from hiera_video.training.loop import Loader, Training
from hiera_video.training.metrics import Metrics
from hiera_video.training.optimization import (
    Plan,
    build_optimizer,
    build_schedule,
    param_groups,
)
from hiera_video.training.recipe import Finetuning, Loss

log = logging.getLogger("hiera_video")

#: Generated clips have no list to walk over: a "pass" of theirs is this many steps.
GENERATED_STEPS = 100


def finetune(recipe: Finetuning) -> Iterator[Metrics]:
    """Fine-tune a classifier, as a recipe says; figures come as the run goes on."""
    data, run, optim = recipe.data, recipe.run, recipe.optim
    accelerator = runs.start_accelerator(run)
    train, val = labelled_lists(recipe)
    num_videos = GENERATED_STEPS * run.videos_per_step if train is None else len(train)
    plan = runs.open_with_plan(recipe, num_videos, accelerator)
    output = None if run.output is None else Path(run.output)
    classes = list(LABELS) if train is None else train.classes
    model = starting_classifier(recipe, classes)
    model.multi_label = train is not None and train.labels.ndim == 2
    model.freeze_stages(recipe.model.freeze_stages)
    judge = None if val is None else partial(validate, videos=val, recipe=recipe, accelerator=accelerator)
    if recipe.model.fit_head and train is not None and (output is None or latest(output) is None):
        fit_head(model, train, recipe, accelerator)
    runs.prepare(model, run)
    groups = param_groups(model, optim)
    trained: nn.Module = model
    if train is None:
        trained = WithFlow(model)
        groups.append({"params": list(trained.heads.parameters()), "lr_scale": 1.0})
    optimizer = build_optimizer(groups, optim, plan.lr)
    with accelerator.main_process_first():  # it may make clips that the others then find
        loader = loader_of(recipe, train, model.spec, plan, accelerator)
    step = ClassStep(recipe.loss, model.spec, len(classes), run.seed, plan.steps, accelerator.device, train)
    training = Training(
        model=trained,
        step=step,
        loader=loader,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, plan),
        plan=plan,
        optim=optim,
        options=run,
        accelerator=accelerator,
        num_videos=num_videos,
        max_bad_share=data.max_bad_share,
        evaluate=judge,
        best=None if val is None else "map" if val.labels.ndim == 2 else "top1",
        export=None if output is None else partial(export, run=run, accelerator=accelerator),
    )
    yield from with_curves(training.run(), output, plan, accelerator)


# --- what is learned from, and what learns ----------------------------------------------------------------------------


def labelled_lists(recipe: Finetuning) -> tuple[VideoList | None, VideoList | None]:
    """Training list (None: generated clips) and validation list, numbered alike. Raises :class:`RequestError`."""
    data = recipe.data
    train, val = runs.lists_of(data)
    if train is None:
        if recipe.run.shard:
            raise RequestError("run.shard is for large models, and data.generate for small ones: leave one of them out")
        return None, None if val is None else match_classes(val, LABELS, len(LABELS))
    counts = (
        (train.labels > 0).sum(axis=0)
        if train.labels.ndim == 2
        else np.bincount(train.labels[train.labels >= 0], minlength=len(train.classes))
    )
    if (train.labels < 0).any():
        raise RequestError(
            f"{data.train}: {(train.labels < 0).sum()} videos have no label; fine-tuning needs one for each"
        )
    if empty := [name for name, count in zip(train.classes, counts, strict=True) if not count]:
        raise RequestError(
            f"{data.train} has no videos of the class {empty[0]!r}"
            f"{f' and {len(empty) - 1} more' if len(empty) > 1 else ''}: add some, or take the class away"
        )
    if val is None or val.classes == train.classes:
        return train, val
    for name in val.classes:
        if name not in train.classes:
            nearest = difflib.get_close_matches(name, train.classes, n=1, cutoff=0.0)
            raise RequestError(
                f"{data.val or data.train} has the class {name!r}, which {data.train} lacks; its nearest is "
                f"{nearest[0]!r}"
            )
    return train, match_classes(val, train.classes, len(train.classes))


def starting_classifier(recipe: Finetuning, classes: list[str]) -> Hiera:
    """The model that the run starts from: new weights, equal in all processes, or a checkpoint's; the head is new
    unless it is of the very same classes.
    """
    wanted, data = recipe.model, recipe.data
    config: dict[str, Any] = {
        "drop_path_rate": wanted.drop_path_rate,
        "head_dropout": wanted.head_dropout,
        "head_init_scale": wanted.head_init_scale,
    }
    torch.manual_seed(recipe.run.seed)
    if wanted.start in list_models():
        with torch.device("meta"):
            own = create_model(wanted.start).arch.input_size
        model: Hiera = create_model(
            wanted.start, num_classes=len(classes), input_size=runs.input_size_of(data, own), **config
        )
        if wanted.narrow_init:
            init_narrow(model)
    else:
        model = from_pretrained(wanted.start, **config)
        size = runs.input_size_of(data, model.arch.input_size)
        if size != model.arch.input_size:
            model = from_pretrained(wanted.start, input_size=size, **config)
        if model.labels != classes:
            model.reset_classifier(len(classes))
    model.spec, model.labels = runs.spec_of(model.spec, data), list(classes)
    if wanted.views is not None:
        model.views = wanted.views
    if len(model.arch.input_size) == 2 and not data.images:
        raise RequestError(f"model.start {wanted.start} is an image model, and data.images is off: take a video model")
    return model


def init_narrow(model: Hiera) -> None:
    """The published std of 0.02 is very small for narrow layers: Xavier weights, and patch filters of std 0.1."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.patch_embed.get_parameter("proj.weight"), std=0.1)


def loader_of(
    recipe: Finetuning, train: VideoList | None, spec: ClipSpec, plan: Plan, accelerator: Accelerator
) -> Loader:
    """Batches of videos, or of clips made on the fly."""
    data, run = recipe.data, recipe.run
    if train is not None:
        return runs.clip_loader(train, spec, data, recipe.augment, run, plan, accelerator, several_clips=False)
    assert data.generate is not None
    return MotionLoader(
        spec,
        run.batch_size,
        seed=run.seed,
        steps_per_epoch=GENERATED_STEPS,
        total_steps=plan.steps,
        num_pictures=data.generate.pictures,
        num_coded=data.generate.coded,
        coded_share=data.generate.coded_share,
        growing=data.generate.growing,
        num_workers=data.num_workers,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        accumulate=plan.accumulate,
        cache=None if run.output is None else Path(run.output),
    )


# --- one step ---------------------------------------------------------------------------------------------------------


@dataclass
class ClassStep:
    """Cross-entropy on mixed, smoothed targets (binary cross-entropy where a video has several labels) and, where a
    batch has ``flow``, the flow loss beside it.
    """

    loss: Loss
    spec: ClipSpec
    num_classes: int
    seed: int
    steps: int
    device: torch.device
    train: VideoList | None

    def __post_init__(self) -> None:
        self.weights = None
        if self.loss.class_weights == "balanced" and self.train is not None:
            self.weights = balanced_weights(self.train).to(self.device)

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        clip = on_device(batch, self.spec, self.device)
        label = batch["label"].to(self.device, non_blocking=True)
        step, part = batch["draw"]
        if label.ndim == 1:
            target = soft_targets(label, self.num_classes, self.loss.label_smoothing)
        else:
            target = label * (1 - self.loss.label_smoothing) + self.loss.label_smoothing / 2
        if (self.loss.mixup or self.loss.cutmix) and len(clip) > 1:
            rng = keyed_rng(self.seed, step, part, 0, 0)
            clip, target = mix(
                clip, target, rng, mixup=self.loss.mixup, cutmix=self.loss.cutmix, switch=self.loss.mix_switch
            )
        clip = runs.model_input(clip, self.spec)
        if "flow" not in batch:
            return self.figures(model(clip).float(), label, target)
        logits, flow_loss = model(clip, batch["flow"].to(self.device, non_blocking=True))
        figures = self.figures(logits.float(), label, target)
        first, last = self.loss.flow_weight
        weight = first + (last - first) * step / self.steps
        return {
            **figures,
            "loss": figures["loss"] + weight * flow_loss,
            "class_loss": figures["loss"],
            "flow_loss": flow_loss,
        }

    def figures(self, logits: Tensor, label: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss and, for one label a video, the share of clips whose own label scores best (mixed or not)."""
        if label.ndim == 2:
            return {"loss": F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weights)}
        loss = F.cross_entropy(logits, target, weight=self.weights)
        return {"loss": loss, "train_top1": (logits.argmax(dim=1) == label).float().mean()}


def balanced_weights(videos: VideoList) -> Tensor:
    """float32 [num_classes]: for one label a video, mean count over the class's count; for several, the weight of a
    class's positives, their negatives over their positives.
    """
    if videos.labels.ndim == 2:
        positives = videos.labels.sum(axis=0)
        return torch.from_numpy((len(videos) - positives) / np.maximum(positives, 1)).float()
    counts = np.bincount(videos.labels, minlength=len(videos.classes))
    return torch.from_numpy(len(videos) / (len(counts) * counts)).float()


class WithFlow(nn.Module):
    """A classifier with a linear head on each stage's map that predicts the optical flow a generator knows exactly.

    From labels alone a small video Hiera learns no motion (DESIGN section 3).
    """

    def __init__(self, model: Hiera) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(nn.Linear(dim, 4) for dim in model.arch.dims)

    def forward(self, clip: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and the loss on ``flow`` [B, 4, T', h, w], averaged over stages, as a share of what predicting
        no flow would give. Flow is compared on a scale that is logarithmic above 0.8 % of the window per frame: slow
        motions count too.
        """
        tokens, maps = self.model.forward_intermediates(clip)
        target = flow.sign() * (flow.abs() / 0.008).log1p()
        losses = []
        for head, features in zip(self.heads, maps, strict=True):
            _, frames, height, width, _ = features.shape
            goal = F.adaptive_avg_pool3d(target, (frames, height, width)).permute(0, 2, 3, 4, 1)
            guess = head(F.layer_norm(features, features.shape[-1:]))
            losses.append(F.smooth_l1_loss(guess, goal) / F.smooth_l1_loss(torch.zeros_like(goal), goal))
        return self.model.forward_head(tokens), torch.stack(losses).mean()


# --- judging ----------------------------------------------------------------------------------------------------------


def validate(
    trained: nn.Module, *, videos: VideoList, recipe: Finetuning, accelerator: Accelerator
) -> dict[str, float]:
    """Figures on the validation list, of all processes' shares together."""
    data, run = recipe.data, recipe.run
    model = runs.whole(classifier_of(trained), run)
    num_clips, num_crops = parse_views(data.views)
    dtypes = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    loaded = load_ahead(
        segments_of(videos, range(accelerator.process_index, len(videos), accelerator.num_processes)),
        model.spec,
        num_clips,
        num_crops,
        num_workers=data.num_workers,
        time_limit=data.time_limit,
        sample=runs.sampler_of(data, model.spec, training=False),
        fps=data.fps,
    )
    precision = dtypes[accelerator.mixed_precision]
    scorer = Scorer(model, model.spec, accelerator.device, precision, multi_label=videos.labels.ndim == 2)
    scored = score_views(scorer, loaded, batch_size=max(1, run.batch_size * data.repeats))
    scores = put_together(scored, len(videos.classes))
    return metrics(gather(scores, accelerator), videos)


def export(trained: nn.Module, *, run: Any, accelerator: Accelerator) -> None:
    """Writes the classifier's folder into the run's."""
    runs.export(classifier_of(trained), run=run, accelerator=accelerator)


def classifier_of(trained: nn.Module) -> Hiera:
    """The classifier in what is trained."""
    return trained.model if isinstance(trained, WithFlow) else trained  # type: ignore[return-value]
