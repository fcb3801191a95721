"""hiera_video: video recognition with Hiera. Classify clips, train, load clips fast, build and load the models.

Names are loaded when they are first used: importing the package loads no torch, decoder or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiera_video.data.dataset import ClipDataset
    from hiera_video.data.lists.video_list import VideoList, list_videos
    from hiera_video.data.loader import ClipLoader
    from hiera_video.data.on_device import on_device
    from hiera_video.data.reading.reader import open_video
    from hiera_video.data.views import load_views
    from hiera_video.errors import HieraVideoError
    from hiera_video.models.architecture import Architecture, MAEArchitecture
    from hiera_video.models.checkpoints.io import push_to_hub, save_pretrained
    from hiera_video.models.hiera import Hiera
    from hiera_video.models.mae import HieraMAE
    from hiera_video.models.zoo import create_model, from_pretrained, list_models, mae_from_pretrained
    from hiera_video.spec import Augment, ClipSpec
    from hiera_video.tasks.classify.classifier import Prediction, VideoClassifier
    from hiera_video.tasks.classify.job import classify
    from hiera_video.tasks.evaluate.job import evaluate
    from hiera_video.tasks.features.extractor import FeatureExtractor
    from hiera_video.tasks.features.job import extract
    from hiera_video.tasks.train.finetune import finetune
    from hiera_video.tasks.train.own_videos import own_recipe
    from hiera_video.tasks.train.pretrain import pretrain
    from hiera_video.training.recipe import Evaluation, Finetuning, Pretraining, load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "models.architecture",
    "Augment": "spec",
    "ClipDataset": "data.dataset",
    "ClipLoader": "data.loader",
    "ClipSpec": "spec",
    "Evaluation": "training.recipe",
    "FeatureExtractor": "tasks.features.extractor",
    "Finetuning": "training.recipe",
    "Hiera": "models.hiera",
    "HieraMAE": "models.mae",
    "HieraVideoError": "errors",
    "MAEArchitecture": "models.architecture",
    "Prediction": "tasks.classify.classifier",
    "Pretraining": "training.recipe",
    "VideoClassifier": "tasks.classify.classifier",
    "VideoList": "data.lists.video_list",
    "classify": "tasks.classify.job",
    "create_model": "models.zoo",
    "evaluate": "tasks.evaluate.job",
    "extract": "tasks.features.job",
    "finetune": "tasks.train.finetune",
    "from_pretrained": "models.zoo",
    "list_models": "models.zoo",
    "list_videos": "data.lists.video_list",
    "load_recipe": "training.recipe",
    "load_views": "data.views",
    "mae_from_pretrained": "models.zoo",
    "on_device": "data.on_device",
    "open_video": "data.reading.reader",
    "own_recipe": "tasks.train.own_videos",
    "pretrain": "tasks.train.pretrain",
    "push_to_hub": "models.checkpoints.io",
    "save_pretrained": "models.checkpoints.io",
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
