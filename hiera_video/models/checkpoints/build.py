"""From a file, a folder or a hub repository to a model: what :mod:`hiera_video.models.zoo` calls, names resolved."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from hiera_video.errors import RequestError, SizeError, WeightsError
from hiera_video.fields import from_mapping
from hiera_video.models.architecture import Architecture, MAEArchitecture, classifier_form, mae_form
from hiera_video.models.checkpoints.download import Hub, hub_file
from hiera_video.models.checkpoints.formats import DECODER, Facts, State, convert, describe, split_state
from hiera_video.models.checkpoints.io import architecture_of, inflate, load_state, read_state, resize_tables
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.unroll import Size
from hiera_video.spec import IMAGE_SPEC, ClipSpec

log = logging.getLogger("hiera_video")

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
POSITION_WAYS = ("window", "plain")

A = TypeVar("A", bound=Architecture)


def from_disk(path: Path) -> tuple[State, Facts]:
    """Reads a checkpoint from this disk.

    Args:
        path: A weights file, or a folder with a config.json and one. A config.json beside a ``.safetensors`` or
            ``.bin`` file belongs to it.

    Returns:
        The tensors under our names, and what the config says.

    Raises:
        WeightsError: A file is missing, cannot be read, or is of no known layout.
    """
    if not path.is_dir():
        config = path.with_name("config.json")
        beside = path.suffix in (".safetensors", ".bin") and config.is_file()
        return convert(read_state(path)), read_config(config) if beside else Facts()
    weights = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if not weights or not (path / "config.json").is_file():
        raise WeightsError(f"{path} is no model folder: it needs config.json and {' or '.join(WEIGHT_FILES)}")
    return convert(read_state(weights[0])), read_config(path / "config.json")


def from_hub(repo: str, hub: Hub) -> tuple[State, Facts]:
    """Reads a checkpoint from a hub repository of any layout that :func:`describe` knows.

    Args:
        repo: The repository, ``owner/name``.
        hub: Where to look.

    Returns:
        The tensors under our names, and what the config says.

    Raises:
        UnavailableError: The repository cannot be had.
        WeightsError: A file cannot be read, or is of no known layout.
    """
    facts = read_config(hub_file(repo, ("config.json",), hub))
    return convert(read_state(hub_file(repo, WEIGHT_FILES, hub, license=facts.license))), facts


def read_config(path: Path) -> Facts:
    """The facts in a ``config.json``; raises :class:`WeightsError` where it cannot be read or understood."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} cannot be used: it holds no JSON object")
    return describe(config, str(path))


def assemble(
    state: State,
    facts: Facts,
    *,
    source: str,
    arch: Architecture | None = None,
    num_classes: int | None = None,
    input_size: Size | None = None,
    position_resize: str | None = None,
    config: dict[str, Any],
) -> Hiera:
    """Builds a classifier of a checkpoint's weights, made to fit what is asked for.

    Args:
        state: Tensors under our names.
        facts: What the config says. Where neither it nor ``arch`` says so, the tensors tell the architecture.
        source: What messages call the checkpoint.
        arch: As in :func:`hiera_video.from_pretrained`, and so all that follow.
        num_classes: Classes of the head.
        input_size: The size of the clips.
        position_resize: "window" or "plain".
        config: Other fields of the architecture.

    Returns:
        The classifier in evaluation mode.

    Raises:
        WeightsError, RequestError, SizeError: As in :func:`hiera_video.from_pretrained`.
    """
    state, decoder = split_state(state)
    trained = facts.arch or _given(arch, state) or architecture_of(state, source)
    if facts.arch is None and facts.fields:
        trained = from_mapping(Architecture, vars(trained) | facts.fields)
    trained = classifier_form(mae_form(trained) if decoder else trained)
    target = classifier_form(arch or trained)
    if _is_inflated(trained, target):  # windows of SAM 2 become mask units and everything, as published for video
        names = ("abs_win_pos_embed", "global_pos_size", "pos_antialias", "layer_scale", "expand_proj")
        target = replace(target, **{name: getattr(trained, name) for name in names})
    head, inflated = state.get("head.projection.weight"), _is_inflated(trained, target)
    kept = target.num_classes if head is None or inflated else head.shape[0]
    if head is None and not inflated and facts.num_classes is not None:
        kept = facts.num_classes
    target = changed(target, kept if num_classes is None else num_classes, input_size, config)
    way = position_way(position_resize or facts.position_resize)
    state, spec = _fit(_in_channels(state, target.in_chans), facts.spec, trained, target, way, source)
    spec = with_channels(spec, target)
    state, fresh = _head_of(state, decoder, target, source)
    labels = None if fresh else facts.labels
    model = Hiera(target, spec)
    # An encoder (of an MAE, or transformers' bare model) may have no final norm either.
    load_state(model, state, source=source, fresh=(*fresh, "norm.") if head is None else fresh)
    model.position_resize = way
    model.labels = labels if labels and len(labels) == target.num_classes else None
    views = None if inflated else facts.views
    model.views, model.license = views or model.views, facts.license
    model.new_head = bool(fresh)
    model.multi_label = facts.multi_label and not fresh
    return model.eval()


