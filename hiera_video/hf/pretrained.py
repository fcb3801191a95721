"""Weights of other forms, read for the models of this package: configuration values and a state under our names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hiera_video.hf.configuration import config_values
from hiera_video.models.checkpoints.build import from_disk, from_hub
from hiera_video.models.checkpoints.download import Hub
from hiera_video.models.checkpoints.formats import Facts, State
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.zoo import from_pretrained, mae_from_pretrained

#: Arguments of ``from_pretrained`` that say where to look: ours, and those that transformers has beside them.
HUB = ("revision", "cache_dir", "local_files_only")
PLACES = (*HUB, "token", "subfolder")


def read_foreign(name: str | Path, *, mae: bool, **hub: Any) -> tuple[State, dict[str, Any]] | None:
    """Reads weights of another form than transformers' own of this package.

    Args:
        name: A folder or hub repository in transformers' own ``hiera`` layout, or what
            :func:`hiera_video.from_pretrained` reads: names, files, folders and repositories of ours, the authors'
            and timm's.
        mae: Whether an MAE is asked for, as :func:`hiera_video.mae_from_pretrained` reads it.
        hub: Where to look, :data:`PLACES`.

    Returns:
        Tensors under our names and arguments of :class:`HieraConfig`; None where transformers reads ``name`` by
        itself.

    Raises:
        HieraVideoError: As in :func:`hiera_video.from_pretrained`.
    """
    path, where = Path(name), {key: value for key, value in hub.items() if key in HUB}
    if path.is_dir() or (not path.exists() and "/" in str(name)):
        try:
            config, _ = PreTrainedConfig.get_config_dict(name, **hub)
        except OSError:  # transformers says what is missing
            return None
        if config.get("model_type") == "hiera_video":
            return None
        if config.get("model_type") == "hiera":
            left = {"model_type", "architectures", "transformers_version"}
            inside = path / hub.get("subfolder", "")
            state, _ = from_disk(inside) if path.is_dir() else from_hub(str(name), Hub(**where))
            return state, {key: value for key, value in config.items() if key not in left}
    native = mae_from_pretrained(name, **where) if mae else from_pretrained(name, **where)
    return dict(native.state_dict()), values_of(native)


def values_of(model: Hiera | HieraMAE) -> dict[str, Any]:
    """Describes one of our models to transformers.

    Args:
        model: A classifier or an MAE.

    Returns:
        Arguments of :class:`HieraConfig`.
    """
    answers: dict[str, Any] = {}
    if isinstance(model, Hiera):
        answers = {"views": model.views, "labels": model.labels, "multi_label": model.multi_label}
    facts = Facts(spec=model.spec, license=model.license, position_resize=model.position_resize, **answers)
    return config_values(model.arch, facts)
