"""What pre-training and fine-tuning share around the loop: processes, videos, clips, curves."""

from __future__ import annotations

import atexit
import logging
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from hiera_video.data.dataset import ClipDataset, Sampler
from hiera_video.data.lists.video_list import VideoList, card_of, list_videos
from hiera_video.data.loader import ClipLoader
from hiera_video.data.sampling import segment_clips
from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.io import save_pretrained
from hiera_video.models.hiera import Hiera, HieraTrunk
from hiera_video.models.mae import HieraMAE
from hiera_video.models.unroll import Size
from hiera_video.spec import Augment, ClipSpec
from hiera_video.training.checkpointing import open_run
from hiera_video.training.optimization import Plan, describe_plan, plan_run
from hiera_video.training.recipe import Data, Finetuning, Pretraining, Run

log = logging.getLogger("hiera_video")

M = TypeVar("M", Hiera, HieraMAE)
R = TypeVar("R", Pretraining, Finetuning)


def start_accelerator(run: Run) -> Accelerator:
    """Devices, precision and processes: one process here, or those that torchrun or accelerate started.

    Raises :class:`RequestError` for a device or precision that is not there.
    """
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        names = ", ".join(name for name, is_there in there.items() if is_there)
        raise RequestError(f"run.device {run.device!r} is not there; this machine has {names}")
    precision = run.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device == "cpu":
        raise RequestError("run.precision fp16 needs a GPU: take bf16 or fp32")
    atexit.register(_leave)
    AcceleratorState._reset_state()  # a second run in one process may have another precision
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=run.tracker,
            project_dir=run.output,
        )
    except ValueError as error:
        raise RequestError(f"run.tracker {run.tracker!r} is unknown: {error}") from error
    if run.tracker is not None and not accelerator.log_with:
        raise RequestError(f"run.tracker {run.tracker!r} is not installed: pip install {run.tracker}, or leave it out")
    return accelerator


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def open_with_plan(recipe: R, num_videos: int, accelerator: Accelerator) -> Plan:
    """What the run comes to, said in the log, and its folder, made or held against the recipe; all processes wait."""
    run, repeats = recipe.run, recipe.data.repeats
    plan = plan_run(recipe.optim, run, num_videos=num_videos, repeats=repeats, num_processes=accelerator.num_processes)
    if accelerator.is_main_process:
        if run.output is not None:
            open_run(Path(run.output), recipe)
        log.info(describe_plan(plan, recipe.optim, num_videos=num_videos, repeats=repeats))
    accelerator.wait_for_everyone()
    return plan


def lists_of(data: Data) -> tuple[VideoList | None, VideoList | None]:
    """The videos to learn from (None: clips are generated) and, where there are any, those to validate on.

    Raises :class:`RequestError`.
    """
    train, source = None, data.val
    if data.train is not None:
        train = list_videos(data.train, root=data.root, split=data.train_split, fold=data.fold, images=data.images)
        card = card_of(data.train)
        if source is None and card is not None and data.val_split in card.splits:
            source = data.train
    if source is None:
        return train, None
    return train, list_videos(source, root=data.root, split=data.val_split, fold=data.fold, images=data.images)


def spec_of(spec: ClipSpec, data: Data) -> ClipSpec:
    """The starting model's input facts with what the recipe says of them."""
    given = {
        "num_frames": data.num_frames,
        "frame_stride": data.frame_stride,
        "target_fps": data.target_fps,
        "resize": data.resize,
        "antialias": data.antialias,
        "pixel_aspect": data.pixel_aspect,
    }
    return spec.replace(**{name: value for name, value in given.items() if value is not None})


def input_size_of(data: Data, own: Size) -> Size:
    """The model's input size: what the recipe says of it, else its own."""
    space = own[-2:] if data.size is None else (data.size, data.size)
    if len(own) == 2:
        return space
    return (own[0] if data.num_frames is None else data.num_frames, *space)


def sampler_of(data: Data, spec: ClipSpec, *, training: bool) -> Sampler | None:
    """One frame of each segment, where the recipe says so; None: a dense clip."""
    return partial(_segments, spec, training) if data.sampling == "segments" else None


def _segments(spec: ClipSpec, random: bool, times: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    return segment_clips(times, spec, rng if random else None)


def clip_loader(
    videos: VideoList,
    spec: ClipSpec,
    data: Data,
    augment: Augment,
    run: Run,
    plan: Plan,
    accelerator: Accelerator,
    *,
    several_clips: bool,
) -> ClipLoader:
    """Batches of this process. ``repeats`` are clips of one decode (``several_clips``) or augmentations of one clip."""
    dataset = ClipDataset(
        videos,
        spec,
        augment=augment,
        sample=sampler_of(data, spec, training=True),
        num_clips=data.repeats if several_clips else 1,
        num_augments=1 if several_clips else data.repeats,
        seed=run.seed,
        decode=data.decode,
        fps=data.fps,
        time_limit=data.time_limit,
    )
    return ClipLoader(
        dataset,
        run.batch_size,
        num_workers=data.num_workers,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        accumulate=plan.accumulate,
    )


def model_input(clip: Tensor, spec: ClipSpec) -> Tensor:
    """A clip [B, C, T, h, w] as the model takes it: an image model's has one frame, and no axis for it."""
    return clip[:, :, 0] if spec.num_frames == 1 else clip


def export(model: M, *, run: Run, accelerator: Accelerator) -> None:
    """Writes the model's folder into the run's."""
    assert run.output is not None
    exported = whole(model, run)
    if accelerator.is_main_process:
        save_pretrained(exported, run.output)


def prepare(model: HieraTrunk, run: Run) -> None:
    """Checkpointing of activations, compilation and sharding, in place, where the run asks for them."""
    model.set_grad_checkpointing(run.grad_checkpointing)
    if run.compile:
        model.compile()
    if run.shard:
        if not torch.distributed.is_initialized():
            raise RequestError("run.shard needs several processes: start with torchrun --nproc_per_node N")
        # accelerate's FSDP2 starts on GPUs alone; this is the same call, and it is tested on CPUs.
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)


def whole(model: M, run: Run) -> M:
    """The model itself or, where it is sharded, a whole copy of it in each process (all take part)."""
    if not run.shard:
        return model
    with torch.device("meta"):
        copy = type(model)(model.arch, model.spec)
    copy.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), assign=True)
    for name in ("labels", "views", "license", "position_resize"):
        if hasattr(model, name):
            setattr(copy, name, getattr(model, name))
    return copy.eval()
