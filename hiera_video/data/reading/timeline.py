"""Times of pictures out of the stamps that a file gives them: clocks that restart, stamps that are wrong or missing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

#: FFmpeg's own limits: a clock that falls back by more than the first, or, in containers whose clocks may jump, leaps
#: by more than the second, has been restarted.
FALL_S = 0.1
LEAP_S = 10.0
#: A picture is stored at most so many places from where it is shown (H.264 and HEVC hold 16).
MAX_REORDERING = 16
#: Stamps after a jump that must agree with it: fewer are wrong stamps, not another clock.
_FOLLOWERS = 3

#: Of longer recordings nobody decodes all to learn whether one stamp is in its place.
_MAX_JUDGED = 2000

Stamps = list["int | None"]


def join_clocks(
    pts: Sequence[int | None],
    dts: Sequence[int | None],
    step: float,
    ticks_per_s: float,
    leaps: bool,
) -> tuple[Stamps, Stamps, list[int]]:
    """Stamps as one clock would have given them, found in decode order as FFmpeg does.

    Args:
        pts: when each picture is shown, in ticks, in the order in which they are stored.
        dts: when each is decoded.
        step: ticks that a picture lasts.
        ticks_per_s: ticks in a second.
        leaps: whether a leap forward is a restarted clock, as in transport streams, or a long picture.

    Returns:
        Both lists on the first recording's clock, None where a stamp is wrong by itself, and the positions at which a
        recording begins.
    """
    clock = dts if any(stamp is not None for stamp in dts) else pts
    running = [stamp for stamp in clock if stamp is not None]
    fall, leap = -FALL_S * ticks_per_s, step + LEAP_S * ticks_per_s if leaps else float("inf")
    steps = np.diff(np.array(running, dtype=np.float64))
    if bool(np.all((steps >= fall) & (steps <= leap))):
        return list(pts), list(dts), [0]
    shown: Stamps = []
    decoded: Stamps = []
    begins = [0]
    offset = 0
    last = earlier = None  # the clock at the picture before, and at the one before that
    for i, now in enumerate(clock):
        if now is not None and last is not None and not fall <= now + offset - last <= leap:
            ahead = [stamp for stamp in clock[i + 1 :][:_FOLLOWERS] if stamp is not None]
            stays = sum(abs(stamp - now) < abs(stamp + offset - last) for stamp in ahead)
            if earlier is not None and earlier < now + offset < last:
                shown[-1] = decoded[-1] = None  # the stamp before was too late: this one goes on where it leapt
            elif ahead and 2 * stays > len(ahead):
                offset = last + round(step) - now
                begins.append(i)
            else:
                shown.append(None)
                decoded.append(None)
                continue
        for stamps, stamp in ((shown, pts[i]), (decoded, dts[i])):
            stamps.append(None if stamp is None else stamp + offset)
        if now is not None:
            earlier, last = last, now + offset
    return shown, decoded, begins


def plain_order(
    pts: Sequence[int | None], dts: Sequence[int | None], ticks_per_s: float, leaps: bool
) -> NDArray[np.int64] | None:
    """Positions in display order, where one clock runs through all stamps and none of them is in doubt, else None.

    Args:
        pts: when each picture is shown, in ticks, in the order in which they are stored; all are there.
        dts: when each is decoded; all are there.
        ticks_per_s: ticks in a second.
        leaps: whether a leap forward is a restarted clock.
    """
    shown, decoded = np.array(pts, dtype=np.int64), np.array(dts, dtype=np.int64)
    steps = np.diff(decoded)
    if (steps <= 0).any() or (leaps and steps.max(initial=0) > LEAP_S * ticks_per_s) or (shown < decoded).any():
        return None
    return _ranked(shown)


def _ranked(stamps: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The places of stamps in ascending order; None where one is there twice, or may stand in a wrong place."""
    ranks = np.argsort(stamps, kind="stable")
    steps, moved = np.diff(stamps[ranks]), np.abs(ranks - np.arange(len(ranks)))
    if (steps == 0).any() or (moved > MAX_REORDERING).any() or (moved.any() and _some_are_out_of_step(steps)):
        return None
    return ranks


def sorted_by_time(pts: Sequence[int | None], dts: Sequence[int | None], begins: Sequence[int]) -> list[int] | None:
    """Positions in display order, recording by recording; None where the stamps cannot tell it."""
    order: list[int] = []
    for begin, end in pairwise([*begins, len(pts)]):
        part = [stamp for stamp in pts[begin:end] if stamp is not None]
        if len(part) < end - begin:
            return None
        stamps = np.array(part, dtype=np.int64)
        decoded = np.array([stamp for stamp in dts[begin:end] if stamp is not None], dtype=np.int64)
        if (np.diff(decoded) <= 0).any() or (len(decoded) == len(stamps) and (stamps < decoded).any()):
            return None
        ranks = _ranked(stamps)
        if ranks is None:
            return None
        order += (ranks + begin).tolist()
    return order


