"""What a run of fine-tuning came to, for people: report.md in its folder, with pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.cells import cells
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.views import load_views
from hiera_video.errors import UnreadableVideo
from hiera_video.files import replacing
from hiera_video.models.hiera import Hiera
from hiera_video.spec import ClipSpec
from hiera_video.tasks.classify.classifier import Score, best_classes
from hiera_video.tasks.evaluate.metrics import Scores, counted, metrics
from hiera_video.visual.confusion import draw_confusion
from hiera_video.visual.strips import draw_strips

#: Videos whose frames are shown, videos that are listed, and classes of which a confusion matrix can be drawn.
SHOWN, LISTED, MOST_CLASSES = 6, 20, 700
#: A class of fewer videos is named.
FEW = 5


def write_report(
    output: Path, *, model: Hiera, train: VideoList, judged: VideoList, scores: Scores, how: str, trained: str
) -> None:
    """Writes ``report.md``, ``confusion.png`` and ``worst.png``, each whole or not at all.

    Args:
        output: The run's folder.
        model: Gives the size of clips.
        train: The training list.
        judged: The videos that ``scores`` are of.
        scores: Theirs.
        how: What they were judged by, in words.
        trained: What was trained, in words.

    Raises:
        OutputError: The folder cannot be written.
    """
    figures = metrics(scores, judged)
    lines = [f"# {output.name}", "", f"{trained} {how}", "", f"- {cells(figures)}"]
    lines += [f"- {line}" for line in class_lines(train)]
    values, labels = counted(scores, judged)
    if labels.ndim == 1 and len(labels):
        if 2 <= len(judged.classes) <= MOST_CLASSES:
            matrix = np.zeros((len(judged.classes),) * 2, dtype=np.int64)
            np.add.at(matrix, (labels, values.argmax(axis=1)), 1)
            draw_confusion(matrix, judged.classes, output / "confusion.png")
            lines += ["", "![Which class is taken for which](confusion.png)"]
        lines += _worst(output, model.spec, judged, scores)
    if (output / "curves.png").exists():
        lines += ["", "![Curves](curves.png)"]
    lines += ["", "## What to try next", "", *(f"- {line}" for line in _advice(figures, train)), ""]
    lines += ["## Use", "", "```bash", f"hiera-video classify VIDEO --model {output}"]
    lines += [f"hiera-video evaluate --val LABELLED_VIDEOS --model {output}", "```", ""]
    with replacing(output / "report.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def class_lines(train: VideoList) -> list[str]:
    """What there is to learn from, in words.

    Args:
        train: The training list.

    Returns:
        A line with the videos of each class and, where there are any, one on classes of few videos.
    """
    counts = _counts(train)
    named = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:LISTED])
    more = f", and {len(counts) - LISTED} classes more" if len(counts) > LISTED else ""
    lines = [f"videos to learn from: {named}{more}"]
    if few := [name for name, count in counts.items() if count < FEW]:
        others = f" and {len(few) - 5} more" if len(few) > 5 else ""
        named = f"{', '.join(few[:5])}{others}"
        lines.append(f"fewer than {FEW} videos: {named}; what a model says of them is a guess, add some")
    return lines


def _counts(train: VideoList) -> dict[str, int]:
    several = train.labels.ndim == 2
    counts = train.labels.sum(axis=0) if several else np.bincount(train.labels, minlength=len(train.classes))
    return dict(zip(train.classes, counts.astype(int).tolist(), strict=True))


def _worst(output: Path, spec: ClipSpec, judged: VideoList, scores: Scores) -> list[str]:
    """The videos that are wrong, the surest first: a table, and frames of the first of them."""
    truth = judged.labels[scores.index]
    named = scores.scores.argmax(axis=1)
    wrong = np.flatnonzero((truth >= 0) & (named != truth))
    if not len(wrong):
        return ["", "No video is taken for another class."]
    wrong = wrong[np.argsort(-scores.scores[wrong].max(axis=1), kind="stable")][:LISTED]
    lines = ["", "| video | is | taken for | score |", "|---|---|---|---|"]
    rows: list[tuple[str, NDArray[np.uint8], list[Score]]] = []
    for number in wrong.tolist():
        index = int(scores.index[number])
        path, true = judged.path(index), judged.classes[int(truth[number])]
        best = best_classes(scores.scores[number], judged.classes, 3)
        lines.append(f"| {path} | {true} | {best[0].label} | {best[0].score:.0%} |")
        if len(rows) < SHOWN:
            try:
                frames = load_views(path, spec, 1, 1, start=judged.starts[index], end=judged.ends[index]).middle()
            except UnreadableVideo:
                continue
            rows.append((f"{os.path.basename(path)}: {true}", frames, best))
    if rows:
        draw_strips(rows, output / "worst.png")
        lines += ["", "![Frames of videos that are taken for another class](worst.png)"]
    return lines


def _advice(figures: Mapping[str, float], train: VideoList) -> Sequence[str]:
    counts = _counts(train)
    advice = []
    if min(counts.values()) < 10:
        fewest = min(counts, key=lambda name: counts[name])
        advice.append(f"More videos of the classes that have few, {fewest} above all: nothing helps as much.")
    if figures.get("top1", 1.0) < 0.9 and "top1" in figures:
        advice.append("Look at the confusions: where a detail tells classes apart, take videos in which it is large.")
    advice.append("Look at the confusions: classes that only a detail tells apart need videos in which it is large.")
    advice.append("Unlabelled videos of the same kind: hiera-video pretrain --train FOLDER, then --model RUN here.")
    advice.append("With a GPU, a published model as the start: --model hiera_base_16x224.mae_k400_ft_k400.")
    return advice
