"""Where a model computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from hiera_video.errors import RequestError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_device(name: str) -> torch.device:
    """ "auto", or a device by torch's name. Raises :class:`RequestError` where it is not there."""
    there = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise RequestError(f"device {name!r} is not there; this machine has {', '.join(there)}") from None
    return device


def pick_precision(name: Precision, device: torch.device) -> torch.dtype:
    """The dtype to compute in. Raises :class:`RequestError` for a name that does not exist."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in dtypes:
        raise RequestError(f"precision {name!r} must be auto, {', '.join(dtypes)}")
    return dtypes[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in ``dtype``, or nothing for fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
