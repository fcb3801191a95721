"""Checkpoint layouts of others, turned into ours at the border: tensor names and config files.

    ours, authors    patch_embed.proj, blocks.N.norm1, ..., head.projection       config: the constructor's names
    transformers     [hiera.]encoder.stages.S.layers.L.layernorm_before, ...      config: ``model_type: hiera``
    hiera_video.hf   [hiera.]trunk. before our names, classifier for the head     config: ``model_type: hiera_video``
    timm             authors' names, but head.norm and head.fc                    config: ``architecture: hiera_*``

An MAE file (any layout but timm's) also holds a decoder; its encoder is what a classifier takes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hiera_video.errors import HieraVideoError, WeightsError
from hiera_video.fields import from_mapping
from hiera_video.models.architecture import Architecture, MAEArchitecture, mae_form
from hiera_video.spec import IMAGE_SPEC, ClipSpec

State = dict[str, Tensor]

FORMAT_VERSION = 1

#: The image form of every published variant (paper, Table 1); also what the authors' constructor defaults to.
IMAGE_FORM: dict[str, Any] = {
    "input_size": (224, 224),
    "num_classes": 1000,
    "q_stride": (2, 2),
    "mask_unit_size": (8, 8),
    "patch_kernel": (7, 7),
    "patch_stride": (4, 4),
    "patch_padding": (3, 3),
    "sep_pos_embed": False,
}

#: Fields of an architecture that neither the reference package nor transformers has.
OURS_ALONE: tuple[str, ...] = (
    *("head", "head_stages", "head_strides", "readout_dim", "abs_win_pos_embed", "global_pos_size", "pos_antialias"),
    *("layer_scale", "expand_proj", "windows", "global_blocks", "qkv_bias"),
)

#: Our fields of an architecture by transformers' names, but for those that are not the same there.
CONFIG_NAMES = {
    **{"in_chans": "num_channels", "embed_dim": "embed_dim", "dim_mul": "embed_dim_multiplier", "stages": "depths"},
    **{"q_pool": "num_query_pool", "q_stride": "query_stride", "mask_unit_size": "masked_unit_size"},
    **{"mask_unit_attn": "masked_unit_attention", "patch_kernel": "patch_size"},
    **{name: name for name in ("patch_stride", "patch_padding", "mlp_ratio", "drop_path_rate", "sep_pos_embed")},
    **{name: name for name in ("hidden_act", "layer_norm_eps", "head_dropout", "head_init_scale")},
    **{name: name for name in OURS_ALONE},
}

#: Our fields of an architecture by the names of timm's arguments.
TIMM_ARGS = {
    **{name: name for name in ("in_chans", "embed_dim", "num_heads", "stages", "q_pool", "q_stride", "mask_unit_size")},
    **{name: name for name in ("mask_unit_attn", "dim_mul", "head_mul", "patch_kernel", "patch_stride")},
    **{name: name for name in ("patch_padding", "mlp_ratio", "drop_path_rate", "sep_pos_embed", "abs_win_pos_embed")},
    **{"global_pos_size": "global_pos_size", "input_size": "img_size", "layer_scale": "init_values"},
    **{"expand_proj": "use_expand_proj", "head_dropout": "drop_rate"},
}

#: What only an MAE has, in our names.
DECODER = ("mask_token", "decoder_", "encoder_norm.", "multi_scale_fusion_heads.")

TRANSFORMERS = (
    (r"^hiera\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"^pooler\.layernorm\.", "norm."),
    (r"^classifier\.", "head.projection."),
    (r"^multiscale_fusion\.", ""),
    (r"^decoder\.decoder_embeddings\.", "decoder_embed."),
    (r"^decoder\.decoder_position_embeddings$", "decoder_pos_embed"),
    (r"^decoder\.decoder_block\.layers\.", "decoder_blocks."),
    (r"^decoder\.", ""),
)
TRANSFORMERS_OURS = ((r"^(?:hiera\.)?trunk\.", ""), (r"^classifier\.", "head.projection."))
TIMM = (
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head.projection."),
    (r"^pos_embed_abs$", "pos_embed"),
    (r"^pos_embed_win$", "pos_embed_window"),
)
#: SAM 2's trunk, in the authors' files and in transformers' classes.
SAM2 = (
    (r"^(?:image_encoder\.trunk|(?:vision_encoder\.)?backbone)\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.mlp\.(?:layers\.0|proj_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:layers\.1|proj_out)\.", ".mlp.fc2."),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a checkpoint's config says beside its tensors; None where it does not say.

    Args:
        arch: The architecture; an MAE's where there is a decoder.
        fields: What it says of the architecture where that is left to the tensors.
        num_classes: Of the head, where the architecture is left to the tensors.
        spec: What a clip is.
        labels: Class names.
        views: Test views, clips x crops.
        license: The licence of the weights.
        position_resize: How position embeddings are resized.
    """

    arch: Architecture | None = None
    fields: dict[str, Any] | None = None
    num_classes: int | None = None
    spec: ClipSpec | None = None
    labels: list[str] | None = None
    multi_label: bool = False
    views: str | None = None
    license: str | None = None
    position_resize: str | None = None


