"""Ours beside the peers (hiera-transformer; for images also timm and transformers; all in extra ``test``): how long a
forward, a fine-tuning step or an MAE's step takes (forward, backward, AdamW), in which memory, and how near the floor.

All run in this process, with the same weights, on the same input and mask, in rounds whose order alternates, so that
what else the machine does hits all alike; ratios are medians over the rounds. What they compute is compared first.
Memory is measured in a process for each, since a process's peak is never forgotten. The floor is the time that the
FLOPs of our model take at the rate of a large matrix product, measured between the rounds. Run from a checkout:

    python scripts/benchmarks/model.py --model hiera_base_16x224 --batch-size 2 --compile ours --json base.json
    python scripts/benchmarks/model.py --task mae --model hiera_base_16x224 --batch-size 1 --rounds 5
    python scripts/benchmarks/model.py --frames 8 16 32 --size 112 224 320 --batch-size 1 --json cost.json
    python scripts/benchmarks/model.py --show base.json cost.json --picture cost.png    # a table and a picture of files
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import cpu_name, in_turn, ratio, spread, write_json
from model_report import picture, report, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import OURS_ALONE, convert
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.published import ARCHITECTURES, MAE_ARCHITECTURES
from hiera_video.models.unroll import units

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Largest relative difference of outputs and losses, and of gradients.
TOLERANCES = {"fp32": (1e-5, 1e-4), "bf16": (2e-2, 0.1), "fp16": (2e-2, 0.1)}
PEERS = ("reference", "timm", "transformers")
#: Fields that the reference does not have.
LACKS = {*OURS_ALONE, "hidden_act", "layer_norm_eps", "mask_ratio"}
MIB = 2**20


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


# ---- the contenders


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
    """One package's model, eager or compiled, its optimizer and the batch, which depends on the case alone."""

    def __init__(self, case: Case, name: str) -> None:
        self.case = case
        torch.manual_seed(0)
        self.model = build(case, name.removesuffix(" compiled"))
        self.training = case.task != "inference"
        self.model.train(self.training)
        dtype = PRECISIONS[case.precision]
        clip = torch.randn(case.batch_size, 3, *case.size, generator=torch.Generator().manual_seed(0))
        self.clip = clip.to(case.device)
        if not self.training:
            self.model.to(dtype)
            self.clip = self.clip.to(dtype)
        self.labels = torch.arange(case.batch_size, device=case.device) % case.arch.num_classes
        if isinstance(case.arch, MAEArchitecture):
            num_units = math.prod(units(case.arch.token_grid(case.size), case.arch.strides))
            generator = torch.Generator().manual_seed(1)
            self.keep = random_keep(case.batch_size, num_units, case.arch.mask_ratio, generator=generator)
            self.keep = self.keep.to(case.device)
        self.run: Any = torch.compile(self.model) if name.endswith(" compiled") else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True) if self.training else None

    def output(self) -> Tensor:
        """Logits, or the loss of a training task."""
        precision = self.case.precision
        lower = self.training and precision != "fp32"
        with torch.autocast(self.clip.device.type, PRECISIONS[precision], enabled=lower):
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


# ---- measuring


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's queue included."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


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
    tolerances = dict(zip(("output", "gradient"), TOLERANCES[case.precision], strict=True))
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode(not ours.training):  # as in a step: compiled models are compiled for it
        expected = {name: contender.output() for name, contender in contenders.items()}
    for name, contender in contenders.items():
        got, wanted = expected[name].detach().float(), expected["ours"].detach().float()
        found[name] = {"output": float((got - wanted).abs().max() / wanted.abs().max())}
        if ours.training:
            expected[name].backward()
            found[name]["gradient"] = gradient_difference(contender.model, ours.model)
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


