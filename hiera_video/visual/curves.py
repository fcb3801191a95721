"""A run's curves: loss, accuracy, learning rate, speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.files import replacing

Floats = NDArray[np.float64]

TRAIN, PALE, VALIDATION, SECOND, GREY = "#1f77b4", "#aec7e8", "#d9480f", "#f4a261", "#8a8a8a"
#: Fields of a validation that are shares of right answers, by what people call them.
ACCURACIES = {"top1": "top-1", "top5": "top-5", "macro": "mean of the classes", "map": "mAP"}
#: More points than this are drawn as the band that they fill.
MOST_POINTS = 2000


class Curve(NamedTuple):
    """Values and the steps at which they were recorded, float64 ``[n]`` both, steps ascending, ``n > 0``."""

    steps: Floats
    values: Floats


def draw_curves(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """A PNG of the lines of ``metrics.jsonl``: loss, accuracy, learning rate and speed, over steps and passes.

    Its head is the name of the run, which is that of the folder of ``path``, and the newest figures. Any field may be
    missing, and any value may be no number or not finite: it is left out, and so is a panel without values. Of a step
    recorded twice, since a run went on from before it, the later record counts. Written whole or not at all; raises
    :class:`OutputError`.
    """
    from matplotlib.figure import Figure

    records = list(records)
    train = curves([record for record in records if record.get("kind") == "train"])
    val = curves([record for record in records if record.get("kind") == "val"])
    last = max((float(curve.steps[-1]) for curve in (*train.values(), *val.values())), default=1.0)
    accuracy, lr = any(field in val for field in ACCURACIES), "lr" in train
    speed = "clips_per_s" in train or "data_wait" in train
    below = accuracy + lr + speed

    # Margins are fixed, since finding them by a layout engine takes as long as drawing.
    figure = Figure(figsize=(11, 7.5 if below else 4.8), dpi=110)
    heads, top, low = ((0.99, 0.965), 0.865, 0.45) if below else ((0.98, 0.93), 0.79, 0.11)
    name = path.absolute().parent.name
    figure.text(0.05, heads[0], name, fontsize=11, weight="bold", va="top", parse_math=False)
    figure.suptitle(_summary(train, val), fontsize=10, x=0.05, y=heads[1], ha="left")
    wide = figure.add_gridspec(1, 1, left=0.05, right=0.95, top=top, bottom=low)
    _draw_loss(figure.add_subplot(wide[0]), train, val)
    if below:
        row = figure.add_gridspec(1, below, left=0.05, right=0.95, top=0.305, bottom=0.065, wspace=0.2)
        panels = iter([figure.add_subplot(row[column]) for column in range(below)])
        if accuracy:
            _draw_accuracies(next(panels), val)
        if lr:
            _draw_lr(next(panels), train["lr"])
        if speed:
            _draw_speed(next(panels), train.get("clips_per_s"), train.get("data_wait"))
    for panel in list(figure.axes):
        _dress(panel, last)
    _add_passes(figure.axes[0], train.get("passes") or val.get("passes"))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every field that has finite numbers, over ``step``."""
    latest = {step: record for record in records if (step := _number(record.get("step"))) is not None}
    steps = sorted(latest)
    found = {}
    for field in dict.fromkeys(key for record in latest.values() for key in record):
        values = np.array([_number(latest[step].get(field)) for step in steps], dtype=np.float64)  # None becomes NaN
        known = np.isfinite(values)
        if known.any():
            found[field] = Curve(np.array(steps, dtype=np.float64)[known], values[known])
    return found


def _number(value: object) -> float | None:
    if type(value) is float or type(value) is int:  # by far the most; the rest is slower to tell
        return value if math.isfinite(value) else None
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return None


def smooth(values: Floats) -> Floats:
    """The mean over a window of a fortieth of the values, float64 ``[n]``; of fewer than 80 the values themselves.

    At the start the window is narrower, so that a first steep fall stays where it is; at the end it is one-sided.
    """
    number, half = len(values), len(values) // 80
    index = np.arange(number)
    first = np.maximum(index - half, 0)
    end = np.minimum(index + np.minimum(index, half) + 1, number)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[first]) / (end - first)


def _line(panel: Any, curve: Curve, **looks: Any) -> None:
    """A smooth curve by at most ``MOST_POINTS`` points; few are marked too, since one alone has no line."""
    number = len(curve.steps)
    chosen = np.linspace(0, number - 1, min(number, MOST_POINTS)).round().astype(int)
    looks = {"linewidth": 1.8, "markersize": 3, **looks}
    panel.plot(curve.steps[chosen], curve.values[chosen], marker="o" if number <= 40 else "", **looks)


