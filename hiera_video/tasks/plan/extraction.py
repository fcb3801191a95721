"""What a window of an extraction costs here."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from hiera_video.data.windows import CROPS, read_ahead
from hiera_video.errors import RequestError
from hiera_video.models.zoo import GENERAL
from hiera_video.tasks.features.extractor import FeatureExtractor, feature_names
from hiera_video.tasks.features.inputs import Inputs, Todo, parse_part
from hiera_video.tasks.plan.measure import Costs, since_start


def extraction(values: dict[str, Any], seconds: float, run_model: bool) -> Costs:
    """Measures the windows of an extraction, by its own readers and model on some of its files.

    Args:
        values: The arguments of ``extract``.
        seconds: For all measurements together, start-up aside; a slow step takes as long as it takes.
        run_model: Whether the model runs here; else files are read and FLOPs counted alone.

    Returns:
        The costs.

    Raises:
        RequestError: The job would be refused.
        UnreadableVideo: No file can be read.
        WeightsError: The model cannot be had.
    """

    if values["engine"] != "local":
        raise RequestError("plan runs on this machine: leave --engine ray out")
    how = {"device": values["device"], "precision": values["precision"]}
    extractor = FeatureExtractor.from_pretrained(values["model"] or GENERAL, **how)
    names, batch = feature_names(extractor.model, values["features"]), values["batch_size"]
    windows = {name: values[name] for name in ("window", "hop", "crop")}
    walk = extractor.walk(names, **windows, batch_size=batch)
    todo = Todo(Inputs(values["inputs"]), np.empty(0, dtype=np.uint64), {}, parse_part(values["part"]))
    costs = Costs(extractor.device, extractor.precision, values["num_workers"], seconds, run_model, since_start())
    costs.bad = dict(todo.bad)
    paths = [path for path, _ in todo]
    good, num_windows = costs.look(paths, 1.0, walk)
    rows = round(num_windows * len(CROPS[walk.crop]))
    reading = {"num_workers": costs.workers, "time_limit": values["time_limit"]}
    costs.steps = -(-rows // batch)
    part = costs.part(
        "window",
        rows,
        lambda: read_ahead(((paths[number], 0) for number in itertools.cycle(good)), walk, **reading),
        lambda item: 0 if item.windows is None else len(item.windows) * len(item.windows.crops),
        lambda items: extractor.stream((item.windows for item in items if item.windows is not None), names, batch),
        lambda item: extractor.features(item.windows.views.to(extractor.device).clips[:1], names),
        share=1.0,
    )
    costs.parts = [part]
    return costs
