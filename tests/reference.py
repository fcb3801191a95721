"""What the reference package's constructors take of our architectures."""

from __future__ import annotations

from typing import Any

from hiera_video.models.architecture import Architecture
from hiera_video.models.checkpoints.formats import OURS_ALONE

#: Fields that the reference does not have.
LACKS = {*OURS_ALONE, "hidden_act", "layer_norm_eps"}


def reference_fields(arch: Architecture, *others: str) -> dict[str, Any]:
    """The fields of ``arch`` by name, without those that the reference lacks and without ``others``."""
    return {name: value for name, value in vars(arch).items() if name not in {*LACKS, *others}}
