"""The training state on disk: everything that decides the next step, in one folder that appears whole or not at all.

    RUN/recipe.yaml                      the complete recipe, written before anything is computed
    RUN/checkpoints/step_00000100/       model.safetensors, optimizer.pt, ema.safetensors where there is an average,
                                         state.json: step, position in the data, problems, best value, loss scale
    RUN/config.json, model.safetensors   the model itself, as any other model folder

Tensors are those of the whole model, gathered, so that a run goes on with another number of processes, sharded or not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from hiera_video.errors import OutputError, WeightsError
from hiera_video.models.checkpoints.formats import State

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save(
    output: Path,
    state: dict[str, Any],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    keep: int,
    is_main: bool,
) -> None:
    """Writes a checkpoint, then removes all but the newest ones. Every process takes part, the main one writes.

    Args:
        output: The run's folder.
        state: All that is no tensor, as JSON takes it; ``step`` counts the steps made, ``steps`` those of the run.
        model: The trained module, sharded or not.
        optimizer: Its optimizer.
        average: The average of the weights, where there is one.
        keep: How many checkpoints stay.
        is_main: Whether this is the main process.

    Raises:
        OutputError: The checkpoint cannot be written. The ones before it stay.
    """
    tensors: Any = get_model_state_dict(model, options=WHOLE)
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    if not is_main:
        return
    folder = output / "checkpoints" / f"step_{state['step']:08d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        _save_tensors(tensors, temporary / "model.safetensors")
        torch.save(optimizer_state, temporary / "optimizer.pt")
        if average is not None:
            _save_tensors(average.state_dict(), temporary / "ema.safetensors")
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in _whole(output)[:-keep]:
            shutil.rmtree(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        raise OutputError(
            f"{folder} cannot be written ({getattr(error, 'strerror', None) or error}); the run ends, the checkpoint "
            "before it is whole"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def latest(output: Path) -> Path | None:
    """The newest whole checkpoint of a run. What a killed process left half-written is removed.

    Args:
        output: The run's folder.

    Returns:
        The checkpoint's folder, or None where there is none.
    """
    for half in output.glob("checkpoints/.step_*"):
        shutil.rmtree(half, ignore_errors=True)
    return (_whole(output) or [None])[-1]  # type: ignore[list-item]


def restore(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Any]:
    """Puts a checkpoint's tensors back into a model, its optimizer and its average.

    Args:
        folder: The checkpoint's folder.
        model: The trained module, sharded or not.
        optimizer: Its optimizer.
        average: The average of the weights, where there is one.

    Returns:
        The ``state`` that was given to :func:`save`.

    Raises:
        WeightsError: The checkpoint is damaged.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors: Any = load_file(folder / "model.safetensors")
        optimizer_state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        averaged = load_file(folder / "ema.safetensors") if average is not None else {}
    except Exception as error:  # torch.load raises half a dozen types for damaged files
        raise WeightsError(f"{folder} is damaged ({error}); delete it to go on from the one before") from error
    set_model_state_dict(model, tensors, options=WHOLE)
    set_optimizer_state_dict(model, optimizer, optimizer_state, options=WHOLE)
    if average is not None:
        average.load_state_dict(averaged)
    return state


def is_finished(output: Path) -> bool:
    """Whether a run has made all its steps, or has said that it is done without any.

    Args:
        output: The run's folder.

    Returns:
        False also where no checkpoint can be read.
    """
    try:
        if (output / "metrics.jsonl").is_file() and '"kind": "done"' in (output / "metrics.jsonl").read_text("utf-8"):
            return True
        state = json.loads((_whole(output)[-1] / "state.json").read_text(encoding="utf-8"))
        return bool(state["step"] == state["steps"])
    except (OSError, ValueError, LookupError):
        return False


def _whole(output: Path) -> list[Path]:
    folders = [path for path in output.glob("checkpoints/step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(folders, key=lambda path: int(path.name[5:]))


def _save_tensors(tensors: State, path: Path) -> None:
    """safetensors takes no tensors that share memory or lie with gaps, and makes files for their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)