def _in_channels(state: State, count: int) -> State:
    """The patch kernel of three colours for other channels, as timm does it: their sum for one, else repeated, with
    the same size of answers.
    """
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.shape[1] == count or kernel.shape[1] != 3:
        return state
    if count == 1:
        changed_kernel = kernel.sum(dim=1, keepdim=True)
    else:
        rows = torch.arange(count) % 3
        changed_kernel = kernel[:, rows] * (3 / count)
    return state | {"patch_embed.proj.weight": changed_kernel}


def with_channels(spec: ClipSpec, arch: Architecture) -> ClipSpec:
    """A spec whose statistics are those of as many channels as the architecture takes.

    Args:
        spec: Of three colours, or of these channels.
        arch: Says how many there are.

    Returns:
        The spec; means and deviations of other channels are those of the colours in turn, of one channel their mean.
    """
    count = arch.in_chans
    if len(spec.mean) == count:
        return spec
    if count == 1:
        return spec.replace(mean=(sum(spec.mean) / len(spec.mean),), std=(sum(spec.std) / len(spec.std),))
    places = [index % len(spec.mean) for index in range(count)]
    return spec.replace(mean=tuple(spec.mean[i] for i in places), std=tuple(spec.std[i] for i in places))


def _head_of(state: State, decoder: State, target: Architecture, source: str) -> tuple[State, tuple[str, ...]]:
    """The tensors without a head that is of other classes, which is said; and the names that then start anew."""
    if target.head != "readout":
        state = {key: value for key, value in state.items() if not key.startswith("head.readout.")}
    if target.num_classes == 0 and not decoder:
        if "norm.weight" not in state:
            log.warning("%s has no final norm: the embedding's starts untrained, maps are what was trained", source)
        return {key: value for key, value in state.items() if not key.startswith("head.projection.")}, ()
    head = state.get("head.projection.weight")
    if head is not None and head.shape[0] == target.num_classes:
        return state, ()
    new = f"head of {target.num_classes} classes"
    new = f"a new {new} starts" if "norm.weight" in state else f"a new norm and {new} start"
    if decoder:
        log.warning("the decoder of %s was left behind: %s; %s untrained", source, _summary(decoder), new)
    else:
        was = "has no head" if head is None else f"has {head.shape[0]} classes"
        log.warning("%s %s: %s untrained", source, was, new)
    # A readout was made with the trunk: it is not the old head's.
    return {key: value for key, value in state.items() if not key.startswith("head.") or "readout" in key}, ("head.",)


