"""Ours beside the reference package (hiera-transformer, extra ``test``): clips per second of one forward.

Both run in this process, with the same weights, on the same input, in pairs whose order alternates, so that what
else the machine does hits both alike; the ratio is the median over the pairs. Run from a checkout:

    python scripts/benchmark_model.py --model hiera_base_16x224 --batch-size 2 --pairs 20 --json benchmark.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models.zoo import create_model

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def reference_model(name: str) -> nn.Module:
    """The reference's model of this name, random weights, giving logits in evaluation too (it applies a softmax)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a module path of timm that timm has deprecated
        import hiera
    model: nn.Module = getattr(hiera, name)(pretrained=False)
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


@torch.inference_mode()
def benchmark(model: str, *, batch_size: int, pairs: int, device: torch.device, precision: str) -> dict[str, Any]:
    """Everything measured, as it goes into the JSON file."""
    torch.manual_seed(0)
    dtype = PRECISIONS[precision]
    peer, ours = reference_model(model).eval(), create_model(model).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    peer.to(device, dtype)
    ours.to(device, dtype)
    clip = torch.randn(batch_size, 3, *ours.arch.input_size, device=device, dtype=dtype)

    expected, got = peer(clip).float(), ours(clip).float()  # also the warm-up
    difference = float((got - expected).abs().max() / expected.abs().max())
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    if not difference <= tolerance:
        raise SystemExit(f"{model}: outputs differ by {difference:.1e}, more than {tolerance:.0e}: nothing to compare")

    times: dict[str, list[float]] = {"peer": [], "ours": []}
    for pair in range(pairs):
        runs = [("peer", peer), ("ours", ours)]
        for name, module in runs if pair % 2 == 0 else reversed(runs):
            times[name].append(seconds(lambda module=module: module(clip), device))  # type: ignore[misc]
    return {
        "model": model,
        "batch_size": batch_size,
        "pairs": pairs,
        "precision": precision,
        "max_relative_difference": difference,
        "peer_clips_per_second": spread([batch_size / t for t in times["peer"]]),
        "ours_clips_per_second": spread([batch_size / t for t in times["ours"]]),
        "ratio": spread([p / o for p, o in zip(times["peer"], times["ours"], strict=True)]),
        "machine": machine(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hiera_base_16x224", help="a name that both packages know")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    options = parser.parse_args()
    result = benchmark(
        options.model,
        batch_size=options.batch_size,
        pairs=options.pairs,
        device=options.device,
        precision=options.precision,
    )
    on = result["machine"]
    print(
        f"{options.model}, {options.precision}, batch {options.batch_size}, {options.pairs} pairs: medians [quartiles]"
    )
    print(f"{on['device']}, {on['threads']} CPU threads, torch {on['torch']}")
    for title, key, unit in (
        ("hiera-transformer", "peer_clips_per_second", " clips/s"),
        ("hiera_video", "ours_clips_per_second", " clips/s"),
        ("ratio", "ratio", ""),
    ):
        figures = result[key]
        low, high = figures["quartile_low"], figures["quartile_high"]
        print(f"{title:18} {figures['median']:7.3f}{unit} [{low:.3f}, {high:.3f}]")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
