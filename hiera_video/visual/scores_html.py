"""Scores over time and segments for a browser: HTML that fits any width; what is clicked says which seconds to play.

An element with ``data-from`` and ``data-to`` stands for these seconds of the video, one with ``data-begin`` and
``data-end`` for the moment at the place where it is clicked. The page plays them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hiera_video.visual.timelines import best_curves, clock

#: One for each class, in the order of its highest score: they stand apart on white and on black.
COLOURS = ("#2f7ed8", "#e6851e", "#2ca25f", "#d64550", "#8e6bbf", "#8c6d5a", "#d977b8", "#7f8c8d", "#b3b32e", "#21a8b8")
#: Sides of a thumbnail in pixels; classes that never score as much are not drawn.
THUMBNAIL, LEAST_PEAK = 192, 0.05


def scores_html(
    times: NDArray[np.float64],
    scores: NDArray[np.float32],
    labels: Sequence[str],
    thumbnails: Sequence[tuple[float, NDArray[np.uint8]]],
    segments: Sequence[tuple[str, float, float, float]],
    *,
    top_k: int,
) -> str:
    """Draws the classes with the highest peaks, and those with segments: curves, bars underneath, a list, thumbnails.

    Args:
        times: Start and end of each window in seconds, float64 [n, 2].
        scores: float32 [n, K].
        labels: The K classes.
        thumbnails: Seconds, and a picture uint8 [h, w, 3].
        segments: Label, start and end in seconds, and mean score.
        top_k: How many classes are drawn.

    Returns:
        The HTML; it holds its pictures and asks for nothing.
    """
    begin, end = float(times[:, 0].min()), max(float(times[:, 1].max()), float(times[:, 0].min()) + 0.1)
    peaks = scores.max(axis=0)
    best = [index for index in best_curves(scores, top_k) if peaks[index] >= min(LEAST_PEAK, peaks.max())]
    drawn = list(dict.fromkeys([*best, *(labels.index(segment[0]) for segment in segments)]))
    colours = {labels[index]: COLOURS[number % len(COLOURS)] for number, index in enumerate(drawn)}
    centres = 1000 * (times.mean(axis=1) - begin) / (end - begin)
    lines, names = "", ""
    for index in drawn:
        heights, label = 100 - 100 * scores[:, index], labels[index]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(centres, heights, strict=True))
        lines = f'<polyline points="{points}" stroke="{colours[label]}"/>{lines}'  # the best lies on top
        names += f"<span>{_swatch(colours[label])}{escape(label)}, up to {_percent(peaks[index])}</span>"
    grid = "".join(f'<line x1="0" x2="1000" y1="{y}" y2="{y}"/>' for y in (0, 50, 100))
    axis = "".join(f"<span>{clock(round(begin + share * (end - begin), 1), end)}</span>" for share in (0, 0.5, 1))
    plot = (
        '<div class="plot"><div class="heights"><span>1</span><span>0.5</span><span>0</span></div>'
        f'<div class="chart" data-begin="{begin:.3f}" data-end="{end:.3f}">'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none">{grid}{lines}</svg></div><span></span>'
        f'<div>{_lanes(segments, colours, begin, end)}<div class="axis">{axis}</div></div></div>'
    )
    rows = "".join(
        f"<button {_play(start, stop)}><span>{_swatch(colours[label])}{escape(label)}</span>"
        f"<span>▶ {clock(round(start, 1), end)} to {clock(round(stop, 1), end)}</span>"
        f"<span>{_percent(score)}</span></button>"
        for label, start, stop, score in segments
    )
    pictures = "".join(
        f"<button {_play(seconds, end)}>{_img(picture)}{clock(round(seconds, 1), end)}</button>"
        for seconds, picture in thumbnails
    )
    return (
        f'<div class="scores"><div class="names">{names}</div>{plot}<div class="rows">{rows}</div>'
        f'<div class="moments">{pictures}</div></div>'
    )


def _lanes(
    segments: Sequence[tuple[str, float, float, float]], colours: dict[str, str], begin: float, end: float
) -> str:
    """A lane for each class that has segments, with a bar for each of them."""
    lanes: dict[str, str] = {}
    for label, start, stop, _ in segments:
        left, wide = (100 * seconds / (end - begin) for seconds in (start - begin, stop - start))
        style = f"left:{left:.2f}%;width:max({wide:.2f}%,4px);background:{colours[label]}"
        bar = f'<button {_play(start, stop)} style="{style}" aria-label="{escape(label)}"></button>'
        lanes[label] = lanes.get(label, "") + bar
    return "".join(f'<div class="lane">{lane}</div>' for lane in lanes.values())


def _play(start: float, end: float) -> str:
    return f'data-from="{start:.3f}" data-to="{end:.3f}"'


def _swatch(colour: str) -> str:
    return f'<i style="background:{colour}"></i>'


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _img(picture: NDArray[np.uint8]) -> str:
    file, image = io.BytesIO(), Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "jpeg", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