def _noisy_line(panel: Any, curve: Curve, label: str) -> Floats:
    """The values pale and their running mean strong; returns the mean."""
    if len(curve.steps) > MOST_POINTS:
        starts = np.arange(0, len(curve.steps), math.ceil(len(curve.steps) / (MOST_POINTS // 2)))
        low, high = np.minimum.reduceat(curve.values, starts), np.maximum.reduceat(curve.values, starts)
        panel.fill_between(curve.steps[starts], low, high, color=PALE, alpha=0.6, linewidth=0)
    else:
        panel.plot(curve.steps, curve.values, color=PALE, linewidth=1)
    mean = smooth(curve.values)
    _line(panel, Curve(curve.steps, mean), color=TRAIN, label=label)
    return mean


def _title(panel: Any, words: str, **looks: Any) -> None:
    panel.set_title(words, **{"loc": "left", "fontsize": 10, **looks})


def _draw_loss(panel: Any, train: Mapping[str, Curve], val: Mapping[str, Curve]) -> None:
    shown = []
    if "loss" in train:
        mean = _noisy_line(panel, train["loss"], "training loss")
        shown += [mean, np.quantile(train["loss"].values, [0.002, 0.995])]
    if "loss" in val:
        _line(panel, val["loss"], color=VALIDATION, label="validation loss", markersize=4)
        shown.append(val["loss"].values)
    if not shown:
        panel.text(0.5, 0.5, "no loss recorded yet", transform=panel.transAxes, ha="center", color=GREY)
        return
    # A spike leaves the picture at its top, and the rest stays readable.
    low, high = np.concatenate(shown).min(), np.concatenate(shown).max()
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    panel.set_ylim(low - margin, high + margin)
    panel.legend(loc="lower right", bbox_to_anchor=(1.01, 1.055), ncol=2, frameon=False, fontsize=9)


def _draw_accuracies(panel: Any, val: Mapping[str, Curve]) -> None:
    from matplotlib.ticker import PercentFormatter

    _title(panel, "validation")
    for (field, name), colour in zip(ACCURACIES.items(), (VALIDATION, SECOND, TRAIN, VALIDATION), strict=True):
        if field not in val:
            continue
        steps, values = val[field]
        best = int(values.argmax())
        _line(panel, val[field], color=colour, label=f"{name}, best {values[best]:.1%}")
        panel.plot(steps[best], values[best], "o", mfc="white", mec=colour, ms=6, mew=1.5, zorder=4)
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, -0.03), max(min(high, 1.03), 0.02))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.legend(loc="lower right", bbox_to_anchor=(1.03, 0.97), frameon=False, fontsize=7.5, labelspacing=0.3)


def _draw_lr(panel: Any, lr: Curve) -> None:
    _title(panel, "learning rate", loc="center")
    _line(panel, lr, color=TRAIN)
    panel.set_ylim(bottom=0)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    panel.yaxis.get_offset_text().set_fontsize(8)


def _draw_speed(panel: Any, speed: Curve | None, wait: Curve | None) -> None:
    """Clips a second, and the share of time waiting for data on an axis of its own."""
    from matplotlib.ticker import PercentFormatter

    if speed is not None:
        _title(panel, "clips per second", color=TRAIN)
        _noisy_line(panel, speed, "clips per second")
        panel.set_ylim(0, 1.15 * np.quantile(speed.values, 0.995) or 1)
    if wait is None:
        return
    other = panel if speed is None else panel.twinx()
    _title(other, "waiting for data", loc="left" if speed is None else "right", color=VALIDATION)
    mean = Curve(wait.steps, smooth(wait.values))
    _line(other, mean, color=VALIDATION, linewidth=1.2, markersize=2)
    other.fill_between(*mean, color=VALIDATION, alpha=0.12, linewidth=0)
    other.set_ylim(0, 1)
    other.yaxis.set_major_formatter(PercentFormatter(1))


def _dress(panel: Any, last: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    second = panel.yaxis.get_ticks_position() == "right"
    panel.set_xlim(0, 1.01 * last or 1)
    places = 10 if panel.get_position().width > 0.5 else 5
    panel.xaxis.set_major_locator(MaxNLocator(places, integer=True, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda step, _: _short(step)))
    panel.tick_params(labelsize=8, length=0, labelcolor=VALIDATION if second else "#333333")
    panel.spines[:].set_visible(False)
    if not second:
        panel.set_xlabel("step", fontsize=8, labelpad=2)
        panel.spines["bottom"].set_visible(True)
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)


def _short(step: float) -> str:
    """25000 as 25k: many of them stand side by side."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= 10 * size or (abs(step) >= size and step % (size / 10) == 0):
            return f"{step / size:.4g}{unit}"
    return f"{step:.0f}"


def _add_passes(panel: Any, passes: Curve | None) -> None:
    """A second axis on top: passes through the data, which grow evenly with the steps."""
    if passes is None or passes.values[-1] <= 0 or passes.steps[-1] <= 0:
        return
    per_step = passes.values[-1] / passes.steps[-1]
    axis = panel.secondary_xaxis("top", functions=(lambda step: step * per_step, lambda passed: passed / per_step))
    axis.set_xlabel("pass", fontsize=8, labelpad=4)
    axis.tick_params(labelsize=8, length=0, labelcolor="#333333")
    axis.spines[:].set_visible(False)


def _summary(train: Mapping[str, Curve], val: Mapping[str, Curve]) -> str:
    """The run's newest figures in a line."""
    words = []
    for field, form in (("step", "step {:,.0f}"), ("passes", "pass {:,.4g}")):
        newest = [part[field].values[-1] for part in (train, val) if field in part]
        words += [form.format(max(newest))] if newest else []
    if "loss" in train:
        words.append(f"training loss {smooth(train['loss'].values)[-1]:.4g}")
    if "loss" in val:
        words.append(f"validation loss {val['loss'].values[-1]:.4g}")
    words += [f"{name} {val[field].values[-1]:.1%}" for field, name in ACCURACIES.items() if field in val]
    return "   ·   ".join(words)
