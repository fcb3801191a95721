"""One description of fields, wherever values come from text: YAML, JSON, a command line.

Dataclasses (recipes, cards, configs) are read as :class:`Field` by name, and so are the parameters of the jobs (see
:mod:`hiera_video.arguments`): the type with its legal values, the default, and the sentence that says what it means.
Values are converted strictly. A mistake is one sentence with the field, the value and what is expected.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hiera_video.errors import RequestError

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """Which values of a type are legal; it stands in ``Annotated[type, Rule(...)]``."""

    words: str
    """What a value must be: "above 0"."""
    legal: Callable[[Any], bool]
    """Whether a value is legal; of several numbers, each is asked about."""
    rising: bool = False
    """Whether of several numbers none may be below the one before."""
    refusal: str | None = None
    """What the message says instead of "must be" and the words."""

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is legal."""
        values = value if isinstance(value, tuple) else (value,)
        return all(map(self.legal, values)) and not (self.rising and list(values) != sorted(values))


Count: TypeAlias = Annotated[int, Rule("at least 1", lambda value: value >= 1)]
CountOrZero: TypeAlias = Annotated[int, Rule("at least 0", lambda value: value >= 0)]
Positive: TypeAlias = Annotated[float, Rule("above 0", lambda value: value > 0)]
NotNegative: TypeAlias = Annotated[float, Rule("at least 0", lambda value: value >= 0)]
Share: TypeAlias = Annotated[float, Rule("from 0 to 1", lambda value: 0 <= value <= 1)]

#: Types in words, for messages, help and the reference pages.
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts", Path: "paths"}


@dataclass(frozen=True)
class Field:
    """One field of a dataclass, or one parameter of a function."""

    hint: Any
    """Its type."""
    default: Any = MISSING
    """Its default; ``MISSING``: it must be given."""
    help: str = ""
    """The sentence that says what it means."""
    positional: bool = False
    """Whether it is given without its name, as the inputs of a job."""


# --- types ------------------------------------------------------------------------------------------------------------


def optional(hint: Any) -> bool:
    """Whether null is a value of this type."""
    return NoneType in get_args(hint)


def _kinds(hint: Any) -> list[Any]:
    """The types that a union is made of, without None; a type that is no union alone."""
    union = get_origin(hint) in (Union, UnionType)
    return [kind for kind in get_args(hint) if kind is not NoneType] if union else [hint]


def plain(hint: Any) -> Any:
    """The type without "or None"; of a union, the first."""
    return _kinds(hint)[0]


def section_of(hint: Any) -> type[Any] | None:
    """The dataclass that this type is, if it is one."""
    kind = plain(hint)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def expected(hint: Any) -> str:
    """A type in words, with what is legal: "a number, above 0, or null"."""
    kinds = _kinds(hint)
    words = "a number" if set(kinds) == {int, float} else " or ".join(map(_in_words, kinds))
    return f"{words}, or null" if optional(hint) else words


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        base, rule = get_args(kind)
        link = ": " if get_origin(base) is tuple else ", " if rule.words.startswith("at least") else " "
        return rule.words if base is str else f"{_in_words(base)}{link}{rule.words}"
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if get_origin(kind) is dict:
        return "sections by name"
    if get_origin(kind) is tuple and parts[-1] is not Ellipsis:
        return f"{len(parts)} numbers, such as [0.5, 1]"
    if get_origin(kind) in (tuple, list):
        some = get_origin(parts[0]) is Literal
        return f"some of {', '.join(get_args(parts[0]))}" if some else f"a list of {PLURALS[parts[0]]}"
    return "a section with fields" if section_of(kind) else WORDS[kind]


# --- dataclasses ------------------------------------------------------------------------------------------------------


