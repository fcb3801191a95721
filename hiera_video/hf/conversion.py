"""Models of transformers' form into ours and back, and into the layouts that others read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

from hiera_video.errors import OutputError, RequestError
from hiera_video.files import replacing
from hiera_video.hf.configuration import HieraConfig
from hiera_video.hf.models import (
    HieraForImageClassification,
    HieraForPreTraining,
    HieraForVideoClassification,
    HieraModel,
    HieraPreTrainedModel,
)
from hiera_video.hf.pretrained import values_of
from hiera_video.hf.processing import image_processor
from hiera_video.models.architecture import Architecture
from hiera_video.models.checkpoints.build import default_spec
from hiera_video.models.checkpoints.formats import IMAGE_FORM, OURS_ALONE, State, convert
from hiera_video.models.checkpoints.io import load_state
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE

Layout = Literal["ours", "authors", "timm", "hiera", "sam2"]


def from_native(model: Hiera | HieraMAE) -> HieraPreTrainedModel:
    """Turns our model into transformers' form of it.

    Args:
        model: A classifier or an MAE.

    Returns:
        The other model, with weights of its own, in evaluation mode.
    """
    config = HieraConfig(**values_of(model))
    dims = len(model.arch.input_size)
    kind: type[HieraPreTrainedModel] = HieraForVideoClassification if dims == 3 else HieraForImageClassification
    if isinstance(model, HieraMAE):
        kind = HieraForPreTraining
    other = kind(config)
    load_state(other, kind.named(dict(model.state_dict())), source="the model")
    return other.eval()


def to_native(model: HieraPreTrainedModel) -> Hiera | HieraMAE:
    """Turns a model of transformers' form into ours.

    Args:
        model: A classifier or an MAE.

    Returns:
        Our model, with weights of its own, in evaluation mode.

    Raises:
        RequestError: The model has neither a head nor a decoder.
    """
    config, facts = model.config, model.config.facts()
    native: Hiera | HieraMAE
    if isinstance(model, HieraForPreTraining):
        native = HieraMAE(config.autoencoder(), facts.spec or default_spec(config.autoencoder()))
    elif isinstance(model, HieraForImageClassification | HieraForVideoClassification):
        arch = config.encoder(config.num_labels or 0)
        native = Hiera(arch, facts.spec or default_spec(arch))
        native.labels, native.views = facts.labels, facts.views or native.views
        native.multi_label = facts.multi_label
    else:
        raise RequestError(f"{type(model).__name__} has no head and no decoder: our models have one of them")
    load_state(native, convert(dict(model.state_dict())), source="the model")
    native.position_resize, native.license = config.position_resize, config.license
    return native.eval()


def save_as(model: HieraPreTrainedModel, path: str | Path, *, layout: Layout) -> Path:
    """Writes a model for other readers.

    Args:
        model: A model of transformers' form.
        path: The folder or file to write.
        layout: "ours": a folder that :func:`hiera_video.from_pretrained` reads, as it reads the form of
            ``model.save_pretrained``. "authors": a ``.pth`` file with their names under ``model_state``. "timm": a
            folder that timm reads, classifiers of images alone. "hiera" and "sam2": a folder that transformers reads
            without this package as its Hiera or its Sam2HieraDetModel, images alone, with the image processor.

    Returns:
        ``path``.

    Raises:
        RequestError: The layout cannot hold this model.
        OutputError: Nothing can be written.
    """
    path = Path(path)
    if layout in ("ours", "timm"):
        return save_pretrained(to_native(model), path, layout="timm" if layout == "timm" else "ours")
    if layout == "authors":
        with replacing(path) as temporary:
            torch.save({"model_state": to_native(model).state_dict()}, temporary)
        return path
    if layout not in ("hiera", "sam2"):
        raise RequestError(f"layout {layout!r} must be ours, authors, timm, hiera or sam2")
    other = _transformers_own(model) if layout == "hiera" else _sam2(model)
    try:
        other.save_pretrained(path)
        facts = model.config.facts()
        image_processor(facts.spec or default_spec(model.config.encoder())).save_pretrained(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    return path


def _transformers_own(model: HieraPreTrainedModel) -> transformers.PreTrainedModel:
    """The model of transformers' own class with these weights."""
    config = model.config
    kinds: dict[type[HieraPreTrainedModel], Any] = {
        HieraForImageClassification: transformers.HieraForImageClassification,
        HieraForPreTraining: transformers.HieraForPreTraining,
        HieraModel: transformers.HieraModel,
    }
    kind = kinds.get(type(model))
    plain = replace(config.encoder(), **{name: getattr(Architecture(), name) for name in OURS_ALONE})
    ours_alone = plain != config.encoder() or config.sep_pos_embed
    if kind is None or len(config.input_size) != 2 or ours_alone:
        raise RequestError(
            f"transformers' hiera layout holds images alone: HieraModel, HieraForImageClassification and "
            f"HieraForPreTraining, not this {type(model).__name__} of {len(config.input_size)} dimensions"
        )
    names = {field for field in transformers.HieraConfig().to_dict() if not field.startswith("_")}
    left = {"model_type", "architectures", "transformers_version"}
    values = {key: value for key, value in config.to_dict().items() if key in names - left}
    with torch.device("meta"):
        other = kind(transformers.HieraConfig(**values))
    return _filled(other, convert(dict(model.state_dict())))


def _sam2(model: HieraPreTrainedModel) -> transformers.PreTrainedModel:
    """transformers' trunk of SAM 2 with these weights; a norm and a head are left behind."""
    arch = model.config.encoder()
    same = ("abs_win_pos_embed", "global_pos_size", "windows", "global_blocks")
    plain = {name: getattr(arch, name) for name in ("embed_dim", "num_heads", "stages", "q_pool", "input_size", *same)}
    values = IMAGE_FORM | {"num_classes": 0, "head_init_scale": arch.head_init_scale} | plain
    if arch.windows is None or len(arch.input_size) != 2 or arch != Architecture(**values):
        raise RequestError("transformers' sam2 layout holds images' trunks with the windows of SAM 2 alone")
    growth = range(len(arch.stages))
    config = transformers.Sam2HieraDetConfig(
        hidden_size=arch.embed_dim,
        num_attention_heads=arch.num_heads,
        image_size=list(arch.input_size),
        blocks_per_stage=list(arch.stages),
        embed_dim_per_stage=[arch.embed_dim * 2**stage for stage in growth],
        num_attention_heads_per_stage=[arch.num_heads * 2**stage for stage in growth],
        num_query_pool_stages=arch.q_pool,
        window_positional_embedding_background_size=list(arch.global_pos_size),
        window_size_per_stage=list(arch.windows),
        global_attention_blocks=list(arch.global_blocks),
    )
    with torch.device("meta"):
        other = Sam2HieraDetModel(config)
    state = convert(dict(model.state_dict()))
    return _filled(other, {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))})


def _filled(other: transformers.PreTrainedModel, state: State) -> transformers.PreTrainedModel:
    """A model of transformers with tensors of our names."""
    # Reading their names gives ours, so that reading the names themselves gives the way back.
    names: dict[str, Any] = {name: name for name in other.state_dict()}
    theirs: dict[str, Any] = convert(names)
    other.load_state_dict({theirs[name]: value.detach().clone() for name, value in state.items()}, assign=True)
    return other.eval()
