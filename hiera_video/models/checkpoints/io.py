"""Weights out of files: read safely, fit to a model, load strictly."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hiera_video.errors import WeightsError
from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import State
from hiera_video.models.layers import resize_positions
from hiera_video.models.published import ARCHITECTURES
from hiera_video.models.trunk import HieraTrunk

#: Keys under which training scripts keep the weights in a ``.pth``; the authors' is the first.
WRAPPERS = ("model_state", "model", "state_dict", "model_state_dict")


def read_state(path: str | Path) -> State:
    """Reads the tensors of a ``.safetensors`` file, or of a pickle in which no code may run (``weights_only=True``).

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged or truncated, is a pickle with code in it (which is not run), or
            holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols, before the refusal
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error
    except Exception as error:
        # torch.load raises half a dozen types for damaged files: EOFError, RuntimeError, KeyError, UnpicklingError.
        with path.open("rb") as file:
            packed = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if packed and "nsupported" in str(error):
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise WeightsError(
                f"{path} is a pickle with code in it{f' ({code[1]})' if code else ''}, which was not run; "
                f"save the tensors alone, as safetensors"
            ) from error
        raise WeightsError(f"{path} is damaged, truncated or no checkpoint ({type(error).__name__})") from error
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state dict: named tensors, or those under {', '.join(WRAPPERS)}")
    return content


def load_state(model: nn.Module, state: State, *, source: str, fresh: tuple[str, ...] = ()) -> None:
    """Loads tensors strictly.

    Args:
        model: What they are loaded into.
        state: Tensors under the model's names.
        source: What errors call them.
        fresh: Only names that start with one of these may be missing, and then stay as they are.

    Raises:
        WeightsError: Names are missing, unexpected or mis-shaped; one report lists them, and the model is as it was.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(fresh)]
    unexpected = [key for key in state if key not in own]
    shapes = {key: (tuple(state[key].shape), tuple(own[key].shape)) for key in own if key in state}
    shaped = [f"{key} {theirs} instead of {ours}" for key, (theirs, ours) in shapes.items() if theirs != ours]
    report = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shaped))
        if keys
    ]
    if report:
        raise WeightsError(f"{source} does not fit this architecture: {'; '.join(report)}")
    model.load_state_dict(state, strict=not fresh)


def weights_of(model: HieraTrunk, *, head: bool = True) -> str:
    """A short fingerprint of what a model computes: its architecture and every tensor.

    Args:
        model: The model.
        head: Whether the classifier's head counts: features do not depend on it.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(repr((model.arch, model.position_resize)).encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        if name.startswith("head.") and not head:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def resize_tables(state: State, old: Architecture, new: Architecture, way: str) -> State:
    """Resizes position embeddings, an MAE's decoder's too.

    Args:
        state: Tensors under our names. A table that does not belong to ``old`` is left for the loading report.
        old: The architecture whose input size they were trained for.
        new: The architecture with the new one.
        way: "window" (the phase within a mask unit is kept) or "plain" (bicubic in space, linear in time).

    Returns:
        A copy of ``state`` with the new tables.
    """
    before, after = old.token_grid(old.input_size), new.token_grid(new.input_size)
    window = new.mask_unit_size if way == "window" else (1,) * len(after)
    parts = {"pos_embed": slice(None), "pos_embed_spatial": slice(1, None), "pos_embed_temporal": slice(0, 1)}
    resized = dict(state)
    for name, axes in parts.items():
        if name in state and state[name].ndim == 3 and state[name].shape[1] == math.prod(before[axes]):
            unit = (1,) if name == "pos_embed_temporal" else window[axes]
            resized[name] = resize_positions(state[name], before[axes], after[axes], unit)
    if isinstance(old, MAEArchitecture) and isinstance(new, MAEArchitecture):
        name, before, after = "decoder_pos_embed", old.final_grid(old.input_size), new.final_grid(new.input_size)
        if name in state and state[name].ndim == 3 and state[name].shape[1] == math.prod(before):
            resized[name] = resize_positions(state[name], before, after, new.final_window(way))
    return resized


