"""What decoders say about damage: caught before it reaches the terminal, and told to the user as seconds."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: FFmpeg calls these errors, but the picture is whole: messages inside the stream for somebody else, and commands to
#: drop pictures that were never read, since decoding began behind them.
HARMLESS = re.compile(r"\bSEI\b|\bmmco\b|\bAPP\b|APP fields|Exif|ICC|timecode|user data|closed caption|A53", re.I)


@cache
def listen() -> None:
    """Have FFmpeg's messages counted and kept instead of printed; what a user has set up in ``av.logging`` stays."""
    import av

    if av.logging.get_level() is None:
        av.logging.set_level(av.logging.ERROR)
        logger = logging.getLogger("libav")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    av.logging.set_skip_repeated(False)


@contextmanager
def caught() -> Iterator[list[Any]]:
    """The errors that FFmpeg reports in this thread meanwhile: a list of (level, source, text), filled as they come."""
    import av

    with av.logging.Capture() as messages:
        yield messages


def worst(messages: list[Any], without: str = "") -> str | None:
    """The first message that means damage to a picture, or None; those of the source ``without`` do not count."""
    import av

    for level, source, text in messages:
        if level <= av.logging.ERROR and source != without and not HARMLESS.search(text):
            return " ".join(str(text).split()).rstrip(".")
    return None


def name_seconds(lost: set[int], times: NDArray[np.float64], end: float) -> str:
    """The stretches of frames that cannot be decoded, as "between 1.20 s and 1.48 s"."""
    numbers = sorted(lost)
    first = [n for n in numbers if n - 1 not in lost]
    last = [n for n in numbers if n + 1 not in lost]
    stretches = [
        f"between {times[begin]:.2f} s and {times[stop + 1] if stop + 1 < len(times) else end:.2f} s"
        for begin, stop in zip(first, last, strict=True)
    ]
    if len(stretches) > 8:  # the sentence stays readable
        until = stretches[-1].rpartition(" and ")[2]
        stretches = [*stretches[:7], f"in places {stretches[7].partition(' and ')[0]} and {until}"]
    return ", ".join(stretches[:-1]) + (" and " if len(stretches) > 1 else "") + stretches[-1]


def silence_other_ffmpegs() -> None:
    """Turn off what copies of FFmpeg beside PyAV's print: decord and torchcodec bring or find their own."""
    with suppress(OSError), open("/proc/self/maps") as maps:  # Linux only
        paths = {line.split(None, 5)[5].strip() for line in maps if "libavutil" in line}
        for path in paths:
            if "/av.libs/" not in path:
                with suppress(OSError, AttributeError):
                    ctypes.CDLL(path).av_log_set_level(-8)


def culprit(number: int, before: int, stored: NDArray[np.int64], codec: str) -> int:
    """The frame that a packet spoils: its own, else that of the field before, else the next one.

    Args:
        number: the frame that the packet begins, -1 where it begins none.
        before: the frame that the packets before it began, -1 at the start.
        stored: int64 [N], frame numbers in the order in which the file stores them.
        codec: FFmpeg's name of it.
    """
    if number >= 0 or (before >= 0 and codec in ("h264", "mpeg2video")):
        return number if number >= 0 else before
    place = int(np.flatnonzero(stored == before)[0]) + 1 if before >= 0 else 0
    return int(stored[min(place, len(stored) - 1)])


def reason(error: BaseException) -> str:
    """The part of a decoder's message that a person can use: no stack, no source lines, no numbers of errors."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", lines[0] if lines else type(error).__name__)
    return re.sub(r"^\[Errno -?\d+\] |: '.*'(; last error log: .*)?$", "", text).strip()
