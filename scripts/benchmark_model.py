"""Ours beside the reference package (hiera-transformer, extra ``test``): clips per second of one forward, or with
``--task mae`` of one whole training step of the MAE (forward, backward, AdamW) and the memory that the step needs.

Both run in this process, with the same weights, on the same input and mask, in pairs whose order alternates, so that
what else the machine does hits both alike; the ratio is the median over the pairs. What they compute is compared
first. Memory is measured in a process for each, since a process's peak is never forgotten. Run from a checkout:

    python scripts/benchmark_model.py --model hiera_base_16x224 --batch-size 2 --pairs 20 --json benchmark.json
    python scripts/benchmark_model.py --task mae --model hiera_base_16x224 --batch-size 1 --pairs 5
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.unroll import units
from hiera_video.models.zoo import MAE_ARCHITECTURES, create_model

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TITLES = {"peer": "hiera-transformer", "ours": "hiera_video"}
MIB = 2**20


def reference_model(name: str) -> nn.Module:
    """The reference's model of this name, random weights, giving logits in evaluation too (it applies a softmax)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a module path of timm that timm has deprecated
        import hiera
    if not hasattr(hiera, name):
        raise SystemExit(f"hiera-transformer has no {name}")
    model: nn.Module = getattr(hiera, name)(pretrained=False)
    if not name.startswith("mae_"):
        model.head.act_func = nn.Identity()  # type: ignore[union-attr]
    return model


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Wall time of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "quartile_low": low, "quartile_high": high}


