"""Recipes as text: read from ``configs/NAME.yaml``, changed by dotted name, written, and compared.

A recipe is read before anything heavy is loaded, and refused in one sentence: what it says is what the run does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hiera_video import fields, files
from hiera_video.errors import RequestError
from hiera_video.training.recipe import Evaluation, Finetuning, Pretraining, R, Recipe, check

KINDS: dict[str, type[Recipe]] = {"pretrain": Pretraining, "finetune": Finetuning, "evaluate": Evaluation}

#: Fields that a run may be resumed with other values of: they decide nothing but where, how fast and how often.
FREE = {
    *("data.root", "data.num_workers", "data.time_limit", "data.max_bad_share", "run.output", "run.device"),
    *("run.batch_size", "run.shard", "run.compile", "run.grad_checkpointing", "run.keep_checkpoints", "run.tracker"),
    *("run.save_every", "run.evaluate_every", "run.picture_every", "run.log_every"),
}


def load_recipe(
    kind: type[R],
    config: str | os.PathLike[str] | None = None,
    changes: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    base: R | None = None,
) -> R:
    """A checked recipe: its defaults, over which go ``base``, then a YAML file, then changes.

    Args:
        kind: :class:`Pretraining`, :class:`Finetuning` or :class:`Evaluation`.
        config: The name of a recipe that ships, or the path of a YAML file.
        changes: Values by dotted name, as text, as on a command line: {"optim.lr": "1e-3"}.
        base: A recipe whose values stand in place of the defaults.

    Returns:
        The recipe.

    Raises:
        RequestError: One sentence that names the file, the field, the value and what is expected; for an unknown name
            the nearest.
    """
    known, words = fields.fields_of(kind), dict(changes)
    fields.check_names(kind, words)
    values: dict[str, Any] = {}
    where = ""
    if base is not None:
        fields.lay(values, fields.flatten(dataclasses.asdict(base)), known)
    if config is not None:
        file = files.find("configs", config)
        where = f"{file}: "
        fields.lay(values, _read(file, kind), known, where=where)
    fields.lay(values, {name: fields.from_word(known[name].hint, word) for name, word in words.items()}, known)
    recipe = fields.from_mapping(kind, fields.nest(values), where=where)
    check(recipe)
    return recipe


def _read(file: os.PathLike[str], kind: type[Recipe]) -> dict[str, Any]:
    """The values in a recipe's YAML file by dotted name, all of them fields; refuses the recipe of another job."""
    try:
        with open(file, encoding="utf-8") as stream:
            nested = yaml.safe_load(stream)
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date of the 45th is a ValueError
        raise RequestError(f"{file} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(nested, dict):
        raise RequestError(f"{file} is no recipe: expected the sections {', '.join(fields.sections(kind))}")
    values = fields.flatten(nested)
    mine = next(job for job, its in KINDS.items() if its is kind)
    # Without the line "job", a recipe is that of whichever job has all its fields.
    fits = [job for job, its in KINDS.items() if values.keys() <= {*fields.fields_of(its), *fields.sections(its)}]
    said = str(values.get("job"))
    job = said if said in KINDS else mine if mine in fits or not fits else fits[0]
    if job != mine:
        raise RequestError(f"{file} is a recipe of {job}, not of {mine}: hiera-video {job} --config {file}")
    for name in sorted(values.keys() & set(fields.sections(kind))):
        if values.pop(name) is not None:  # an empty section means its defaults
            raise RequestError(f"{file}: {name} is {nested[name]!r}, but must be a section with fields")
    fields.check_names(kind, values, where=f"{file}: ")
    return values


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default written out.

    Args:
        recipe: The recipe.

    Returns:
        Text from which :func:`load_recipe` reads the same recipe.
    """
    lines = []
    for name, value in dataclasses.asdict(recipe).items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {fields.as_yaml(inner)}" for key, inner in value.items())]
        else:
            lines.append(f"{name}: {fields.as_yaml(value)}")
    return "\n".join(lines) + "\n"


def difference(old: R, new: R) -> list[str]:
    """What a run may not be resumed with.

    Args:
        old: The recipe that the run was started with.
        new: The recipe that it would go on with.

    Returns:
        "optim.lr was 0.001, is now 0.002", for each field that differs and is not :data:`FREE`.
    """
    before, now = (fields.flatten(dataclasses.asdict(recipe)) for recipe in (old, new))
    names = [name for name in {**before, **now} if name not in FREE and before.get(name) != now.get(name)]
    return [f"{name} was {fields.as_yaml(before.get(name))}, is now {fields.as_yaml(now.get(name))}" for name in names]
