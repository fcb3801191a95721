"""Memory that processes share, which does not depend on the size of /dev/shm (64 MB in a Docker container).

On Linux it comes from ``memfd_create``, which only the machine's memory limits; elsewhere from a temporary file. All of
it is reserved when it is made: what is not there raises an error here, and does not end a process later (SIGBUS).
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from hiera_video.errors import RequestError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def shared_file() -> IO[bytes]:
    """An empty file without a name, to be mapped by this process and its children."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("hiera_video"), "w+b")
    return tempfile.TemporaryFile(prefix="hiera_video_")


def reserve(file: int, size: int) -> None:
    """Makes a shared file at least ``size`` bytes long, and takes the memory.

    Args:
        file: Its descriptor.
        size: Bytes.

    Raises:
        RequestError: There is not as much.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, max(1, size))
        else:
            os.ftruncate(file, size)
    except OSError as error:
        raise RequestError(
            f"there is no room for {size / 2**20:.0f} MB of frames that processes share ({error.strerror}): give the "
            "machine or container more memory, or use fewer workers and smaller batches"
        ) from error


def shared_empty(shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None) -> Tensor:
    """A dense CPU tensor with any values in it, in shared memory: what sends it to another process copies nothing.

    Args:
        shape: Its shape.
        dtype: Its type.
        strides: Its strides, in elements; None: row by row.

    Returns:
        The tensor.

    Raises:
        RequestError: There is not as much memory.
    """
    import torch

    empty = torch.empty(0, dtype=dtype)
    dense = torch.empty(tuple(shape), device="meta").stride() if strides is None else tuple(strides)
    size = math.prod(shape) * empty.element_size()
    if not size or not hasattr(os, "memfd_create"):
        return torch.empty_strided(shape, dense, dtype=dtype)
    with shared_file() as file:
        reserve(file.fileno(), size)
        # It keeps a descriptor of its own.
        storage = torch.UntypedStorage._new_shared_fd_cpu(file.fileno(), size)  # type: ignore[attr-defined]
    return empty.set_(storage, 0, tuple(shape), dense)


def share(value: Any) -> Any:
    """The same value with each CPU tensor in shared memory, for a worker to send.

    torch by itself puts what it sends into /dev/shm, and a worker dies where that is full.

    Args:
        value: A tensor, or what is made of tensors by dicts, lists, tuples and dataclasses, at any depth.

    Returns:
        A value of the same kind; tensors that are shared already are not copied.

    Raises:
        RequestError: There is not as much memory.
    """
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_shared() or value.device.type != "cpu" or not hasattr(os, "memfd_create"):
            return value
        strides = torch.empty_like(value, device="meta").stride()  # dense, in the order in which it lies in memory
        return shared_empty(value.shape, value.dtype, strides).copy_(value)
    if isinstance(value, dict):
        return {key: share(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(share(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        moved = {name: share(part) for name, part in parts.items()}
        changed = {name: part for name, part in moved.items() if part is not parts[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
