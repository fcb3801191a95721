"""A folder of clips classified from end to end: ours, transformers' video pipelines and torchvision's Video Swin.

    python scripts/benchmarks/end_to_end.py --folder /tmp/clips --output end_to_end.json

Makes ``num_clips`` clips of ``seconds`` (H.264, 320 x 240, 30 fps; kept, and used again) and has all contenders
classify all of them in this process, in ``rounds`` whose order alternates; figures are medians, ratios are taken within
a round.
Files are opened, decoded, resized and cropped as each one's users do it: ours by ``VideoClassifier.stream``, one view;
transformers by its pipeline ``video-classification`` with the model's video processor, which decodes by torchcodec;
torchvision by torchcodec and the weights' ``transforms()``. All see the same sixteen frames of a file, 224 x 224 of
them. Weights are random, by each one's config: nothing is downloaded. The models do not cost the same: GFLOP a clip
stand beside, counted by torch (two for each multiply-add).
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from common import in_turn, machine, machine_text, markdown_table, ratio, spread, write_both
from extract import make
from jsonargparse import auto_cli
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video import ClipSpec, VideoClassifier, create_model
from hiera_video.data.sampling import test_clips
from hiera_video.training.devices import Precision, name_of

Name: TypeAlias = Literal["ours", "ours bf16", "videomae", "vjepa2", "swin3d"]
NAMES: tuple[Name, ...] = ("ours", "ours bf16", "videomae", "vjepa2", "swin3d")
PACKAGES = ("torch", "torchvision", "transformers", "torchcodec", "av")
SPEC = ClipSpec()  # 16 frames, stride 4, 30 fps, 224
NUM_CLASSES = 400


@dataclass(frozen=True)
class Scale:
    """How large the models are: ours by name, the peers' transformers by width, depth and heads."""

    ours: str
    side: int
    width: int
    depth: int
    heads: int
    swin_width: int
    swin_depths: tuple[int, ...]
    swin_heads: tuple[int, ...]