def convert(state: State) -> State:
    """Renames the tensors of any layout above, the decoder's included.

    Args:
        state: Tensors by name. Names of no known layout are left as they are: loading lists them.

    Returns:
        The same tensors under our names; of SAM 2 those of its trunk alone.
    """
    if any(re.match(r"(hiera\.)?trunk\.", key) for key in state):
        return _renamed(state, TRANSFORMERS_OURS)
    windows = next((key for key in state if key.endswith("pos_embed_window")), None)
    if windows is not None and (windows != "pos_embed_window" or "blocks.0.layer_norm1.weight" in state):
        trunk = windows.removesuffix("pos_embed_window")  # beside it are SAM 2's neck, memory and decoder
        return _renamed({key: value for key, value in state.items() if key.startswith(trunk)}, SAM2)
    if any(re.match(r"(hiera\.)?(embeddings|encoder\.stages)\.", key) for key in state):
        return _renamed(_numbered(state), TRANSFORMERS)
    if any(key.startswith(("head.norm.", "head.fc.")) for key in state):
        return _renamed(state, TIMM)
    return state


def split_state(state: State) -> tuple[State, State]:
    """Takes an MAE apart.

    Args:
        state: Tensors under our names.

    Returns:
        The encoder (with a classifier's norm and head), and what only an MAE has.
    """
    decoder = {key: value for key, value in state.items() if key.startswith(DECODER)}
    return {key: value for key, value in state.items() if key not in decoder}, decoder


