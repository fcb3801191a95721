"""What a duration says, such as 10pass, and what it comes to in steps."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from hiera_video import fields
from hiera_video.errors import RequestError
from hiera_video.fields import Rule

DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ep|pass|st|%)")
UNITS = "ep (effective epochs, each repeat counts), pass (over the list), st (steps) or % (of the run), such as 10pass"
Duration: TypeAlias = Annotated[
    str,
    Rule(
        "a duration, such as 10pass",
        lambda text: DURATION.fullmatch(text) is not None,
        refusal=f"a duration needs a unit: {UNITS}",
    ),
]


def duration_of(duration: str) -> tuple[float, str]:
    """A duration's number and unit.

    >>> duration_of("10pass")
    (10.0, 'pass')
    """
    match = DURATION.fullmatch(duration)
    assert match is not None, f"{duration} was not checked"
    return float(match[1]), match[2]


def steps_of(
    duration: str, *, steps_per_pass: int, repeats: int, total: int | None = None, field: str = "duration"
) -> int:
    """A duration in steps of the optimizer.

    Args:
        duration: A number and its unit, such as "10pass".
        steps_per_pass: Steps of one walk over the list.
        repeats: Effective epochs of one walk over the list.
        total: Steps of the whole run, which "%" is a share of.
        field: The name of the duration in messages.

    Returns:
        The steps: at least 1, unless the duration is 0.

    Raises:
        RequestError: The duration has no unit, or is a share where ``total`` is not given.

    >>> steps_of("150ep", steps_per_pass=940, repeats=2), steps_of("5%", steps_per_pass=940, repeats=2, total=70500)
    (70500, 3525)
    """
    fields.convert(Duration, duration, field)
    length, unit = duration_of(duration)
    if unit == "%" and total is None:
        raise RequestError(f"{field} is {duration!r}, but a share needs a whole: say it in ep, pass or st")
    steps = {"ep": steps_per_pass / repeats, "pass": steps_per_pass, "st": 1, "%": (total or 0) / 100}
    return max(1, round(length * steps[unit])) if length else 0
