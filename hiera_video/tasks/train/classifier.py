"""A classifier in training, on videos or on generated clips: the model it starts from, its step, its validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.loader import Batch
from hiera_video.data.on_device import mix, on_device, soft_targets
from hiera_video.data.sampling import keyed_rng, sampler_of
from hiera_video.data.views import load_ahead, segments_of
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.build import fitted
from hiera_video.models.checkpoints.io import resize_tables
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import create_model, from_pretrained, list_models
from hiera_video.spec import ClipSpec, parse_views
from hiera_video.tasks.classify.classifier import Scorer, score_views
from hiera_video.tasks.evaluate.metrics import Scores, cross_entropy, metrics, put_together
from hiera_video.tasks.train.curves import with_curves
from hiera_video.tasks.train.data import input_size_of, spec_of
from hiera_video.training.accelerator import export, whole
from hiera_video.training.devices import pick_precision
from hiera_video.training.durations import duration_of
from hiera_video.training.loop import Draw, Loader, Training
from hiera_video.training.metrics import Metrics
from hiera_video.training.optimization import Plan
from hiera_video.training.recipe import Finetuning, Loss

# --- the model --------------------------------------------------------------------------------------------------------


def starting_classifier(recipe: Finetuning, classes: list[str], read: Hiera | None = None) -> Hiera:
    """The model that a run starts from, equal in all processes: new weights, or those of a checkpoint.

    Args:
        recipe: Names the start, and changes it.
        classes: The classes of the run. The head is new unless the checkpoint has the very same ones, in any order.
        read: The model of ``recipe.model.start``, where it was read before.

    Returns:
        A model on the CPU.

    Raises:
        RequestError: The model does not fit the recipe.
        WeightsError: The checkpoint cannot be had.
    """
    start, data = recipe.model, recipe.data
    head: str | None = "stages" if start.head == "best" else start.head
    trains = duration_of(recipe.run.duration)[0] > 0
    config = {name: getattr(start, name) for name in ("drop_path_rate", "head_dropout", "head_init_scale")}
    torch.manual_seed(recipe.run.seed)
    if read is None and start.start in list_models():
        with torch.device("meta"):
            own = create_model(start.start).arch.input_size
        model: Hiera = create_model(
            start.start, num_classes=len(classes), input_size=input_size_of(data, own), **config
        )
        model.new_head = True
        head = head or model.arch.head
        if start.narrow_init:
            init_narrow(model)
    else:
        model = from_pretrained(start.start, **config) if read is None else rebuilt(read, **config)
        if head is None:  # a readout is of the trunk as it is
            head = "linear" if trains and model.arch.head == "readout" else model.arch.head
        size = input_size_of(data, model.arch.input_size)
        if size != model.arch.input_size and head != "stages":
            model = rebuilt(model, input_size=size)
        if model.labels is not None and head == model.arch.head and sorted(model.labels) == sorted(classes):
            _reorder_head(model, classes)
        if model.labels != classes:
            _renew_head(model, len(classes))
    faster = head == "stages" and start.head is not None and start.head_strides != model.arch.head_strides
    if head != model.arch.head or faster:
        _renew_head(model, len(classes), head=head, head_strides=start.head_strides)
    model.spec, model.labels = spec_of(model.spec, data), list(classes)
    if model.arch.head == "stages" and data.size is not None:  # its trunk takes any size
        model.spec = model.spec.replace(size=(data.size, data.size), resize=data.resize or data.size)
    if start.views is not None:
        model.views = start.views
    if len(model.arch.input_size) == 2 and not data.images:
        raise RequestError(f"model.start {start.start} is an image model, and data.images is off: take a video model")
    return model


def _renew_head(model: Hiera, num_classes: int, **head: Any) -> None:
    model.reset_classifier(num_classes, **head)
    model.new_head = True


def _reorder_head(model: Hiera, classes: list[str]) -> None:
    """The same answers, their classes in another order."""
    assert model.labels is not None and isinstance(model.head.projection, nn.Linear)
    rows = [model.labels.index(name) for name in classes]
    with torch.no_grad():
        for parameter in model.head.projection.parameters():
            parameter.copy_(parameter[rows])
    model.labels = list(classes)


def rebuilt(model: Hiera, **config: Any) -> Hiera:
    """A model of the same weights with other fields, as if its checkpoint had been read again with them.

    Args:
        model: Stays as it is.
        config: Fields of :class:`~hiera_video.Architecture`; to another ``input_size`` position embeddings are resized.

    Returns:
        A model in evaluation mode.

    Raises:
        SizeError: The model cannot have this size.
    """
    arch, spec, state = replace(model.arch, **config), model.spec, model.state_dict()
    if arch.input_size != model.arch.input_size:
        arch.token_grid(arch.input_size)
        state, spec = resize_tables(state, model.arch, arch, model.position_resize), fitted(spec, arch.input_size)
    other = Hiera(arch, spec)
    other.load_state_dict(state)
    for name in ("labels", "views", "license", "position_resize", "new_head"):
        setattr(other, name, getattr(model, name))
    return other.eval()


def init_narrow(model: Hiera) -> None:
    """Draws weights for narrow layers: the published std of 0.02 is very small for them.

    Args:
        model: Changed in place: Xavier weights (Glorot and Bengio 2010), patch filters of std 0.1.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.patch_embed.get_parameter("proj.weight"), std=0.1)


