"""Models by name: the architectures and checkpoints as two literal tables, and the two ways to get a model.

Names are the published ones; ``arch.tag`` is a checkpoint of an architecture, as on the hub. A name that starts with
``mae_`` is the masked autoencoder around the encoder of that name.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiera_video.errors import RequestError, UnknownModel, WeightsError
from hiera_video.files import labels_of
from hiera_video.models.architecture import Architecture, MAEArchitecture, classifier_form, mae_form
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
)
from hiera_video.models.checkpoints.download import UnavailableError, author_file, hub_file
from hiera_video.models.checkpoints.formats import IMAGE_FORM, Facts, State, convert
from hiera_video.models.checkpoints.io import read_state
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE
from hiera_video.models.unroll import Size
from hiera_video.spec import IMAGE_SPEC, ClipSpec

#: Sizes: paper, Table 1 and appendix; a video form differs from the image form in the patch kernel and the
#: position embeddings alone. The field has no small video models (reference issue 10): tiny, small and nano are ours.
ARCHITECTURES: dict[str, Architecture] = {
    "hiera_tiny_224": Architecture(**IMAGE_FORM, stages=(1, 2, 7, 2)),
    "hiera_small_224": Architecture(**IMAGE_FORM, stages=(1, 2, 11, 2)),
    "hiera_base_224": Architecture(**IMAGE_FORM),
    "hiera_base_plus_224": Architecture(**IMAGE_FORM, embed_dim=112, num_heads=2),
    "hiera_large_224": Architecture(**IMAGE_FORM, embed_dim=144, num_heads=2, stages=(2, 6, 36, 4)),
    "hiera_huge_224": Architecture(**IMAGE_FORM, embed_dim=256, num_heads=4, stages=(2, 6, 36, 4)),
    "hiera_nano_16x64": Architecture(input_size=(16, 64, 64), embed_dim=40, stages=(1, 2, 4, 1)),
    "hiera_tiny_16x224": Architecture(stages=(1, 2, 7, 2)),
    "hiera_small_16x224": Architecture(stages=(1, 2, 11, 2)),
    "hiera_base_16x224": Architecture(),
    "hiera_base_plus_16x224": Architecture(embed_dim=112, num_heads=2),
    "hiera_large_16x224": Architecture(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4)),
    "hiera_huge_16x224": Architecture(embed_dim=256, num_heads=4, stages=(2, 6, 36, 4)),
}

#: Around each of them an MAE: mask ratio 0.9 for video and 0.6 for images, the reference's decoder.
MAE_ARCHITECTURES: dict[str, MAEArchitecture] = {f"mae_{name}": mae_form(arch) for name, arch in ARCHITECTURES.items()}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One published set of weights; where ``hub`` and ``url`` are None it ships inside this package.

    ``metric`` is the published figure. ``encoder_only`` repositories of the hub hold the encoder of an MAE: norm and
    head start new (those in the files were never trained). Facts that are None stand in the checkpoint's own config.
    """

    hub: str | None = None
    url: str | None = None
    sha256: str | None = None
    license: str = "cc-by-nc-4.0"
    metric: str | None = None
    spec: ClipSpec | None = None
    num_classes: int
    labels: str | None = None
    views: str | None = None
    encoder_only: bool = False


#: The authors' server; the model table of the reference README links to it.
AUTHORS = "https://dl.fbaipublicfiles.com/hiera/"


def _published(arch: str, top1: float) -> dict[str, Checkpoint]:
    """The three checkpoints of each published size: fine-tuned, the MAE's encoder, the MAE (both in one file)."""
    if len(ARCHITECTURES[arch].input_size) == 3:
        data, labels, metric = "k400", "kinetics400", f"Kinetics-400 top-1 {top1} % (5x3 views)"
        facts: dict[str, Any] = {"spec": ClipSpec(), "num_classes": 400, "views": "5x3"}
    else:
        data, labels, metric = "in1k", "imagenet1k", f"ImageNet-1K top-1 {top1} %"
        facts = {"spec": IMAGE_SPEC, "num_classes": 1000, "views": "1x1"}
    tuned, encoder, mae = f"{arch}.mae_{data}_ft_{data}", f"{arch}.mae_{data}", f"mae_{arch}.mae_{data}"
    url = f"{AUTHORS}mae_{arch}.pth"
    return {
        tuned: Checkpoint(hub=f"facebook/{tuned}", url=f"{AUTHORS}{arch}.pth", metric=metric, labels=labels, **facts),
        encoder: Checkpoint(hub=f"facebook/{encoder}", url=url, encoder_only=True, **facts),
        mae: Checkpoint(hub=f"facebook/{mae}", url=url, **facts),  # the repository's name: by the rule, not seen
    }


