"""The house keeps its shape: imports run downwards in no circle, public names are described, sizes have limits."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import hiera_video
from hiera_video.arguments import parameters_of
from hiera_video.cli import JOBS
from hiera_video.fields import fields_of, sentences
from hiera_video.training.recipe_file import KINDS

PACKAGE = Path(hiera_video.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
#: From the floor up; a room may import rooms below it and itself.
FLOORS: list[set[str]] = [
    {"errors", "cells"},
    {"files", "fields"},
    {"spec", "arguments"},
    {"models", "data"},
    {"visual", "training", "hf"},
    {"tasks"},
    {"terminal"},
    {"cli"},
]
#: The most lines of code: blank lines, comments and docstrings are not counted. The aim of the redraw was 11,500 and
#: is not met: raise this for a new ability alone, say for which, and lower it after each simplification. Heads of three
#: kinds, fitted in closed form and judged by cross-validation, the report of a run, an MAE without a recipe took 600;
#: statistics as features, a head that is moved, a share that is held out, files with plain stamps opened faster 210;
#: scenes with depth and things that move, a readout, teachers 480;
#: SAM 2's trunk, timm's abswin and calls 430; timm's and SAM 2's layouts written, transformers without hooks 160;
#: segments of timelines and clips cut out 220, costs as a table 40; explanations 330, exports of annotation tools 410,
#: intervals, calibration and worst videos 300, the page with segments, previews and an example 245, arrays for
#: detectors and copies of films 365, the terminal 90, bf16 by the processor 70; plans of jobs 490, exports in float16
#: and decoding on a GPU 130, compiled inference 90, lanes and children that start early 55.
MOST_LINES = 18_965
#: Documents that maintainers have beside the repository, which readers of it do not.
ELSEWHERE = re.compile("|".join(("DES" "IGN", "REC" "IPES", "HOU" "SE", "STY" "LE")))  # fmt: skip
TEXTS = [
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "docs/**/*.ipynb",
        "configs/*",
        "datasets/*",
        "**/*.py",
        ".ci/*",
        "scripts/*.sh",
    )
    for path in ROOT.glob(pattern)
    if not {".git", "build", "runs"} & set(path.relative_to(ROOT).parts)
]


def name_of(path: Path) -> str:
    """The dotted name of a file within the package: "data.reading.reader"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