# --- one step ---------------------------------------------------------------------------------------------------------


@dataclass
class ClassStep:
    """Cross-entropy on mixed, smoothed targets; binary cross-entropy where a video has several labels.

    Args:
        loss: Smoothing and mixing.
        spec: The model's input facts.
        num_classes: How many there are.
        seed: Of the run: part of the key of each mixing draw.
        device: Where the model is.
        weights: Of the classes, float32 [num_classes]; None: all alike.
    """

    loss: Loss
    spec: ClipSpec
    num_classes: int
    seed: int
    device: torch.device
    weights: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        clip, label, target = self.inputs(batch, draw)
        return self.figures(model(clip), label, target)

    def inputs(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """A batch on the device.

        Args:
            batch: Of a loader.
            draw: The key of the mixing draw.

        Returns:
            The model's input, float32 [B, C, T, h, w] or [B, C, h, w]; the labels as they were; the targets float32
            [B, num_classes]. Clips and targets are mixed.
        """
        loss, smoothing = self.loss, self.loss.label_smoothing
        clip = on_device(batch, self.spec, self.device)
        label = batch["label"].to(self.device, non_blocking=True)
        if label.ndim == 1:
            target = soft_targets(label, self.num_classes, smoothing)
        else:
            target = label * (1 - smoothing) + smoothing / 2
        if (loss.mixup or loss.cutmix) and len(clip) > 1:
            rng = keyed_rng(self.seed, *draw, 0, 0)
            clip, target = mix(clip, target, rng, mixup=loss.mixup, cutmix=loss.cutmix, switch=loss.mix_switch)
        return self.spec.model_input(clip), label, target

    def figures(self, logits: Tensor, label: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The figures of a step.

        Args:
            logits: [B, num_classes].
            label: int64 [B], or float32 [B, num_classes].
            target: float32 [B, num_classes].

        Returns:
            ``loss`` and, for one label a video, ``train_top1``: the share of clips whose own label scores best,
            mixed or not.
        """
        logits = logits.float()
        if label.ndim == 2:
            return {"loss": F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weights)}
        loss = F.cross_entropy(logits, target, weight=self.weights)
        return {"loss": loss, "train_top1": (logits.argmax(dim=1) == label).float().mean()}


def balanced_weights(videos: VideoList) -> Tensor:
    """Weights by which every class counts alike.

    Args:
        videos: The training list; every class has videos.

    Returns:
        float32 [num_classes]. One label a video: the mean count over the class's. Several: the weight of a class's
        positives, its negatives over its positives.
    """
    if videos.labels.ndim == 2:
        positives = videos.labels.sum(axis=0)
        return torch.from_numpy((len(videos) - positives) / np.maximum(positives, 1)).float()
    counts = np.bincount(videos.labels, minlength=len(videos.classes))
    return torch.from_numpy(len(videos) / (len(counts) * counts)).float()


# --- the run ----------------------------------------------------------------------------------------------------------


def train_classifier(
    recipe: Finetuning,
    plan: Plan,
    accelerator: Accelerator,
    *,
    trained: nn.Module,
    groups: list[dict[str, Any]],
    step: Callable[[nn.Module, Batch, Draw], dict[str, Tensor]],
    loader: Loader,
    num_videos: int,
    val: VideoList | None,
    classifier_of: Callable[[Any], Hiera],
    report: Callable[[Scores], object] | None = None,
) -> Iterator[Metrics]:
    """Trains, and keeps the best model by the validation list, or the last one without such a list.

    Args:
        recipe: Of the run, with its ``run.output``.
        plan: The run in steps.
        accelerator: The run's processes.
        trained: The trained module.
        groups: Its parameters, for the optimizer.
        step: One step on it.
        loader: The batches of this process.
        num_videos: Length of the training list.
        val: The validation list.
        classifier_of: Gives the classifier in a module like ``trained``.
        report: Called with the scores of the validation videos whenever the model is the best so far.

    Yields:
        Figures of the run.

    Raises:
        TrainingStopped: As :meth:`Training.run`.
    """

    judge, best = (None, None) if val is None else _judge(recipe, accelerator, val, classifier_of, report)
    training = Training(
        model=trained,
        step=step,
        loader=loader,
        groups=groups,
        recipe=recipe,
        plan=plan,
        accelerator=accelerator,
        num_videos=num_videos,
        evaluate=judge,
        best=best,
        export=lambda module: export(classifier_of(module), run=recipe.run, accelerator=accelerator),
        judge_first=recipe.model.fit_head,
    )
    yield from with_curves(training.run(), training.output, plan, accelerator)


def _judge(
    recipe: Finetuning,
    accelerator: Accelerator,
    val: VideoList,
    classifier_of: Callable[[Any], Hiera],
    report: Callable[[Scores], object] | None,
) -> tuple[Callable[[nn.Module], dict[str, float]], str]:
    """What judges a module, and the figure that tells the best one."""
    best, record = best_figure(val), float("-inf")

    def judge(module: nn.Module) -> dict[str, float]:
        nonlocal record
        scores = validation_scores(classifier_of(module), videos=val, recipe=recipe, accelerator=accelerator)
        figures = {**metrics(scores, val), "loss": cross_entropy(scores, val)}
        if report is not None and figures[best] > record:
            record = figures[best]
            report(scores)
        return figures

    return judge, best


#: Classes that differ in their numbers of videos by more than this are judged alike, each by its own share.
UNEVEN = 3.0


def best_figure(videos: VideoList) -> str:
    """The figure by which the best model is chosen.

    Args:
        videos: What the model is judged on.

    Returns:
        "map" of several labels a video; else "top1", or "macro", the mean of the classes' shares, where classes differ
        by more than 3 to 1.
    """
    if videos.labels.ndim == 2:
        return "map"
    counts = np.bincount(videos.labels[videos.labels >= 0])
    counts = counts[counts > 0]
    return "macro" if counts.max() > UNEVEN * counts.min() else "top1"


def validation_scores(model: Hiera, *, videos: VideoList, recipe: Finetuning, accelerator: Accelerator) -> Scores:
    """The scores that a model gives the validation videos; the processes share the list.

    Args:
        model: On the accelerator's device, sharded or not.
        videos: The list.
        recipe: Gives ``data.views``, the batch and the reading of files.
        accelerator: The run's processes.

    Returns:
        The scores, the same in each process.
    """
    data, run = recipe.data, recipe.run
    model = whole(model, run)
    num_clips, num_crops = parse_views(data.views)
    loaded = load_ahead(
        segments_of(videos, range(accelerator.process_index, len(videos), accelerator.num_processes)),
        model.spec,
        num_clips,
        num_crops,
        num_workers=data.num_workers,
        time_limit=data.time_limit,
        sample=sampler_of(data.sampling, model.spec),
        fps=data.fps,
    )
    dtype = pick_precision(run.precision, accelerator.device)
    scorer = Scorer(model, model.spec, accelerator.device, dtype, multi_label=videos.labels.ndim == 2)
    scored = score_views(scorer, loaded, batch_size=max(1, run.batch_size * data.repeats))
    return put_together(gather_object(list(scored)), len(videos.classes))
