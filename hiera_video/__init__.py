"""hiera_video: video recognition with Hiera. Classify clips, train, load clips fast, build and load the models.

Names are loaded when they are first used: importing the package loads no torch, decoder or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of the names below
    from hiera_video.data.dataset import ClipDataset as ClipDataset
    from hiera_video.data.lists.video_list import VideoList as VideoList
    from hiera_video.data.lists.video_list import list_videos as list_videos
    from hiera_video.data.loader import ClipLoader as ClipLoader
    from hiera_video.data.on_device import on_device as on_device
    from hiera_video.data.reading.reader import open_video as open_video
    from hiera_video.data.views import load_views as load_views
    from hiera_video.errors import HieraVideoError as HieraVideoError
    from hiera_video.models.architecture import Architecture as Architecture
    from hiera_video.models.architecture import MAEArchitecture as MAEArchitecture
    from hiera_video.models.checkpoints.saving import push_to_hub as push_to_hub
    from hiera_video.models.checkpoints.saving import save_pretrained as save_pretrained
    from hiera_video.models.evidence import token_evidence as token_evidence
    from hiera_video.models.hiera import Hiera as Hiera
    from hiera_video.models.mae import HieraMAE as HieraMAE
    from hiera_video.models.zoo import create_model as create_model
    from hiera_video.models.zoo import from_pretrained as from_pretrained
    from hiera_video.models.zoo import list_models as list_models
    from hiera_video.models.zoo import mae_from_pretrained as mae_from_pretrained
    from hiera_video.spec import Augment as Augment
    from hiera_video.spec import ClipSpec as ClipSpec
    from hiera_video.tasks.classify.classifier import Prediction as Prediction
    from hiera_video.tasks.classify.classifier import VideoClassifier as VideoClassifier
    from hiera_video.tasks.classify.explain import Explanation as Explanation
    from hiera_video.tasks.classify.explain import explain as explain
    from hiera_video.tasks.classify.job import classify as classify
    from hiera_video.tasks.evaluate.job import evaluate as evaluate
    from hiera_video.tasks.features.extractor import FeatureExtractor as FeatureExtractor
    from hiera_video.tasks.features.job import extract as extract
    from hiera_video.tasks.train.finetune import finetune as finetune
    from hiera_video.tasks.train.own_pretraining import own_pretraining as own_pretraining
    from hiera_video.tasks.train.own_videos import own_recipe as own_recipe
    from hiera_video.tasks.train.pretrain import pretrain as pretrain
    from hiera_video.training.recipe import Evaluation as Evaluation
    from hiera_video.training.recipe import Finetuning as Finetuning
    from hiera_video.training.recipe import Pretraining as Pretraining
    from hiera_video.training.recipe_file import load_recipe as load_recipe

__version__ = "0.1.0"

#: Module -> its public names, those of the imports above (tests/test_house.py holds both together).
_NAMES = {
    "data.dataset": "ClipDataset",
    "data.lists.video_list": "VideoList list_videos",
    "data.loader": "ClipLoader",
    "data.on_device": "on_device",
    "data.reading.reader": "open_video",
    "data.views": "load_views",
    "errors": "HieraVideoError",
    "models.architecture": "Architecture MAEArchitecture",
    "models.checkpoints.saving": "push_to_hub save_pretrained",
    "models.evidence": "token_evidence",
    "models.hiera": "Hiera",
    "models.mae": "HieraMAE",
    "models.zoo": "create_model from_pretrained list_models mae_from_pretrained",
    "spec": "Augment ClipSpec",
    "tasks.classify.classifier": "Prediction VideoClassifier",
    "tasks.classify.explain": "Explanation explain",
    "tasks.classify.job": "classify",
    "tasks.evaluate.job": "evaluate",
    "tasks.features.extractor": "FeatureExtractor",
    "tasks.features.job": "extract",
    "tasks.train.finetune": "finetune",
    "tasks.train.own_pretraining": "own_pretraining",
    "tasks.train.own_videos": "own_recipe",
    "tasks.train.pretrain": "pretrain",
    "training.recipe": "Evaluation Finetuning Pretraining",
    "training.recipe_file": "load_recipe",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
