"""The folder of a run: named by the recipe or chosen here, held against the recipe, and kept from other processes.

A run without ``run.output`` writes to ``runs/NAME-DATE``, where NAME is that of the training videos. The same command
goes on there while the run is unfinished.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hiera_video.errors import OutputError, RequestError
from hiera_video.files import alone, replacing
from hiera_video.training import recipe_file
from hiera_video.training.checkpointing import is_finished
from hiera_video.training.optimization import Plan, describe_plan, plan_run
from hiera_video.training.recipe import Finetuning, Pretraining

log = logging.getLogger("hiera_video")

T = TypeVar("T", Pretraining, Finetuning)

#: Where runs without ``run.output`` are.
RUNS = Path("runs")
#: What is refused twice at a time in one folder: see :func:`hiera_video.files.alone`.
LABEL = "run"
#: The commands that use what a run leaves, by its job.
NEXT = {
    "finetune": "hiera-video classify VIDEO --model {output}",
    "pretrain": "hiera-video finetune --train VIDEOS --model {output}",
}


@contextmanager
def open_run(recipe: T, num_videos: int, accelerator: Accelerator, notes: list[str]) -> Iterator[tuple[T, Plan]]:
    """The folder and the plan of a run, for as long as it goes on. The log names the folder first and last.

    Args:
        recipe: A recipe to train by. Where it has no ``run.output``, the folder is chosen by :func:`default_folder`.
        num_videos: Length of the list of training videos.
        accelerator: The run's processes, which wait for the main one here.
        notes: Lines for the log, to come after the one that names the folder.

    Yields:
        The recipe with its ``run.output``, and its numbers as steps.

    Raises:
        RequestError: The recipe makes no step of these videos; the folder belongs to another recipe, or another
            process is writing to it.
        OutputError: The folder cannot be written.
    """
    repeats, main = recipe.data.repeats, accelerator.is_main_process
    plan = plan_run(
        recipe.optim, recipe.run, num_videos=num_videos, repeats=repeats, num_processes=accelerator.num_processes
    )
    output = recipe.run.output
    if output is None:
        (output,) = broadcast_object_list([str(default_folder(recipe)) if main else None])
        recipe = replace(recipe, run=replace(recipe.run, output=output))
        accelerator.project_configuration.set_directories(output)
    assert output is not None
    if main:
        hold(Path(output), recipe)
    use = NEXT[recipe.job].format(output=output)
    with alone(Path(output), LABEL) if main else nullcontext():
        if main:
            log.info("the run is in %s; when it is done: %s", output, use)
            for note in [*notes, describe_plan(plan, recipe.optim, num_videos=num_videos, repeats=repeats)]:
                log.info(note)
        accelerator.wait_for_everyone()
        yield recipe, plan
        if main:
            log.info("done: the model is in %s. Next: %s", output, use)


def hold(output: Path, recipe: T) -> None:
    """Makes the run's folder and writes its recipe, or holds the recipe against the one that is there.

    Args:
        output: The run's folder, which need not exist.
        recipe: The recipe of the run that is about to begin.

    Raises:
        RequestError: The folder belongs to another recipe; the message names the fields.
        OutputError: The folder cannot be written.
    """
    file = output / "recipe.yaml"
    if file.is_file():
        try:
            old = recipe_file.load_recipe(type(recipe), file)
        except RequestError as error:
            raise RequestError(f"{output} is a run of another kind ({error}); name another run.output") from error
        if changes := recipe_file.difference(old, recipe):
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
            temporary.write_text(recipe_file.to_yaml(recipe), encoding="utf-8")
    except RequestError:
        raise
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error


def default_folder(recipe: T) -> Path:
    """The folder of a run for which none was named.

    Args:
        recipe: A recipe to train by.

    Returns:
        The newest ``runs/NAME-*`` that is unfinished, has the same recipe and is not being written; else a new folder
        ``runs/NAME-2026-11-27``, with ``-2`` and so on where that exists.

    Raises:
        OutputError: The folder cannot be made.
    """
    train = recipe.data.train
    last = "generated" if train is None else Path(train).resolve().name.partition("?")[0]
    name = re.sub(r"[^\w.-]+", "_", re.sub(r"\.\w{1,5}$", "", last)) or "videos"
    runs = [file.parent for file in RUNS.glob("*/recipe.yaml") if file.parent.name.startswith(f"{name}-")]
    for folder in sorted(runs, key=lambda folder: (folder / "recipe.yaml").stat().st_mtime_ns, reverse=True):
        if _goes_on(folder, recipe):
            return folder
    for count in itertools.count(1):
        folder = RUNS / f"{name}-{date.today()}{'' if count == 1 else f'-{count}'}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not RUNS.is_dir():  # it is a file
                raise OutputError(
                    f"{RUNS} is a file, but runs are written into a folder of this name: move it"
                ) from None
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}; name --output") from error
    raise AssertionError


def _goes_on(folder: Path, recipe: T) -> bool:
    try:
        with alone(folder, LABEL):
            old = recipe_file.load_recipe(type(recipe), folder / "recipe.yaml")
            return not recipe_file.difference(old, recipe) and not is_finished(folder)
    except (RequestError, OutputError):
        return False
