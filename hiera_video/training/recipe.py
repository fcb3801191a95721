"""What a recipe is: the fields of ``configs/NAME.yaml``, read from YAML and changed by dotted name, checked, written.

A recipe is read before anything heavy is loaded, and refused in one sentence: what it says is what the run does.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar

import yaml

from hiera_video import fields, files
from hiera_video.errors import RequestError
from hiera_video.fields import Duration
from hiera_video.spec import FINETUNE, PRETRAIN, Augment

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Camera-motion clips made on the fly, instead of videos.

    They look at ``pictures`` textures; ``coded`` clips are made once and read back from H.264 files, and are
    ``coded_share`` of a step. ``growing``: distractors become more frequent during the run.
    """

    pictures: int = 1500
    coded: int = 2000
    coded_share: float = 0.5
    growing: bool = False


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from.

    ``train`` and ``val`` each name a dataset card, a folder of class folders, or a file; a card has a ``val`` of its
    own, else none is no validation. ``root``: where a card's videos lie. ``sampling`` "segments" takes a frame of each
    of equal parts of the video. ``num_frames``, ``frame_stride``, ``target_fps``, ``size`` (of a square), ``resize``
    and ``antialias`` are by default the starting model's, as is ``pixel_aspect``: anamorphic videos are cropped in the
    proportions in which players show them ("display"), or in those of their pixels ("stored"). ``repeats``: clips of
    one decode (MAE), or augmentations of the same frames (fine-tuning). ``views`` of validation during training, clips
    x crops. ``fps`` of videos that are folders of pictures; ``images``: pictures instead of videos. ``decode`` "fast"
    may show a frame beside the one asked for. ``time_limit`` for one file in seconds; more bad files than
    ``max_bad_share`` stop the run.
    """

    train: str | None = None
    val: str | None = None
    root: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    fold: int = 1
    sampling: Literal["dense", "segments"] = "dense"
    num_frames: int | None = None
    frame_stride: float | None = None
    target_fps: float | None = None
    size: int | None = None
    resize: int | None = None
    antialias: bool | None = None
    pixel_aspect: Literal["display", "stored"] | None = None
    repeats: int = 1
    views: str = "1x1"
    fps: float | None = None
    images: bool = False
    generate: Generate | None = None
    decode: Literal["exact", "fast"] = "fast"
    num_workers: int = 4
    time_limit: float = 60.0
    max_bad_share: float = 0.05


@dataclass(frozen=True, kw_only=True)
class PretrainModel:
    """What is pre-trained.

    ``start``: an architecture's name is new weights ("mae_hiera_base_16x224"); a checkpoint's name ("arch.tag"), a
    folder, file or hub id goes on from those. ``decode_ratio``: share of the hidden mask units that is decoded.
    """

    start: str
    drop_path_rate: float = 0.0
    mask_ratio: float | None = None
    decode_ratio: float = 1.0
    decoder_num_heads: int | None = None
    decoder_depth: int | None = None
    decoder_embed_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneModel:
    """What is fine-tuned.

    ``start`` as for pre-training; an MAE's weights give its encoder. ``freeze_stages``: the first ones, with the
    patch embedding, do not learn. ``narrow_init``, for new weights: Xavier, and patch filters of std 0.1.
    ``fit_head``: begin by a linear head on features, computed once. ``views``: test views that travel with the model.
    """

    start: str
    drop_path_rate: float = 0.0
    head_dropout: float = 0.0
    head_init_scale: float = 0.001
    freeze_stages: int = 0
    fit_head: bool = False
    narrow_init: bool = False
    views: str | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: cross-entropy, or binary cross-entropy where a video has several labels.

    ``mixup`` and ``cutmix`` are the alphas (0: off), ``mix_switch`` the probability of CutMix where both are on.
    ``flow_weight`` at the start and the end of the run, linear between, acts where clips come with their flow.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5
    class_weights: Literal["none", "balanced"] = "none"
    flow_weight: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights move.

    ``lr``, ``warmup_lr`` and ``end_lr`` are those of a step of ``lr_videos`` videos, and scale linearly with the
    run's. ``momentum`` is SGD's. ``head_in_last_layer``: norm and head get the last block's layer decay.
    ``clip_norm`` is the L2 norm of all gradients; a loss above ``explosion_factor`` times the mean of the five before
    stops the run.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float
    lr_videos: int
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    head_in_last_layer: bool = False
    warmup: Duration = "0%"
    warmup_lr: float = 1e-8
    end_lr: float = 1e-6
    clip_norm: float | None = None
    ema: float | None = None
    explosion_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, where, and what is kept.

    Durations: "10ep" (effective epochs: each repeat counts), "10pass" (over the list), "5000st" (steps), "5%" (of the
    run). ``videos_per_step`` in all processes together; ``batch_size`` videos of one process at once: gradients
    accumulate. ``shard``: FSDP2.
    """

    output: str | None = None
    duration: Duration
    videos_per_step: int
    batch_size: int
    precision: Precision = "auto"
    device: str = "auto"
    seed: int = 0
    save_every: Duration = "1pass"
    evaluate_every: Duration = "1pass"
    picture_every: Duration = "10pass"
    log_every: Duration = "10st"
    keep_checkpoints: int = 2
    compile: bool = False
    grad_checkpointing: bool = False
    shard: bool = False
    tracker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A recipe of ``hiera-video pretrain``."""

    job: Literal["pretrain"] = "pretrain"
    data: Data = Data()
    augment: Augment = PRETRAIN
    model: PretrainModel
    optim: Optim
    run: Run


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """A recipe of ``hiera-video finetune``."""

    job: Literal["finetune"] = "finetune"
    data: Data = Data()
    augment: Augment = FINETUNE
    model: FinetuneModel
    loss: Loss = Loss()
    optim: Optim
    run: Run


@dataclass(frozen=True, kw_only=True)
class EvaluateData:
    """What is evaluated on: ``source`` is a card's name, a folder of class folders, or a file.

    ``views`` (clips x crops) and ``sampling`` are by default the card's own, else the model's, and dense.
    ``pixel_aspect``, by default the model's: anamorphic videos are cropped in the proportions in which players show
    them ("display"), or in those of their pixels ("stored").
    """

    source: str | None = None
    root: str | None = None
    split: str = "val"
    fold: int = 1
    sampling: Literal["dense", "segments"] | None = None
    views: str | None = None
    pixel_aspect: Literal["display", "stored"] | None = None
    fps: float | None = None
    images: bool = False
    decode: Literal["exact", "fast"] = "exact"
    num_workers: int = 4
    time_limit: float = 60.0


@dataclass(frozen=True, kw_only=True)
class EvaluateModel:
    """What is evaluated: a checkpoint's name ("arch.tag"), folder, file or hub id."""

    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """Where and how: ``batch_size`` counts clips."""

    output: str | None = None
    batch_size: int = 8
    precision: Precision = "auto"
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A recipe of ``hiera-video evaluate``."""

    job: Literal["evaluate"] = "evaluate"
    data: EvaluateData = EvaluateData()
    model: EvaluateModel = EvaluateModel()
    run: EvaluateRun = EvaluateRun()


Recipe = Pretraining | Finetuning | Evaluation
R = TypeVar("R", Pretraining, Finetuning, Evaluation)
KINDS: dict[str, type[Recipe]] = {"pretrain": Pretraining, "finetune": Finetuning, "evaluate": Evaluation}

#: Fields that a run may be resumed with other values of: they decide nothing but where, how fast and how often.
FREE = {
    *("data.root", "data.num_workers", "data.time_limit", "data.max_bad_share", "run.output", "run.device"),
    *("run.batch_size", "run.shard", "run.compile", "run.grad_checkpointing", "run.keep_checkpoints", "run.tracker"),
    *("run.save_every", "run.evaluate_every", "run.picture_every", "run.log_every"),
}

#: What a number must be, each of several too, and the fields that it holds for, whichever section they are in.
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "at least 1": (
        lambda value: value >= 1,
        "fold num_frames size resize repeats pictures batch_size videos_per_step lr_videos decoder_num_heads "
        "decoder_depth decoder_embed_dim keep_checkpoints",
    ),
    "at least 0": (
        lambda value: value >= 0,
        "coded num_workers seed freeze_stages mixup cutmix flow_weight weight_decay warmup_lr end_lr head_init_scale "
        "num_ops magnitude_std",
    ),
    "above 0": (lambda value: value > 0, "lr frame_stride target_fps fps time_limit clip_norm"),
    "above 1": (lambda value: value > 1, "explosion_factor"),
    "from 0 to 1": (lambda value: 0 <= value <= 1, "coded_share max_bad_share mix_switch flip op_probability erasing"),
    "from 0 to 10": (lambda value: 0 <= value <= 10, "magnitude"),
    "at least 0 and below 1": (
        lambda value: 0 <= value < 1,
        "drop_path_rate head_dropout label_smoothing betas momentum ema",
    ),
    "above 0 and at most 1": (lambda value: 0 < value <= 1, "decode_ratio layer_decay"),
    "above 0 and below 1": (lambda value: 0 < value < 1, "mask_ratio"),
    "two shares, the smaller first": (lambda value: 0 < value <= 1, "crop_area erasing_area"),
    "two numbers above 0, the smaller first": (lambda value: value > 0, "crop_aspect erasing_aspect"),
}


def load_recipe(
    kind: type[R],
    config: str | os.PathLike[str] | None = None,
    changes: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    base: R | None = None,
) -> R:
    """A checked recipe: defaults, then ``base``, then a YAML file by its name or path, then changes by dotted name.

    Changes are text, as on a command line: {"optim.lr": "1e-3"}. Raises :class:`RequestError`, in one sentence that
    names the file, the field, the value and what is expected; for an unknown name, with the nearest.
    """
    known, words = fields.fields_of(kind), dict(changes)
    fields.check_names(kind, words)
    given: dict[str, Any] = {}
    where = ""
    if base is not None:
        fields.lay(given, fields.flatten(dataclasses.asdict(base)), known)
    if config is not None:
        file = files.find("configs", config)
        where = f"{file}: "
        values = _read(file, kind)
        fields.lay(given, values, known, where=where)
    fields.lay(given, {name: fields.from_word(known[name].hint, word) for name, word in words.items()}, known)
    present: set[str | None] = {known[name].within for name in given} | {None}  # sections that may be null, and are not
    complete = {name: given.get(name, one.default) for name, one in known.items() if one.within in present}
    for name, value in complete.items():
        if value is MISSING:
            raise RequestError(f"{where}the field {name} is missing: it must be {fields.expected(known[name].hint)}")
    recipe: R = fields.build(kind, complete)
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
        if values.pop(name) is not None:  # nothing below its heading is nothing said
            raise RequestError(f"{file}: {name} is {nested[name]!r}, but must be a section with fields")
    fields.check_names(kind, values, where=f"{file}: ")
    return values


def check(recipe: Recipe) -> None:
    """Whether every value is in its range. Raises :class:`RequestError`, naming the field."""
    values = fields.flatten(dataclasses.asdict(recipe))
    for words, (legal, names) in RULES.items():
        for name in [name for name in values if name.rpartition(".")[2] in names.split()]:
            numbers = values[name] if isinstance(values[name], tuple) else (values[name],)
            falling = "smaller first" in words and list(numbers) != sorted(numbers)
            if falling or not all(number is None or legal(number) for number in numbers):
                raise RequestError(f"{name} is {fields.as_yaml(values[name])}, but must be {words}")
    for name in ("data.views", "model.views"):
        if values.get(name) is not None and not re.fullmatch("[1-9][0-9]*x[13]", values[name]):
            raise RequestError(f"{name} is {values[name]!r}, but must be clips x crops, such as 5x3 (1 or 3 crops)")
    if isinstance(recipe, Evaluation):
        if recipe.data.source is None:
            raise RequestError("there is nothing to evaluate on: name a card, folder or file as data.source (--val)")
        return
    for name in [name for name, one in fields.fields_of(type(recipe)).items() if one.hint == Duration]:
        number, unit = fields.duration_of(values[name], name)
        if name == "run.duration" and (unit == "%" or number == 0):
            raise RequestError(f"run.duration is {values[name]!r}, but must say how long the run is: 10pass, 5000st")
    if recipe.data.train is None and recipe.data.generate is None:
        raise RequestError("there is nothing to learn from: name a card, folder or file as data.train (--train)")
    if recipe.data.train is not None and recipe.data.generate is not None:
        raise RequestError("data.train and data.generate are both given: learn from videos, or from generated clips")


def steps_of(
    duration: str, *, steps_per_pass: int, repeats: int, total: int | None = None, field: str = "duration"
) -> int:
    """A duration in steps: at least 1, unless its number is 0.

    An effective epoch is a pass divided by ``repeats``; "%" needs ``total`` steps. Raises :class:`RequestError`.

    >>> steps_of("150ep", steps_per_pass=940, repeats=2), steps_of("5%", steps_per_pass=940, repeats=2, total=70500)
    (70500, 3525)
    """
    number, unit = fields.duration_of(duration, field)
    if unit == "%" and total is None:
        raise RequestError(f"{field} is {duration!r}, but a share needs a whole: say it in ep, pass or st")
    of_one = {"ep": steps_per_pass / repeats, "pass": steps_per_pass, "st": 1, "%": (total or 0) / 100}
    return max(1, round(number * of_one[unit])) if number else 0


def to_yaml(recipe: Recipe) -> str:
    """The full recipe, every default written out: :func:`load_recipe` reads the same from it."""
    lines = []
    for name, value in dataclasses.asdict(recipe).items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {fields.as_yaml(one)}" for key, one in value.items())]
        else:
            lines.append(f"{name}: {fields.as_yaml(value)}")
    return "\n".join(lines) + "\n"


def difference(old: R, new: R) -> list[str]:
    """What a run may not be resumed with: "optim.lr was 0.001, is now 0.002", for each field that matters."""
    before, now = (fields.flatten(dataclasses.asdict(one)) for one in (old, new))
    names = [name for name in {**before, **now} if name not in FREE and before.get(name) != now.get(name)]
    return [f"{name} was {fields.as_yaml(before.get(name))}, is now {fields.as_yaml(now.get(name))}" for name in names]
