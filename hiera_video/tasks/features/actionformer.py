"""An extraction as ActionFormer and OpenTAD read it: one array a video, annotations to fill in, and their configs.

Row ``i`` of an array is the window whose middle is at ``(i * feat_stride + num_frames / 2) / fps`` seconds: these
programs turn seconds into rows by ``(seconds * fps - num_frames / 2) / feat_stride``. Our windows come at fixed
seconds, whatever a video's own rate, so that ``fps`` is no property of a video but one figure for the folder: the rate
nearest to the model's at which a hop is a whole number of frames.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.lists.folders import SPLITS
from hiera_video.data.reading.files import is_address
from hiera_video.errors import RequestError
from hiera_video.files import replacing
from hiera_video.tasks.features.feature_table import key_of, read_facts, read_vectors

#: The folder below an extraction's that all of it goes to.
FOLDER = "actionformer"
#: The configs with places to fill in.
TEMPLATES = Path(__file__).parent / "detectors"


def is_actionformer(layout: str, facts: dict[str, Any], share: tuple[int, int]) -> bool:
    """Whether arrays are asked for; refuses an extraction that is not one row a window, of all inputs.

    Args:
        layout: windows or actionformer.
        facts: How the features are made.
        share: Of the inputs: its number and how many there are.

    Returns:
        Whether the layout is actionformer.

    Raises:
        RequestError: Such arrays cannot be made of it, or there is no such layout.
    """
    if layout not in ("windows", FOLDER):
        raise RequestError(f"layout {layout!r} is unknown: take windows or actionformer")
    if layout != FOLDER:
        return False
    if len(facts["features"]) > 1 or facts["features"][0].startswith("stage"):
        asked = ",".join(facts["features"])
        raise RequestError(f"layout actionformer has one vector a window: features {asked} must be embedding alone")
    if facts["crop"] == "three":
        raise RequestError("layout actionformer has one row a window: take crop center or none, not three")
    if share != (1, 1):
        raise RequestError(
            "layout actionformer is written of all inputs: run the parts without layout, then all with it"
        )
    return True


def write_arrays(folder: Path) -> None:
    """Writes what detectors of actions read, each file whole or not at all; annotations that are there are kept.

    Args:
        folder: Of the extraction, which stays as it is.

    Raises:
        RequestError: The folder holds no window, or the annotations there are none.
        OutputError: A file cannot be written.
    """
    facts = read_facts(folder)
    table, vectors = read_vectors(folder, facts["features"][0])
    place = (folder / FOLDER).absolute()
    place.mkdir(exist_ok=True)
    annotations = place / "annotations.json"
    there = _database(annotations)
    stride = max(1, round(facts["hop"] * facts["clip"]["target_fps"]))
    fps = stride / facts["hop"]
    starts, ends = (table[name].to_numpy() for name in ("start", "end"))
    database = dict(there)
    names = {entry["input"]: name for name, entry in there.items() if "input" in entry}
    inputs, firsts = np.unique(np.array(table["input"].to_pylist()), return_index=True)
    for source, begin, end in zip(inputs.tolist(), firsts, [*firsts[1:], len(table)], strict=True):
        duration = float(ends[begin:end].max())
        if duration == 0:  # an image
            continue
        name = names.setdefault(source, _free_name(source, database))
        _save(place / f"{name}.npy", vectors[begin:end][_on_grid(starts[begin:end], facts["hop"])])
        validation = bool({*Path(source).parts[-3:-1]} & {*SPLITS[1:]})
        new: dict[str, Any] = {"subset": "validation" if validation else "training", "annotations": []}
        times = {"duration": duration, "fps": fps, "frame": duration * fps, "input": source}
        database[name] = new | there.get(name, {}) | times
    with replacing(annotations) as temporary:
        temporary.write_text(json.dumps({"version": "hiera_video", "database": database}, indent=1), encoding="utf-8")
    frames = round(facts["window"] * fps, 6)
    values: dict[str, Any] = {
        "channels": vectors.shape[1],
        "stride": stride,
        "frames": frames,
        "offset": round(frames / 2),
    }
    paths = {"annotations": annotations, "folder": f"{place}/", "classes": place / "classes.txt"}
    values |= {key: json.dumps(str(path)) for key, path in paths.items()}  # what YAML and Python read alike
    for file, template in (("actionformer.yaml", "actionformer.yaml"), ("opentad.py", "opentad.txt")):
        if not (place / file).exists():  # a user may have changed it
            text = (TEMPLATES / template).read_text(encoding="utf-8")
            with replacing(place / file) as temporary:
                temporary.write_text(text.format(**values, config=place / file, name=place.parent.name), "utf-8")


def _database(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["database"]) if path.exists() else {}
    except (OSError, ValueError, KeyError, TypeError):
        raise RequestError(f"{path} holds no annotations in ActionFormer's layout: mend it, or move it away") from None


def _free_name(source: str, taken: dict[str, Any]) -> str:
    """A video's name without folder and extension; of the second of that name with eight digits of its path's hash."""
    name = Path(urlsplit(source).path if is_address(source) else source).stem
    lower = {other.lower() for other in taken}  # some file systems do not tell A from a
    return f"{name}-{key_of(source) >> 32:08x}" if name.lower() in lower else name


def _on_grid(starts: NDArray[np.float64], hop: float) -> NDArray[np.bool_]:
    """All windows but a last one, which ends with the video, that is more than half a hop before its place."""
    return np.abs(starts - hop * np.arange(len(starts))) <= hop / 2 + 1e-9


def _save(path: Path, rows: NDArray[np.float32]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows)