def _renamed(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, value in state.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def _numbered(state: State) -> State:
    """transformers counts blocks within each stage, we count them through."""
    pattern = re.compile(r"^(?:hiera\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.")
    blocks = {(int(match[1]), int(match[2])) for key in state if (match := pattern.match(key))}
    depths = Counter(stage for stage, _ in blocks)
    first = {stage: sum(depths[earlier] for earlier in range(stage)) for stage in depths}
    return {
        pattern.sub(lambda match: f"blocks.{first[int(match[1])] + int(match[2])}.", key): value
        for key, value in state.items()
    }


def describe(config: dict[str, Any], source: str) -> Facts:
    """Understands a ``config.json`` of any layout.

    Args:
        config: What it holds.
        source: What errors call it.

    Returns:
        The facts in it.

    Raises:
        WeightsError: A layout, a field or a value is unknown to this package.
    """
    try:
        if "format_version" in config:
            return _ours(config)
        if config.get("model_type") in ("hiera", "hiera_video"):
            return _transformers(config)
        if str(config.get("model_type", "")).startswith("sam2"):
            return _sam2(config)
        if str(config.get("architecture", "")).startswith(("hiera_", "sam2_hiera_", "hieradet_")):
            return _timm(config)
        if "stages" in config and "embed_dim" in config:
            return _authors(config)
    except (HieraVideoError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise WeightsError(f"{source} cannot be used: {error}") from error
    raise WeightsError(
        f"{source} is of no known layout: known are hiera_video's, the authors', transformers' Hiera and timm's"
    )


def _ours(config: dict[str, Any]) -> Facts:
    if config["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"format_version {config['format_version']} is newer than {FORMAT_VERSION}, the newest this version reads"
        )
    beside = {"format_version", "clip", "views", "labels", "multi_label", "license", "position_resize"}
    values = {key: value for key, value in config.items() if key not in beside}
    return Facts(
        arch=from_mapping(MAEArchitecture if "decoder_depth" in values else Architecture, values),
        spec=ClipSpec.from_dict(config["clip"]),
        labels=config.get("labels"),
        multi_label=bool(config.get("multi_label", False)),
        views=config.get("views"),
        license=config.get("license"),
        position_resize=config.get("position_resize"),
    )


def _authors(config: dict[str, Any]) -> Facts:
    mae = {"decoder_embed_dim", "decoder_depth", "decoder_num_heads"}
    if config.get("norm_layer", "LayerNorm") != "LayerNorm":
        raise ValueError(f"norm_layer {config['norm_layer']!r} is not LayerNorm")
    values = {name: value for name, value in config.items() if name not in (*mae, "norm_layer")}
    arch = from_mapping(Architecture, IMAGE_FORM | values)
    # The reference package leaves the decoder's fields out of an MAE's config: then the tensors say what it is.
    return Facts(
        arch=mae_form(arch, **{key: config[key] for key in mae & config.keys()}) if mae & config.keys() else arch
    )


def _transformers(config: dict[str, Any]) -> Facts:
    # transformers leaves values out of config.json that equal its defaults; only ours has video and the last fields.
    heads = list(config.get("num_heads", (1, 2, 4, 8)))
    multiple = heads[1] / heads[0] if len(heads) > 1 else 2.0
    if heads != [int(heads[0] * multiple**stage) for stage in range(len(heads))]:
        raise ValueError(f"num_heads {heads} does not grow by one factor")
    size = config.get("image_size", (224, 224))
    given = {ours: config[theirs] for ours, theirs in CONFIG_NAMES.items() if config.get(theirs) is not None}
    values = IMAGE_FORM | {"sep_pos_embed": not isinstance(size, int) and len(size) == 3} | given
    values |= {"input_size": (size, size) if isinstance(size, int) else size, "num_heads": heads[0]}
    # Nothing said means transformers' two classes, an empty table none.
    labels = config.get("id2label")
    values |= {"num_classes": 2 if labels is None else len(labels), "head_mul": multiple}
    arch = from_mapping(Architecture, values)
    if config.get("decoder_depth") is not None:
        arch = MAEArchitecture(
            **vars(arch),
            mask_ratio=config.get("mask_ratio", 0.6),
            decoder_embed_dim=config["decoder_hidden_size"],
            decoder_depth=config["decoder_depth"],
            decoder_num_heads=config["decoder_num_heads"],
        )
    named = {int(index): name for index, name in (config.get("id2label") or {}).items()}
    labels = [named[index] for index in range(len(named))]
    numbered = all(name == f"LABEL_{index}" for index, name in enumerate(labels))
    return Facts(
        arch=arch,
        spec=ClipSpec.from_dict(config["clip"]) if config.get("clip") else None,
        labels=None if numbered else labels,
        multi_label=config.get("problem_type") == "multi_label_classification",
        views=config.get("views"),
        license=config.get("license"),
        position_resize=config.get("position_resize", "plain") if config["model_type"] == "hiera_video" else None,
    )


def _sam2(config: dict[str, Any]) -> Facts:
    """transformers' Sam2Model, Sam2VisionModel or Sam2HieraDetModel; what a config leaves out is the tiny model's."""
    vision = config.get("vision_config", config)
    trunk = vision.get("backbone_config", vision)
    size = trunk.get("image_size", (1024, 1024))
    side = tuple(size) if isinstance(size, list | tuple) else (size, size)
    values = IMAGE_FORM | {
        "input_size": side,
        "num_classes": 0,
        "embed_dim": trunk.get("hidden_size", 96),
        "num_heads": trunk.get("num_attention_heads", 1),
        "stages": trunk.get("blocks_per_stage", (1, 2, 7, 2)),
        "q_pool": trunk.get("num_query_pool_stages", 3),
        "abs_win_pos_embed": True,
        "global_pos_size": trunk.get("window_positional_embedding_background_size", (7, 7)),
        "windows": trunk.get("window_size_per_stage", (8, 4, 14, 7)),
        "global_blocks": trunk.get("global_attention_blocks", (5, 7, 9)),
    }
    spec = IMAGE_SPEC.replace(size=side, resize=min(side))
    return Facts(arch=from_mapping(Architecture, values), spec=spec, license="apache-2.0")


def _timm(config: dict[str, Any]) -> Facts:
    """The architecture is left to the tensors where timm's config has only its name."""
    cfg, args, arch = config.get("pretrained_cfg", {}), config.get("model_args", {}), None
    names = TIMM_ARGS | {"windows": "window_spec", "global_blocks": "global_att_blocks"}
    fields = {ours: args[theirs] for ours, theirs in names.items() if args.get(theirs) is not None}
    if fields.keys() | {"layer_scale", "global_pos_size"} >= TIMM_ARGS.keys():
        said = {"pos_antialias": fields["abs_win_pos_embed"], "num_classes": config.get("num_classes", 1000)}
        arch = from_mapping(Architecture, IMAGE_FORM | fields | said)
    spec = IMAGE_SPEC.replace(
        mean=tuple(cfg.get("mean", IMAGE_SPEC.mean)),
        std=tuple(cfg.get("std", IMAGE_SPEC.std)),
        interpolation=cfg.get("interpolation", IMAGE_SPEC.interpolation),
    )
    if "input_size" in cfg:
        height, width = cfg["input_size"][-2:]
        spec = spec.replace(size=(height, width), resize=int(min(height, width) / cfg.get("crop_pct", 0.875)))
    classes = config.get("num_classes")
    labels = config.get("label_names")
    several, license = bool(config.get("multi_label")), cfg.get("license")
    said = {"num_classes": classes, "labels": labels, "multi_label": several, "license": license}
    return Facts(arch=arch, fields=fields, spec=spec, **said)
