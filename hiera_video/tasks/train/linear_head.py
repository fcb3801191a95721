"""For a handful of videos: features once, and a linear head on them, in the time that reading the videos takes."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.sampling import sampler_of
from hiera_video.data.views import test_views
from hiera_video.errors import UnreadableVideo
from hiera_video.models.hiera import Hiera
from hiera_video.training.recipe import Finetuning

log = logging.getLogger("hiera_video")

#: Clips of a video that features are computed of (one crop each), steps of the head, and its learning rate. Ours.
NUM_CLIPS, STEPS, LR = 2, 500, 1e-3


@torch.no_grad()
def embeddings(model: Hiera, videos: VideoList, recipe: Finetuning, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """What the head sees of each readable clip. The processes share the list.

    Args:
        model: In evaluation mode, on the accelerator's device.
        videos: The training list.
        recipe: Gives the reading of files.
        accelerator: The run's processes.

    Returns:
        Embeddings float32 [N, C], and the label of each, int64 [N] or float32 [N, num_classes]; in each process all.

    Raises:
        UnreadableVideo: No video can be read.
    """
    data = recipe.data
    answers = test_views(
        videos,
        model.spec,
        NUM_CLIPS,
        1,
        sample=sampler_of(data.sampling, model.spec),
        fps=data.fps,
        num_workers=data.num_workers,
        device=accelerator.device,
        time_limit=data.time_limit,
        indices=list(range(accelerator.process_index, len(videos), accelerator.num_processes)),
    )
    mine: list[tuple[int, Tensor]] = []
    for answer in answers:
        if answer["clips"] is not None:
            clips = model.spec.model_input(model.spec.normalize(answer["clips"]))
            with accelerator.autocast():
                seen = model.forward_head(model.forward_features(clips), pre_logits=True)
            mine += [(answer["index"], embedding) for embedding in seen.float().cpu()]
    every: list[tuple[int, Tensor]] = gather_object(mine)
    if not every:
        raise UnreadableVideo(f"none of {len(videos)} videos can be read, the first of them {videos.path(0)}")
    every.sort(key=lambda pair: pair[0])
    labels = torch.from_numpy(videos.labels[[index for index, _ in every]])
    return torch.stack([embedding for _, embedding in every]), labels


def fit_head(model: Hiera, videos: VideoList, recipe: Finetuning, accelerator: Accelerator) -> None:
    """Fits the model's head, in place, to features that are computed once; every process ends with the same head.

    Args:
        model: Its head is replaced; it is moved to the accelerator's device, in evaluation mode.
        videos: The training list.
        recipe: Gives weight decay, smoothing and the reading of files.
        accelerator: The run's processes.

    Raises:
        UnreadableVideo: No video can be read.
    """
    model.to(accelerator.device).eval()
    features, labels = embeddings(model, videos, recipe, accelerator)
    head: Any = torch.nn.Linear(features.shape[1], len(videos.classes))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=recipe.optim.weight_decay)
    smoothing = recipe.loss.label_smoothing
    for _ in range(STEPS):
        logits = head(features)
        if labels.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(logits, labels)
        else:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for name in ("weight", "bias"):
            model.head.get_parameter(f"projection.{name}").copy_(head.get_parameter(name))
    log.info("a linear head on the features of %d clips: loss %.3f", len(features), loss.item())
