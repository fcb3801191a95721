"""Dataclasses within dataclasses as text: their fields by dotted name, with values from YAML or a command line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import yaml

from hiera_video.errors import RequestError

Duration: TypeAlias = Annotated[str, "duration"]
""" "10ep" (effective epochs), "10pass" (walks over the list), "5000st" (steps), "5%" (of the run)."""

#: Types in words, for messages and help.
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Duration: "a duration: 10pass"}


@dataclass(frozen=True)
class Field:
    """One field of a recipe: its type and default (``MISSING``: it must be given).

    ``within``: the name of the section around it that may be null, such as data.generate.
    """

    hint: Any
    default: Any
    within: str | None = None


def fields_of(kind: type[Any], at: str = "", default: Any = MISSING, within: str | None = None) -> dict[str, Field]:
    """Every field by its dotted name, in order; a section that may be null is a field too."""
    found: dict[str, Field] = {}
    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        name, hint = at + one.name, hints[one.name]
        value = one.default if default is MISSING else getattr(default, one.name)
        section = section_of(hint)
        if section is None:
            found[name] = Field(hint, value, within)
        elif optional(hint):
            found[name] = Field(hint, value)
            found |= fields_of(section, f"{name}.", MISSING if value is None else value, name)
        else:
            found |= fields_of(section, f"{name}.", value, within)
    return found


def optional(hint: Any) -> bool:
    """Whether null is a value of this type."""
    return NoneType in get_args(hint)


def plain(hint: Any) -> Any:
    """The type without "or None"."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(one for one in get_args(hint) if one is not NoneType)


def section_of(hint: Any) -> type[Any] | None:
    """The dataclass that this type is, if it is one."""
    kind = plain(hint)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def sections(kind: type[Any]) -> list[str]:
    """The names of the sections."""
    return list(dict.fromkeys(name.partition(".")[0] for name in fields_of(kind) if "." in name))


def expected(hint: Any) -> str:
    """A type in words: "a number, or null"."""
    kind = plain(hint)
    if get_origin(kind) is Literal:
        words = f"one of {', '.join(get_args(kind))}" if len(get_args(kind)) > 1 else str(get_args(kind)[0])
    elif get_origin(kind) is tuple:
        words = f"{len(get_args(kind))} numbers, such as [0.5, 1]"
    else:
        words = "a section with fields" if section_of(kind) else WORDS[kind]
    return f"{words}, or null" if optional(hint) else words


# --- names ------------------------------------------------------------------------------------------------------------


def nearest_field(name: str, known: Sequence[str]) -> str | None:
    """The field that was probably meant: in the same section, else of that name in another, else one spelt alike."""
    section, _, leaf = name.rpartition(".")
    inside = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == section}
    leaves = {one.rpartition(".")[2]: one for one in reversed(known)}
    whole = {one: one for one in known}
    for names, wanted, cutoff in ((inside, leaf, 0.6), (leaves, leaf, 0.9), (whole, name, 0.75), (leaves, leaf, 0.75)):
        found = difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff)
        if found:
            return names[found[0]]
    return None


def check_names(kind: type[Any], names: Iterable[str], *, where: str = "") -> None:
    """Refuses the first name that is no field, with the nearest. Raises :class:`RequestError`."""
    known = list(fields_of(kind))
    for name in names:
        if name not in known:
            nearest, section = nearest_field(name, known), name.rpartition(".")[0]
            inside = [one for one in known if section and one.rpartition(".")[0] == section] or sections(kind)
            hint = f"did you mean {nearest}?" if nearest else f"there are {', '.join(inside)}"
            raise RequestError(f"{where}there is no field {name!r}; {hint}")


# --- values -----------------------------------------------------------------------------------------------------------


def flatten(values: Mapping[Any, Any], at: str = "") -> dict[str, Any]:
    """Nested mappings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{at}{key}.") if isinstance(value, Mapping) and value else {f"{at}{key}": value}
    return flat


def lay(values: dict[str, Any], more: Mapping[str, Any], known: Mapping[str, Field], *, where: str = "") -> None:
    """Puts ``more`` over ``values``, each as its field's type: a section that is null takes its fields away.

    Raises :class:`RequestError`, naming ``where``.
    """
    for name, value in more.items():
        values[name] = convert(known[name].hint, value, where + name)
        if section_of(known[name].hint):
            for one in [one for one in values if known[one].within == name]:
                del values[one]


def build(kind: type[Any], values: Mapping[str, Any], at: str = "") -> Any:
    """The dataclass from its values by dotted name; a section that may be null is null without any."""
    given = {}
    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        name, hint = at + one.name, hints[one.name]
        section = section_of(hint)
        if section is not None and (not optional(hint) or any(other.startswith(f"{name}.") for other in values)):
            given[one.name] = build(section, values, f"{name}.")
        else:
            given[one.name] = values[name]
    return kind(**given)


def from_word(hint: Any, word: Any) -> Any:
    """What a word of the command line means as a value of this type; the word itself where it means none."""
    kind = plain(hint)
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


def convert(hint: Any, value: Any, field: str) -> Any:
    """``value`` as this type. Raises :class:`RequestError`, naming field, value and type."""
    if value is None and optional(hint):
        return None
    if plain(hint) is Duration:
        duration_of(str(value), field)
        return value
    try:
        return _as(plain(hint), value)
    except ValueError:
        raise RequestError(f"{field} is {value!r}, but must be {expected(hint)}") from None


def _as(kind: Any, value: Any) -> Any:
    """``value`` as this type. Raises ``ValueError`` where it is none: true is no number, and 1 is not true."""
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)) and len(value) == len(get_args(kind)):
        return tuple(_as(part, one) for part, one in zip(get_args(kind), value, strict=True))
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value)  # YAML takes 1e-3 for a text
        if math.isfinite(number):
            return number
    if kind in (int, bool, str) and type(value) is kind and value != "":
        return value
    raise ValueError


def duration_of(duration: str, field: str) -> tuple[float, str]:
    """ "10pass" -> (10.0, "pass"). Raises :class:`RequestError` without a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ep|pass|st|%)", duration)
    if match is None:
        raise RequestError(
            f"{field} is {duration!r}, but a duration needs a unit: ep (effective epochs, each repeat counts), pass "
            "(over the list), st (steps) or % (of the run), such as 10pass"
        )
    return float(match[1]), match[2]


def as_yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, tuple):
        value = list(value)
    line: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return line.strip().removesuffix("...").strip()
