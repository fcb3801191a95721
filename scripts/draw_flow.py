"""Draws docs/explanation/flow.png: a real clip on its way from a file to scores, with the shapes at each place.

python scripts/draw_flow.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

import hiera_video
from hiera_video.spec import ClipSpec

DOCS = Path(__file__).parents[1] / "docs"


def colours(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W, C] -> [H, W, 3]: the first three principal components, each from 0 to 1."""
    rows = features.reshape(-1, features.shape[-1])
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    picture = rows @ directions[:3].T
    low, high = np.percentile(picture, 2, axis=0), np.percentile(picture, 98, axis=0)
    return np.clip((picture - low) / (high - low), 0, 1).reshape(*features.shape[:2], 3)


def main() -> None:
    """One row: frames, the clip, tokens in mask units, the four stages, the scores."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    classifier = hiera_video.VideoClassifier.from_pretrained(device="cpu")
    model, spec = classifier.model, classifier.model.spec
    big = model.spec.replace(size=(256, 256), resize=256)
    clip_file = str(DOCS / "zoom_in.mp4")
    small_views = hiera_video.load_views(clip_file, spec, 1, 1)
    shown = hiera_video.load_views(clip_file, big, 1, 1).clips[0].permute(1, 2, 3, 0).numpy()
    with torch.inference_mode():
        logits_input = spec.normalize(small_views.clips)
        _, maps = model.forward_intermediates(logits_input, output_fmt="NHWC")
        scores = model(logits_input).softmax(dim=-1)[0]
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), dpi=100, layout="constrained")
    middle = shown[len(shown) // 2]
    first = axes[0, 0]
    frames_of(first, shown)
    first.set_title("1  open_video: frames\nand their times")
    axes[0, 1].imshow(middle)
    axes[0, 1].set_title(f"2  16 of them, cut to a clip:\nuint8 [3, {', '.join(map(str, clip_shape(spec)))}]")
    axes[0, 2].imshow(middle)
    tokens = maps[0].shape[2]
    for line in np.linspace(0, 256, tokens + 1):
        axes[0, 2].axhline(line, color="white", lw=0.3)
        axes[0, 2].axvline(line, color="white", lw=0.3)
    for line in np.linspace(0, 256, tokens // 8 + 1):
        axes[0, 2].axhline(line, color="orange", lw=2.5)
        axes[0, 2].axvline(line, color="orange", lw=2.5)
    axes[0, 2].set(xlim=(0, 256), ylim=(256, 0))
    axes[0, 2].set_title("3  patches become tokens;\norange: mask units")
    places = [axes[0, 3], axes[1, 0], axes[1, 1], axes[1, 2]]
    notes = [
        "attention inside mask units",
        "attention inside mask units",
        "attention over the clip",
        "the same, pooled once more",
    ]
    for stage, (axis, features, note) in enumerate(zip(places, maps, notes, strict=True), start=1):
        _, time, height, width, channels = features.shape
        axis.imshow(colours(features[0, time // 2].numpy()), interpolation="nearest")
        axis.set_title(f"{stage + 3}  stage {stage}: [{time}, {height}, {width}, {channels}]\n{note}")
    best = scores.topk(4)
    names = [classifier.labels[index] for index in best.indices.tolist()]
    axes[1, 3].barh(range(4), best.values.numpy(), color="tab:blue", alpha=0.4, height=0.7)
    for place, (name, score) in enumerate(zip(names, best.values.tolist(), strict=True)):
        axes[1, 3].text(0.02, place, f"{name}  {score:.1%}", va="center", fontsize=9)
    axes[1, 3].set(xlim=(0, 1), yticks=[])
    axes[1, 3].set_box_aspect(1)
    axes[1, 3].invert_yaxis()
    axes[1, 3].set_title("8  mean, norm, linear layer: logits;\nsoftmax in the task: scores")
    for axis in axes.flat[:-1]:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes.flat:
        axis.title.set_fontsize(9)
    (DOCS / "explanation").mkdir(exist_ok=True)
    figure.savefig(DOCS / "explanation" / "flow.png")


def frames_of(axis: object, frames: NDArray[np.uint8]) -> None:
    """Five frames one behind the other."""
    canvas = np.full((256 + 4 * 40, 256 + 4 * 40, 3), 255, dtype=np.uint8)
    for place, frame in enumerate(frames[np.linspace(0, len(frames) - 1, 5).astype(int)][::-1]):
        offset = (4 - place) * 40
        canvas[offset : offset + 256, offset : offset + 256] = frame
        canvas[offset, offset : offset + 256] = canvas[offset : offset + 256, offset] = 255
    axis.imshow(canvas)  # type: ignore[attr-defined]


def clip_shape(spec: ClipSpec) -> tuple[int, int, int]:
    """Frames, height and width."""
    return spec.num_frames, *spec.size


if __name__ == "__main__":
    main()