#: ``tiny`` tries the script.
SCALES = {
    "base": Scale("hiera_base_16x224", 224, 768, 12, 12, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "tiny": Scale("hiera_nano_16x64", 64, 32, 1, 2, 8, (1, 1, 1, 1), (1, 1, 1, 1)),
}


@dataclass(frozen=True)
class Contender:
    """``classify`` gives the best class of each file; ``model`` takes float ``[1, *shape]``; ``about``: what it is."""

    classify: Callable[[list[str]], list[str]]
    model: nn.Module
    shape: tuple[int, ...]
    about: str


def frames_of(num_frames: int, fps: float) -> NDArray[np.int64]:
    """The numbers int64 [16] of the frames that all of them see: those of our one view, in the middle."""
    return test_clips(np.arange(num_frames) / fps, SPEC, 1)[0]


# ---- the contenders


def ours(scale: Scale, precision: Precision) -> Contender:
    """VideoClassifier, whose stream reads ahead."""
    model = create_model(scale.ours, num_classes=NUM_CLASSES)
    classifier = VideoClassifier(model, device="cpu", precision=precision)

    def classify(files: list[str]) -> list[str]:
        answers = list(classifier.stream(files, views="1x1"))
        if errors := [answer.error for answer in answers if answer.error]:
            raise SystemExit(errors[0])
        return [answer.predictions[0].label for answer in answers]

    return Contender(classify, model, (3, *model.arch.input_size), f"{scale.ours}, {precision}")


def by_pipeline(model: Any, processor: Any, shape: tuple[int, ...], about: str) -> Contender:
    """A model of transformers by its pipeline, whose video processor takes our frames in place of evenly spread ones.

    The processor is asked for frames by ``sample_frames``, which is where its users say which.
    """
    import transformers

    processor.sample_frames = lambda metadata, **_: frames_of(metadata.total_num_frames, metadata.fps)
    pipeline = transformers.pipeline("video-classification", model=model, video_processor=processor, device="cpu")

    def classify(files: list[str]) -> list[str]:
        return [answer[0]["label"] for answer in pipeline(files, top_k=1, num_frames=SPEC.num_frames)]

    return Contender(classify, model.eval(), shape, about)


def videomae(scale: Scale) -> Contender:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEVideoProcessor

    config = VideoMAEConfig(
        image_size=scale.side,
        hidden_size=scale.width,
        num_hidden_layers=scale.depth,
        num_attention_heads=scale.heads,
        intermediate_size=4 * scale.width,
    )
    config.num_labels = NUM_CLASSES
    crop = {"height": scale.side, "width": scale.side}
    processor = VideoMAEVideoProcessor(size={"shortest_edge": scale.side}, crop_size=crop)
    shape = (SPEC.num_frames, 3, scale.side, scale.side)
    about = f"transformers' VideoMAE, {scale.depth} layers of {scale.width}, fp32"
    return by_pipeline(VideoMAEForVideoClassification(config), processor, shape, about)


def vjepa2(scale: Scale) -> Contender:
    """As wide and deep as the others; the checkpoints that V-JEPA 2 came with begin at 24 layers of 1024."""
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2VideoProcessor

    config = VJEPA2Config(
        crop_size=scale.side,
        frames_per_clip=SPEC.num_frames,
        hidden_size=scale.width,
        num_hidden_layers=scale.depth,
        num_attention_heads=scale.heads,
    )
    config.num_labels = NUM_CLASSES
    shape = (SPEC.num_frames, 3, scale.side, scale.side)
    about = f"transformers' V-JEPA 2, {scale.depth} layers of {scale.width} and its pooler, fp32"
    processor = VJEPA2VideoProcessor(crop_size=scale.side)
    return by_pipeline(VJEPA2ForVideoClassification(config), processor, shape, about)


def swin3d(scale: Scale) -> Contender:
    """torchvision has no decoder of its own any more, and names torchcodec."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.models.video import Swin3D_B_Weights, SwinTransformer3d

    model = SwinTransformer3d(  # with the base scale's numbers it is what swin3d_b() builds
        patch_size=[2, 4, 4],
        embed_dim=scale.swin_width,
        depths=list(scale.swin_depths),
        num_heads=list(scale.swin_heads),
        window_size=[8, 7, 7],
        stochastic_depth_prob=0.1,
        num_classes=NUM_CLASSES,
    ).eval()
    transforms = Swin3D_B_Weights.KINETICS400_V1.transforms(crop_size=(scale.side, scale.side))

    @torch.inference_mode()
    def classify(files: list[str]) -> list[str]:
        labels = []
        for file in files:
            decoder = VideoDecoder(file)
            row = frames_of(decoder.metadata.num_frames or 0, decoder.metadata.average_fps or 0.0)
            frames = decoder.get_frames_at(row.tolist()).data  # uint8 [T, C, H, W]
            labels.append(f"class_{int(model(transforms(frames)[None]).argmax())}")
        return labels

    shape = (3, SPEC.num_frames, scale.side, scale.side)
    return Contender(classify, model, shape, f"torchvision's swin3d, width {scale.swin_width}, fp32")


BUILDERS: dict[Name, Callable[[Scale], Contender]] = {
    "ours": lambda scale: ours(scale, "fp32"),
    "ours bf16": lambda scale: ours(scale, "bf16"),
    "videomae": videomae,
    "vjepa2": vjepa2,
    "swin3d": swin3d,
}


# ---- measuring


def gflop(contender: Contender) -> float:
    """GFLOP of one clip, by torch's counter."""
    model = copy.deepcopy(contender.model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.empty(1, *contender.shape, device="meta"))
    return counter.get_total_flops() / 1e9


def num_weights(model: nn.Module) -> int:
    """Of what classifies: V-JEPA 2's predictor is for pretraining."""
    return sum(weights.numel() for name, weights in model.named_parameters() if ".predictor." not in name)


def race(contenders: dict[Name, Contender], files: list[str], rounds: int) -> dict[Name, list[float]]:
    """Seconds that each took for all files, by round."""
    taken: dict[Name, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender.classify(files[:1])  # what a first call alone must do
    for number in range(rounds):
        for name in in_turn(contenders, number):
            begin = time.perf_counter()
            labels = contenders[name].classify(files)  # type: ignore[index]
            taken[name].append(time.perf_counter() - begin)  # type: ignore[index]
            assert len(labels) == len(files)
            print(f"round {number + 1}: {name} {taken[name][-1]:.1f} s", flush=True)  # type: ignore[index]
    return taken


def report(result: dict[str, Any]) -> str:
    """The machine and a table in Markdown, a row for each contender."""
    rows = []
    for name, row in result["rows"].items():
        rate, over = row["clips_per_second"], row["ours_is_faster"]
        quartiles = f"{rate['median']:.3f} ({rate['quartile_low']:.3f} to {rate['quartile_high']:.3f})"
        work = f"{row['gflop_per_clip']:.3g}"
        rows.append([name, row["about"], f"{row['parameters'] / 1e6:.1f}", work, quartiles])
        rows[-1] += [f"{row['gflop_per_clip'] * rate['median']:.3g}", f"{over['median']:.2f}" if over else ""]
    header = ("", "model, precision", "million weights", "GFLOP a clip", "clips/s (quartiles)", "GFLOP/s")
    clips = f"{result['clips']} clips of {result['seconds']} s, {result['rounds']} rounds, medians"
    notes = f"`auto` computes in {result['auto']} here. {result['bf16']}"
    table = markdown_table((*header, "ours is faster by"), rows)
    return f"{machine_text(result['machine'])}; {clips}.\n{notes}\n\n{table}"


def bf16_note(instruction_sets: list[str]) -> str:
    """Whether the row of bf16 can be fast here."""
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets):
        return "This processor has instructions for bf16."
    return "This processor has no instructions for bf16, which is slow here."


def main(
    folder: Path,
    num_clips: int = 60,
    seconds: int = 10,
    rounds: int = 3,
    only: tuple[Name, ...] = NAMES,
    scale: Literal["base", "tiny"] = "base",
    output: Path | None = None,
) -> None:
    """Prints a line for each turn, then a table. ``only``: these contenders; ``output``: JSON, and the table as .md."""
    warnings.filterwarnings("ignore")  # the peers', about what they will drop
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    files = [str(path) for path in make(folder, num_clips, seconds)]
    contenders = {name: BUILDERS[name](SCALES[scale]) for name in NAMES if name in only}
    facts = machine(PACKAGES)
    auto = VideoClassifier(create_model(SCALES[scale].ours, num_classes=NUM_CLASSES), device="cpu").precision
    taken = race(contenders, files, rounds)
    rows: dict[str, Any] = {}
    for name, contender in contenders.items():
        rows[name] = {
            "about": contender.about,
            "parameters": num_weights(contender.model),
            "gflop_per_clip": gflop(contender),
            "seconds": taken[name],
            "clips_per_second": spread([len(files) / turn for turn in taken[name]]),
            "ours_is_faster": ratio(taken[name], taken["ours"]) if "ours" in taken else None,
        }
    result = {"machine": facts, "threads": torch.get_num_threads(), "clips": len(files), "seconds": seconds}
    result |= {"rounds": rounds, "auto": name_of(auto), "bf16": bf16_note(facts["instruction_sets"]), "rows": rows}
    write_both(output, result, report(result))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
