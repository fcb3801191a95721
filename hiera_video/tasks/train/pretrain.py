"""Pre-train by MAE: videos without labels in, an encoder that knows how they look and move out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.loader import Batch
from hiera_video.data.on_device import on_device
from hiera_video.data.sampling import keyed_rng, sampler_of
from hiera_video.data.views import test_views
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.models.mae import HieraMAE
from hiera_video.models.masks import num_visible
from hiera_video.models.zoo import create_model, list_models, mae_from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.tasks.train.curves import with_curves
from hiera_video.tasks.train.data import check_files, clip_loader, input_size_of, lists_of, spec_of
from hiera_video.tasks.train.teacher import Teacher, WithTeacher, new_heads, pixels, student_of, teacher_of
from hiera_video.training.accelerator import export, prepare, start_accelerator, whole
from hiera_video.training.loop import Draw, Training
from hiera_video.training.metrics import Metrics
from hiera_video.training.optimization import Plan, param_groups
from hiera_video.training.recipe import Pretraining, Run
from hiera_video.training.run_folder import open_run
from hiera_video.visual.reconstructions import show_reconstructions, write_video

log = logging.getLogger("hiera_video")

#: Clips in a picture of reconstructions, and those of the validation list that the loss is measured on.
NUM_SHOWN, NUM_VALIDATED = 4, 64


def pretrain(recipe: Pretraining, *, teacher: Callable[[Tensor], Tensor] | None = None) -> Iterator[Metrics]:
    """Pre-trains by MAE (arXiv 2306.00989, section 3); figures come as the run goes on.

    Args:
        recipe: Of :func:`~hiera_video.load_recipe`. Without ``run.output`` the run is in ``runs/NAME-DATE``, NAME being
            that of the training videos; the log says where.
        teacher: In place of ``loss.teacher`` a function: clips float32 [B, C, T, h, w] in [0, 1] -> features [B, D].

    Yields:
        Means of training, the validation loss, and at the end a record of kind "done".

    Raises:
        RequestError: The recipe and its lists make no run.
        UnreadableVideo: No video can be read.
        WeightsError: The starting model cannot be had.
        OutputError: The run's folder cannot be written.
        TrainingStopped: The loss is not finite or explodes, or too many videos cannot be read.
    """
    data, run = recipe.data, recipe.run
    accelerator = start_accelerator(run)
    lists = lists_of(data)
    if lists.train is None:
        raise RequestError("pre-training reads videos: name a card, folder or file as data.train")
    check_files(lists, data)
    with open_run(recipe, len(lists.train), accelerator, []) as (recipe, plan):
        who = teacher_of(teacher, recipe, accelerator.device)
        yield from _pretrain(recipe, plan, lists.train, lists.val, accelerator, who)


def _pretrain(
    recipe: Pretraining,
    plan: Plan,
    train: VideoList,
    val: VideoList | None,
    accelerator: Accelerator,
    teacher: Teacher | None,
) -> Iterator[Metrics]:
    run = recipe.run
    model = starting_mae(recipe)
    masking = Masking(run.seed, model.num_mask_units(), model.arch.mask_ratio, recipe.model.decode_ratio)
    loader = clip_loader(train, model.spec, recipe.data, recipe.augment, run, plan, accelerator, several_clips=True)
    prepare(model, run)
    trained = model if teacher is None else WithTeacher(model, teacher, accelerator.device)
    step = MAEStep(model.spec, masking, accelerator.device, teacher, recipe.loss.teacher_weight)
    parts = {"masking": masking, "run": run, "accelerator": accelerator}
    judged = None if val is None else fixed_clips(val, NUM_VALIDATED, recipe, model.spec)

    def judge(module: nn.Module) -> dict[str, float]:
        assert judged is not None
        return validate(student_of(module), clips=judged, masking=masking, run=run, accelerator=accelerator)

    shown = fixed_clips(train if val is None else val, NUM_SHOWN, recipe, model.spec)
    training = Training(
        model=trained,
        step=step,
        loader=loader,
        groups=param_groups(model, recipe.optim) + new_heads(trained),
        recipe=recipe,
        plan=plan,
        accelerator=accelerator,
        num_videos=len(train),
        evaluate=None if judged is None else judge,
        export=lambda module: export(student_of(module), run=run, accelerator=accelerator),
        show=lambda module, step: show_some(student_of(module), step, clips=shown, **parts),
    )
    yield from with_curves(training.run(), training.output, plan, accelerator)


def starting_mae(recipe: Pretraining) -> HieraMAE:
    """The model that a run starts from, equal in all processes: new weights, or those of a checkpoint.

    Args:
        recipe: Names the start, and changes it.

    Returns:
        A model on the CPU.

    Raises:
        RequestError: The model does not fit the recipe.
        WeightsError: The checkpoint cannot be had.
    """
    start = recipe.model
    names = ("drop_path_rate", "mask_ratio", "decoder_num_heads", "decoder_depth", "decoder_embed_dim")
    config = {name: value for name in names if (value := getattr(start, name)) is not None}
    new = start.start in list_models("mae_*")
    build: Any = create_model if new else mae_from_pretrained
    with torch.device("meta") if new else nullcontext():
        model: HieraMAE = build(start.start, **config)
    size = input_size_of(recipe.data, model.arch.input_size)
    if new or size != model.arch.input_size:
        torch.manual_seed(recipe.run.seed)
        model = build(start.start, input_size=size, **config)
    model.spec = spec_of(model.spec, recipe.data)
    return model


@dataclass(frozen=True)
class Masking:
    """Which mask units of a clip are seen, and which are predicted: a function of (seed, epoch, index, repeat).

    Args:
        seed: Of the run.
        num_units: Mask units of a clip.
        mask_ratio: Share of them that is hidden.
        decode_ratio: Share of the hidden ones that is predicted.
    """

    seed: int
    num_units: int
    mask_ratio: float
    decode_ratio: float

    def draw(self, rows: Iterable[tuple[int, int, int]]) -> dict[str, NDArray[np.bool_]]:
        """The masks of a batch, as arguments of :class:`HieraMAE`.

        Args:
            rows: (epoch, index, repeat) of each clip.

        Returns:
            ``keep`` and, where not all hidden units are predicted, ``decode``: bool [B, num_units], on the host.
        """
        visible = num_visible(self.num_units, self.mask_ratio)
        decoded = max(1, round((self.num_units - visible) * self.decode_ratio))
        # Seven numbers: no other draw has so long a key.
        orders = [keyed_rng(self.seed, *row, 0, 0, 0).permutation(self.num_units) for row in rows]
        ranks = np.argsort(np.stack(orders), axis=1)
        keep = ranks < visible
        return (
            {"keep": keep} if self.decode_ratio == 1 else {"keep": keep, "decode": ~keep & (ranks < visible + decoded)}
        )


@dataclass
class MAEStep:
    """The loss of one batch.

    Args:
        spec: The model's input facts.
        masking: Draws the masks, by the clips' own keys.
        device: Where the model is.
        teacher: Who is imitated beside it, if anyone: it sees whole clips, the model some of each.
        weight: Of the loss on the teacher's features.
    """

    spec: ClipSpec
    masking: Masking
    device: torch.device
    teacher: Teacher | None = None
    weight: float = 1.0

    def __call__(self, model: nn.Module, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        clip = self.spec.model_input(on_device(batch, self.spec, self.device))
        rows = zip(batch["epoch"].tolist(), batch["index"].tolist(), batch["repeat"].tolist(), strict=True)
        masks = self.masking.draw(rows)
        if self.teacher is None:
            return {"loss": model(clip, **masks).loss}
        loss, teacher_loss = model(clip, self.teacher(pixels(self.spec, clip)), **masks)
        return {"loss": loss + self.weight * teacher_loss, "mae_loss": loss, "teacher_loss": teacher_loss}


def fixed_clips(videos: VideoList, count: int, recipe: Pretraining, spec: ClipSpec) -> Tensor:
    """Clips of some videos of a list, the same ones each time.

    Args:
        videos: The list.
        count: How many videos are taken at most, spread over the list.
        recipe: Gives the reading of files.
        spec: The model's input facts.

    Returns:
        The centre clip of each that can be read, uint8 [N, C, T, h, w].

    Raises:
        UnreadableVideo: None can be read.
    """
    data = recipe.data
    indices = np.unique(np.linspace(0, len(videos) - 1, count).round().astype(int)).tolist()
    answers = test_views(
        videos,
        spec,
        1,
        1,
        sample=sampler_of(data.sampling, spec),
        fps=data.fps,
        num_workers=min(data.num_workers, len(indices)),
        time_limit=data.time_limit,
        indices=indices,
    )
    clips = [answer["clips"] for answer in answers if answer["clips"] is not None]
    if not clips:
        raise UnreadableVideo(f"none of {len(indices)} videos can be read, the first of them {videos.path(indices[0])}")
    return torch.cat(clips)


@torch.no_grad()
def validate(
    model: HieraMAE, *, clips: Tensor, masking: Masking, run: Run, accelerator: Accelerator
) -> dict[str, float]:
    """The loss on the same clips under the same masks each time; the processes share the clips.

    Args:
        model: On the accelerator's device, sharded or not.
        clips: uint8 [N, C, T, h, w].
        masking: Draws the masks.
        run: Gives ``shard``.
        accelerator: The run's processes.

    Returns:
        ``loss``, the mean over the clips.
    """
    judged = whole(model, run).eval()
    losses, spec = [], judged.spec
    for place in range(accelerator.process_index, len(clips), accelerator.num_processes):
        clip = spec.model_input(spec.normalize(clips[place : place + 1].to(accelerator.device)))
        with accelerator.autocast():
            losses.append(judged(clip, **masking.draw([(0, place, 0)])).loss.float())
    total: Any = accelerator.reduce(torch.stack(losses).sum() if losses else torch.zeros((), device=accelerator.device))
    return {"loss": float(total) / len(clips)}


@torch.no_grad()
def show_some(
    model: HieraMAE, step: int, *, clips: Tensor, masking: Masking, run: Run, accelerator: Accelerator
) -> None:
    """Writes a picture and a short mp4 of clips: as they are, as the encoder saw them, as the model fills them in.

    Args:
        model: On the accelerator's device, sharded or not.
        step: Steps made so far; part of the files' names.
        clips: uint8 [N, C, T, h, w].
        masking: Draws the masks.
        run: Gives ``output`` and ``shard``.
        accelerator: The run's processes; the main one writes.
    """
    assert run.output is not None
    shown = whole(model, run)
    if not accelerator.is_main_process:
        return
    was, spec = shown.training, shown.spec
    shown.eval()
    clip = spec.model_input(spec.normalize(clips.to(accelerator.device)))
    keep = masking.draw([(0, place, 0) for place in range(len(clips))])["keep"]
    with accelerator.autocast():
        masked, filled = shown.reconstruct(clip, keep)
    shown.train(was)
    folder = Path(run.output) / "pictures"
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step:08d}.png"
    stride = shown.arch.patch_stride[0] if clip.ndim == 5 else 1
    seen, guess = (
        spec.denormalize(pixels.view(len(clips), 3, -1, *spec.size)).cpu().numpy() for pixels in (masked, filled)
    )
    show_reconstructions(clips[:, :, ::stride].numpy(), seen, guess, path, f"{step} steps")
    if clip.ndim == 5:
        write_video(clips[:, :, ::stride].numpy(), seen, guess, path.with_suffix(".mp4"))
