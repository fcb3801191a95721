"""What is published: the architectures and the checkpoints, as two literal tables.

Names are the published ones; ``arch.tag`` is a checkpoint of an architecture, as on the hub. A name that starts with
``mae_`` is the masked autoencoder around the encoder of that name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hiera_video.models.architecture import Architecture, MAEArchitecture, mae_form
from hiera_video.models.checkpoints.formats import IMAGE_FORM
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


def _windowed(name: str, size: int, **fields: Any) -> Architecture:
    """The image form of a size with absolute-window position embeddings."""
    return replace(ARCHITECTURES[name], input_size=(size, size), abs_win_pos_embed=True, **fields)


def _sam2(name: str, background: int, windows: Size, global_blocks: Size) -> Architecture:
    """A trunk of SAM 2 (sam2/configs), which has no head."""
    fields: dict[str, Any] = {"global_pos_size": (background, background), "num_classes": 0}
    return _windowed(name, 1024, windows=windows, global_blocks=global_blocks, **fields)


#: timm's, which have layer scale, and SAM 2's trunks.
ARCHITECTURES |= {
    "hiera_small_abswin_256": _windowed(
        *("hiera_small_224", 256), global_pos_size=(16, 16), pos_antialias=True, layer_scale=1e-5, expand_proj=False
    ),
    "hiera_base_abswin_256": _windowed(
        *("hiera_base_224", 256), global_pos_size=(14, 14), pos_antialias=True, layer_scale=1e-5
    ),
    "hiera_tiny_1024": _sam2("hiera_tiny_224", 7, (8, 4, 14, 7), (5, 7, 9)),
    "hiera_small_1024": _sam2("hiera_small_224", 7, (8, 4, 14, 7), (7, 10, 13)),
    "hiera_base_plus_1024": _sam2("hiera_base_plus_224", 14, (8, 4, 14, 7), (12, 16, 20)),
    "hiera_large_1024": _sam2("hiera_large_224", 7, (8, 4, 16, 8), (23, 33, 43)),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One published set of weights; where ``hub`` and ``url`` are None it ships inside this package.

    Facts that are None stand in the checkpoint's own config.

    Args:
        hub: The repository on the Hugging Face hub.
        url: The file on the authors' server.
        sha256: That file's checksum, hexadecimal.
        license: The licence of the weights, by the hub's identifier.
        metric: The published figure.
        spec: What a clip is.
        num_classes: Classes of the head.
        labels: The list of class names, for :func:`hiera_video.files.labels_of`.
        views: Test views, clips x crops.
        encoder_only: Whether it is the encoder of an MAE: norm and head start new (those in the files were never
            trained).
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


def _of_timm(tag: str, num_classes: int) -> dict[str, Checkpoint]:
    name = f"hiera_small_abswin_256.{tag}"
    spec = IMAGE_SPEC.replace(size=(256, 256), resize=269)  # crop_pct 0.95
    labels = "imagenet1k" if num_classes == 1000 else None
    facts: dict[str, Any] = {"spec": spec, "labels": labels, "views": "1x1", "license": "apache-2.0"}
    return {name: Checkpoint(hub=f"timm/{name}", num_classes=num_classes, **facts)}


def _of_sam2(size: str) -> dict[str, Checkpoint]:
    """SAM 2 and 2.1, in transformers' layout."""
    spec = IMAGE_SPEC.replace(size=(1024, 1024), resize=1024)
    hubs = {"sam2": f"facebook/sam2-hiera-{size}", "sam2_1": f"facebook/sam2.1-hiera-{size}"}
    facts: dict[str, Any] = {"spec": spec, "num_classes": 0, "views": "1x1", "license": "apache-2.0"}
    return {f"hiera_{size.replace('-', '_')}_1024.{tag}": Checkpoint(hub=hub, **facts) for tag, hub in hubs.items()}


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
    **_of_timm("sbb2_e200_in12k_ft_in1k", 1000),
    **_of_timm("sbb2_pd_e200_in12k_ft_in1k", 1000),
    **_of_timm("sbb2_e200_in12k", 11_821),
    **_of_timm("sbb2_pd_e200_in12k", 11_821),
    **_of_sam2("tiny"),
    **_of_sam2("small"),
    **_of_sam2("base-plus"),
    **_of_sam2("large"),
    "hiera_nano_16x64.camera_motion": Checkpoint(license="apache-2.0", num_classes=9),
    "hiera_nano_16x64.general": Checkpoint(license="apache-2.0", num_classes=0),
}

