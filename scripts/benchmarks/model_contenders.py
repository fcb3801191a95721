"""The contenders of the model's benchmark: their models, what each is timed at, and whether they compute the same."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import OURS_ALONE, convert
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.published import ARCHITECTURES, MAE_ARCHITECTURES
from hiera_video.models.unroll import units
from hiera_video.training.devices import name_of, pick_precision, width_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Largest relative difference of outputs and losses, and of gradients.
TOLERANCES = {"fp32": (1e-5, 1e-4), "bf16": (2e-2, 0.1), "fp16": (2e-2, 0.1)}
#: The same between bf16 and fp32.
ACROSS = (4e-2, 0.3)
PEERS = ("reference", "timm", "transformers")
#: How ours also runs in a case of fp32: in what precision auto means (inference), with autocast to bf16 and weights of
#: fp32, with weights of bf16 (inference).
ALSO = ("auto", "autocast", "bf16")
#: Fields that the reference does not have.
LACKS = {*OURS_ALONE, "hidden_act", "layer_norm_eps", "mask_ratio"}


@dataclass(frozen=True)
class Case:
    """What is measured; ``size`` (frames, height, width) or (height, width); ``device`` as torch names it."""

    task: str
    model: str
    size: tuple[int, ...]
    batch_size: int
    precision: str
    device: str

    @property
    def arch(self) -> Architecture:
        arch = MAE_ARCHITECTURES[f"mae_{self.model}"] if self.task == "mae" else ARCHITECTURES[self.model]
        return replace(arch, input_size=self.size)


def build(case: Case, who: str) -> nn.Module:
    """The model of one package, with its own random weights, on the case's device."""
    arch, image = case.arch, len(case.size) == 2
    model: nn.Module
    with warnings.catch_warnings(), torch.device(case.device):
        warnings.simplefilter("ignore")  # the reference imports a module path of timm that timm has deprecated
        if who == "ours":
            model = HieraMAE(arch) if isinstance(arch, MAEArchitecture) else Hiera(arch)
        elif who == "reference":
            from hiera import Hiera as Reference
            from hiera.hiera_mae import MaskedAutoencoderHiera

            unknown = LACKS | ({"num_classes", "head_init_scale"} if case.task == "mae" else set())
            fields = {name: value for name, value in vars(arch).items() if name not in unknown}
            model = MaskedAutoencoderHiera(**fields) if case.task == "mae" else Reference(**fields)
            if case.task != "mae":
                model.head.act_func = nn.Identity()  # type: ignore[union-attr]  # else a softmax, in evaluation
        elif who == "timm" and image and case.task != "mae":
            import timm

            model = timm.create_model(case.model, num_classes=arch.num_classes, img_size=case.size)
        elif who == "transformers" and image and case.task != "mae":
            import transformers

            config = transformers.HieraConfig(
                image_size=list(case.size),
                embed_dim=arch.embed_dim,
                depths=list(arch.stages),
                num_heads=list(arch.heads),
            )
            config.num_labels = arch.num_classes
            model = transformers.HieraForImageClassification(config)
        else:
            raise ValueError(f"{who} has no {case.model} for the task {case.task}")
    return model


