"""Ours beside the peers (hiera-transformer; for images also timm and transformers; all in extra ``test``): how long a
forward, a fine-tuning step or an MAE's step takes (forward, backward, AdamW), in which memory, and how near the floor.

All run in this process, with the same weights, on the same input and mask, in rounds whose order alternates, so that
what else the machine does hits all alike; ratios are medians over the rounds. What they compute is compared first.
Memory is measured in a process for each, since a process's peak is never forgotten. The floor is the time that the
FLOPs of our model take at the rate of a large matrix product, measured between the rounds. Run from a checkout:

    python scripts/benchmarks/model.py --model hiera_base_16x224 --batch-size 2 --compile ours --json base.json
    python scripts/benchmarks/model.py --task mae --model hiera_base_16x224 --batch-size 1 --rounds 5
    python scripts/benchmarks/model.py --also auto autocast bf16 --masked AVX2 AVX512_CORE --json precisions.json
    python scripts/benchmarks/model.py --frames 8 16 32 --size 112 224 320 --batch-size 1 --json cost.json
    python scripts/benchmarks/model.py --show base.json cost.json --picture cost.png    # a table and a picture of files
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from common import in_turn, machine, ratio, spread, write_json
from model_contenders import ALSO, PEERS, PRECISIONS, Case, Contender, agree, flops
from model_report import picture, report, table

from hiera_video.models.published import ARCHITECTURES

MIB = 2**20


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


def emulated(precision: str, case: Case) -> bool:
    """Whether a product takes four times as long as in fp32 and more: a large one would take a minute."""
    least = []
    for dtype in (torch.float32, PRECISIONS[precision]):
        matrix = torch.ones(256, 256, device=case.device, dtype=dtype)
        product = partial(torch.matmul, matrix, matrix)
        least.append(min(seconds(product, case.device) for _ in range(3)))
    return least[1] > 4 * least[0]


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
    calls: dict[str, Callable[[], object]] = {name: contender.step for name, contender in contenders.items()}
    precisions = [each for each in dict.fromkeys(c.precision for c in contenders.values()) if not emulated(each, case)]
    for precision in precisions:
        matrix = torch.randn(side, side, device=case.device).to(PRECISIONS[precision])
        calls[f"product {precision}"] = partial(torch.matmul, matrix, matrix)
        calls[f"product {precision}"]()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in in_turn(calls, number):
            times[name].append(seconds(calls[name], case.device))
    work = flops(case)
    ceilings = {each: 2 * side**3 / statistics.median(times[f"product {each}"]) for each in precisions}
    rows = {}
    for name in names:
        median = statistics.median(times[name])
        precision = contenders[name].precision
        others = [peer for peer in names if peer in PEERS or (peer == "ours" and name.startswith("ours "))]
        rows[name] = {
            "precision": precision,
            "seconds": spread(times[name]),
            "clips_per_second": case.batch_size / median,
            "flops_per_second": work / median,
            "times_floor": median / (work / ceilings[precision]) if precision in ceilings else None,
            "differences": differences[name],
            "memory": memories.get(name),
            "speed_over": {peer: ratio(times[peer], times[name]) for peer in others},
        }
    facts = {"case": asdict(case), "rounds": rounds, "flops": work}
    facts |= {"ceiling_flops_per_second": ceilings.get(case.precision), "ceilings": ceilings}
    if case.device.startswith("cuda"):
        facts["ours_synchronises"] = synchronises(contenders["ours"])
    return facts | {"machine": device_of(case.device), "rows": rows}


def device_of(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    facts = machine(("torch", "timm", "transformers", "hiera-transformer"))
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else facts["cpu"]
    return facts | {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


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


def contenders_of(task: str, image: bool, peers: list[str], compiled: str, also: list[str]) -> list[str]:
    """Names in the order of the rows."""
    possible = PEERS if image and task != "mae" else PEERS[:1]
    names = ["ours", *(peer for peer in possible if peer in peers)]
    names += [f"{name} compiled" for name in names if compiled == "all" or (compiled, name) == ("ours", "ours")]
    return names + [f"ours {how}" for how in also if task == "inference" or how == "autocast"]


def masked(isa: str, arguments: list[str]) -> list[dict[str, Any]]:
    """The results of this script in a process whose oneDNN uses no instructions above these."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "masked.json"
        command = [sys.executable, __file__, *arguments, "--json", str(file)]
        subprocess.run(command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa}, check=True)
        return json.loads(file.read_text())


def main() -> None:
    if sys.argv[1:2] == ["--memory-of"]:  # what memory_in_child asks for
        fields = json.loads(sys.argv[3])
        print(json.dumps(memory(Case(**fields | {"size": tuple(fields["size"])}), sys.argv[2])))
        return
    masks = argparse.ArgumentParser(add_help=False)
    masks.add_argument(
        "--masked", nargs="+", default=[], metavar="ISA", help="then again with ONEDNN_MAX_CPU_ISA set so (AVX2, ...)"
    )
    of_masks, arguments = masks.parse_known_args()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, parents=[masks])
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
    parser.add_argument("--also", nargs="+", choices=ALSO, default=[], help="how ours runs too, where the case is fp32")
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
            names = contenders_of(options.task, len(size) == 2, options.peers, options.compile, options.also)
            results.append(measure(case, names, options.rounds, with_memory=not options.no_memory))
            report(results[-1])
            write_json(options.json, results)  # after each case: a long list may be stopped
        for isa in of_masks.masked:
            results += masked(isa, arguments)
            write_json(options.json, results)
    if options.picture:
        picture(results, options.picture)


if __name__ == "__main__":
    main()
