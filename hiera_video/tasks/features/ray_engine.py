"""Extraction on Ray Data: decoding as CPU tasks, the model as actors; backpressure, retries and lost nodes are Ray's.

    (input, first window) -> _Decode -> Decoded -> _Model -> rows, or why an input could not be read

What travels is pickled: it is made and read by this package alone, inside one cluster.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.windows import Decoded, Walk, decode_input
from hiera_video.errors import RequestError
from hiera_video.tasks.features.extractor import FeatureExtractor, WindowFeatures
from hiera_video.training.devices import Precision

#: Told of an input that cannot be read, or only in part: its name, how many of its windows could be read, and why.
Failed: TypeAlias = Callable[[str, int, str], None]

#: Inputs that one task decodes: few, so that a lost one costs little.
INPUTS_PER_TASK = 4


@dataclass(frozen=True)
class Cluster:
    """What runs where.

    ``model`` by name, file or folder, which each node must find. ``address`` of a running cluster; None: Ray is started
    on this machine, and ended. The rest is as in :func:`hiera_video.extract`.
    """

    model: str
    address: str | None
    batch_size: int
    time_limit: float
    device: str
    precision: Precision
    compile: bool

    def __post_init__(self) -> None:
        import_ray()  # before hours of work


def import_ray() -> Any:
    """Ray, with its data library.

    Returns:
        The module.

    Raises:
        RequestError: Where it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(f"engine ray needs {error.name}: pip install 'hiera-video[ray]'") from error
    return ray


def rows_on_ray(
    todo: Iterable[tuple[str, int]], how: Walk, features: list[str], cluster: Cluster, failed: Failed
) -> Iterator[WindowFeatures]:
    """The features of many inputs.

    Args:
        todo: Inputs, each with the number of the first window to read.
        how: What windows, and which crops of them.
        features: Their names.
        cluster: What runs where.
        failed: Is told of inputs that cannot be read.

    Yields:
        The features of each crop of each window; the windows of one input in their order.

    Raises:
        RequestError: Where no cluster answers.
    """
    ray = import_ray()
    logging.getLogger("ray").setLevel(logging.ERROR)
    started_here = not ray.is_initialized()
    if started_here:
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
        dataset = (
            ray.data.from_items(items, override_num_blocks=max(1, len(items) // INPUTS_PER_TASK))
            .flat_map(_Decode(how, cluster.time_limit))
            .map_batches(
                _Model,
                fn_constructor_args=(replace(cluster, model=_absolute(cluster.model)), features),
                batch_size=max(1, cluster.batch_size // how.at_once),
                num_cpus=1,
                num_gpus=1 if num_gpus else 0,
                compute=ray.data.ActorPoolStrategy(size=max(1, num_gpus)),
            )
        )
        for pickled in dataset.iter_rows():
            rows, failures = pickle.loads(pickled["answer"])
            yield from rows
            for failure in failures:
                failed(*failure)
    finally:
        if started_here:
            ray.shutdown()


def _absolute(name: str) -> str:
    return os.path.abspath(name) if os.path.exists(name) else name


class _Decode:
    """A task: an input's windows."""

    def __init__(self, how: Walk, time_limit: float) -> None:
        self._how, self._time_limit = how, time_limit

    def __call__(self, item: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        with IsolatedReader(time_limit=self._time_limit) as reader:
            for decoded in decode_input(item["place"], self._how, item["first"], reader, name=item["name"]):
                yield {"decoded": pickle.dumps(decoded)}


class _Model:
    """An actor that holds the model: windows in, their features out."""

    def __init__(self, cluster: Cluster, features: list[str]) -> None:
        where: dict[str, Any] = {name: getattr(cluster, name) for name in ("device", "precision", "compile")}
        self._extractor = FeatureExtractor.from_pretrained(cluster.model, **where)
        self._features, self._batch_size = features, cluster.batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        items: list[Decoded] = [pickle.loads(pickled) for pickled in batch["decoded"]]
        windows = [item.windows for item in items if item.windows is not None]
        rows = self._extractor.stream(windows, self._features, self._batch_size)
        failures = [(item.input, item.reached, item.error) for item in items if item.error is not None]
        return {"answer": [pickle.dumps(([replace(row, views=None) for row in rows], failures))]}