#: The first checkpoint of an architecture is its default. Figures (top-1 in percent): reference README.
CHECKPOINTS: dict[str, Checkpoint] = {
    **_published("hiera_tiny_224", 82.8),
    **_published("hiera_small_224", 83.8),
    **_published("hiera_base_224", 84.5),
    **_published("hiera_base_plus_224", 85.2),
    **_published("hiera_large_224", 86.1),
    **_published("hiera_huge_224", 86.9),
    **_published("hiera_base_16x224", 84.0),
    **_published("hiera_base_plus_16x224", 85.0),
    **_published("hiera_large_16x224", 87.3),
    **_published("hiera_huge_16x224", 87.8),
    "hiera_nano_16x64.camera_motion": Checkpoint(license="apache-2.0", num_classes=9),
}

#: Checkpoints that ship inside the package, each a folder of our own format.
#: The model that ships with the package and answers without a network; and the first to name for Kinetics actions.
BUILT_IN = "hiera_nano_16x64.camera_motion"
KINETICS = "hiera_base_16x224.mae_k400_ft_k400"
SHIPPED = Path(__file__).parents[1] / "weights"


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Architectures, MAEs after the classifiers, or with ``pretrained`` checkpoints (``arch.tag``), whose name matches
    a shell pattern.
    """
    names = CHECKPOINTS if pretrained else [*ARCHITECTURES, *MAE_ARCHITECTURES]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


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
    **config: Any,
) -> Any:
    """A model by its published name, with new weights or, ``pretrained``, with those of a checkpoint.

    It is a :class:`Hiera`, and under a name that starts with ``mae_`` a :class:`HieraMAE`, which has no
    ``num_classes``. ``name`` may be ``arch.tag``; else ``checkpoint`` is the tag (default: the architecture's first).
    A video model also takes the tags of its image twin, whose weights are then inflated (:func:`weights.inflate`).
    Without ``pretrained`` a tag still decides classes, labels and :class:`ClipSpec`. ``config`` are fields of
    :class:`Architecture` or :class:`MAEArchitecture`; the rest is as in :func:`from_pretrained`.

    Raises :class:`UnknownModel`, :class:`RequestError`, :class:`SizeError`, :class:`WeightsError`.
    """
    arch_name, tag = _split(name, checkpoint)
    arch = _architecture(arch_name)
    if isinstance(arch, MAEArchitecture) and num_classes is not None:
        raise RequestError(f"{arch_name} has no classes: leave num_classes out")
    if pretrained:
        full = _full_name(arch_name, tag)
        state, facts = _from_checkpoint(full, revision, cache_dir, local_files_only)
        how: dict[str, Any] = {"input_size": input_size, "position_resize": position_resize, "config": config}
        how |= {"source": full, "known": ARCHITECTURES, "arch": arch if _is_twins(full, arch_name) else None}
        if isinstance(arch, MAEArchitecture):
            return assemble_mae(state, facts, **how)
        return assemble(state, facts, num_classes=num_classes, **how)
    entry = CHECKPOINTS.get(f"{arch_name}.{tag}")
    classes = arch.num_classes if entry is None else entry.num_classes
    arch = changed(arch, classes if num_classes is None else num_classes, input_size, config)
    spec = fitted(entry.spec if entry and entry.spec else default_spec(arch), arch.input_size)
    way = position_way(position_resize)
    if isinstance(arch, MAEArchitecture):
        mae = HieraMAE(arch, spec)
        mae.position_resize = way
        return mae
    model = Hiera(arch, spec)
    model.position_resize = way
    if entry and entry.labels and arch.num_classes == entry.num_classes:
        model.labels = labels_of(entry.labels)
    if entry and entry.views:
        model.views = entry.views
    return model


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
    """A classifier in evaluation mode, out of a name here, a file, a folder or a repository of the hub.

    Read are: ``arch.tag`` names; published and other ``.pth`` files; ``.safetensors`` files, with a config.json beside
    them or not; local folders and hub repositories of ours, the authors', transformers' Hiera and timm's. Without a
    config the architecture is recognised by the tensors, or given as ``arch``. An image file with a video ``arch`` is
    inflated (:func:`weights.inflate`). An MAE gives its encoder; norm and head are new then, and the log says so.

    Another ``num_classes`` than the file's makes the head new, and the log says so. Another ``input_size`` makes
    position embeddings for it, by ``position_resize`` "window" (default) or "plain"; fewer frames keep the clip's
    span. ``revision``, ``cache_dir`` and ``local_files_only`` are the hub's. ``config`` changes fields of
    :class:`Architecture` (``drop_path_rate=0.1``).

    Raises :class:`WeightsError` for what cannot be had, trusted or fitted; else as :func:`create_model`.
    """
    given = _architecture(_split(arch, None)[0]) if isinstance(arch, str) else arch
    state, facts, twin = _fetch(name_or_path, revision, cache_dir, local_files_only)
    return assemble(
        state,
        facts,
        source=str(name_or_path),
        known=ARCHITECTURES,
        arch=given or twin,
        num_classes=num_classes,
        input_size=input_size,
        position_resize=position_resize,
        config=config,
    )


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
    """An MAE in evaluation mode, out of everything that :func:`from_pretrained` reads.

    The decoder is loaded where there is one; a classifier gives its encoder, and the decoder is new. The log says
    what is new and what was left behind. Without a config the decoder is recognised by its tensors, but for its
    heads: 16, or ``decoder_num_heads``. ``config`` are fields of :class:`MAEArchitecture`; another width or depth of
    the decoder makes it new. The rest is as in :func:`from_pretrained`.
    """
    # A name stands for the encoder: what decoder belongs to it, the tensors say.
    given = classifier_form(_architecture(_split(arch, None)[0])) if isinstance(arch, str) else arch
    state, facts, twin = _fetch(name_or_path, revision, cache_dir, local_files_only, mae=True)
    return assemble_mae(
        state,
        facts,
        source=str(name_or_path),
        known=ARCHITECTURES,
        arch=given or twin,
        input_size=input_size,
        position_resize=position_resize,
        config=config,
    )


def _architecture(name: str) -> Architecture:
    return MAE_ARCHITECTURES[name] if name in MAE_ARCHITECTURES else ARCHITECTURES[name]


def _fetch(
    name_or_path: str | Path,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    *,
    mae: bool = False,
) -> tuple[State, Facts, Architecture | None]:
    """State and facts of a name, path or hub id; and the video architecture, where a name stands for image weights.

    With ``mae`` the name of an MAE's encoder stands for the MAE: its decoder is wanted too.
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
            state, facts = from_hub(name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        except UnavailableError as error:
            raise WeightsError(f"{name} is no folder here and could not be had from the hub ({error})") from error
        return state, facts, None
    arch, tag = _split(_published_repo(name) or name, None)
    full = _full_name(arch, tag)
    twin = _architecture(arch) if _is_twins(full, arch) else None
    if mae and CHECKPOINTS[full].encoder_only:
        full = f"mae_{full}"
    return (*_from_checkpoint(full, revision, cache_dir, local_files_only), twin)


def _from_checkpoint(
    full: str, revision: str | None, cache_dir: str | Path | None, local_files_only: bool
) -> tuple[State, Facts]:
    """State and facts of a checkpoint in the table: from the package, the hub, or the authors' server."""
    entry = CHECKPOINTS[full]
    if entry.hub is None and entry.url is None:
        if not (SHIPPED / full).is_dir():
            raise WeightsError(f"{full} is missing from this installation ({SHIPPED}); install hiera_video anew")
        return from_disk(SHIPPED / full)
    reasons = []
    where: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "license": entry.license}
    for source in ("hub", "authors"):
        try:
            if source == "hub" and entry.hub:
                path = hub_file(entry.hub, WEIGHT_FILES, revision=revision, **where)
            elif source == "authors" and entry.url and revision is None:
                path = author_file(entry.url, sha256=entry.sha256, **where)
            else:
                continue
            break
        except UnavailableError as error:
            reasons.append(str(error))
    else:
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


def _nearest(word: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.3) or known[:3])


