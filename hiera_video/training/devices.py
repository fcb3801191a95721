"""Where a model computes, and in which precision."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

import torch

from hiera_video.errors import RequestError
from hiera_video.training.recipe import Precision as Precision


def refuse_name(model: object, of: str) -> None:
    """Refuses a model's name where the model itself is taken.

    Args:
        model: What was given.
        of: The class that was called.

    Raises:
        RequestError: It is a name or a path.
    """
    if isinstance(model, (str, os.PathLike)):
        raise RequestError(f"{of} takes a model: for the name or file {str(model)!r} call {of}.from_pretrained")


def pick_device(name: str, field: str = "device") -> torch.device:
    """The device of a name.

    Args:
        name: "auto" (the first GPU, else the CPU), or a device by torch's name.
        field: What messages call the option.

    Returns:
        The device.

    Raises:
        RequestError: It is not there.
    """
    there = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    with suppress(RuntimeError):  # torch knows no such name
        device = torch.device(name)
        if str(device).removesuffix(":0") in {each.removesuffix(":0") for each in there}:
            return device
    raise RequestError(f"{field} {name!r} is not there; this machine has {', '.join(there)}")


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in.

    Args:
        name: fp32, bf16, fp16, or auto: bf16 on a GPU that has it, else fp32.
        device: Where the model computes.

    Returns:
        The dtype.

    Raises:
        RequestError: There is no such name.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in dtypes:
        raise RequestError(f"precision {name!r} must be auto, {', '.join(dtypes)}")
    return dtypes[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in ``dtype``, or nothing for fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


#: Batches that a model works on at once.
NUM_LANES = 2
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_lanes(compute: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """Two batches under way at once: while one is waited for, put together or written, the other computes.

    Small models leave half of a processor's cores idle when all of them share each layer.

    Args:
        compute: Runs in several threads, each with its share of torch's.
        items: Taken one by one, in the calling thread.

    Yields:
        The answers, in the order of the items.
    """
    threads = max(1, torch.get_num_threads() // NUM_LANES)
    with ThreadPoolExecutor(NUM_LANES, initializer=torch.set_num_threads, initargs=(threads,)) as lanes:
        running: deque[Future[Answer]] = deque()
        for item in items:
            running.append(lanes.submit(compute, item))
            if len(running) > NUM_LANES:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