class Contender:
    """One package's model, its optimizer and the batch, which depends on the case alone.

    ``name`` is the package, and after it "compiled" or one of :data:`ALSO`. ``precision`` is what it computes in, by
    autocast where a step trains, and where ``name`` says so; else its weights are of that type.
    """

    def __init__(self, case: Case, name: str) -> None:
        self.case = case
        who, _, how = name.partition(" ")
        torch.manual_seed(0)
        self.model = build(case, who)
        self.training = case.task != "inference"
        self.model.train(self.training)
        self.precision = case.precision
        if how == "auto":
            chosen = pick_precision("auto", torch.device(case.device), width=width_of(case.arch.dims))
            self.precision = name_of(chosen)
        elif how in ALSO:
            self.precision = "bf16"
        self.by_autocast = self.training or how in ("auto", "autocast")
        dtype = torch.float32 if self.by_autocast else PRECISIONS[self.precision]
        clip = torch.randn(case.batch_size, 3, *case.size, generator=torch.Generator().manual_seed(0))
        self.clip = clip.to(case.device)
        self.model.to(dtype)
        self.clip = self.clip.to(dtype)
        self.labels = torch.arange(case.batch_size, device=case.device) % case.arch.num_classes
        if isinstance(case.arch, MAEArchitecture):
            num_units = math.prod(units(case.arch.token_grid(case.size), case.arch.strides))
            generator = torch.Generator().manual_seed(1)
            self.keep = random_keep(case.batch_size, num_units, case.arch.mask_ratio, generator=generator)
            self.keep = self.keep.to(case.device)
        self.run: Any = torch.compile(self.model) if how == "compiled" else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True) if self.training else None

    def output(self) -> Tensor:
        """Logits, or the loss of a training task."""
        lower = self.by_autocast and self.precision != "fp32"
        with torch.autocast(self.clip.device.type, PRECISIONS[self.precision], enabled=lower):
            if self.case.task == "mae":
                if isinstance(self.model, HieraMAE):
                    return self.run(self.clip, self.keep).loss
                return self.run(self.clip, mask=self.keep)[0]
            logits = self.run(self.clip)
            logits = logits if isinstance(logits, Tensor) else logits.logits
        return nn.functional.cross_entropy(logits.float(), self.labels) if self.training else logits

    def step(self) -> None:
        """What is timed."""
        if self.optimizer is None:
            with torch.inference_mode():
                self.output()
            return
        self.output().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def flops(case: Case) -> int:
    """FLOPs of our step by torch's counter: products of matrices, attention, convolutions; the optimizer aside."""
    model = build(replace(case, device="meta"), "ours").train(case.task != "inference")
    clip = torch.empty(case.batch_size, 3, *case.size, device="meta")
    with FlopCounterMode(display=False) as counter:
        if isinstance(model, HieraMAE):
            keep = random_keep(case.batch_size, model.num_mask_units(), model.arch.mask_ratio)
            model(clip, np.asarray(keep)).loss.backward()
        else:
            out = model(clip).sum()
            if case.task == "finetune":
                out.backward()
    return counter.get_total_flops()


def share_weights(contenders: Iterable[Contender]) -> None:
    """Gives all of them the weights of the first, which is one of ours."""
    first, *others = contenders
    weights = first.model.state_dict()
    for contender in others:
        with torch.no_grad():
            for name, tensor in convert(contender.model.state_dict()).items():
                tensor.copy_(weights[name])


def agree(case: Case, contenders: dict[str, Contender], *, strict: bool) -> dict[str, dict[str, float]]:
    """Gives all of them our weights, and the largest relative differences of what they compute.

    Ends the program where one exceeds its tolerance, if ``strict``: there would be nothing to compare. It is also the
    warm-up.
    """
    ours = contenders["ours"]
    share_weights(contenders.values())
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode(not ours.training):  # as in a step: compiled models are compiled for it
        expected = {name: contender.output() for name, contender in contenders.items()}
    for name, contender in contenders.items():
        got, wanted = expected[name].detach().float(), expected["ours"].detach().float()
        found[name] = {"output": float((got - wanted).abs().max() / wanted.abs().max())}
        if ours.training:
            expected[name].backward()
            found[name]["gradient"] = gradient_difference(contender.model, ours.model)
        allowed = TOLERANCES[case.precision] if contender.precision == case.precision else ACROSS
        tolerances = dict(zip(("output", "gradient"), allowed, strict=True))
        for what, difference in found[name].items():
            if strict and not difference <= tolerances[what]:
                sys.exit(f"{case.model}, {name}: {what} is {difference:.1e} away, more than {tolerances[what]:.0e}")
    for contender in contenders.values():
        contender.model.zero_grad()
    return found


def gradient_difference(other: nn.Module, ours: nn.Module) -> float:
    """Norm of the difference relative to that of our gradient: the largest over the parameters."""
    theirs = convert({name: p.grad for name, p in other.named_parameters() if p.grad is not None})
    wanted = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert theirs.keys() == wanted.keys()
    return max(float((theirs[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)
