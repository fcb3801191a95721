"""The door: ``hiera-video JOB INPUT... --option value``, and ``hiera-video JOB --config RECIPE --section.field value``.

Data goes to stdout (or ``--output``), everything else to stderr. Exit codes: 0 all done; 1 an input was missing or
bad, the rest is written; 2 the request itself is wrong; 130 interrupted, with what was done so far written.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from hiera_video.terminal import answer_interrupts, failed, log_to_stderr, written

if TYPE_CHECKING:
    from hiera_video.fields import Field


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the table of jobs."""

    function: str
    """Module and name of what does it; the module is imported only when the job runs."""
    text: str
    """What the job does, in one line of the help."""
    example: str
    """A command line for its help."""
    unit: str | None = None
    """What its progress counts; None: the job shows its own."""
    short: Mapping[str, str] | None = None
    """Short options, each with the field that it stands for, of a job that takes a recipe; None: it takes none."""
    decoders: int = 0
    """Child processes that decode for its first step: they are started while the job's module is imported."""


#: The short options of jobs that train.
TRAINING = {
    **{"train": "data.train", "val": "data.val", "model": "model.start", "teacher": "loss.teacher"},
    "output": "run.output",
}

#: What other packages call our jobs.
WORDS = {
    **{"train": "finetune", "fit": "finetune", "predict": "classify", "infer": "classify", "inference": "classify"},
    **{"embed": "extract", "test": "evaluate", "val": "evaluate", "validate": "evaluate", "eval": "evaluate"},
}

#: The jobs by name, of one word or two.
JOBS = {
    "classify": Job(
        function="hiera_video.tasks.classify.job:classify",
        text="name what happens in videos and images",
        example="hiera-video classify clip.mp4 --picture clip.png",
        unit="file",
        decoders=1,
    ),
    "extract": Job(
        function="hiera_video.tasks.features.job:extract",
        text="write features of videos and images, window by window",
        example="hiera-video extract videos/ --output features --hop 1",
        decoders=2,
    ),
    "probe": Job(
        function="hiera_video.tasks.features.probe:probe",
        text="measure how well extracted embeddings tell labels apart",
        example="hiera-video probe features --labels labels.csv",
        unit="method",
    ),
    "search": Job(
        function="hiera_video.tasks.features.search:search",
        text="find the extracted windows that are most like a video or image",
        example="hiera-video search clip.mp4 --index features",
        unit="hit",
        decoders=1,
    ),
    "models": Job(
        function="hiera_video.tasks.list_models:models",
        text="list models with their size, cost and published weights",
        example="hiera-video models '*16x224'",
        unit="model",
    ),
    "export": Job(
        function="hiera_video.tasks.export:export",
        text="write a model as an ONNX file, or for torch.export",
        example="hiera-video export hiera_nano_16x64.camera_motion --output camera_motion.onnx",
    ),
    "serve": Job(
        function="hiera_video.tasks.classify.page:serve",
        text="open a page in the browser for videos that are dropped on it",
        example="hiera-video serve --model hiera_nano_16x64.camera_motion",
    ),
    "data check": Job(
        function="hiera_video.tasks.data.check:check",
        text="count the videos of a dataset that are missing, broken or too short",
        example="hiera-video data check kinetics400 --root /data/k400 --split val --report val.jsonl",
    ),
    "data import": Job(
        function="hiera_video.tasks.data.import_list:import_list",
        text="make a list of what was labelled in Label Studio, CVAT, VIA or COCO-style files",
        example="hiera-video data import project.json --root videos --output list.csv",
    ),
    "data prepare": Job(
        function="hiera_video.tasks.data.prepare:prepare",
        text="make lists of the videos of Kinetics that can be used",
        example="hiera-video data prepare /data/k400 --output lists/k400",
    ),
    "data shards": Job(
        function="hiera_video.tasks.data.shards:shards",
        text="copy the videos of a list into tar shards, or code them anew on the way",
        example="hiera-video data shards kinetics400 --root /data/k400 --output /data/shards/train --short-side 256",
    ),
    "data index": Job(
        function="hiera_video.tasks.data.shards:index",
        text="make the index of tar shards that others wrote",
        example="hiera-video data index /data/others_shards",
    ),
    "data duplicates": Job(
        function="hiera_video.tasks.data.copies:duplicates",
        text="find extracted videos that are one film, re-encoded, cropped or cut",
        example="hiera-video data duplicates features",
    ),
    "data leaks": Job(
        function="hiera_video.tasks.data.copies:leaks",
        text="find validation videos that are films of the training set",
        example="hiera-video data leaks --train videos/train --val videos/val",
    ),
    "pretrain": Job(
        function="hiera_video.tasks.train.pretrain:pretrain",
        text="pre-train a masked autoencoder on videos without labels",
        example="hiera-video pretrain --train videos --output runs/mae",
        short=TRAINING,
    ),
    "finetune": Job(
        function="hiera_video.tasks.train.finetune:finetune",
        text="teach a model your own classes, or those of a recipe",
        example="hiera-video finetune --train videos/train --val videos/val --output runs/mine",
        short=TRAINING,
    ),
    "evaluate": Job(
        function="hiera_video.tasks.evaluate.job:evaluate",
        text="measure a model on labelled videos: top-1, top-5, each class",
        example="hiera-video evaluate --val videos/val --model runs/mine --output runs/mine/val",
        short={"val": "data.source", "model": "model.start", "output": "run.output"},
        decoders=2,
    ),
    "plan": Job(
        function="hiera_video.tasks.plan.job:plan",
        text="predict a job's hours, memory and what limits it, by 20 s of it",
        example="hiera-video plan finetune --train videos/train --val videos/val --output runs/mine",
    ),
}

