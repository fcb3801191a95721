"""Where a model computes, and in which precision."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cache
from itertools import chain, islice
from threading import Lock
from typing import Any, TypeVar

import torch

from hiera_video.errors import RequestError
from hiera_video.spec import ClipSpec
from hiera_video.training.recipe import Precision as Precision

log = logging.getLogger("hiera_video")

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
#: Channels of the third stage from which on bf16 may pay on a CPU (tiny and base have 384, the built-in models 160),
#: and how many times as fast a product must be.
LEAST_WIDTH, LEAST_GAIN = 384, 1.2


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


def pick_precision(name: str, device: torch.device, *, width: int = 0) -> torch.dtype:
    """The dtype to compute in.

    Args:
        name: fp32, bf16, fp16, or auto: bf16 on a GPU that has it, and on a CPU where :func:`bf16_pays`; else fp32.
        device: Where the model computes.
        width: Channels of the model's products (:func:`width_of`); 0: on a CPU auto is fp32, as in training, where
            nobody has measured what bf16 does to accuracy.

    Returns:
        The dtype.

    Raises:
        RequestError: There is no such name.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if on_gpu or (device.type == "cpu" and bf16_pays(width)) else "fp32"
    if name not in DTYPES:
        raise RequestError(f"precision {name!r} must be auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def kept_precision(name: Precision, before: str | None) -> Precision:
    """What a job that goes on computes in: auto stays what it was, on whatever machine.

    Args:
        name: What is asked for.
        before: The dtype in the facts of what is done already ("float32"), or None.

    Returns:
        The name.
    """
    names = {str(dtype): each for each, dtype in DTYPES.items()}
    return names.get(f"torch.{before}", name) if name == "auto" else name


def name_of(dtype: torch.dtype) -> Precision:
    """What an option calls a dtype.

    Args:
        dtype: float32, bfloat16 or float16.

    Returns:
        fp32, bf16 or fp16.
    """
    return next(name for name, each in DTYPES.items() if each == dtype)


def width_of(dims: Sequence[int]) -> int:
    """The channels that tell whether half the precision pays: those of the third stage, which has most blocks.

    Args:
        dims: Channels of each stage.

    Returns:
        Channels.
    """
    return dims[min(2, len(dims) - 1)]


@cache
def bf16_pays(width: int) -> bool:
    """Whether a model of this width is faster in bf16 on this processor.

    That it has instructions for bf16 (AMX, AVX512-BF16, Arm's) decides; a measurement of one product, which takes under
    50 ms, may veto it: elsewhere bf16 is emulated, and slower than fp32.

    Args:
        width: Channels of the third stage.

    Returns:
        Whether it is.
    """
    if width < LEAST_WIDTH or not _has_bf16():
        return False
    times = [_product_s(width, dtype) for dtype in (torch.float32, torch.bfloat16)]
    pays = times[0] > LEAST_GAIN * times[1]
    if pays:
        log.info("computing in bfloat16, which this processor is faster in; precision fp32 asks for single precision")
    return pays


def _has_bf16() -> bool:
    """By torch's own questions to the processor, which its next release may name otherwise."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        with suppress(AttributeError, RuntimeError):
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return False
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


@torch.inference_mode()
def _product_s(width: int, dtype: torch.dtype) -> float:
    """Seconds of the product in the MLP of a block, the least of three; of fewer rows than in the model."""
    rows = max(32, 100_000_000 // (4 * width * width))
    tokens, weight = torch.ones(rows, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)
    least = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        torch.nn.functional.linear(tokens, weight)
        least = min(least, time.perf_counter() - began)
    return least


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in ``dtype``, or nothing for fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


#: Batches that a model works on at once.
NUM_LANES = 2
#: Pixels of clips from which on products on a CPU are no faster with more: 2.6 clips of 16 frames of 112 x 112.
ENOUGH_PIXELS = 2**19
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def lane_size(batch_size: int, device: torch.device, spec: ClipSpec) -> int:
    """Clips that go through the model at once in a lane.

    On a CPU no more than fill it: of few large batches the last would keep one lane waiting for the other.

    Args:
        batch_size: The most.
        device: Where the model computes.
        spec: Says how large a clip is.

    Returns:
        Clips.
    """
    pixels = spec.num_frames * spec.size[0] * spec.size[1]
    return min(batch_size, -(-ENOUGH_PIXELS // pixels)) if device.type == "cpu" else batch_size


def compiled(compute: Callable[..., Answer], device: torch.device) -> Callable[..., Answer]:
    """Compiles a computation when it is first called: one graph for batches of any size, the last and smaller one too.

    Threads that call it meanwhile wait: the first compiles for all that have as many of torch's threads.

    Args:
        compute: Takes a batch ``[B, ...]``, of the same shape but for B each time, and then what is the same each time.
        device: Where it computes.

    Returns:
        The same computation; threads may share it.

    Raises:
        RequestError: Nothing can be compiled for the device, since there is no compiler, or none that works.
    """
    from torch._dynamo import mark_dynamic
    from torch.fx.experimental import _config

    shapes: Any = _config  # torch gives it its methods when it is imported
    try:
        torch.compile(lambda values: values + 1)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = "install a C++ compiler (g++), or leave out compile"
        raise RequestError(f"torch cannot compile here ({reason}): {remedy}") from error
    log.info("compiling the model: the first batch takes a minute or more, and longer the deeper the model")
    program, first, is_ready = torch.compile(compute, fullgraph=True), Lock(), False
    # Or a batch of one clip would get a graph of its own, after as long a wait. Older torch knows no such setting.
    any_size = {"backed_size_oblivious": True} if hasattr(shapes, "backed_size_oblivious") else {}

    def call(batch: torch.Tensor, *rest: object) -> Answer:
        nonlocal is_ready
        mark_dynamic(batch, 0)
        if is_ready:
            return program(batch, *rest)
        with first, shapes.patch(any_size):
            answer = program(batch, *rest)
            is_ready = True
            return answer

    return call


def in_batches(parts: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Puts clips together in batches of one size.

    Args:
        parts: Each ``[n, ...]``.
        size: Clips in a batch.

    Yields:
        ``[size, ...]``; the last batch may be smaller.
    """
    rest: list[torch.Tensor] = []
    for part in parts:
        rest.append(part)
        if sum(map(len, rest)) >= size:
            *whole, last = torch.cat(rest).split(size)
            yield from whole
            rest = [last]
    if rest:
        yield torch.cat(rest)


def in_lanes(compute: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """Two batches under way at once: while one is waited for, put together or written, the other computes.

    Small models leave half of a processor's cores idle when all of them share each layer. A single item has all of
    torch's threads.

    Args:
        compute: Runs in several threads, each with its share of torch's.
        items: Taken one by one, in the calling thread.

    Yields:
        The answers, in the order of the items.
    """
    coming = iter(items)
    first = list(islice(coming, 2))
    if len(first) < 2:
        yield from map(compute, first)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // NUM_LANES)
    try:
        with ThreadPoolExecutor(NUM_LANES, initializer=torch.set_num_threads, initargs=(share,)) as lanes:
            running: deque[Future[Answer]] = deque()
            for item in chain(first, coming):
                running.append(lanes.submit(compute, item))
                if len(running) > NUM_LANES:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        torch.set_num_threads(threads)  # threads that start later follow the last one that set it