def sorted_by_types(positions: Sequence[int], kinds: Sequence[str | None]) -> list[int]:
    """Positions in display order, of pictures whose kinds are known: what "B" refers to waits for the next other."""
    order: list[int] = []
    waiting: list[int] = []
    for i, kind in zip(positions, kinds, strict=True):
        if kind == "B":
            order.append(i)
        else:
            order, waiting = order + waiting, [i]
    return order + waiting


def _some_are_out_of_step(steps: NDArray[np.int64]) -> bool:
    """Whether stamps are even but for a few, and one of these comes too early: it may stand in a wrong place."""
    if len(steps) >= _MAX_JUDGED:
        return False
    usual = float(np.sort(steps)[len(steps) // 2])
    odd = steps[(steps < 0.6 * usual) | (steps > 1.6 * usual)]
    return 0 < len(odd) <= max(4, len(steps) // 20) and bool(odd.min() < usual)


def mend(stamps: Sequence[int | None], step: float) -> list[int]:
    """Ascending stamps for pictures in display order: those that fit stay, the others come from their neighbours.

    Args:
        stamps: ticks in display order, None where there is none.
        step: ticks that a picture lasts where no neighbour tells.
    """
    whole = [stamp for stamp in stamps if stamp is not None]
    if len(whole) == len(stamps) and (np.diff(np.array(whole, dtype=np.int64)) > 0).all():
        return whole
    if not whole:
        return [round(number * step) for number in range(len(stamps))]
    kept = _without_repeats(stamps)
    backwards = [None if stamp is None else -stamp for stamp in reversed(kept)]
    choices = [_longest_ascending(kept), {len(kept) - 1 - i for i in _longest_ascending(backwards)}]
    mended = [_filled(kept, fitting, step) for fitting in (choices if choices[0] != choices[1] else choices[:1])]
    return min(mended, key=lambda times: sum((after - before) ** 2 for before, after in pairwise(times)))


def _filled(kept: Stamps, fitting: set[int], step: float) -> list[int]:
    """The stamps at the positions ``fitting``, and between them what their neighbours suggest."""
    times = [stamp if i in fitting else None for i, stamp in enumerate(kept)]
    first = min(fitting)
    known = sorted(fitting)
    steps = [(after - before) / (j - i) for i, j in pairwise(known) for before, after in [(times[i], times[j])]]  # type: ignore[operator]
    usual = median(steps) if steps else step
    result: list[int] = []
    for i, stamp in enumerate(times):
        if stamp is not None:
            result.append(stamp)
        elif i < first:
            result.append(round((times[first] or 0) - (first - i) * usual))
        else:
            j = known[at] if (at := bisect_left(known, i)) < len(known) else None
            result.append(_between(result, times[j] if j is not None else None, (j or i) - i, usual))
    return result


def _between(before: list[int], after: int | None, missing: int, usual: float) -> int:
    """The stamp behind ``before``, with ``missing`` pictures from it to the next stamp that is right."""
    step = before[-1] - before[-2] if len(before) > 1 and before[-1] > before[-2] else usual
    if after is not None:
        step = min(step, (after - before[-1]) / (missing + 1))
    return before[-1] + max(0, round(step))


def _without_repeats(stamps: Sequence[int | None]) -> Stamps:
    """Of two equal neighbours, the one beside the longer gap is wrong."""
    kept = list(stamps)
    for i in range(1, len(kept)):
        here = kept[i]
        if here is None or kept[i - 1] != here:
            continue
        earlier = kept[i - 2] if i > 1 else None
        later = kept[i + 1] if i + 1 < len(kept) else None
        gap_before = here - earlier if earlier is not None else 0
        gap_after = later - here if later is not None else 0
        kept[i - 1 if later is not None and gap_before > gap_after else i] = None
    return kept


def _longest_ascending(stamps: Sequence[int | None]) -> set[int]:
    """Positions of a longest strictly ascending part."""
    ends: list[int] = []
    places: list[int] = []
    previous: dict[int, int] = {}
    for i, stamp in enumerate(stamps):
        if stamp is None:
            continue
        place = bisect_left(ends, stamp)
        if place:
            previous[i] = places[place - 1]
        ends[place : place + 1] = [stamp]
        places[place : place + 1] = [i]
    chosen: set[int] = set()
    position = places[-1] if places else None
    while position is not None:
        chosen.add(position)
        position = previous.get(position)
    return chosen


def times_of_decoding(dts: Sequence[int | None], delay: int, step: float) -> list[int]:
    """Display times where a container has decode times only: each picture's is that of the packet it came out with.

    Args:
        dts: ticks, in the order in which pictures are stored.
        delay: pictures that the decoder holds back.
        step: ticks that a picture lasts.
    """
    clock = mend(dts, step)
    shift = clock[min(delay, len(clock) - 1)] - clock[0]
    shown = [stamp - shift for stamp in clock[delay:]]
    while len(shown) < len(clock):
        shown.append(shown[-1] + round(step) if shown else clock[0])
    return shown