def inflate(state: State, video: Architecture) -> State:
    """Makes an image model's tensors those of the video form, at the image's own height and width.

    The 2D patch kernel is repeated over the frames of the 3D kernel and divided by their number
    (arXiv 1705.07750, section 2), the 2D position embedding becomes the spatial one, the temporal one is zero.
    A clip of one still picture then has at every time the image's tokens, except where the kernel reaches over
    the first or last frame into the zero padding.

    Args:
        state: An image model's tensors, under our names.
        video: The architecture of the same blocks for video.

    Returns:
        The video model's tensors.
    """
    inflated = dict(state)
    frames = video.patch_kernel[0]
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        inflated["patch_embed.proj.weight"] = kernel[:, :, None].repeat(1, 1, frames, 1, 1) / frames
    if "pos_embed" in state:
        table, times = state["pos_embed"], video.input_size[0] // video.patch_stride[0]
        if video.abs_win_pos_embed:
            inflated["pos_embed_temporal"] = table.new_zeros(1, times, table.shape[1])
        elif video.sep_pos_embed:
            del inflated["pos_embed"]
            inflated["pos_embed_spatial"] = table
            inflated["pos_embed_temporal"] = table.new_zeros(1, times, table.shape[-1])
        else:
            inflated["pos_embed"] = table.repeat(1, times, 1)
    return inflated


def architecture_of(state: State, source: str) -> Architecture:
    """Recognises a published architecture by its tensors: width, depths and patch kernel.

    Another (square) input size or another number of channels is read off the tensors too.

    Args:
        state: Tensors under our names.
        source: What errors call them.

    Returns:
        A classifier's architecture.

    Raises:
        WeightsError: No published one has these tensors: heads cannot be read off, so a guess would be wrong.
    """
    kernel = state.get("patch_embed.proj.weight")
    blocks = [int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.norm1\.weight$", key))]
    if kernel is None or not blocks:
        raise WeightsError(f"{source} holds no Hiera: it has no patch_embed.proj.weight or no blocks")
    widths = [[len(state.get(f"blocks.{n}.norm{part}.weight", ())) for part in (1, 2)] for n in sorted(blocks)]
    starts = [number for number, (before, after) in enumerate(widths) if after and before != after]
    ends = [*starts, max(blocks) + 1]
    stages = tuple(end - start for start, end in zip([0, *starts], ends, strict=True))
    for arch in ARCHITECTURES.values():
        if (arch.embed_dim, arch.stages, arch.patch_kernel) == (kernel.shape[0], stages, tuple(kernel.shape[2:])):
            if "pos_embed_window" in state:
                return _with_windows(state, replace(arch, in_chans=kernel.shape[1]))
            joint = "pos_embed" in state
            arch = replace(arch, in_chans=kernel.shape[1], sep_pos_embed=arch.sep_pos_embed and not joint)
            return replace(arch, input_size=_input_size(state, arch))
    raise WeightsError(
        f"{source} is of an architecture without a name here (embed_dim {kernel.shape[0]}, stages {stages}, "
        f"patch kernel {tuple(kernel.shape[2:])}); put its config.json beside it, or pass arch="
    )


def _with_windows(state: State, arch: Architecture) -> Architecture:
    """An architecture with absolute-window embeddings: timm's abswin, which has layer scale, or SAM 2's trunk."""
    background = tuple(state["pos_embed"].shape[2:])
    arch = replace(arch, abs_win_pos_embed=True, global_pos_size=background, sep_pos_embed=False)
    if "blocks.0.ls1.gamma" in state and background == (7, 7):  # timm's hieradet_small: SAM 2's form, with a head
        arch = replace(arch, windows=(8, 4, 16, 8), global_blocks=(7, 10, 13))
        return replace(arch, input_size=(256, 256), layer_scale=1e-5)
    if "blocks.0.ls1.gamma" in state:
        expands = any(re.match(r"blocks\.\d+\.proj\.weight$", key) for key in state)
        return replace(arch, input_size=(256, 256), layer_scale=1e-5, expand_proj=expands, pos_antialias=True)
    for own in ARCHITECTURES.values():  # the tensors do not say what SAM 2's windows are
        if own.windows is not None and (own.embed_dim, own.stages) == (arch.embed_dim, arch.stages):
            arch = replace(arch, windows=own.windows, global_blocks=own.global_blocks)
    return replace(arch, input_size=(1024, 1024), num_classes=0)


def _input_size(state: State, arch: Architecture) -> tuple[int, ...]:
    """The size whose square position table ``state`` holds; that of ``arch`` where the table says nothing else."""
    size = arch.input_size
    if arch.sep_pos_embed and {"pos_embed_spatial", "pos_embed_temporal"} <= state.keys():
        frames = state["pos_embed_temporal"].shape[1] * arch.patch_stride[0]
        space = state["pos_embed_spatial"].shape[1]
        lead: tuple[int, ...] = (frames,)
    elif len(size) == 2 and "pos_embed" in state:
        space, lead = state["pos_embed"].shape[1], ()
    else:
        return size
    if space == math.prod(n // s for n, s in zip(size[-2:], arch.patch_stride[-2:], strict=True)):
        return (*lead, *size[-2:])
    side = math.isqrt(space)
    return (*lead, *(side * s for s in arch.patch_stride[-2:])) if side * side == space else size