def assemble_mae(
    state: State,
    facts: Facts,
    *,
    source: str,
    arch: Architecture | None = None,
    input_size: Size | None = None,
    position_resize: str | None = None,
    config: dict[str, Any],
) -> HieraMAE:
    """Builds an MAE of a checkpoint's weights, with its decoder where that fits and with a new one where not.

    A decoder fits an MAE of its own width, depth and poolings.

    Args:
        state: Tensors under our names.
        facts: What the config says. Where neither it nor ``arch`` says so, the tensors tell the architecture.
        source: What messages call the checkpoint.
        arch: As in :func:`hiera_video.mae_from_pretrained`, and so all that follow.
        input_size: The size of the clips.
        position_resize: "window" or "plain".
        config: Other fields of the architecture.

    Returns:
        The MAE in evaluation mode.

    Raises:
        WeightsError, RequestError, SizeError: As in :func:`hiera_video.mae_from_pretrained`.
    """
    state, decoder = split_state(state)
    encoder = facts.arch or classifier_form(_given(arch, state) or architecture_of(state, source))
    heads = config.get("decoder_num_heads", arch.decoder_num_heads if isinstance(arch, MAEArchitecture) else 16)
    trained = _mae_of(encoder, decoder, heads)
    target = changed(_mae_of(arch or trained, decoder, heads), encoder.num_classes, input_size, config)
    way = position_way(position_resize or facts.position_resize)
    shape = ("q_pool", "decoder_embed_dim", "decoder_depth")
    fits = not _is_inflated(trained, target) and all(getattr(trained, name) == getattr(target, name) for name in shape)
    left = {key: value for key, value in state.items() if key.startswith(("norm.", "head."))}
    kept = {key: value for key, value in state.items() if key not in left} | (decoder if fits else {})
    if not decoder:
        behind = f"; left behind: {_summary(left)}" if left else ""
        log.warning("%s has no decoder: a new one starts untrained%s", source, behind)
    elif not fits:
        log.warning(
            "the decoder of %s does not fit and was left behind: %s; a new one starts untrained",
            source,
            _summary(decoder),
        )
    kept, spec = _fit(kept, facts.spec, trained, target, way, source)
    model = HieraMAE(target, spec)
    load_state(model, kept, source=source, fresh=() if decoder and fits else DECODER)
    model.position_resize, model.license = way, facts.license
    return model.eval()


def _mae_of(arch: Architecture, decoder: State, heads: int) -> MAEArchitecture:
    """The MAE of ``arch``: where that is a classifier's, the decoder is read off its tensors, but for its ``heads``."""
    if isinstance(arch, MAEArchitecture) or not decoder:
        return mae_form(arch)
    fusions, blocks = (
        len({key.split(".")[1] for key in decoder if key.startswith(name)})
        for name in ("multi_scale_fusion_heads.", "decoder_blocks.")
    )
    fields = {"q_pool": fusions, "decoder_depth": blocks, "decoder_num_heads": heads}
    if "mask_token" in decoder:
        fields["decoder_embed_dim"] = decoder["mask_token"].shape[-1]
    return mae_form(arch, **fields)


def _summary(state: State) -> str:
    """How many tensors there are, and in which parts of the model: ``98 tensors (decoder_*, mask_token)``."""
    parts = {"decoder_*" if key.startswith("decoder_") else key.partition(".")[0] for key in state}
    return f"{len(state)} tensors ({', '.join(sorted(parts))})"


def _is_inflated(trained: Architecture, target: Architecture) -> bool:
    """Whether an image's weights are to become a video's."""
    return (len(trained.input_size), len(target.input_size)) == (2, 3)


