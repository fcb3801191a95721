"""What timm asks of a model beside its forward: indices, facts about its stages, and its nets of features alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hiera_video.errors import RequestError
from hiera_video.models.architecture import Architecture
from hiera_video.spec import ClipSpec


def taken(arch: Architecture, indices: int | Sequence[int] | None, *, coarse: bool = True) -> list[int]:
    """What indices mean, as timm reads them.

    Args:
        arch: Of the model.
        indices: Of stages or blocks, negative ones from the end; a number: so many last ones; None: all.
        coarse: Whether of stages.

    Returns:
        Ascending, from 0.

    Raises:
        RequestError: There is no such stage or block, or none is asked for.
    """
    total, what = (len(arch.stages), "stages") if coarse else (sum(arch.stages), "blocks")
    if indices is None:
        return list(range(total))
    few = isinstance(indices, int)
    asked: Sequence[int] = range(total - indices, total) if isinstance(indices, int) else indices
    if bad := [index for index in asked if not (0 if few else -total) <= index < total]:
        raise RequestError(f"index {bad[0]} does not exist; this model has {what} 0 to {total - 1}")
    if not asked:
        raise RequestError(f"indices {indices} name none of the {what} 0 to {total - 1}")
    return sorted({index % total for index in asked})


def stage_info(arch: Architecture) -> list[dict[str, Any]]:
    """What timm says of each stage.

    Args:
        arch: Of the model.

    Returns:
        For each stage ``num_chs`` (channels), ``reduction`` (pixels of a token along each side; of video there is
        ``temporal_reduction`` beside it, its frames) and ``module`` (the name of its last block).
    """
    info: list[dict[str, Any]] = []
    reduction, last = arch.patch_stride, -1
    for stage, blocks in enumerate(arch.stages):
        if 0 < stage <= arch.q_pool:
            reduction = tuple(r * s for r, s in zip(reduction, arch.q_stride, strict=True))
        last += blocks
        space = reduction[1:] if len(reduction) == 3 else reduction
        one: dict[str, Any] = {"num_chs": arch.dims[stage]}
        one["reduction"] = space[0] if len(set(space)) == 1 else space
        if len(reduction) == 3:
            one["temporal_reduction"] = reduction[0]
        info.append(one | {"module": f"blocks.{last}"})
    return info


def pretrained_cfg(arch: Architecture, spec: ClipSpec, license: str | None) -> dict[str, Any]:
    """timm's facts about a model and its pixels, which its ``resolve_data_config`` reads.

    Args:
        arch: Of the model.
        spec: What a clip is.
        license: Of the weights.

    Returns:
        The facts by timm's names; of video ``input_size`` is (channels, frames, height, width).
    """
    return {
        "architecture": "hiera",
        "num_classes": arch.num_classes,
        "input_size": (arch.in_chans, *arch.input_size),
        "fixed_input_size": False,
        "crop_pct": min(spec.size) / spec.resize,
        "interpolation": spec.interpolation,
        "mean": spec.mean,
        "std": spec.std,
        "first_conv": "patch_embed.proj",
        "classifier": "head.projection",
        "license": license,
    }