def fields_of(kind: type[Any], at: str = "", default: Any = None) -> dict[str, Field]:
    """Every field of a dataclass by its dotted name, in order.

    The fields of a section, which is a dataclass within, stand for it; a section that may be null is a field too.

    Args:
        kind: The dataclass.
        at: What the names begin with, such as "data.".
        default: An instance that has the defaults; None: they are the dataclass's own.

    Returns:
        The fields by dotted name.
    """
    fields: dict[str, Field] = {}
    hints, texts = get_type_hints(kind, include_extras=True), sentences(kind)  # type: ignore[arg-type]  # mypy takes a type for unhashable
    for own in dataclasses.fields(kind):
        name, hint = at + own.name, hints[own.name]
        value = _default(own) if default is None else getattr(default, own.name)
        section = section_of(hint)
        if section is None or optional(hint):
            fields[name] = Field(hint, value, texts.get(own.name, ""))
        if section is not None:
            fields |= fields_of(section, f"{name}.", None if value is MISSING else value)
    return fields


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def sentences(kind: Any) -> dict[str, str]:
    """What each field of a dataclass means: the text that stands below it in the source.

    Args:
        kind: The dataclass.

    Returns:
        The sentences by field name, each on one line.
    """
    texts: dict[str, str] = {}
    classes: list[Any] = [cls for cls in kind.__mro__ if dataclasses.is_dataclass(cls)]
    for cls in reversed(classes):
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        for node in source_tree(file).body:
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                for field, below in pairwise(node.body):
                    if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                        texts[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(below.value)).split())
    return texts


@cache
def source_tree(file: str | Path | None) -> ast.Module:
    """The parsed source of a module, once; of no file, an empty one."""
    return ast.parse(Path(file).read_text(encoding="utf-8") if file and os.path.isfile(file) else "")


def sections(kind: type[Any]) -> list[str]:
    """The names of the sections."""
    return list(dict.fromkeys(name.partition(".")[0] for name in fields_of(kind) if "." in name))