def _fit(
    state: State, spec: ClipSpec | None, trained: Architecture, target: Architecture, way: str, source: str
) -> tuple[State, ClipSpec]:
    """``state`` for the size of ``target``, inflated where need be, and the :class:`ClipSpec` that goes with it."""
    if _is_inflated(trained, target):
        log.warning(
            "%s is an image model and is inflated (arXiv 1705.07750, section 2): patch filters are repeated over %d "
            "frames and divided by %d, positions become those of space, those of time start at zero%s",
            *(source, target.patch_kernel[0], target.patch_kernel[0]),
            "" if trained.windows is None else "; its windows of attention become mask units and everything",
        )
        state, video = inflate(state, target), default_spec(target)
        # The weights expect the image's normalisation; the rest is the video form's.
        spec = video.replace(mean=(spec or IMAGE_SPEC).mean, std=(spec or IMAGE_SPEC).std)
        trained = replace(target, input_size=(target.input_size[0], *trained.input_size))
        return resize_tables(state, trained, target, way), spec
    if len(trained.input_size) == len(target.input_size):
        state = resize_tables(state, trained, target, way)
    spec = spec or default_spec(trained)
    return state, spec if target.input_size == trained.input_size else fitted(spec, target.input_size)


def _given(arch: Architecture | None, state: State) -> Architecture | None:
    """``arch`` where the tensors may be its own; None where they are an image's for a video ``arch``."""
    kernel = state.get("patch_embed.proj.weight")
    if arch is None or kernel is None or kernel.ndim - 2 != len(arch.input_size):
        return None
    return arch


def changed(arch: A, num_classes: int, input_size: Size | None, config: dict[str, Any]) -> A:
    """Changes an architecture.

    Args:
        arch: An architecture of either kind.
        num_classes: Classes of the head.
        input_size: The size of the clips. Default: that of ``arch``.
        config: Other fields by name.

    Returns:
        An architecture of the same kind.

    Raises:
        RequestError: There is no such field (the nearest is named), or its value cannot be.
        SizeError: The input size does not fit the model; the nearest that fit are named.
    """
    if num_classes < 0:
        raise RequestError(f"num_classes must be at least 0 (no head), not {num_classes}")
    if "drop_rate" in config:  # timm's name
        config = {"head_dropout" if name == "drop_rate" else name: value for name, value in config.items()}
    size = tuple(input_size) if input_size is not None else arch.input_size
    if len(size) != len(arch.input_size):
        axes = {1: "(length,)", 2: "(height, width)", 3: "(frames, height, width)"}[len(arch.input_size)]
        raise SizeError(f"input_size {size} must be {axes} for this model")
    arch = from_mapping(type(arch), {**vars(arch), "num_classes": num_classes, "input_size": size, **config})
    arch.token_grid(arch.input_size)
    return arch


def position_way(way: str | None) -> str:
    """Checks the name of a way to resize position embeddings.

    Args:
        way: "window", "plain" or None.

    Returns:
        The way; "window" for None.

    Raises:
        RequestError: It is something else.
    """
    if way is not None and way not in POSITION_WAYS:
        raise RequestError(f"position_resize {way!r} must be one of {', '.join(POSITION_WAYS)}")
    return way or POSITION_WAYS[0]


def default_spec(arch: Architecture) -> ClipSpec:
    """What a clip is where a checkpoint does not say: as for the published models, of the architecture's size.

    Args:
        arch: An architecture of either kind.

    Returns:
        The specification.
    """
    return fitted(IMAGE_SPEC if len(arch.input_size) == 2 else ClipSpec(), arch.input_size)


def fitted(spec: ClipSpec, size: Size) -> ClipSpec:
    """Fits a specification to another input size: the short side before the crop grows with it.

    A clip spans the same time, because the temporal position embedding is resized: fewer frames lie further apart.

    Args:
        spec: The specification.
        size: (frames, height, width) or (height, width); for a sequence nothing changes.

    Returns:
        The specification of that size.
    """
    if len(size) < 2:
        return spec
    resize = round(spec.resize * min(size[-2:]) / min(spec.size))
    spec = spec.replace(size=(size[-2], size[-1]), resize=resize)
    if len(size) == 3 and size[0] != spec.num_frames:
        stride = spec.frame_stride * spec.num_frames / size[0]
        spec = spec.replace(num_frames=size[0], frame_stride=stride)
    return spec