def alternate(
    calls: dict[str, Callable[[], Tensor]], *, pairs: int, batch_size: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Clips per second of the two ``calls``, in pairs whose order alternates, and their ratio."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for pair in range(pairs):
        for name in calls if pair % 2 == 0 else reversed(calls):
            times[name].append(seconds(calls[name], device))
    return {
        "peer_clips_per_second": spread([batch_size / t for t in times["peer"]]),
        "ours_clips_per_second": spread([batch_size / t for t in times["ours"]]),
        "ratio": spread([p / o for p, o in zip(times["peer"], times["ours"], strict=True)]),
    }


def agreed(what: str, difference: float, tolerance: float) -> float:
    """``difference``, or the end of the program where it exceeds ``tolerance``."""
    if not difference <= tolerance:
        raise SystemExit(f"{what} differ by {difference:.1e}, more than {tolerance:.0e}: nothing to compare")
    return difference


@torch.inference_mode()
def inference(model: str, *, batch_size: int, pairs: int, device: torch.device, precision: str) -> dict[str, Any]:
    """One forward of the classifier: everything measured, as it goes into the JSON file."""
    torch.manual_seed(0)
    dtype = PRECISIONS[precision]
    peer, ours = reference_model(model).eval(), create_model(model).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    peer.to(device, dtype)
    ours.to(device, dtype)
    clip = torch.randn(batch_size, 3, *ours.arch.input_size, device=device, dtype=dtype)

    expected, got = peer(clip).float(), ours(clip).float()  # also the warm-up
    difference = float((got - expected).abs().max() / expected.abs().max())
    calls = {"peer": lambda: peer(clip), "ours": lambda: ours(clip)}
    return {
        "max_relative_difference": agreed(f"{model}: outputs", difference, 1e-5 if precision == "fp32" else 2e-2),
        **alternate(calls, pairs=pairs, batch_size=batch_size, device=device),
    }


class Training:
    """An MAE of either package, its optimizer and one batch, the same for both."""

    def __init__(self, side: str, model: str, batch_size: int, device: torch.device) -> None:
        arch = MAE_ARCHITECTURES[f"mae_{model}"]
        torch.manual_seed(0)
        self.clip = torch.randn(batch_size, 3, *arch.input_size).to(device)
        num_units = math.prod(units(arch.token_grid(arch.input_size), arch.strides))
        self.keep = random_keep(batch_size, num_units, arch.mask_ratio).to(device)
        build = create_model if side == "ours" else reference_model
        self.model: nn.Module = build(f"mae_{model}").to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def loss(self) -> Tensor:
        if isinstance(self.model, HieraMAE):
            return self.model(self.clip, self.keep).loss
        return self.model(self.clip, mask=self.keep)[0]

    def step(self) -> Tensor:
        """Forward, backward, AdamW, zero_grad: the loss."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def mae(model: str, *, batch_size: int, pairs: int, device: torch.device) -> dict[str, Any]:
    """One training step of the MAE: everything measured, as it goes into the JSON file."""
    # Before models are made here: on Linux a child's peak starts from that of the process that started it.
    memory = {side: memory_in_child(side, model, batch_size, device) for side in TITLES}
    peer, ours = (Training(side, model, batch_size, device) for side in TITLES)
    ours.model.load_state_dict(peer.model.state_dict(), strict=True)
    expected, got = peer.loss(), ours.loss()
    expected.backward()
    got.backward()
    loss = (got - expected).abs().item() / expected.item()
    gradients = gradient_difference(ours.model, peer.model)
    for side in (peer, ours):
        side.optimizer.zero_grad()
        side.step()  # the warm-up
    return {
        "loss_relative_difference": agreed(f"mae_{model}: losses", loss, 1e-5),
        "gradient_relative_difference": agreed(f"mae_{model}: gradients", gradients, 1e-4),
        **alternate({"peer": peer.step, "ours": ours.step}, pairs=pairs, batch_size=batch_size, device=device),
        **{f"{side}_memory": figures for side, figures in memory.items()},
        "memory_ratio": {key: memory["ours"][key] / memory["peer"][key] for key in ("step", "peak")},
    }


def gradient_difference(ours: nn.Module, peer: nn.Module) -> float:
    """Norm of the difference relative to the norm of the reference's gradient: the largest over the parameters."""
    theirs = dict(peer.named_parameters())
    largest = 0.0
    for name, parameter in ours.named_parameters():
        got, expected = parameter.grad, theirs[name].grad
        assert got is not None and expected is not None, name
        largest = max(largest, float((got - expected).norm() / expected.norm()))
    return largest


def memory_in_child(side: str, model: str, batch_size: int, device: torch.device) -> dict[str, float]:
    """:func:`memory` in a process of its own."""
    options = f"--task mae --model {model} --batch-size {batch_size} --device {device} --memory-of {side}"
    # glibc then gives freed tensors back at once: what is resident is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    command = [sys.executable, __file__, *options.split()]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(child.stdout)
    return figures


def memory(side: str, model: str, batch_size: int, device: torch.device) -> dict[str, float]:
    """MiB: ``peak`` of this process (CUDA: of its tensors), and ``step``, what a step takes of it beyond the model, the
    optimizer's state and the batch.
    """
    training = Training(side, model, batch_size, device)
    training.step()  # makes the optimizer's state; libraries load their parts
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        training.step()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        before = psutil.Process().memory_info().rss
        training.step()
        peak = peak_resident()
    return {"step": (peak - before) / MIB, "peak": peak / MIB}


def peak_resident() -> int:
    """Bytes that this process had in memory at most. On Linux ``ru_maxrss`` would begin at the parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(result: dict[str, Any]) -> None:
    """The result in words."""
    on = result["machine"]
    print(
        f"{result['task']} of {result['model']}, {result['precision']}, batch {result['batch_size']}, "
        f"{result['pairs']} pairs: medians [quartiles]"
    )
    print(f"{on['device']}, {on['threads']} CPU threads, torch {on['torch']}")
    differences = {key: value for key, value in result.items() if key.endswith("relative_difference")}
    print(", ".join(f"{key.replace('_', ' ')} {value:.1e}" for key, value in differences.items()))
    rows = [(title, f"{side}_clips_per_second", " clips/s") for side, title in TITLES.items()]
    for title, key, unit in [*rows, ("ratio", "ratio", "")]:
        figures = result[key]
        low, high = figures["quartile_low"], figures["quartile_high"]
        print(f"{title:18} {figures['median']:7.3f}{unit} [{low:.3f}, {high:.3f}]")
    if result["task"] == "mae":
        for side, title in TITLES.items():
            figures = result[f"{side}_memory"]
            print(f"{title:18} {figures['step']:7.0f} MiB for a step, {figures['peak']:.0f} MiB at the peak")
        figures = result["memory_ratio"]
        print(f"{'memory ratio':18} {figures['step']:7.3f} for a step, {figures['peak']:.3f} at the peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("inference", "mae"), default="inference")
    parser.add_argument("--model", default="hiera_base_16x224", help="a classifier's name that both packages know")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--memory-of", choices=TITLES, help=argparse.SUPPRESS)  # what memory_in_child asks for
    options = parser.parse_args()
    if options.task == "mae" and options.precision != "fp32":
        parser.error("--task mae is measured in fp32")
    if options.memory_of:
        print(json.dumps(memory(options.memory_of, options.model, options.batch_size, options.device)))
        return
    settings = {"batch_size": options.batch_size, "pairs": options.pairs, "device": options.device}
    forward = functools.partial(inference, precision=options.precision)
    measured = (mae if options.task == "mae" else forward)(options.model, **settings)
    said = {key: getattr(options, key) for key in ("task", "model", "batch_size", "pairs", "precision")}
    result = said | measured | {"machine": machine(options.device)}
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