#: Bytes of memory that a job keeps when it frees them.
MOST_KEPT = 2**30
FORMATS = Literal["table", "json", "jsonl", "csv"]


def main(argv: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: Its words, after "hiera-video"; None: those of this process.

    Returns:
        The exit code.
    """
    try:
        if argv is None:
            answer_interrupts()
        code = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(argv: list[str]) -> int:
    jobs_within = [job for job in JOBS if argv and job.startswith(f"{argv[0]} ")]
    if not argv or argv[0] in ("-h", "--help") or (jobs_within and argv[1:2] in (["-h"], ["--help"])):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from hiera_video import __version__

        print(f"hiera-video {__version__}")
        return 0
    for count in (1, 2):
        if " ".join(argv[:count]) in JOBS:
            return _run(" ".join(argv[:count]), argv[count:])
    for name in (argv[0], " ".join(argv[:2])):  # the second word may belong to the job, or be an input
        meant = [WORDS[name]] if name in WORDS else difflib.get_close_matches(name, JOBS, n=1)
        nearest = meant or (jobs_within if len(argv) == 1 else [])
        if nearest:
            return failed(f"there is no job {name!r}; did you mean {nearest[0]}?")
    return failed(f"there is no job {argv[0]!r}; jobs: {', '.join(JOBS)}")


def _run(name: str, argv: list[str]) -> int:
    """The request is complete and checked before the job's module is loaded. Of several processes, the first speaks."""
    from hiera_video.arguments import value_of, words_of
    from hiera_video.errors import HieraVideoError

    speaks = JOBS[name].short is None or os.environ.get("RANK", "0") == "0"
    log_to_stderr(logging.INFO if speaks else logging.WARNING)
    if {"-h", "--help"} & set(argv):
        print(help_of(name))
        return 0
    try:
        if name == "plan":
            return _run_plan(argv)
        options = options_of(name)
        words = words_of(argv, options, JOBS[name].short or {}, example=JOBS[name].example)
        if JOBS[name].short is not None:
            return _run_recipe(name, options, words, speaks)
        values = {option: value_of(option, field, words, job=name) for option, field in options.items()}
    except HieraVideoError as error:
        return failed(str(error))
    own = _own_fields(name)
    style = "table" if "format" in own else values.pop("format")
    output = None if "output" in own else values.pop("output")
    with _decoders(name):
        return written(
            lambda: _function(name)(**values), style, output or sys.stdout, unit=JOBS[name].unit, of_run=False
        )


def _run_recipe(name: str, options: Mapping[str, Field], words: dict[str, Any], speaks: bool) -> int:
    from hiera_video.arguments import value_of
    from hiera_video.training.recipe_file import to_yaml

    style, config = (value_of(option, options[option], words, job=name) for option in ("format", "config"))
    recipe = _recipe(name, config, {field: word for field, word in words.items() if field in _own_fields(name)})
    if "print_config" in words:
        print(to_yaml(recipe) if speaks else "", end="")
        return 0
    with open(os.devnull, "w", encoding="utf-8") as nothing, _decoders(name):
        stream = sys.stdout if speaks else nothing
        return written(lambda: _function(name)(recipe), style, stream, unit=JOBS[name].unit, of_run=True)


def _run_plan(argv: list[str]) -> int:
    """A job's own words, and plan's among them: of both is ``--format``, whose values tell them apart."""
    from hiera_video.arguments import value_of, words_of

    own = _own_fields("plan")
    name, jobs = WORDS.get(argv[0], argv[0]) if argv else None, "pretrain, finetune, evaluate or extract"
    if name is None or name not in get_args(own.pop("job").hint):
        return failed(f"plan is of {jobs}{': name one' if name is None else f', not of {name!r}'}")
    options = options_of(name) | own
    words = words_of(argv[1:], options, JOBS[name].short or {}, example=JOBS["plan"].example)
    style = words.pop("format") if words.get("format", "") in get_args(FORMATS) else "table"
    mine = {option: value_of(option, field, words, job="plan") for option, field in own.items()}
    if JOBS[name].short is None:
        request: Any = {option: value_of(option, field, words, job=name) for option, field in _own_fields(name).items()}
    else:
        config = value_of("config", options["config"], words, job=name)
        request = _recipe(name, config, {field: word for field, word in words.items() if field in _own_fields(name)})
    return written(lambda: _function("plan")(name, request, **mine), style, sys.stdout, unit=None, of_run=False)


def _recipe(name: str, config: str | None, changes: dict[str, str]) -> Any:
    from hiera_video.training.recipe_file import KINDS, load_recipe

    if config is None and name == "finetune":
        from hiera_video.tasks.train.own_videos import own_recipe

        return own_recipe(changes)
    if config is None and name == "pretrain":
        from hiera_video.tasks.train.own_pretraining import own_pretraining

        return own_pretraining(changes)
    return load_recipe(KINDS[name], config, changes)  # type: ignore[type-var]


@contextmanager
def _decoders(name: str) -> Iterator[None]:
    """The job's first child processes start while its module is imported; what it frees stays with this process."""
    from hiera_video.data.reading.child_process import end_spare, keep_freed_memory, start_early

    start_early(JOBS[name].decoders)
    keep_freed_memory(MOST_KEPT)
    try:
        yield
    finally:
        end_spare()


def _function(name: str) -> Any:
    module, _, function = JOBS[name].function.partition(":")
    return getattr(importlib.import_module(module), function)


# --- options ----------------------------------------------------------------------------------------------------------


def _own_fields(name: str) -> dict[str, Field]:
    """The fields of the job's recipe, or the parameters of its function."""
    if JOBS[name].short is None:
        from hiera_video.arguments import parameters_of

        fields = parameters_of(JOBS[name].function)
        return {option: field for option, field in fields.items() if field.hint is not Any}  # else for Python alone
    from hiera_video.fields import fields_of
    from hiera_video.training.recipe_file import KINDS

    return fields_of(KINDS[name])


def options_of(name: str) -> dict[str, Field]:
    """All that a job's command line may say.

    Args:
        name: The job's.

    Returns:
        The options by name, without dashes before it; an input is one that is positional.
    """
    from hiera_video.fields import Field

    options = {"format": Field(FORMATS, "table", "How results are written.")}
    if name == "plan":
        return _own_fields(name) | options
    if JOBS[name].short is None:
        options["output"] = Field(Path | None, None, "Write results to this file instead of stdout.")
        return {**_own_fields(name), **{key: field for key, field in options.items() if key not in _own_fields(name)}}
    options["config"] = Field(str | None, None, "The name of a recipe, or a YAML file.")
    options["print_config"] = Field(bool, False, "Show the whole recipe instead of running it.")
    return options | _own_fields(name)


# --- help -------------------------------------------------------------------------------------------------------------


def usage() -> str:
    """The text of ``hiera-video --help``."""
    lines = ["hiera-video: video recognition with Hiera", "", "usage: hiera-video JOB INPUT... [--option value]", ""]
    lines += [f"  {name:12} {job.text}" for name, job in JOBS.items()]
    lines += ["", "pretrain, finetune and evaluate take --config RECIPE and --section.field value."]
    return "\n".join([*lines, "hiera-video JOB --help shows a job's options and an example."])


def help_of(name: str) -> str:
    """The text of ``hiera-video JOB --help``: what each option means, what it takes, and its default."""
    from hiera_video.arguments import entry, input_word

    job, options = JOBS[name], options_of(name)
    inputs = [input_word(option, field) for option, field in options.items() if field.positional]
    lines = [f"hiera-video {name}: {job.text}", "", " ".join(["usage: hiera-video", name, *inputs, "[--option value]"])]
    lines += [f"example: {job.example}", ""]
    section = ""
    for option, field in options.items():
        if "." in option and option.partition(".")[0] != section:
            if not section:
                lines += [f"  --{short:27} short for --{name}" for short, name in (job.short or {}).items()]
                lines += ["", "Fields of the recipe, with their defaults:"]
            section = option.partition(".")[0]
            lines += ["", f"{section}: {_about(name, section)}"]
        lines += entry(option, field)
    return "\n".join(lines)


def _about(name: str, section: str) -> str:
    """The first line of a section's docstring."""
    from typing import get_type_hints

    from hiera_video.training.recipe_file import KINDS

    return str(get_type_hints(KINDS[name])[section].__doc__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
