"""Typical use of the models as a type checker sees it. mypy reads this file; nothing runs it.

``assert_type`` fails the check where the type is not this one.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import assert_type

import hiera_video
from hiera_video import Hiera, HieraMAE
from hiera_video.models.mae import MAEOutput


def classifiers(clip: Tensor, keep: Tensor) -> None:
    model = hiera_video.create_model("hiera_base_16x224")
    assert_type(model, Hiera)
    assert_type(model(clip, keep), Tensor)
    assert_type(model.forward_features(clip, keep), Tensor)
    assert_type(model.forward_intermediates(clip, [0, 3])[1], list[Tensor])
    assert_type(model.forward_head(model.forward_features(clip), pre_logits=True), Tensor)
    model.reset_classifier(10)
    tuned = hiera_video.create_model("hiera_base_16x224.mae_k400_ft_k400", pretrained=True, num_classes=10)
    assert_type(tuned.labels, list[str] | None)
    tagged = hiera_video.create_model("hiera_base_16x224", checkpoint="mae_k400", drop_path_rate=0.1)
    assert_type(tagged.eval(), Hiera)
    assert_type(hiera_video.from_pretrained("folder", input_size=(8, 224, 224), num_classes=3), Hiera)


def autoencoders(clip: Tensor, keep: Tensor) -> None:
    mae = hiera_video.create_model("mae_hiera_base_16x224", mask_ratio=0.8)
    assert_type(mae, HieraMAE)
    assert_type(mae(clip, keep), MAEOutput)
    assert_type(mae(clip).loss, Tensor)
    assert_type(hiera_video.create_model("mae_hiera_base_16x224.mae_k400", pretrained=True), HieraMAE)
    assert_type(hiera_video.mae_from_pretrained("mae.pth", decoder_depth=4), HieraMAE)


def names_that_are_known_when_it_runs(name: str, clip: Tensor) -> None:
    model = hiera_video.create_model(name)
    assert_type(model, Hiera | HieraMAE)
    assert_type(model.forward_features(clip), Tensor)  # both have it
    assert_type(hiera_video.create_model(name, num_classes=10), Hiera)  # an MAE has no classes
    for name in hiera_video.list_models("mae_*"):
        hiera_video.save_pretrained(hiera_video.create_model(name), name)
