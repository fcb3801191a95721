"""Models into files and onto the hub: our own folder, and timm's.

Our folder is ``model.safetensors``, a flat ``config.json`` (the published constructor names, then ``clip``,
``views``, ``labels``, ``multi_label`` where it is true, ``license``, ``position_resize`` and ``format_version``; an
MAE's has the decoder's fields, and neither views nor labels) and ``README.md``, a model card.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file

from hiera_video.errors import OutputError, RequestError
from hiera_video.files import replacing
from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import FORMAT_VERSION, TIMM_ARGS, State
from hiera_video.models.published import ARCHITECTURES
from hiera_video.models.timm_form import pretrained_cfg
from hiera_video.spec import ClipSpec

Layout = Literal["ours", "timm"]


class Model(Protocol):
    """What is saved: a classifier or an MAE, which this module need not know (they know it)."""

    arch: Any
    spec: ClipSpec
    license: str | None
    position_resize: str

    def state_dict(self) -> State: ...


def config_of(model: Model) -> dict[str, Any]:
    """What ``config.json`` says of a model.

    Args:
        model: A classifier or an MAE.

    Returns:
        Values for JSON; reading them back gives an equal model.
    """
    names = () if isinstance(model.arch, MAEArchitecture) else ("views", "labels", "multi_label")
    answers = {name: getattr(model, name) for name in names}
    if answers.get("multi_label") is False:
        del answers["multi_label"]
    return {
        **vars(model.arch),
        "clip": model.spec.to_dict(),
        **answers,
        "license": model.license,
        "position_resize": model.position_resize,
        "format_version": FORMAT_VERSION,
    }


def save_pretrained(model: Model, folder: str | Path, *, layout: Layout = "ours") -> Path:
    """Writes a model as a folder: ``model.safetensors``, ``config.json`` and ``README.md``.

    Each file is written under a temporary name and renamed when it is whole. Tensors keep their dtype.

    Args:
        model: A classifier or an MAE.
        folder: Where to; it is made where it is not there.
        layout: "ours", or "timm": ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the model.

    Returns:
        The folder.

    Raises:
        RequestError: timm's Hiera cannot hold this model, or there is no such layout.
        OutputError: The folder cannot be written.
    """
    if layout not in ("ours", "timm"):
        raise RequestError(f"layout {layout!r} must be ours or timm")
    folder = Path(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    values = config_of(model)
    if layout == "timm":
        values = _timm_config(model)
        names = (("norm.", "head.norm."), ("head.projection.", "head.fc."), ("pos_embed_window", "pos_embed_win"))
        for ours, theirs in names:
            tensors = {theirs + key[len(ours) :] if key.startswith(ours) else key: one for key, one in tensors.items()}
    config = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    writers: dict[str, Callable[[Path], object]] = {
        "model.safetensors": lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        "README.md": lambda path: path.write_text(_card(model), encoding="utf-8"),
        "config.json": lambda path: path.write_text(config, encoding="utf-8"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            with replacing(folder / name) as temporary:
                write(temporary)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
    return folder


def _timm_config(model: Model) -> dict[str, Any]:
    """timm's config.json, with every argument of its Hiera, so that sizes without a name there are held too."""
    arch: Architecture = model.arch
    kept = {**{name: getattr(arch, name) for name in TIMM_ARGS}, "num_classes": arch.num_classes}
    plain = replace(Architecture(**kept), head_init_scale=arch.head_init_scale, pos_antialias=arch.abs_win_pos_embed)
    if isinstance(arch, MAEArchitecture) or len(arch.input_size) != 2 or plain != arch:
        raise RequestError(
            "timm's layout holds classifiers of images with timm's own parts: no video, decoder, windows of SAM 2, "
            "other head or activation"
        )
    args = {theirs: getattr(arch, ours) for ours, theirs in TIMM_ARGS.items() if getattr(arch, ours) != ()}
    shape = (arch.embed_dim, arch.stages, arch.input_size)
    alike = [name for name, own in ARCHITECTURES.items() if (own.embed_dim, own.stages, own.input_size) == shape]
    facts = pretrained_cfg(arch, model.spec, model.license)
    del facts["architecture"], facts["num_classes"]
    labels = getattr(model, "labels", None)
    return {
        "architecture": alike[0] if alike else "hiera_base_224",  # all its arguments are named below
        "num_classes": arch.num_classes,
        "num_features": arch.dims[-1],
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": facts | {"classifier": "head.fc", "fixed_input_size": not arch.abs_win_pos_embed},
        **({"label_names": labels} if labels else {}),
        **({"multi_label": True} if getattr(model, "multi_label", False) else {}),  # timm has no word for it
    }


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a hiera_video model",
) -> str:
    """Uploads a model to the hub, as :func:`save_pretrained` writes it; ``HF_ENDPOINT`` counts.

    Args:
        model: A classifier or an MAE.
        repo_id: The repository, ``owner/name``; it is made where it is not there.
        private: Whether a new repository is private. Default: as the owner's settings say.
        token: The hub's access token. Default: the one that was saved at login.
        revision: The branch to commit to. Default: the main one.
        commit_message: The commit's message.

    Returns:
        The commit's address.

    Raises:
        OutputError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        except Exception as error:  # the hub's client raises its own errors, httpx's and (older) requests'
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise OutputError(f"{repo_id} cannot be written on {constants.ENDPOINT}: {reason[0]}") from error
    return str(commit)


def _card(model: Model) -> str:
    arch, spec = model.arch, model.spec
    kind, size = "video" if len(arch.input_size) == 3 else "image", "x".join(map(str, arch.input_size))
    parameters = sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6
    license = [f"license: {model.license}"] if model.license else []
    text = [
        f"A Hiera (arXiv 2306.00989) of {parameters:.1f} M parameters: width {arch.embed_dim}, blocks "
        f"{', '.join(map(str, arch.stages))}, written by hiera_video."
    ]
    if not isinstance(arch, MAEArchitecture):
        head = [f"pipeline_tag: {kind}-classification", *license, "tags:", "- hiera"]
        title = f"# Hiera, {size}, {arch.num_classes} classes"
        use = ['model = hiera_video.from_pretrained("PATH_OR_HUB_ID")']
    else:
        head = [*license, "tags:", "- hiera", "- masked-autoencoder"]
        title = f"# Hiera, {size}, masked autoencoder"
        text.append(
            f"Encoder and decoder of the pretext task: pixels of hidden mask units are predicted from the visible "
            f"ones (mask ratio {arch.mask_ratio:g}; decoder of width {arch.decoder_embed_dim}, "
            f"{arch.decoder_depth} blocks, {arch.decoder_num_heads} heads)."
        )
        use = [
            'mae = hiera_video.mae_from_pretrained("PATH_OR_HUB_ID")',
            'classifier = hiera_video.from_pretrained("PATH_OR_HUB_ID", num_classes=10)  # its encoder, a new head',
        ]
    if kind == "video":
        text.append(
            f"A clip is {spec.num_frames} frames over {spec.span:.2f} s ({spec.num_frames}x{spec.frame_stride:g} at "
            f"{spec.target_fps:g} frames per second)."
        )
    if labels := getattr(model, "labels", None):
        text.append(f"Classes: {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}.")
    lines = ["---", "library_name: hiera_video", *head, "---", "", title, ""]
    lines += [line for part in text for line in (part, "")]
    return "\n".join([*lines, "```python", "import hiera_video", "", *use, "```", ""])
