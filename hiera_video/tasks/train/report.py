"""What a run of fine-tuning came to, for people: report.md in its folder, with pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hiera_video.cells import cells
from hiera_video.data.lists.video_list import VideoList
from hiera_video.files import replacing
from hiera_video.tasks.evaluate.metrics import Scores, counted, metrics
from hiera_video.tasks.evaluate.pictures import draw_worst, worst
from hiera_video.training.durations import duration_of
from hiera_video.training.recipe import Finetuning
from hiera_video.visual.confusion import draw_confusion

#: Videos that are listed, and classes of which a confusion matrix can be drawn.
LISTED, MOST_CLASSES = 20, 700
#: A class of fewer videos is named.
FEW = 5


def write_report(recipe: Finetuning, *, train: VideoList, judged: VideoList, scores: Scores, words: str) -> None:
    """Writes ``report.md``, ``confusion.png`` and ``worst.png`` to the run's folder, each whole or not at all.

    Args:
        recipe: Of the run, with its ``run.output``.
        train: The training list.
        judged: The videos that ``scores`` are of.
        scores: Theirs.
        words: What was trained, and what it was judged by.

    Raises:
        OutputError: The folder cannot be written.
    """
    output = Path(str(recipe.run.output))
    lines = [f"# {output.name}", "", words, ""]
    lines += [f"- {line}" for line in class_lines(train)]
    values, labels = counted(scores, judged)
    if len(labels):
        lines.append(f"- {cells(metrics(scores, judged))}")
    if labels.ndim == 1 and len(labels):
        if 2 <= len(judged.classes) <= MOST_CLASSES:
            matrix = np.zeros((len(judged.classes),) * 2, dtype=np.int64)
            np.add.at(matrix, (labels, values.argmax(axis=1)), 1)
            draw_confusion(matrix, judged.classes, output / "confusion.png")
            lines += ["", "![Which class is taken for which](confusion.png)"]
        lines += _worst(recipe, judged, scores)
    if duration_of(recipe.run.duration)[0]:
        lines += ["", "![Curves](curves.png)"]
    lines += ["", "## What to try next", "", *(f"- {line}" for line in _advice(train)), ""]
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


def _worst(recipe: Finetuning, judged: VideoList, scores: Scores) -> list[str]:
    """The videos that are wrong, the surest first: a table, and frames of the first of them."""
    rows = worst(scores, judged)[:LISTED]
    if not len(rows):
        return ["", "No video is taken for another class."]
    lines = ["", "| video | is | taken for | score |", "|---|---|---|---|"]
    for index, values in zip(scores.index[rows].tolist(), scores.scores[rows], strict=True):
        (true,), best = judged.class_names(index), int(values.argmax())
        lines.append(f"| {judged.path(index)} | {true} | {judged.classes[best]} | {values[best]:.0%} |")
    data, picture = recipe.data, Path(str(recipe.run.output)) / "worst.png"
    draw_worst(picture, judged, scores, num_workers=data.num_workers, time_limit=data.time_limit, fps=data.fps)
    return [*lines, "", "![Frames of videos that are taken for another class](worst.png)"]


def _advice(train: VideoList) -> list[str]:
    counts = _counts(train)
    fewest = min(counts, key=lambda name: counts[name])
    return [
        f"More videos, of other people and places, of the classes that are confused or have few ({fewest} has "
        f"{counts[fewest]}).",
        "Where a detail tells two classes apart, videos in which it is large.",
        "With a GPU, a published model as the start: --model hiera_base_16x224.mae_k400_ft_k400.",
    ]
