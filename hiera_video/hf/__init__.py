"""Hiera under the names and with the outputs of transformers, for images and video: ``hiera_video[transformers]``.

Importing this module registers the classes with transformers' Auto classes under ``model_type`` "hiera_video".
"""

from __future__ import annotations

import importlib.util
import sys

try:
    import transformers
    import transformers.backbone_utils  # not in old ones
except ImportError as _error:
    raise ImportError(
        'hiera_video.hf needs transformers, 5.11 or newer: pip install "hiera-video[transformers]"'
    ) from _error

from transformers.models.auto import modeling_auto as _auto

from hiera_video.hf.backbone import HieraBackbone
from hiera_video.hf.configuration import HieraConfig
from hiera_video.hf.conversion import from_native, save_as, to_native
from hiera_video.hf.models import (
    HieraForImageClassification,
    HieraForPreTraining,
    HieraForVideoClassification,
    HieraModel,
    HieraPreTrainedModel,
)
from hiera_video.hf.processing import HieraVideoProcessor

__all__ = [
    "HieraBackbone",
    "HieraConfig",
    "HieraForImageClassification",
    "HieraForPreTraining",
    "HieraForVideoClassification",
    "HieraModel",
    "HieraPreTrainedModel",
    "HieraVideoProcessor",
    "from_native",
    "save_as",
    "to_native",
]


def _register() -> None:
    datasets = importlib.util.find_spec("datasets")
    if datasets is not None and datasets.origin is None:
        # A folder without code, as ours of dataset cards in a checkout, which the Trainer would take for the package.
        sys.modules["datasets"] = None  # type: ignore[assignment]
    # exist_ok: transformers compares names, and has a HieraConfig itself; its own class stays what it was.
    transformers.AutoConfig.register(HieraConfig.model_type, HieraConfig, exist_ok=True)
    transformers.AutoVideoProcessor.register(HieraConfig, HieraVideoProcessor, exist_ok=True)
    for auto, kind in (
        (transformers.AutoModel, HieraModel),
        (transformers.AutoModelForPreTraining, HieraForPreTraining),
        (transformers.AutoModelForImageClassification, HieraForImageClassification),
        (transformers.AutoModelForVideoClassification, HieraForVideoClassification),
        (transformers.AutoBackbone, HieraBackbone),
    ):
        auto.register(HieraConfig, kind, exist_ok=True)
    # The pipeline looks at this table of names, and would print an error for a class that is registered alone.
    _auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES[HieraConfig.model_type] = HieraForVideoClassification.__name__


_register()