def _tags(arch: str) -> list[str]:
    return [full.partition(".")[2] for full in CHECKPOINTS if full.startswith(f"{arch}.")]


def _image_twin(arch: str) -> str:
    """hiera_base_16x224 -> hiera_base_224; an image name stays."""
    return re.sub(r"_\d+x(\d+)$", r"_\1", arch)


def _split(name: str, checkpoint: str | None) -> tuple[str, str | None]:
    """Architecture and tag, both checked, of ``arch``, ``arch.tag``, or ``arch`` with ``checkpoint=tag``."""
    arch, _, tag = name.partition(".")
    if arch not in ARCHITECTURES and arch not in MAE_ARCHITECTURES:
        known = list_models(pretrained=True) if tag else list_models()
        raise UnknownModel(f"no model is called {name!r}; the nearest names: {_nearest(name, known)}")
    if tag and checkpoint and tag != checkpoint:
        raise RequestError(f"{name!r} names a checkpoint, and checkpoint={checkpoint!r} another one")
    wanted = tag or checkpoint
    known = list(dict.fromkeys(_tags(arch) + _tags(_image_twin(arch))))
    if wanted and wanted not in known:
        nearest = f"the nearest: {_nearest(wanted, known)}" if known else "it has none"
        raise UnknownModel(f"{arch} has no checkpoint {wanted!r}; {nearest}")
    return arch, wanted or None


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
