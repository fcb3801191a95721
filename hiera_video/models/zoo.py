"""Models by name: the two ways to get a model, one of a known architecture and one of given weights.

The names stand in the tables of :mod:`hiera_video.models.published`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from hiera_video.errors import RequestError, UnknownModel, WeightsError
from hiera_video.files import labels_of
from hiera_video.models.architecture import Architecture, MAEArchitecture, classifier_form
from hiera_video.models.checkpoints.build import (
    WEIGHT_FILES,
    assemble,
    assemble_mae,
    changed,
    default_spec,
    fitted,
    from_disk,
    from_hub,
    position_way,
    with_channels,
)
from hiera_video.models.checkpoints.download import Hub, UnavailableError, author_file, hub_file
from hiera_video.models.checkpoints.formats import Facts, State, convert
from hiera_video.models.checkpoints.io import read_state
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.published import (
    ARCHITECTURES,
    AUTHORS,
    MAE_ARCHITECTURES,
    SHIPPED,
    Checkpoint,
    ClassifierName,
    MAEName,
)
from hiera_video.models.published import CHECKPOINTS as CHECKPOINTS
from hiera_video.models.timm_form import taken
from hiera_video.models.unroll import Size

#: The models that ship with the package and answer without a network: one names how a camera moves, one is for
#: features, search and as a start; and the first to name for Kinetics actions.
BUILT_IN = "hiera_nano_16x64.camera_motion"
GENERAL = "hiera_nano_16x64.general"
KINETICS = "hiera_base_16x224.mae_k400_ft_k400"


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """The names of models.

    Args:
        pattern: A shell pattern that names must match.
        pretrained: Whether to list checkpoints (``arch.tag``) in place of architectures.

    Returns:
        Names in the order of the tables, classifiers before MAEs.
    """
    names = CHECKPOINTS if pretrained else [*ARCHITECTURES, *MAE_ARCHITECTURES]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


@overload
def create_model(
    name: MAEName, *, pretrained: bool = ..., checkpoint: str | None = ..., num_classes: None = ..., **options: Any
) -> HieraMAE: ...
@overload
def create_model(
    name: ClassifierName,
    *,
    pretrained: bool = ...,
    checkpoint: str | None = ...,
    num_classes: int | None = ...,
    features_only: Literal[False] = ...,
    **options: Any,
) -> Hiera: ...
@overload
def create_model(name: str, *, features_only: Literal[True], **options: Any) -> nn.Module: ...
@overload
def create_model(
    name: str, *, num_classes: int, pretrained: bool = ..., checkpoint: str | None = ..., **options: Any
) -> Hiera: ...
@overload
def create_model(
    name: str, *, pretrained: bool = ..., checkpoint: str | None = ..., num_classes: None = ..., **options: Any
) -> Hiera | HieraMAE: ...
def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    input_size: Size | None = None,
    position_resize: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **config: Any,
) -> Hiera | HieraMAE | nn.Module:
    """Builds a model by its published name, with new weights or with those of a checkpoint.

    Args:
        name: An architecture (:func:`list_models`), or a checkpoint of one, ``arch.tag``.
        pretrained: Whether to load the checkpoint. Without it a tag still decides classes, labels and ``ClipSpec``.
        checkpoint: The tag, where ``name`` has none. Video models also take their image twin's (inflated, 1705.07750).
        num_classes: Classes of the head. Default: the checkpoint's. An MAE has none.
        input_size: (frames, height, width) or (height, width) of the clips. Default: the architecture's.
        position_resize: As in :func:`from_pretrained`.
        revision: As in :func:`from_pretrained`.
        cache_dir: As in :func:`from_pretrained`.
        local_files_only: As in :func:`from_pretrained`.
        features_only: Whether to give timm's net of a classifier's feature maps alone (``FeatureGetterNet``, which has
            ``feature_info``), its blocks and head behind the last map dropped.
        out_indices: The stages of these maps, from 0. Default: all.
        config: Other fields of :class:`hiera_video.Architecture` or, for an MAE, :class:`hiera_video.MAEArchitecture`;
            ``drop_rate`` is timm's name of ``head_dropout``.

    Returns:
        A :class:`hiera_video.Hiera`; under a name that starts with ``mae_`` a :class:`hiera_video.HieraMAE`. New
        weights come in training mode, loaded ones in evaluation mode.

    Raises:
        UnknownModel: There is no such name or tag; the nearest are named.
        RequestError: There is no such field, or its value cannot be.
        SizeError: The input size does not fit the model; the nearest that fit are named.
        WeightsError: The weights cannot be had, or do not fit.
    """
    if features_only:
        how = {"input_size": input_size, "position_resize": position_resize, "revision": revision, **config}
        how |= {"checkpoint": checkpoint, "num_classes": num_classes, "cache_dir": cache_dir, "pretrained": pretrained}
        return _feature_net(create_model(name, local_files_only=local_files_only, **how), out_indices)
    arch_name, tag = _split(name, checkpoint)
    if isinstance(arch := _architecture(arch_name), MAEArchitecture) and num_classes is not None:
        raise RequestError(f"{arch_name} has no classes: leave num_classes out")
    if pretrained:
        full = _full_name(arch_name, tag)
        hub = Hub(revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        state, facts = _from_checkpoint(full, hub)
        how = {"input_size": input_size, "position_resize": position_resize, "config": config}
        how |= {"source": full, "arch": arch if _is_twins(full, arch_name) else None}
        is_mae = isinstance(arch, MAEArchitecture)
        return assemble_mae(state, facts, **how) if is_mae else assemble(state, facts, num_classes=num_classes, **how)
    entry = CHECKPOINTS.get(f"{arch_name}.{tag}")
    return _with_new_weights(arch, entry, num_classes, input_size, position_resize, config)


def _with_new_weights(
    arch: Architecture,
    entry: Checkpoint | None,
    num_classes: int | None,
    input_size: Size | None,
    position_resize: str | None,
    config: dict[str, Any],
) -> Hiera | HieraMAE:
    """A model of new weights, with the facts of the checkpoint that was named beside it."""
    classes = arch.num_classes if entry is None else entry.num_classes
    arch = changed(arch, classes if num_classes is None else num_classes, input_size, config)
    spec = with_channels(fitted(entry.spec if entry and entry.spec else default_spec(arch), arch.input_size), arch)
    model: Hiera | HieraMAE = HieraMAE(arch, spec) if isinstance(arch, MAEArchitecture) else Hiera(arch, spec)
    model.position_resize = position_way(position_resize)
    if isinstance(model, Hiera) and entry:
        model.labels = labels_of(entry.labels) if entry.labels and arch.num_classes == entry.num_classes else None
        model.views = entry.views or model.views
    return model


def _feature_net(model: Any, indices: int | Sequence[int] | None) -> nn.Module:
    """timm's net of a classifier's maps alone."""
    from timm.models._features import FeatureGetterNet

    if not isinstance(model, Hiera):
        raise RequestError("features_only is for classifiers: an MAE has no head to leave away")
    return FeatureGetterNet(model, out_indices=taken(model.arch, indices))


def from_pretrained(
    name_or_path: str | Path,
    *,
    arch: str | Architecture | None = None,
    num_classes: int | None = None,
    input_size: Size | None = None,
    position_resize: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **config: Any,
) -> Hiera:
    """Loads a classifier.

    An MAE gives its encoder. Where the norm or the head starts new, the log says so.

    Args:
        name_or_path: A checkpoint's name (``arch.tag``, :func:`list_models`); a ``.pth`` file; a ``.safetensors``
            file, with a config.json beside it or not; a folder or a hub repository of ours, the authors',
            transformers' Hiera or timm's.
        arch: The architecture of a file without a config. Default: it is recognised by the tensors. The weights of an
            image file are inflated (arXiv 1705.07750, section 2) for a video architecture.
        num_classes: Classes of the head; another number than the file's makes the head new.
        input_size: (frames, height, width) or (height, width) of the clips. Default: what the model was trained on.
            Position embeddings are resized for it; fewer frames span the same time.
        position_resize: How they are resized: "window" (default) keeps the phase within a mask unit
            (arXiv 2311.05613), "plain" interpolates.
        revision: The hub repository's branch, tag or commit.
        cache_dir: Where downloads are kept. Default: the hub's cache.
        local_files_only: Whether to look into the cache alone.
        config: Other fields of :class:`hiera_video.Architecture` (``drop_path_rate=0.1``).

    Returns:
        The classifier in evaluation mode.

    Raises:
        WeightsError: The weights cannot be had, cannot be trusted, or do not fit.
        UnknownModel: There is no such name or tag; the nearest are named.
        RequestError: There is no such field, or its value cannot be.
        SizeError: The input size does not fit the model; the nearest that fit are named.
    """
    given = _architecture(_split(arch, None)[0]) if isinstance(arch, str) else arch
    hub = Hub(revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    state, facts, twin = _fetch(name_or_path, hub)
    how: dict[str, Any] = {"input_size": input_size, "position_resize": position_resize, "config": config}
    return assemble(state, facts, source=str(name_or_path), arch=given or twin, num_classes=num_classes, **how)


def mae_from_pretrained(
    name_or_path: str | Path,
    *,
    arch: str | Architecture | None = None,
    input_size: Size | None = None,
    position_resize: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **config: Any,
) -> HieraMAE:
    """Loads an MAE.

    The decoder is loaded where there is one; a classifier gives its encoder, and the decoder is new. The log says
    what is new and what was left behind.

    Args:
        name_or_path: As in :func:`from_pretrained`. The name of an MAE's encoder stands for the MAE.
        arch: As in :func:`from_pretrained`. Without a config the decoder is recognised by its tensors, but for its
            attention heads: 16, or ``decoder_num_heads``.
        input_size: As in :func:`from_pretrained`.
        position_resize: As in :func:`from_pretrained`.
        revision: As in :func:`from_pretrained`.
        cache_dir: As in :func:`from_pretrained`.
        local_files_only: As in :func:`from_pretrained`.
        config: Other fields of :class:`hiera_video.MAEArchitecture`; another width or depth of the decoder makes it
            new.

    Returns:
        The MAE in evaluation mode.

    Raises:
        WeightsError: The weights cannot be had, cannot be trusted, or do not fit.
        UnknownModel: There is no such name or tag; the nearest are named.
        RequestError: There is no such field, or its value cannot be.
        SizeError: The input size does not fit the model; the nearest that fit are named.
    """
    # A name stands for the encoder: what decoder belongs to it, the tensors say.
    given = classifier_form(_architecture(_split(arch, None)[0])) if isinstance(arch, str) else arch
    hub = Hub(revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    state, facts, twin = _fetch(name_or_path, hub, mae=True)
    how: dict[str, Any] = {"input_size": input_size, "position_resize": position_resize, "config": config}
    return assemble_mae(state, facts, source=str(name_or_path), arch=given or twin, **how)


def _architecture(name: str) -> Architecture:
    return MAE_ARCHITECTURES[name] if name in MAE_ARCHITECTURES else ARCHITECTURES[name]


def _fetch(name_or_path: str | Path, hub: Hub, *, mae: bool = False) -> tuple[State, Facts, Architecture | None]:
    """State and facts of a name, path or hub id; and the video architecture, where a name stands for image weights.

    With ``mae`` the name of an MAE's encoder stands for the MAE, with its decoder.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.exists():
        state, facts = from_disk(path)
        if facts.arch is None and (full := _published_file(path.name)):
            facts = _facts(full, arch=None)
        return state, facts, None
    if isinstance(name_or_path, Path) or path.is_absolute() or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise WeightsError(f"{name} does not exist")
    if "/" in name and _published_repo(name) is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise WeightsError(f"{name} does not exist")
        try:
            state, facts = from_hub(name, hub)
        except UnavailableError as error:
            raise WeightsError(f"{name} is no folder here and could not be had from the hub ({error})") from error
        return state, facts, None
    arch, tag = _split(_published_repo(name) or name, None)
    full = _full_name(arch, tag)
    twin = _architecture(arch) if _is_twins(full, arch) else None
    if mae and CHECKPOINTS[full].encoder_only:
        full = f"mae_{full}"
    return (*_from_checkpoint(full, hub), twin)


