"""What do embeddings know that nobody taught the model? Nearest neighbours and a linear probe, against raw pixels.

    python scripts/probe_experiment.py --videos D/test --models "hiera_nano_16x64.camera_motion,RUNS/mae" --output R

``videos`` has a folder for each class; clips of ``mae_experiment.py`` for instance, whose creatures and gaits the
built-in model has never seen. Pixels are the clip as the model sees it, shrunk to 8 x 8 x 8 means of colour, for
an embedding; all else is the same (5 folds, see ``hiera-video probe``).
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jsonargparse import auto_cli
from torch.nn.functional import adaptive_avg_pool3d

from hiera_video import FeatureExtractor, extract
from hiera_video.tasks.features.feature_table import read_vectors
from hiera_video.tasks.features.probe import probe

#: (T, H, W) of what a clip is shrunk to.
PIXELS = (8, 8, 8)


def pixels(found: Path, output: Path) -> Path:
    """The extraction ``found`` again, with pixels in place of embeddings."""
    table, _ = read_vectors(found)
    facts = json.loads((found / "extraction.json").read_text())
    extractor = FeatureExtractor.from_pretrained(facts["model"], device="cpu")
    vectors = []
    for name, count in zip(table["input"].to_pylist(), table["window"].to_pylist(), strict=True):
        if count == 0:
            clips = [torch.from_numpy(one.frames) for one in extractor(name)]
            vectors += [adaptive_avg_pool3d(one.permute(3, 0, 1, 2).float(), PIXELS).flatten() for one in clips]
    (output / "windows").mkdir(parents=True, exist_ok=True)
    column = pa.array([one.numpy() for one in vectors])
    pq.write_table(table.append_column("embedding", column), output / "windows" / "pixels.parquet")
    (output / "extraction.json").write_text(json.dumps(facts))
    return output


def main(videos: Path, models: str, output: Path, k: int = 5) -> None:
    """Prints top-1 of both probes for each of ``models`` (with commas between), for pixels, and chance."""
    torch.set_num_threads(1)
    folders = {}
    for number, model in enumerate(models.split(",")):
        folders[model] = output / str(number)
        list(extract([str(videos)], output=folders[model], model=model, device="cpu"))
    folders["pixels"] = pixels(output / "0", output / "pixels")
    for name, folder in folders.items():
        shown = []
        for one in probe(str(folder), k=k):
            error = "" if one.standard_error is None else f" +- {one.standard_error:.1%}"
            shown.append(f"{one.method} {one.top1:.1%}{error}")
        print(f"{name}: {', '.join(shown)} ({one.inputs} inputs, {one.classes} classes)", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