NAMES = {name_of(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """The files of this package that a file imports, in functions and for types too."""
    whole = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hiera_video"):
            whole |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            whole |= {alias.name for alias in node.names}
    return {name.removeprefix("hiera_video.") for name in whole} & NAMES.keys()


# --- imports ----------------------------------------------------------------------------------------------------------


def test_imports_run_downwards() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in FILES:
        here = name_of(path).partition(".")[0]
        for there in {name.partition(".")[0] for name in imports(path)} - {here}:
            assert floor[there] < floor[here], f"{name_of(path)} imports {there}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and under TYPE_CHECKING count."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> Iterator[list[str]]:
        if name in way:
            yield [*way[way.index(name) :], name]
        elif name not in done:
            for other in sorted(imports(NAMES[name])):
                yield from follow(other, [*way, name])
            done.add(name)

    circles = [" -> ".join(way) for name in NAMES for way in follow(name, [])]
    assert not circles, "\n".join(circles)


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_over_400_lines_and_no_function_over_60(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def code_lines(path: Path) -> int:
    """Lines that are neither blank, nor a comment, nor part of a text that stands for itself, such as a docstring."""
    texts = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(
        number not in texts and line.strip() != "" and not line.strip().startswith("#") for number, line in lines
    )


def test_the_package_does_not_grow_unnoticed() -> None:
    assert sum(map(code_lines, PACKAGE.rglob("*.py"))) <= MOST_LINES


# --- the public names -------------------------------------------------------------------------------------------------


def test_public_names_are_sorted_exist_and_are_listed() -> None:
    assert hiera_video.__all__ == sorted(hiera_video.__all__)
    seen = {  # by type checkers and editors
        alias.name: node.module
        for node in ast.walk(ast.parse(Path(hiera_video.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hiera_video.")
        for alias in node.names
    }
    assert seen == hiera_video._HOMES
    assert set(hiera_video.__all__) <= set(dir(hiera_video))
    assert all(getattr(hiera_video, name).__doc__ for name in hiera_video.__all__)


def test_importing_the_package_loads_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import hiera_video; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in run.stdout.split()}
    assert roots - set(sys.stdlib_module_names) == {"hiera_video"}


def described() -> Iterator[Any]:
    """Each public function and class, and the public methods of the classes, by name."""
    for name in hiera_video.__all__:
        value = getattr(hiera_video, name)
        yield pytest.param(value, id=name)
        if inspect.isclass(value):
            for method, member in vars(value).items():
                function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
                if inspect.isfunction(function) and (not method.startswith("_") or method == "__call__"):
                    yield pytest.param(function, id=f"{name}.{method}")


@pytest.mark.parametrize("value", described())
def test_a_public_name_says_what_it_takes_gives_and_raises(value: Any) -> None:
    """A function in the sections Args, Returns (or Yields) and Raises; a dataclass by a sentence below each field."""
    text = inspect.getdoc(value) or ""
    if dataclasses.is_dataclass(value):
        own = {field.name for field in dataclasses.fields(value) if not dataclasses.is_dataclass(field.type)}
        missing = {name for name in own - sentences(value).keys() if not is_section(value, name)}
        assert not missing, f"no sentence below {', '.join(sorted(missing))}"
        return
    if inspect.isclass(value):
        function = vars(value).get("__init__")
        taken = [] if function is None or issubclass(value, Exception) else parameters(function)
        assert not taken or "\nArgs:\n" in text, "its docstring has no Args"
        return
    if parameters(value):
        args = text.partition("\nArgs:\n")[2]
        assert all(re.search(rf"^    \*{{0,2}}{name}: \S", args, re.MULTILINE) for name in parameters(value)), "Args"
    if inspect.signature(value).return_annotation not in ("None", None):
        assert re.search(r"\n(Returns|Yields):\n", text), "its docstring has no Returns"
    (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(value))).body
    if any(isinstance(part, ast.Raise) and part.exc is not None for part in ast.walk(node)):
        assert "\nRaises:\n" in text, "its docstring has no Raises"


def is_section(kind: Any, name: str) -> bool:
    """Whether a field is a dataclass, whose own docstring says what it is."""
    return dataclasses.is_dataclass(get_type_hints(kind)[name])


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_there_and_each_of_its_options_is_described(name: str) -> None:
    module, _, function = JOBS[name].function.partition(":")
    taken = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    if JOBS[name].short is not None:
        assert list(taken) in (["recipe"], ["recipe", "teacher"])  # a teacher may be a function: from Python alone
        fields = fields_of(KINDS[name])
    else:
        fields = parameters_of(JOBS[name].function)
        assert list(fields) == list(taken)
        assert [field.positional for field in fields.values()] == [
            parameter.kind is not parameter.KEYWORD_ONLY for parameter in taken.values()
        ]
    assert [option for option, field in fields.items() if not field.help] == []


def test_a_job_that_takes_a_recipe_takes_that_of_its_name() -> None:
    assert {name for name, job in JOBS.items() if job.short is not None} == KINDS.keys()
    for name, kind in KINDS.items():
        module, _, function = JOBS[name].function.partition(":")
        assert kind in get_type_hints(getattr(importlib.import_module(module), function)).values()
        assert set((JOBS[name].short or {}).values()) <= fields_of(kind).keys()


def test_options_of_classify_are_a_decision() -> None:
    assert list(inspect.signature(hiera_video.classify).parameters) == [
        "inputs",
        "model",
        "top_k",
        "views",
        "batch_size",
        "device",
        "precision",
        "picture",
        "explain",
        "explain_label",
        "explain_by",
        "timeline",
        "hop",
        "segments",
        "cut",
        "cut_by",
        "smooth",
        "high",
        "low",
        "gap",
        "least",
        "live",
    ]


# --- pages, words and randomness --------------------------------------------------------------------------------------


def test_the_reference_pages_are_those_that_the_source_makes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "build_docs.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_cites_a_document_that_the_repository_does_not_hold(path: Path) -> None:
    cited = [line for line in path.read_text(encoding="utf-8").splitlines() if ELSEWHERE.search(line)]
    assert not cited, cited


def test_nothing_draws_from_a_global_random_state() -> None:
    for path in (PACKAGE / "data").rglob("*.py"):
        for word in ("np.random.seed", "np.random.rand", "torch.rand", "import random"):
            if (path.name, word) == ("pytorchvideo.py", "import random"):
                continue  # PyTorchVideo's samplers draw from it: they run under a state saved, seeded by key, restored
            assert word not in path.read_text(), path
