"""The devices, precision and processes of a run, and how a model is laid out over them."""

from __future__ import annotations

import atexit
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hiera_video.errors import RequestError
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.trunk import HieraTrunk
from hiera_video.training.devices import pick_device, pick_precision
from hiera_video.training.recipe import Run

#: What accelerate calls the numbers that a model computes in.
MIXED = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}

M = TypeVar("M", Hiera, HieraMAE)


def start_accelerator(run: Run) -> Accelerator:
    """The run's devices, precision and processes: this process alone, or those that torchrun or accelerate started.

    Args:
        run: Gives ``device``, ``precision``, ``tracker`` and ``output``.

    Returns:
        An accelerator; its ``num_processes`` is the number of processes of the run.

    Raises:
        RequestError: The device, precision or tracker is not there.
    """
    device = pick_device(run.device, "run.device")
    if ":" in run.device:
        raise RequestError(
            f"run.device {run.device!r} has a number: say {device.type}, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    dtype = pick_precision(run.precision, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise RequestError("run.precision fp16 needs a GPU: take bf16 or fp32")
    atexit.register(_leave)
    AcceleratorState._reset_state()  # a second run in one process may have another precision
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=MIXED[dtype],
            log_with=run.tracker,
            project_dir=run.output or "runs",  # a run without run.output gets its folder later
        )
    except ValueError as error:
        raise RequestError(f"run.tracker {run.tracker!r} is unknown: {error}") from error
    if run.tracker is not None and not accelerator.log_with:
        raise RequestError(f"run.tracker {run.tracker!r} is not installed: pip install {run.tracker}, or leave it out")
    return accelerator


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def prepare(model: HieraTrunk, run: Run) -> None:
    """Switches on activation checkpointing, compilation and sharding (FSDP2), in place, where the run asks for them.

    Args:
        model: A classifier or an MAE, on any device.
        run: Gives ``grad_checkpointing``, ``compile`` and ``shard``.

    Raises:
        RequestError: The model is to be sharded, and there is one process alone.
    """
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


def distributed(model: nn.Module, run: Run, accelerator: Accelerator) -> nn.Module:
    """The model for several processes.

    Args:
        model: The trained module, on its device.
        run: Gives ``shard``.
        accelerator: Gives the number of processes.

    Returns:
        The model in DDP; the model itself where one process runs, or where it is sharded.
    """
    if accelerator.num_processes == 1 or run.shard:
        return model
    # Without device_ids inputs stay where they are, such as masks on the host; accelerate's own call moves them.
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def whole(model: M, run: Run) -> M:
    """The model in one piece. Every process takes part.

    Args:
        model: A classifier or an MAE.
        run: Gives ``shard``.

    Returns:
        The model itself or, where it is sharded, a whole copy in each process, in evaluation mode.
    """
    if not run.shard:
        return model
    with torch.device("meta"):
        copy = type(model)(model.arch, model.spec)
    copy.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), assign=True)
    for name in ("labels", "multi_label", "views", "license", "position_resize"):
        if hasattr(model, name):
            setattr(copy, name, getattr(model, name))
    return copy.eval()


def export(model: M, *, run: Run, accelerator: Accelerator) -> None:
    """Writes the model's files into the run's folder. Every process takes part, the main one writes.

    Args:
        model: A classifier or an MAE.
        run: Gives ``output`` and ``shard``.
        accelerator: Tells which process is the main one.

    Raises:
        OutputError: The folder cannot be written.
    """
    assert run.output is not None
    exported = whole(model, run)
    if accelerator.is_main_process:
        save_pretrained(exported, run.output)