def measure(
    case: Case, names: list[str], rounds: int, *, with_memory: bool, strict: bool = True, side: int | None = None
) -> dict[str, Any]:
    """Everything of one case, as it goes into the JSON file; ``side`` of the matrices whose product is the ceiling."""
    # Before models are made here: on Linux a child's peak starts from that of the process that started it.
    used = memory if case.device.startswith("cuda") else memory_in_child
    memories = {name: used(case, name) for name in names} if with_memory else {}
    contenders = {name: Contender(case, name) for name in names}
    differences = agree(case, contenders, strict=strict)
    for contender in contenders.values():
        contender.step()
    side = side or (8192 if case.device.startswith("cuda") else 2048)
    matrix = torch.randn(side, side, device=case.device).to(PRECISIONS[case.precision])
    times: dict[str, list[float]] = {name: [] for name in (*names, "product")}
    calls: dict[str, Callable[[], object]] = {name: contender.step for name, contender in contenders.items()}
    calls["product"] = lambda: matrix @ matrix
    calls["product"]()
    for number in range(rounds):
        for name in in_turn(calls, number):
            times[name].append(seconds(calls[name], case.device))
    work, ceiling = flops(case), 2 * side**3 / statistics.median(times["product"])
    rows = {}
    for name in names:
        median = statistics.median(times[name])
        rows[name] = {
            "seconds": spread(times[name]),
            "clips_per_second": case.batch_size / median,
            "flops_per_second": work / median,
            "times_floor": median / (work / ceiling),
            "differences": differences[name],
            "memory": memories.get(name),
            "speed_over": {peer: ratio(times[peer], times[name]) for peer in names if peer in PEERS},
        }
    facts = {"case": asdict(case), "rounds": rounds, "flops": work, "ceiling_flops_per_second": ceiling}
    if case.device.startswith("cuda"):
        facts["ours_synchronises"] = synchronises(contenders["ours"])
    return facts | {"machine": device_of(case.device), "rows": rows}


def device_of(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
    return {"device": name, "cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def synchronises(contender: Contender) -> str | None:
    """The call in a forward and backward on CUDA that waits for the device, if there is one."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        # As the training loop has it, the mask is on the host.
        if contender.case.task == "mae":
            contender.model(contender.clip, contender.keep.cpu().numpy()).loss.backward()
        else:
            with torch.set_grad_enabled(contender.training):
                contender.output()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def memory_in_child(case: Case, name: str) -> dict[str, float]:
    """:func:`memory` in a process of its own."""
    # glibc then gives freed tensors back at once: what is resident is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    command = [sys.executable, __file__, "--memory-of", name, json.dumps(asdict(case))]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(child.stdout)
    return figures


def memory(case: Case, name: str) -> dict[str, float]:
    """MiB: ``peak`` of this process (CUDA: of its tensors), and ``step``, what a step takes of it beyond the model, the
    optimizer's state and the batch.
    """
    contender = Contender(case, name)
    contender.step()  # makes the optimizer's state; libraries load their parts
    if case.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(case.device)
        before = torch.cuda.memory_allocated(case.device)
        contender.step()
        peak = torch.cuda.max_memory_allocated(case.device)
    else:
        before = psutil.Process().memory_info().rss
        contender.step()
        peak = peak_resident()
    return {"step": (peak - before) / MIB, "peak": peak / MIB}


def peak_resident() -> int:
    """Bytes that this process had in memory at most. On Linux ``ru_maxrss`` would begin at the parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- the command line


def contenders_of(task: str, image: bool, peers: list[str], compiled: str) -> list[str]:
    """Names in the order of the rows."""
    possible = PEERS if image and task != "mae" else PEERS[:1]
    names = ["ours", *(peer for peer in possible if peer in peers)]
    return names + [f"{name} compiled" for name in names if compiled == "all" or (compiled, name) == ("ours", "ours")]


def main() -> None:
    if sys.argv[1:2] == ["--memory-of"]:  # what memory_in_child asks for
        fields = json.loads(sys.argv[3])
        print(json.dumps(memory(Case(**fields | {"size": tuple(fields["size"])}), sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("inference", "mae", "finetune"), default="inference")
    known = sorted(ARCHITECTURES)
    parser.add_argument("--model", nargs="+", choices=known, default=["hiera_base_16x224"], metavar="NAME")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[2])
    parser.add_argument("--frames", type=int, nargs="+", help="of a video; default: the model's own")
    parser.add_argument("--size", type=int, nargs="+", help="height and width, pixels; default: the model's own")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS])
    parser.add_argument("--compile", choices=("none", "ours", "all"), default="none", help="what also runs compiled")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-memory", action="store_true", help="do not start processes to measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="measure nothing, show these files")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="cost against frames and resolution, of videos")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    if options.show:
        results = [result for file in options.show for result in json.loads(file.read_text())]
        print(table(results))
    else:
        axes = (options.model, options.precision, options.batch_size, options.frames or [None], options.size or [None])
        for model, precision, batch_size, frames, side in itertools.product(*axes):
            size = ARCHITECTURES[model].input_size
            time_axis = size[:-2] if frames is None else (frames,) * (len(size) - 2)
            size = time_axis + (size[-2:] if side is None else (side, side))
            case = Case(options.task, model, size, batch_size, precision, options.device)
            names = contenders_of(options.task, len(size) == 2, options.peers, options.compile)
            results.append(measure(case, names, options.rounds, with_memory=not options.no_memory))
            report(results[-1])
            write_json(options.json, results)  # after each case: a long list may be stopped
    if options.picture:
        picture(results, options.picture)


if __name__ == "__main__":
    main()
