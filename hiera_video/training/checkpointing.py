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

from hiera_video.errors import OutputError, RequestError, WeightsError
from hiera_video.files import replacing, set_usual_mode
from hiera_video.models.checkpoints.formats import State
from hiera_video.training import recipe as recipes

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def open_run(output: Path, recipe: recipes.R) -> None:
    """Makes the run's folder and writes its recipe, or holds ``recipe`` against the one that is there.

    Raises :class:`RequestError` where the folder belongs to another recipe, naming the fields, :class:`OutputError`
    where it cannot be written.
    """
    file = output / "recipe.yaml"
    if file.is_file():
        try:
            old = recipes.load_recipe(type(recipe), file)
        except RequestError as error:
            raise RequestError(f"{output} is a run of another kind ({error}); name another run.output") from error
        if changes := recipes.difference(old, recipe):
            raise RequestError(
                f"{output} holds a run of another recipe: {'; '.join(changes)}; go on with the old values, or name "
                "another run.output"
            )
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.glob("checkpoints/step_*")):
            raise RequestError(f"{output} has checkpoints but no recipe.yaml: name another run.output")
        with replacing(file) as temporary:
            temporary.write_text(recipes.to_yaml(recipe), encoding="utf-8")
    except RequestError:
        raise
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error


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
    """Writes the state after ``state["step"]`` steps, then removes all but the newest ``keep`` ones.

    Every process takes part in gathering, the main one writes. Raises :class:`OutputError` where it cannot; the
    checkpoints before it stay.
    """
    tensors: Any = get_model_state_dict(model, options=WHOLE)
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    if not is_main:
        return
    folder = output / "checkpoints" / f"step_{state['step']:08d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        save_file(_separate(tensors), temporary / "model.safetensors")
        torch.save(optimizer_state, temporary / "optimizer.pt")
        if average is not None:
            save_file(_separate(average.state_dict()), temporary / "ema.safetensors")
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for file in list(temporary.iterdir()):
            set_usual_mode(file)
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
    """The newest whole checkpoint of a run, or None; what a killed process left half-written is removed."""
    for half in output.glob("checkpoints/.step_*"):
        shutil.rmtree(half, ignore_errors=True)
    return (_whole(output) or [None])[-1]  # type: ignore[list-item]


def restore(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Any]:
    """Puts a checkpoint's tensors back and returns its ``state``. Raises :class:`WeightsError` for a damaged one."""
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


def _whole(output: Path) -> list[Path]:
    found = [path for path in output.glob("checkpoints/step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _separate(tensors: State) -> State:
    """safetensors takes no tensors that share memory or lie with gaps."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