def _from_checkpoint(full: str, hub: Hub) -> tuple[State, Facts]:
    """State and facts of a checkpoint in the table: from the package, the hub, or the authors' server."""
    entry = CHECKPOINTS[full]
    if entry.hub is None and entry.url is None:
        if not (SHIPPED / full).is_dir():
            raise WeightsError(f"{full} is missing from this installation ({SHIPPED}); install hiera_video anew")
        return from_disk(SHIPPED / full)
    path, reasons = None, []
    try:
        if entry.hub:
            path = hub_file(entry.hub, WEIGHT_FILES, hub, license=entry.license)
    except UnavailableError as error:
        reasons.append(str(error))
    try:
        if path is None and entry.url and hub.revision is None:
            path = author_file(entry.url, hub, sha256=entry.sha256, license=entry.license)
    except UnavailableError as error:
        reasons.append(str(error))
    if path is None:
        raise WeightsError(
            f"{full} could not be fetched ({'; '.join(reasons)}); connect to the network, or download it elsewhere "
            f"and name its file"
        )
    state = convert(read_state(path))
    if entry.encoder_only:
        state = {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    return state, _facts(full, arch=_architecture(full.partition(".")[0]))


def _facts(full: str, arch: Architecture | None) -> Facts:
    entry = CHECKPOINTS[full]
    labels = labels_of(entry.labels) if entry.labels else None
    return Facts(arch=arch, spec=entry.spec, labels=labels, views=entry.views, license=entry.license)


def _published_file(name: str) -> str | None:
    """The checkpoint whose file on the authors' server has this name."""
    return next((full for full, entry in CHECKPOINTS.items() if entry.url == AUTHORS + name), None)


def _published_repo(name: str) -> str | None:
    """The checkpoint that lies in this hub repository."""
    return next((full for full, entry in CHECKPOINTS.items() if entry.hub == name), None)


def _nearest(word: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, names, n=3, cutoff=0.3) or names[:3])


