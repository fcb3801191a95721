"""Camera motion on CameraBench's labels (Lin et al. 2025, arXiv 2504.15376; test set CC BY 4.0).

    hf download syCen/CameraBench --repo-type dataset --local-dir camerabench     # test.jsonl and videos/, 1,071 clips
    python scripts/evaluate_camerabench.py --folder camerabench

A line of ``test.jsonl`` has ``path`` and ``labels``. Two tables are printed. For each label that one of our classes
means, the average precision of that class's score over all clips: by name (rotations and zooms), and by what the
picture does, where a truck counts as a pan, a pedestal as a tilt, a dolly as a zoom. And the top-1 of clips whose
labels name one such motion alone. A clip that cannot be read is named and left out. The nine classes do not know arcs,
tracking shots, steadiness and speed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from hiera_video.models.zoo import BUILT_IN
from hiera_video.tasks.classify.classifier import VideoClassifier

#: CameraBench's labels by our classes: those of the same name, and those that move the picture alike.
SAME = {
    "static": ["no-motion", "static"],
    "pan_left": ["pan-left"],
    "pan_right": ["pan-right"],
    "tilt_up": ["tilt-up"],
    "tilt_down": ["tilt-down"],
    "zoom_in": ["zoom-in"],
    "zoom_out": ["zoom-out"],
    "roll_clockwise": ["roll-CW"],
    "roll_counterclockwise": ["roll-CCW"],
}
ALIKE = {
    "pan_left": ["truck-left"],
    "pan_right": ["truck-right"],
    "tilt_up": ["pedestal-up"],
    "tilt_down": ["pedestal-down"],
    "zoom_in": ["dolly-in"],
    "zoom_out": ["dolly-out"],
}


def read_labels(path: Path) -> dict[str, set[str]]:
    """The labels of each clip by its path, which is relative to the file."""
    clips: dict[str, set[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                clips[row["path"]] = {str(label) for label in row["labels"]}
            except (ValueError, KeyError, TypeError):
                raise SystemExit(f"{path}, line {number}: expected a JSON object with path and labels") from None
    return clips


def told(labels: set[str], alike: bool) -> NDArray[np.bool_]:
    """Which of our classes a clip's labels mean, bool [9]."""
    names = {own: {*same, *(ALIKE.get(own, []) if alike else [])} for own, same in SAME.items()}
    return np.array([bool(names[own] & labels) for own in SAME])


def evaluate(folder: Path, model: str = BUILT_IN) -> None:
    """Prints both tables."""
    if not (folder / "test.jsonl").is_file():
        raise SystemExit(f"{folder} has no test.jsonl: download CameraBench's test set into it")
    labels = read_labels(folder / "test.jsonl")
    classifier = VideoClassifier.from_pretrained(model)
    if set(classifier.labels) != set(SAME):
        raise SystemExit(f"{model} does not name camera motions: take {BUILT_IN}, or a model of the same nine classes")
    answers = classifier.stream([str(folder / path) for path in labels], top_k=len(SAME))
    scores, meant = [], []
    for path, answer in zip(labels, answers, strict=True):
        if not answer.predictions:
            print(f"{path}: {answer.error}")
            continue
        by_name = {one.label: one.score for one in answer.predictions}
        scores.append([by_name[own] for own in SAME])
        meant.append(labels[path])
    if not scores:
        raise SystemExit(f"none of the {len(labels)} clips in {folder} can be read")
    table = np.array(scores)
    for alike, title in ((False, "by name"), (True, "by what the picture does")):
        truth = np.stack([told(one, alike) for one in meant])
        print(f"{title + ':':24}  clips  average precision")
        for column, own in enumerate(SAME):
            if count := int(truth[:, column].sum()):
                print(f"  {own:22}  {count:5}  {average_precision_score(truth[:, column], table[:, column]):.3f}")
        single = truth.sum(axis=1) == 1
        right = truth[single, table[single].argmax(axis=1)].sum()
        print(f"  one motion alone: {right} of {single.sum()} right\n")


if __name__ == "__main__":
    auto_cli(evaluate, as_positional=False)
