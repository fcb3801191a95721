"""The one parser of all jobs: what a job takes as fields, what a command line says of them, and the help about them.

What the function of a job takes is read from its source, nothing is imported: the help, and the refusal of a wrong
option, need not wait for torch.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from hiera_video.errors import RequestError
from hiera_video.fields import Field, as_yaml, convert, expected, from_word, nearest_field, source_tree

PACKAGE = Path(__file__).parent
#: What annotations may be made of, beside the names that a module of this package assigns or imports.
NAMES: dict[str, Any] = {"Annotated": Annotated, "Any": Any, "Literal": Literal, "Path": Path}
NAMES |= {kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)}


def parameters_of(function: str) -> dict[str, Field]:
    """What a function of this package takes.

    Args:
        function: Its module and name: "hiera_video.tasks.export:export".

    Returns:
        Its parameters by name, in order; the docstring's text about each is its help, those before the ``*`` are
        positional.
    """
    module, _, name = function.partition(":")
    node = next(n for n in source_tree(_file(module)).body if isinstance(n, ast.FunctionDef) and n.name == name)
    texts, own = _described(ast.get_docstring(node) or ""), node.args
    defaults = [None] * (len(own.args) - len(own.defaults)) + list(own.defaults) + list(own.kw_defaults)
    fields = {}
    for place, (argument, default) in enumerate(zip(own.args + own.kwonlyargs, defaults, strict=True)):
        hint = _value(argument.annotation, module)
        standard = MISSING if default is None else _value(default, module)
        fields[argument.arg] = Field(hint, standard, texts.get(argument.arg, ""), positional=place < len(own.args))
    return fields


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _described(docstring: str) -> dict[str, str]:
    """The text about each parameter in a docstring's section "Args:", on one line."""
    texts: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(docstring).partition("Args:\n")[2].split("\n"):
        if entry := re.match(r" {4}(\w+): +(\S.*)", line):
            name = entry[1]
            texts[name] = entry[2]
        elif name and line.startswith(" " * 8):
            texts[name] += f" {line.strip()}"
        else:
            break
    return texts


def _value(node: ast.expr | None, module: str) -> Any:
    """What an annotation or a default means in its module."""
    assert node is not None, f"a parameter of a job in {module} has no type"
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    space = {name: NAMES[name] if name in NAMES else _named(name, module) for name in names}
    return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {}}, space)


def _named(name: str, module: str) -> Any:
    """The value of a name that a module of this package assigns, or imports from another."""
    for node in source_tree(_file(module)).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hiera_video."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _named(alias.name, node.module)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return _value(getattr(node, "value", None), module)
    raise NameError(f"{module} has no {name} that the help of a job could show")


# --- a command line ---------------------------------------------------------------------------------------------------


def option_word(name: str) -> str:
    """How an option is written: "top_k" as "--top-k", "data.num_workers" as "--data.num_workers"."""
    return f"--{name}" if "." in name else f"--{name.replace('_', '-')}"


def is_flag(name: str, field: Field) -> bool:
    """Whether an option stands without a value; fields of recipes never do."""
    return field.hint is bool and "." not in name


def words_of(
    argv: list[str], options: Mapping[str, Field], short: Mapping[str, str], *, example: str
) -> dict[str, Any]:
    """The words of a command line by the option that they are given for.

    Args:
        argv: The words after the job's name.
        options: What the job takes, by name.
        short: Short options, each with the one that it stands for.
        example: A command line that is right, for messages.

    Returns:
        For each option that is given its word, or a list of words where its type is a list.

    Raises:
        RequestError: An option does not exist (with the nearest), has no value, or a word belongs to none.
    """
    legal = [option for option, field in options.items() if not field.positional] + list(short)
    given: dict[str, Any] = {}
    inputs: list[str] = []
    words = list(argv)
    while words:
        if words[0] == "--":  # what follows are inputs, whatever they look like
            inputs += words[1:]
            break
        word, equals, value = words.pop(0).partition("=")
        option = word.lstrip("-").replace("-", "_")
        if not word.startswith("--") and not (word.startswith("-") and word[1:2].isalpha()):
            inputs.append(word + equals + value)
            continue
        if option not in legal or not word.startswith("--"):
            nearest = nearest_field(option, legal)
            raise RequestError(
                f"there is no option {word}; {f'did you mean {option_word(nearest)}?' if nearest else 'see --help'}"
            )
        option = short.get(option, option)
        hint = options[option].hint
        if is_flag(option, options[option]):
            given[option] = value if equals else "true"
        elif equals:
            given[option] = [value] if get_origin(hint) is list else value
        elif not words or words[0].startswith("--"):
            raise RequestError(f"{word} needs a value: {expected(hint)}")
        else:
            given[option] = words.pop(0)
            if get_origin(hint) is list:
                given[option] = [given[option]]
                while words and not words[0].startswith("--"):
                    given[option].append(words.pop(0))
    place = next((option for option, field in options.items() if field.positional), None)
    several = place is not None and get_origin(options[place].hint) is list
    if inputs and (place is None or (len(inputs) > 1 and not several)):
        raise RequestError(f"{inputs[-1]!r} belongs to no option; for example: {example}")
    if inputs and place is not None:
        given[place] = inputs if several else inputs[0]
    return given


def value_of(option: str, field: Field, words: Mapping[str, Any], *, job: str) -> Any:
    """What a command line says of an option.

    Args:
        option: Its name.
        field: What it is.
        words: The command line, from :func:`words_of`.
        job: The job's name, for messages.

    Returns:
        A value of its type: that which is given, or the default.

    Raises:
        RequestError: The value is not legal, or there is none.
    """
    if option in words:
        return convert(field.hint, from_word(field.hint, words[option]), option_word(option))
    if field.default is not MISSING:
        return field.default
    if not field.positional:
        raise RequestError(f"{option_word(option)} is missing: see hiera-video {job} --help")
    what = "at least one input" if get_origin(field.hint) is list else f"a {option}"
    raise RequestError(f"nothing to do: name {what} (hiera-video {job} {input_word(option, field)})")


# --- help -------------------------------------------------------------------------------------------------------------


def input_word(name: str, field: Field) -> str:
    """How an input stands in a usage line: "INPUT...", "FOLDER", "[PATTERN]"."""
    if get_origin(field.hint) is list:
        return "INPUT..."
    return name.upper() if field.default is MISSING else f"[{name.upper()}]"


def entry(option: str, field: Field) -> list[str]:
    """The lines of a job's help about one option: its name, default and type, and below them the sentence."""
    word = input_word(option, field) if field.positional else option_word(option)
    needed = field.default is MISSING
    default = (
        "must be given" if needed else as_yaml(field.default) if field.default is not None or "." in option else ""
    )
    takes = "" if is_flag(option, field) else expected(field.hint) if "." in option else _plainly(field)
    first = f"  {word:28} {'' if is_flag(option, field) else default:24} {takes}".rstrip()
    return [first, *textwrap.wrap(field.help, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _plainly(field: Field) -> str:
    """What an option takes; that leaving it out is possible goes without saying."""
    return expected(field.hint).removesuffix(", or null")