#: Checkpoints that ship inside the package, each a folder of our own format.
SHIPPED = Path(__file__).parents[1] / "weights"


#: The names in the tables, for type checkers: they tell a classifier from an MAE.
# fmt: off
ClassifierName = Literal[
    "hiera_tiny_224", "hiera_small_224", "hiera_base_224", "hiera_base_plus_224", "hiera_large_224",
    "hiera_huge_224", "hiera_nano_16x64", "hiera_tiny_16x224", "hiera_small_16x224", "hiera_base_16x224",
    "hiera_base_plus_16x224", "hiera_large_16x224", "hiera_huge_16x224",
    "hiera_tiny_224.mae_in1k_ft_in1k", "hiera_tiny_224.mae_in1k", "hiera_small_224.mae_in1k_ft_in1k",
    "hiera_small_224.mae_in1k", "hiera_base_224.mae_in1k_ft_in1k", "hiera_base_224.mae_in1k",
    "hiera_base_plus_224.mae_in1k_ft_in1k", "hiera_base_plus_224.mae_in1k", "hiera_large_224.mae_in1k_ft_in1k",
    "hiera_large_224.mae_in1k", "hiera_huge_224.mae_in1k_ft_in1k", "hiera_huge_224.mae_in1k",
    "hiera_base_16x224.mae_k400_ft_k400", "hiera_base_16x224.mae_k400", "hiera_base_plus_16x224.mae_k400_ft_k400",
    "hiera_base_plus_16x224.mae_k400", "hiera_large_16x224.mae_k400_ft_k400", "hiera_large_16x224.mae_k400",
    "hiera_huge_16x224.mae_k400_ft_k400", "hiera_huge_16x224.mae_k400", "hiera_nano_16x64.camera_motion",
    "hiera_nano_16x64.general",
    "hiera_small_abswin_256", "hiera_base_abswin_256", "hiera_tiny_1024", "hiera_small_1024", "hiera_base_plus_1024",
    "hiera_large_1024", "hiera_small_abswin_256.sbb2_e200_in12k_ft_in1k",
    "hiera_small_abswin_256.sbb2_pd_e200_in12k_ft_in1k", "hiera_small_abswin_256.sbb2_e200_in12k",
    "hiera_small_abswin_256.sbb2_pd_e200_in12k", "hiera_tiny_1024.sam2", "hiera_tiny_1024.sam2_1",
    "hiera_small_1024.sam2", "hiera_small_1024.sam2_1", "hiera_base_plus_1024.sam2", "hiera_base_plus_1024.sam2_1",
    "hiera_large_1024.sam2", "hiera_large_1024.sam2_1",
]
MAEName = Literal[
    "mae_hiera_tiny_224", "mae_hiera_small_224", "mae_hiera_base_224", "mae_hiera_base_plus_224",
    "mae_hiera_large_224", "mae_hiera_huge_224", "mae_hiera_nano_16x64", "mae_hiera_tiny_16x224",
    "mae_hiera_small_16x224", "mae_hiera_base_16x224", "mae_hiera_base_plus_16x224", "mae_hiera_large_16x224",
    "mae_hiera_huge_16x224",
    "mae_hiera_tiny_224.mae_in1k", "mae_hiera_small_224.mae_in1k", "mae_hiera_base_224.mae_in1k",
    "mae_hiera_base_plus_224.mae_in1k", "mae_hiera_large_224.mae_in1k", "mae_hiera_huge_224.mae_in1k",
    "mae_hiera_base_16x224.mae_k400", "mae_hiera_base_plus_16x224.mae_k400", "mae_hiera_large_16x224.mae_k400",
    "mae_hiera_huge_16x224.mae_k400",
]
# fmt: on