def _tags(arch: str) -> list[str]:
    return [full.partition(".")[2] for full in CHECKPOINTS if full.startswith(f"{arch}.")]


def _image_twin(arch: str) -> str:
    """hiera_base_16x224 -> hiera_base_224; an image name stays."""
    return re.sub(r"_\d+x(\d+)$", r"_\1", arch)


def _split(name: str, checkpoint: str | None) -> tuple[str, str | None]:
    """Architecture and tag, both checked, of ``arch``, ``arch.tag``, or ``arch`` with ``checkpoint=tag``."""
    arch, _, tag = name.partition(".")
    if arch not in ARCHITECTURES and arch not in MAE_ARCHITECTURES:
        names = list_models(pretrained=True) if tag else list_models()
        raise UnknownModel(f"no model is called {name!r}; the nearest names: {_nearest(name, names)}")
    if tag and checkpoint and tag != checkpoint:
        raise RequestError(f"{name!r} names a checkpoint, and checkpoint={checkpoint!r} another one")
    tag = tag or checkpoint or ""
    tags = list(dict.fromkeys(_tags(arch) + _tags(_image_twin(arch))))
    if tag and tag not in tags:
        nearest = f"the nearest: {_nearest(tag, tags)}" if tags else "it has none"
        raise UnknownModel(f"{arch} has no checkpoint {tag!r}; {nearest}")
    return arch, tag or None


def _full_name(arch: str, tag: str | None) -> str:
    """The checkpoint of a checked architecture and tag (default: the first); the image twin's where it is inflated."""
    own, image = _tags(arch), _tags(_image_twin(arch))
    if tag is None and not own:
        hint = f"; image weights it can start from: checkpoint={' or '.join(map(repr, image))}" if image else ""
        raise UnknownModel(f"{arch} has no pretrained weights of its own{hint}")
    tag = tag or own[0]
    return f"{arch if tag in own else _image_twin(arch)}.{tag}"


def _is_twins(full: str, arch: str) -> bool:
    """Whether a checkpoint is the image twin's of a video architecture, to be inflated."""
    return not full.startswith(f"{arch}.")
