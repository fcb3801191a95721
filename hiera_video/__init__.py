"""hiera_video: video recognition with Hiera. Classify clips, train, load clips fast, build and load the models.

Names are loaded when they are first used: importing the package loads no torch, decoder or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiera_video.data.augment import Augment
    from hiera_video.data.dataset import ClipDataset, load_views
    from hiera_video.data.lists import VideoList, list_videos
    from hiera_video.data.loader import ClipLoader
    from hiera_video.data.on_device import on_device
    from hiera_video.data.reader import open_video
    from hiera_video.errors import HieraVideoError
    from hiera_video.models.architecture import Architecture, MAEArchitecture
    from hiera_video.models.hiera import Hiera
    from hiera_video.models.mae import HieraMAE
    from hiera_video.models.weights import push_to_hub, save_pretrained
    from hiera_video.models.zoo import create_model, from_pretrained, list_models, mae_from_pretrained
    from hiera_video.spec import ClipSpec
    from hiera_video.tasks.classify import Prediction, VideoClassifier, classify
    from hiera_video.tasks.evaluate import evaluate
    from hiera_video.tasks.extract import extract
    from hiera_video.tasks.features import FeatureExtractor
    from hiera_video.tasks.finetune import finetune
    from hiera_video.tasks.own_videos import own_recipe
    from hiera_video.tasks.pretrain import pretrain
    from hiera_video.training.recipe import Evaluation, Finetuning, Pretraining, load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "models.architecture",
    "Augment": "data.augment",
    "ClipDataset": "data.dataset",
    "ClipLoader": "data.loader",
    "ClipSpec": "spec",
    "Evaluation": "training.recipe",
    "FeatureExtractor": "tasks.features",
    "Finetuning": "training.recipe",
    "Hiera": "models.hiera",
    "HieraMAE": "models.mae",
    "HieraVideoError": "errors",
    "MAEArchitecture": "models.architecture",
    "Prediction": "tasks.classify",
    "Pretraining": "training.recipe",
    "VideoClassifier": "tasks.classify",
    "VideoList": "data.lists",
    "classify": "tasks.classify",
    "create_model": "models.zoo",
    "evaluate": "tasks.evaluate",
    "extract": "tasks.extract",
    "finetune": "tasks.finetune",
    "from_pretrained": "models.zoo",
    "list_models": "models.zoo",
    "list_videos": "data.lists",
    "load_recipe": "training.recipe",
    "load_views": "data.dataset",
    "mae_from_pretrained": "models.zoo",
    "on_device": "data.on_device",
    "open_video": "data.reader",
    "own_recipe": "tasks.own_videos",
    "pretrain": "tasks.pretrain",
    "push_to_hub": "models.weights",
    "save_pretrained": "models.weights",
}

__all__ = [
    "Architecture",
    "Augment",
    "ClipDataset",
    "ClipLoader",
    "ClipSpec",
    "Evaluation",
    "FeatureExtractor",
    "Finetuning",
    "Hiera",
    "HieraMAE",
    "HieraVideoError",
    "MAEArchitecture",
    "Prediction",
    "Pretraining",
    "VideoClassifier",
    "VideoList",
    "classify",
    "create_model",
    "evaluate",
    "extract",
    "finetune",
    "from_pretrained",
    "list_models",
    "list_videos",
    "load_recipe",
    "load_views",
    "mae_from_pretrained",
    "on_device",
    "open_video",
    "own_recipe",
    "pretrain",
    "push_to_hub",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