def from_mapping(kind: type[T], values: Any, *, where: str = "", at: str = "", default: Any = None) -> T:
    """A dataclass from a mapping that has all it needs and nothing else; what is absent has its default.

    Args:
        kind: The dataclass.
        values: Values by field name; those of a section are a mapping again, or None where all are the defaults.
        where: What messages begin with, such as "file.yaml: ".
        at: What the names of fields begin with in messages, such as "splits.train.".
        default: An instance that has the defaults; None: they are the dataclass's own.

    Returns:
        The dataclass.

    Raises:
        RequestError: For the first field that is unknown, missing, or has a value that is not legal.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints, given = get_type_hints(kind, include_extras=True), {}
    for name in values:
        if name not in fields:
            raise _no_field(f"{at}{name}", [at + name for name in fields], where)
    for name, field in fields.items():
        hint, standard = hints[name], _default(field) if default is None else getattr(default, name)
        value = values.get(name, standard)
        if section_of(hint) and not optional(hint) and value in (None, MISSING):
            value = {}
        if value is MISSING:
            raise RequestError(f"{where}the field {at}{name} is missing: it must be {expected(hint)}")
        inside = None if standard is MISSING else standard
        given[name] = value if value is standard else convert(hint, value, at + name, where=where, default=inside)
    return kind(**given)


# --- names ------------------------------------------------------------------------------------------------------------


#: Fields by the names that other packages give them.
ALIASES = {
    **dict.fromkeys(("epochs", "epoch", "max_epochs", "num_epochs", "steps", "max_steps"), "duration"),
    **{"batch": "batch_size", "workers": "num_workers", "imgsz": "size", "checkpoint": "model", "weights": "model"},
    **{"learning_rate": "lr", "output_dir": "output", "sampling_rate": "frame_stride", "fp16": "precision"},
}


def nearest_field(name: str, names: Sequence[str]) -> str | None:
    """The field that was probably meant: in the same section, else of that name in another, else one spelt alike."""
    section, _, leaf = name.rpartition(".")
    inside = {other.rpartition(".")[2]: other for other in names if other.rpartition(".")[0] == section}
    leaves = {other.rpartition(".")[2]: other for other in reversed(names)}
    whole = {other: other for other in names}
    if leaf in ALIASES and (known := inside.get(ALIASES[leaf]) or leaves.get(ALIASES[leaf])):
        return known
    for among, word, cutoff in ((inside, leaf, 0.6), (leaves, leaf, 0.9), (whole, name, 0.75), (leaves, leaf, 0.75)):
        nearest = difflib.get_close_matches(word, among, n=1, cutoff=cutoff)
        if nearest:
            return among[nearest[0]]
    return None


def check_names(kind: type[Any], names: Iterable[str], *, where: str = "") -> None:
    """Refuses the first dotted name that is no field, with the nearest.

    Raises:
        RequestError: It names ``where``, the field, and the one that was probably meant.
    """
    fields = list(fields_of(kind))
    for name in names:
        if name not in fields:
            section = name.rpartition(".")[0]
            inside = [field for field in fields if section and field.rpartition(".")[0] == section]
            raise _no_field(name, fields, where, inside or sections(kind))


def _no_field(name: str, fields: Sequence[str], where: str, shown: Sequence[str] = ()) -> RequestError:
    nearest = nearest_field(name, fields)
    hint = f"did you mean {nearest}?" if nearest else f"there are {', '.join(shown or fields)}"
    return RequestError(f"{where}there is no field {name!r}; {hint}")


# --- values -----------------------------------------------------------------------------------------------------------


def flatten(values: Mapping[Any, Any], at: str = "") -> dict[str, Any]:
    """Nested mappings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{at}{key}.") if isinstance(value, Mapping) and value else {f"{at}{key}": value}
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`; a section that has fields is not null, whatever else was said of it."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *around, leaf = name.split(".")
        inside = nested
        for section in around:
            if not isinstance(inside.get(section), dict):
                inside[section] = {}
            inside = inside[section]
        if not isinstance(inside.get(leaf), dict):
            inside[leaf] = value
    return nested


def lay(values: dict[str, Any], more: Mapping[str, Any], fields: Mapping[str, Field], *, where: str = "") -> None:
    """Puts ``more`` over ``values``, each as its field's type: a section that is null takes its fields away.

    Raises:
        RequestError: It names ``where``, the field, the value and what is expected.
    """
    for name, value in more.items():
        values[name] = convert(fields[name].hint, value, name, where=where)
        if section_of(fields[name].hint):
            for field in [field for field in values if field.startswith(f"{name}.")]:
                del values[field]


def from_word(hint: Any, word: Any) -> Any:
    """What a word of the command line means as a value of this type; the word itself where it means none."""
    kind = plain(hint)
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if not isinstance(word, str):
        return word
    if optional(hint) and word.lower() in ("null", "none"):
        return None
    if get_origin(kind) is tuple:
        return [part.strip() for part in word.strip("[]() ").split(",")]
    if kind is bool:
        return {"true": True, "false": False}.get(word.lower(), word)
    if kind is int and re.fullmatch(r"[+-]?\d+", word):
        return int(word)
    return word


def convert(hint: Any, value: Any, field: str, *, where: str = "", default: Any = None) -> Any:
    """``value`` as this type.

    Args:
        hint: The type, with what is legal.
        value: From YAML, JSON or :func:`from_word`.
        field: The dotted name of the field, for messages.
        where: What messages begin with, such as "file.yaml: ".
        default: Of a section: an instance that has the defaults.

    Raises:
        RequestError: It names field, value and what is expected.
    """
    if value is None and optional(hint):
        return None
    problem = f"must be {expected(hint)}"
    for kind in _kinds(hint):
        base, rule = get_args(kind) if get_origin(kind) is Annotated else (kind, None)
        try:
            converted = _as(base, value, field, where, default)
        except RequestError:  # of a field inside
            raise
        except ValueError:
            problem = problem if rule is None else rule.refusal or problem
            continue
        if rule is None or rule.allows(converted):
            return converted
        shown = repr(value) if isinstance(value, str) and base is str else as_yaml(converted)
        raise RequestError(f"{where}{field} is {shown}, but {rule.refusal or f'must be {rule.words}'}")
    raise RequestError(f"{where}{field} is {value!r}, but {problem}")


def _as(kind: Any, value: Any, field: str, where: str, default: Any) -> Any:
    """``value`` as this type. Raises ``ValueError`` where it is none: true is no number, and 1 is not true."""
    origin, parts = get_origin(kind), get_args(kind)
    many = isinstance(value, (list, tuple))
    if origin is Literal and value in parts:
        return value
    if origin is dict and isinstance(value, Mapping) and value:
        return {name: convert(parts[1], inner, f"{field}.{name}", where=where) for name, inner in value.items()}
    if origin is list and many:
        return [_as(parts[0], inner, field, where, default) for inner in value]
    if origin is tuple and many and (parts[-1] is Ellipsis or len(value) == len(parts)):
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_as(part, inner, field, where, default) for part, inner in zip(each, value, strict=True))
    if section_of(kind) and isinstance(value, (Mapping, kind)):
        inside = {"where": where, "at": f"{field}.", "default": default}
        return value if isinstance(value, kind) else from_mapping(kind, value, **inside)
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value)  # YAML takes 1e-3 for a text
        if math.isfinite(number):
            return number
    if kind is Path and isinstance(value, (str, Path)) and str(value):
        return Path(value)
    if kind in (int, bool, str) and type(value) is kind and value != "":
        return value
    raise ValueError


def as_yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, tuple):
        value = list(value)
    line: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return line.strip().removesuffix("...").strip()
