"""The door: ``hiera-video JOB INPUT... --option value``, and ``hiera-video JOB --config RECIPE --section.field value``.

Data goes to stdout (or ``--output``), everything else to stderr. Exit codes: 0 all done; 1 an input was missing or
bad, the rest is written; 2 the request itself is wrong; 130 interrupted, with what was done so far written.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import inspect
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TextIO, get_origin, get_type_hints

#: job, of one word or two -> (function, one line of help, example). The module is imported only when its job is chosen.
JOBS = {
    "classify": (
        "hiera_video.tasks.classify.job:classify",
        "name what happens in videos and images",
        "hiera-video classify clip.mp4 --picture clip.png",
    ),
    "extract": (
        "hiera_video.tasks.features.job:extract",
        "write features of videos and images, window by window",
        "hiera-video extract videos/ --output features --hop 1",
    ),
    "probe": (
        "hiera_video.tasks.features.probe:probe",
        "measure how well extracted embeddings tell labels apart",
        "hiera-video probe features --labels labels.csv",
    ),
    "search": (
        "hiera_video.tasks.features.search:search",
        "find the extracted windows that are most like a video or image",
        "hiera-video search clip.mp4 --index features",
    ),
    "models": (
        "hiera_video.tasks.list_models:models",
        "list models with their size, cost and published weights",
        "hiera-video models '*16x224'",
    ),
    "export": (
        "hiera_video.tasks.export:export",
        "write a model as an ONNX file, or for torch.export",
        "hiera-video export hiera_nano_16x64.camera_motion --output camera_motion.onnx",
    ),
    "serve": (
        "hiera_video.tasks.classify.page:serve",
        "open a page in the browser for videos that are dropped on it",
        "hiera-video serve --model hiera_nano_16x64.camera_motion",
    ),
    "data check": (
        "hiera_video.tasks.data.check:check",
        "count the videos of a dataset that are missing, broken or too short",
        "hiera-video data check kinetics400 --root /data/k400 --split val --report val.jsonl",
    ),
    "data prepare": (
        "hiera_video.tasks.data.prepare:prepare",
        "make lists of the videos of Kinetics that can be used",
        "hiera-video data prepare /data/k400 --output lists/k400",
    ),
    "data shards": (
        "hiera_video.tasks.data.shards:shards",
        "copy the videos of a list into tar shards, or code them anew on the way",
        "hiera-video data shards kinetics400 --root /data/k400 --output /data/shards/train --short-side 256",
    ),
    "data index": (
        "hiera_video.tasks.data.shards:index",
        "make the index of tar shards that others wrote",
        "hiera-video data index /data/others_shards",
    ),
    "pretrain": (
        "hiera_video.tasks.train.pretrain:pretrain",
        "pre-train a masked autoencoder on videos without labels",
        "hiera-video pretrain --config mae_k400_base --data.root /data/k400",
    ),
    "finetune": (
        "hiera_video.tasks.train.finetune:finetune",
        "teach a model your own classes, or those of a recipe",
        "hiera-video finetune --train videos/train --val videos/val --output runs/mine",
    ),
    "evaluate": (
        "hiera_video.tasks.evaluate.job:evaluate",
        "measure a model on labelled videos: top-1, top-5, each class",
        "hiera-video evaluate --val videos/val --model runs/mine --output runs/mine/val",
    ),
}
#: What a job's progress counts; None: it shows its own.
UNITS = {
    "classify": "file",
    "extract": None,
    "probe": "method",
    "search": "hit",
    "models": "model",
    "export": None,
    "serve": None,
    "data check": None,
    "data prepare": None,
    "data shards": None,
    "data index": None,
    "pretrain": None,
    "finetune": None,
    "evaluate": None,
}
#: Jobs that take a recipe -> its dataclass in hiera_video.training.recipe, and short options for some of its fields.
RECIPES = {
    "pretrain": ("Pretraining", {"train": "data.train", "val": "data.val"}),
    "finetune": ("Finetuning", {"train": "data.train", "val": "data.val"}),
    "evaluate": ("Evaluation", {"val": "data.source"}),
}
SHORT = {"model": "model.start", "output": "run.output"}
#: The options of those jobs that are no fields.
OPTIONS = {
    "config": "a recipe's name, or a YAML file",
    "format": "table, json, jsonl or csv",
    "print_config": "show the whole recipe instead of running it",
}
FORMATS = ("table", "json", "jsonl", "csv")


class Record(Protocol):
    """What every job yields."""

    @property
    def error(self) -> str | None: ...
    def to_dict(self) -> dict[str, Any]: ...
    def rows(self) -> list[dict[str, Any]]: ...


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
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
        if (job := " ".join(argv[:count])) in JOBS:
            return (_run_recipe if job in RECIPES else _run)(job, argv[count:])
    for name in (argv[0], " ".join(argv[:2])):  # the second word may belong to the job, or be an input
        nearest = difflib.get_close_matches(name, JOBS, n=1) or (jobs_within if len(argv) == 1 else [])
        if nearest:
            return _fail(f"there is no job {name!r}; did you mean {nearest[0]}?")
    return _fail(f"there is no job {argv[0]!r}; jobs: {', '.join(JOBS)}")


def usage() -> str:
    """The text of ``hiera-video --help``."""
    lines = ["hiera-video: video recognition with Hiera", "", "usage: hiera-video JOB INPUT... [--option value]", ""]
    lines += [f"  {job:12} {text}" for job, (_, text, _) in JOBS.items()]
    lines += ["", "pretrain, finetune and evaluate take --config RECIPE and --section.field value."]
    return "\n".join([*lines, "hiera-video JOB --help shows a job's options and an example."])


def _run(job: str, argv: list[str]) -> int:
    _log_to_stderr(logging.INFO)
    function = _function(job)
    options = vars(_parser(job, function, JOBS[job][2]).parse_args(argv))
    own = inspect.signature(function).parameters
    style = "table" if "format" in own else options.pop("format")
    output = None if "output" in own else options.pop("output")
    return _written(lambda: function(**options), style, output or sys.stdout, job)


def _log_to_stderr(level: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hiera_video").setLevel(level)
    for name in ("faiss", "httpx", "httpcore", "huggingface_hub", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _function(job: str) -> Any:
    module, _, name = JOBS[job][0].partition(":")
    return getattr(importlib.import_module(module), name)


def _written(records: Callable[[], Iterable[Record]], style: str, output: Path | TextIO, job: str) -> int:
    """Writes what a job gives, to a file once it is whole, and says what went wrong. Returns the exit code."""
    from hiera_video.errors import HieraVideoError
    from hiera_video.files import check_output, replacing

    try:
        if not isinstance(output, Path):
            return _write(records(), style, output, job=job)
        check_output(output)
        with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            return _write(records(), style, stream, job=job)
    except HieraVideoError as error:
        return _fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:  # stdout is on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"results cannot be written: {error.strerror or error}")


# --- jobs that take a recipe ------------------------------------------------------------------------------------------


def _run_recipe(job: str, argv: list[str]) -> int:
    """The recipe is complete and checked before the job's module is loaded. Of several processes, the first speaks."""
    from hiera_video.errors import HieraVideoError
    from hiera_video.training.recipe import to_yaml

    speaks = os.environ.get("RANK", "0") == "0"
    _log_to_stderr(logging.INFO if speaks else logging.WARNING)
    if {"-h", "--help"} & set(argv):
        print(_recipe_help(job))
        return 0
    try:
        changes, options = _recipe_words(job, argv)
        style = options.get("format", "table")
        if style not in FORMATS:
            return _fail(f"--format is {style!r}, but can be one of {', '.join(FORMATS)}")
        recipe = _recipe(job, options.get("config"), changes)
    except HieraVideoError as error:
        return _fail(str(error))
    if "print_config" in options:
        print(to_yaml(recipe) if speaks else "", end="")
        return 0
    function = _function(job)
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        return _written(lambda: function(recipe), style, sys.stdout if speaks else nothing, job)


