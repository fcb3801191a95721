"""Extraction on Ray Data: decoding as CPU tasks, the model as actors; backpressure, retries and lost nodes are Ray's.

Stretches travel pickled: they are made and read by this package alone, inside one cluster.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.windows import Walk, walk
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.tasks.features.extractor import FeatureExtractor, WindowFeatures
from hiera_video.training.devices import Precision

#: Inputs that one task decodes: few, so that a lost one costs little.
INPUTS_PER_TASK = 4


@dataclass(frozen=True)
class Cluster:
    """What runs where: ``model`` by name, file or folder, which each node must find; ``address`` None: Ray is started
    on this machine, and ended. The rest is as in :func:`hiera_video.extract`.
    """

    model: str
    address: str | None
    device: str
    precision: Precision
    batch_size: int
    time_limit: float


def import_ray() -> Any:
    """Ray, with its data library. Raises :class:`RequestError` where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(f"engine ray needs {error.name}: pip install 'hiera-video[ray]'") from error
    return ray


def rows_on_ray(
    todo: Iterable[tuple[str, int]],
    failed: Callable[[str, int, str], None],
    *,
    how: Walk,
    wanted: list[str],
    cluster: Cluster,
) -> Iterator[WindowFeatures]:
    """The features of inputs, each named with its first window; the windows of one input come in their order.

    ``failed`` is told of what cannot be read: its name, how many of its windows could, and why.
    """
    ray = import_ray()
    logging.getLogger("ray").setLevel(logging.ERROR)
    here = not ray.is_initialized()
    if here:
        try:
            ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"no Ray cluster answers at {cluster.address or 'this machine'} ({reason})") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        # Absolute, since tasks may start in another folder.
        items = [{"name": name, "place": _absolute(name), "first": first} for name, first in todo]
        num_gpus = int(ray.cluster_resources().get("GPU", 0)) if cluster.device in ("auto", "cuda") else 0
        model = _absolute(cluster.model)
        dataset = (
            ray.data.from_items(items, override_num_blocks=max(1, len(items) // INPUTS_PER_TASK))
            .flat_map(_Decode(how, cluster.time_limit))
            .map_batches(
                _Model,
                fn_constructor_args=(model, cluster.device, cluster.precision, wanted, cluster.batch_size),
                batch_size=max(1, cluster.batch_size // how.at_once),
                num_cpus=1,
                num_gpus=1 if num_gpus else 0,
                compute=ray.data.ActorPoolStrategy(size=max(1, num_gpus)),
            )
        )
        for row in dataset.iter_rows():
            answer = pickle.loads(row["answer"])
            if isinstance(answer, list):
                yield from answer
            else:
                failed(*answer)
    finally:
        if here:
            ray.shutdown()


def _absolute(name: str) -> str:
    return os.path.abspath(name) if os.path.exists(name) else name


class _Decode:
    """A task: an input's stretches, or why there are no more."""

    def __init__(self, how: Walk, time_limit: float) -> None:
        self._how, self._time_limit = how, time_limit

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        reached = row["first"]
        try:
            with IsolatedReader(time_limit=self._time_limit) as reader:
                for stretch in walk(row["place"], self._how, first=row["first"], reader=reader):
                    reached = stretch.first + len(stretch)
                    yield {"stretch": pickle.dumps((row["name"], stretch))}
        except UnreadableVideo as error:
            yield {"stretch": pickle.dumps((row["name"], (reached, str(error))))}


class _Model:
    """An actor that holds the model: stretches in, their rows out."""

    def __init__(self, model: str, device: str, precision: Precision, wanted: list[str], batch_size: int) -> None:
        self._extractor = FeatureExtractor.from_pretrained(model, device=device, precision=precision)
        self._wanted, self._batch_size = wanted, batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        parts = [pickle.loads(one) for one in batch["stretch"]]
        good = [(name, one) for name, one in parts if not isinstance(one, tuple)]
        rows = [replace(one, views=None) for one in self._extractor.stream(good, self._wanted, self._batch_size)]
        bad = [(name, *one) for name, one in parts if isinstance(one, tuple)]
        return {"answer": [pickle.dumps(rows), *map(pickle.dumps, bad)]}
