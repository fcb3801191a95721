"""The table of models: size, cost, input and published weights of each architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hiera_video.errors import UnknownModel
from hiera_video.models.costs import COSTS
from hiera_video.models.published import ARCHITECTURES, MAE_ARCHITECTURES
from hiera_video.models.zoo import CHECKPOINTS, list_models
from hiera_video.tasks.records import FlatRecord, Results


@dataclass(frozen=True)
class ModelInfo(FlatRecord):
    """One architecture."""

    name: str
    """Its name."""
    params_m: float
    """Parameters in millions."""
    gflop: float
    """Billions of multiply-adds of one clip or image (as the papers count); an MAE's at its own mask ratio."""
    input: str
    """Size of its input: "16x224x224"."""
    checkpoints: list[str]
    """Tags of the published weights."""

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict() | {"checkpoints": " ".join(self.checkpoints)}]


def models(pattern: str = "*") -> Results[ModelInfo]:
    """List the models, classifiers and then MAEs: parameters, cost, input and published weights.

    Args:
        pattern: A shell pattern that names must match, such as "*16x224" or "mae_*".

    Returns:
        A record for each model.

    Raises:
        UnknownModel: No name matches.
    """
    names = list_models(pattern)
    if not names:
        raise UnknownModel(f"no model's name matches {pattern!r}; all have names like {', '.join(list_models()[:2])}")
    return Results(len(names), map(model_info, names))


def model_info(name: str) -> ModelInfo:
    """Size and cost of one model.

    Args:
        name: The architecture's name.

    Returns:
        The record.
    """
    params_m, gflop = COSTS[name]
    return ModelInfo(
        name=name,
        params_m=params_m,
        gflop=gflop,
        input="x".join(map(str, (ARCHITECTURES | MAE_ARCHITECTURES)[name].input_size)),
        checkpoints=[tag.partition(".")[2] for tag in CHECKPOINTS if tag.partition(".")[0] == name],
    )
