"""The house keeps its shape: imports run downwards, what is exported exists, options are a decision."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import get_type_hints

import hiera_video
from hiera_video.cli import JOBS, RECIPES, UNITS
from hiera_video.training import recipe as recipes

PACKAGE = Path(hiera_video.__file__).parent
#: From the floor up; a room may import rooms below it and itself.
FLOORS: list[set[str]] = [
    {"errors"},
    {"spec", "files", "fields"},
    {"models", "data"},
    {"visual", "training", "hf"},
    {"tasks"},
    {"cli"},
]


def imports(path: Path) -> set[str]:
    """The rooms of this package that a file imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("hiera_video.")}
    return rooms


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_run_downwards() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        here = room(path)
        for there in imports(path) - {here}:
            assert floor[there] < floor[here], f"{path} imports {there}"


def test_exported_names_are_sorted_and_exist() -> None:
    assert hiera_video.__all__ == sorted(hiera_video.__all__)
    assert all(getattr(hiera_video, name).__doc__ for name in hiera_video.__all__)


def test_every_job_is_there() -> None:
    for target, _, _ in JOBS.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_a_job_that_takes_a_recipe_takes_nothing_else() -> None:
    assert UNITS.keys() == JOBS.keys() and RECIPES.keys() == recipes.KINDS.keys()
    for job, (kind, _) in RECIPES.items():
        module, _, name = JOBS[job][0].partition(":")
        function = getattr(importlib.import_module(module), name)
        (parameter,) = inspect.signature(function).parameters
        assert get_type_hints(function)[parameter] is getattr(recipes, kind) is recipes.KINDS[job]


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
        "timeline",
        "hop",
        "live",
    ]


def test_no_file_is_over_430_lines_and_no_function_over_70() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 430, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 70, f"{path}: {node.name}"


def test_nothing_draws_from_a_global_random_state() -> None:
    for path in (PACKAGE / "data").rglob("*.py"):
        for word in ("np.random.seed", "np.random.rand", "torch.rand", "import random"):
            if (path.name, word) == ("pytorchvideo.py", "import random"):
                continue  # PyTorchVideo's samplers draw from it: they run under a state saved, seeded by key, restored
            assert word not in path.read_text(), path