def _recipe(job: str, config: str | None, changes: dict[str, str]) -> Any:
    from hiera_video import files
    from hiera_video.errors import RequestError
    from hiera_video.training import recipe as recipes

    if config is None and job == "finetune":
        from hiera_video.tasks.train.own_videos import own_recipe

        return own_recipe(changes)
    if config is None and job == "pretrain":
        names = [name for name in files.names("configs") if name.startswith("mae_")]
        raise RequestError(f"pretrain needs a recipe: --config with a YAML file, or one of {', '.join(names)}")
    return recipes.load_recipe(getattr(recipes, RECIPES[job][0]), config, changes)


def _recipe_words(job: str, argv: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Fields by dotted name, and :data:`OPTIONS`, with the words given for them. Raises ``RequestError``."""
    from hiera_video import fields
    from hiera_video.errors import RequestError
    from hiera_video.training import recipe as recipes

    known = fields.fields_of(getattr(recipes, RECIPES[job][0]))
    short = RECIPES[job][1] | SHORT
    legal = [*known, *short, *OPTIONS]
    given: dict[str, str] = {}
    words = list(argv)
    while words:
        option, equals, value = words.pop(0).partition("=")
        written = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--"):
            raise RequestError(f"{option!r} belongs to no option; for example: {JOBS[job][2]}")
        if written not in legal:
            nearest = fields.nearest_field(written, legal)
            hint = f"did you mean --{nearest.replace('print_', 'print-')}?" if nearest else "see --help"
            raise RequestError(f"there is no option {option}; {hint}")
        name = short.get(written, written)
        if name == "print_config":
            value = "true"
        elif not equals:
            if not words or words[0].startswith("--"):
                expected = OPTIONS.get(name) or fields.expected(known[name].hint)
                raise RequestError(f"{option} needs a value: {expected}")
            value = words.pop(0)
        given[name] = value
    return {name: given[name] for name in given if name in known}, {
        name: given[name] for name in given if name in OPTIONS
    }


def _recipe_help(job: str) -> str:
    from dataclasses import MISSING

    from hiera_video import fields
    from hiera_video.training import recipe as recipes

    kind = getattr(recipes, RECIPES[job][0])
    _, text, example = JOBS[job]
    lines = [f"hiera-video {job}: {text}", "", f"example: {example}", ""]
    lines += [f"  --{name.replace('_', '-'):14} {text}" for name, text in OPTIONS.items()]
    lines += [f"  --{name:14} short for --{field}" for name, field in (RECIPES[job][1] | SHORT).items()]
    lines += ["", "fields of a recipe, with their defaults:"]
    hints, section = get_type_hints(kind), ""
    for name, field in fields.fields_of(kind).items():
        if "." not in name:
            continue
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            lines += ["", f"{section}: {(hints[section].__doc__ or '').splitlines()[0]}"]
        default = "must be given" if field.default is MISSING else fields.as_yaml(field.default)
        lines.append(f"  --{name:28} {default:26} {fields.expected(field.hint)}")
    return "\n".join(lines)


# --- parsing and printing ---------------------------------------------------------------------------------------------


def _parser(job: str, function: Any, example: str) -> Any:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            sys.exit(_fail(_one_sentence(message, self)))

    summary = (function.__doc__ or "").strip().splitlines()[0]
    parser = Parser(prog=f"hiera-video {job}", description=f"{summary}  Example: {example}")
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        text = _argument_help(function, name)
        if parameter.kind is parameter.KEYWORD_ONLY:
            option, needed = "--" + name.replace("_", "-"), parameter.default is parameter.empty
            default = None if needed else parameter.default
            if hints[name] is bool:
                parser.add_argument(option, action="store_true", help=text)
            elif get_origin(hints[name]) is Sequence:
                parser.add_argument(option, nargs="+", type=str, default=list(parameter.default), help=text)
            else:
                parser.add_argument(option, type=hints[name], default=default, required=needed, help=text)
        elif get_origin(hints[name]) is list:
            parser.add_argument(name, nargs="+", type=str, metavar="INPUT", help=text)
        elif parameter.default is parameter.empty:
            parser.add_argument(name, type=str, metavar=name.upper(), help=text)
        else:
            parser.add_argument(name, nargs="?", type=str, default=parameter.default, help=text)
    if "format" not in hints:
        parser.add_argument("--format", choices=FORMATS, default="table", help="How results are written.")
    if "output" not in hints:
        parser.add_argument("--output", type=Path, default=None, help="Write results to this file instead of stdout.")
    return parser


def _argument_help(function: Any, name: str) -> str:
    """The line about ``name`` in the docstring's Args section: the same text serves API and help."""
    lines = [line.strip() for line in (function.__doc__ or "").splitlines()]
    return next((line.partition(": ")[2] for line in lines if line.startswith(f"{name}: ")), "")


def _one_sentence(message: str, parser: Any) -> str:
    """The parser's message without its decoration, with the nearest option where one is unknown."""
    text = " ".join(message.split())
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    unknown = re.match(r"[Uu]nrecognized arguments: (\S+)", text)
    if unknown:
        nearest = difflib.get_close_matches(unknown[1], options, n=1)
        return f"there is no option {unknown[1]}" + (f"; did you mean {nearest[0]}?" if nearest else "; see --help")
    missing = re.search(r"arguments are required: ([a-z_]+)", text)
    if missing and (option := "--" + missing[1].replace("_", "-")) in options:
        return f"{option} is missing: see {parser.prog} --help"
    if "arguments are required: " in text:
        return f"nothing to do: name at least one input ({parser.prog} INPUT...)"
    wrong = re.match(r'Parser key "(\w+)": Expected a (.*)\. Got value: (.*)', text)
    if wrong:
        kind = re.sub(r"<class '(\w+)'>|typing\.Literal", lambda match: match[1] or "one of ", wrong[2])
        kind = kind.replace("int", "whole number")
        return f"--{wrong[1].replace('_', '-')} {wrong[3]!r} must be a {kind}".replace("a one of", "one of")
    return text


def _write(records: Iterable[Record], style: str, stream: TextIO, *, job: str) -> int:
    """Writes records as they come, JSON at the end; what is done is written on an interrupt too. Returns the code."""
    from tqdm import tqdm

    from hiera_video.tasks.records import as_text

    code, unit, collected = 0, UNITS[job], []
    endless = getattr(records, "endless", False)
    writer: csv.DictWriter[str] | None = None
    try:
        for record in tqdm(records, unit=unit or "", disable=None if unit and not endless else True, file=sys.stderr):
            if record.error is not None:
                code = 1
            if style == "json":
                collected.append(record.to_dict())
            elif style == "jsonl":
                print(json.dumps(record.to_dict(), ensure_ascii=False), file=stream, flush=True)
            elif style == "csv" and job in RECIPES:
                collected += record.rows()  # a run's records have different columns
            elif style == "csv":
                rows = record.rows()
                if writer is None:
                    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                    writer.writeheader()
                writer.writerows(rows)
                stream.flush()
            else:
                print(as_text(record.rows()), file=stream, flush=True)
    except KeyboardInterrupt:
        code = code if endless else 130  # there is no other end
    if style == "json":
        print(json.dumps(collected, indent=2, ensure_ascii=False), file=stream)
    elif collected:
        writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys(key for row in collected for key in row)))
        writer.writeheader()
        writer.writerows(collected)
    stream.flush()
    return code


def _fail(message: str) -> int:
    print(f"hiera-video: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
