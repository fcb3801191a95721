"""The parts of scripts/check_gpu.py. Each yields rows: figures by name, or a ``verdict`` on one (gpu_page.py)."""

from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from common import machine as versions
from extract import make, once
from gpu_page import SIZES, peak_of, verdict
from model import measure, memory
from model_contenders import TOLERANCES, Case, Contender, share_weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hiera_video import FeatureExtractor, save_pretrained
from hiera_video.models.architecture import Architecture, MAEArchitecture
from hiera_video.models.checkpoints.formats import convert
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, random_keep
from hiera_video.models.published import ARCHITECTURES, MAE_ARCHITECTURES
from hiera_video.spec import ClipSpec
from hiera_video.tasks.train.finetune import finetune
from hiera_video.training.accelerator import prepare
from hiera_video.training.recipe import Finetuning, Run
from hiera_video.training.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]
TASKS = ("inference", "mae", "finetune")
#: Most clips of a batch, and the share of the GPU's memory that a batch may take.
MOST_CLIPS, MEMORY_SHARE = {"inference": 64, "mae": 64, "finetune": 32}, 0.7
#: Cases to be compiled, the most wanted first: compiling takes up to two minutes each.
COMPILED = (
    ("inference", "base"),
    ("inference", "large"),
    ("mae", "base"),
    ("inference", "huge"),
    ("finetune", "base"),
    ("mae", "large"),
    ("finetune", "large"),
    ("mae", "huge"),
    ("finetune", "huge"),
)
#: What stands in for a published model on a CPU: 4 frames of 64 x 64, widths of two to eight channels a head.
TINY: dict[str, Any] = {"input_size": (4, 64, 64), "stages": (1, 1, 1, 1), "num_classes": 6, "q_pool": 2}
TINY_MAE: dict[str, Any] = {"mask_ratio": 0.5, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
WIDTHS = dict(zip(SIZES, (8, 16, 24), strict=True))
Row = dict[str, Any]


def arch_of(width: int) -> Architecture:
    return Architecture(**TINY, embed_dim=width, head_init_scale=1.0)


def mae_arch_of(width: int) -> MAEArchitecture:
    return MAEArchitecture(**TINY, embed_dim=width, **TINY_MAE)


def case_of(settings: dict[str, Any], task: str, size: str, precision: str, batch_size: int = 2) -> Case:
    """The published model, or on a CPU its stand-in under its name."""
    name = f"hiera_{size}_16x224"
    if settings["device"] == "cpu":
        ARCHITECTURES[name], MAE_ARCHITECTURES[f"mae_{name}"] = arch_of(WIDTHS[size]), mae_arch_of(WIDTHS[size])
    return Case(task, name, ARCHITECTURES[name].input_size, batch_size, precision, settings["device"])


def machine(settings: dict[str, Any]) -> Iterator[Row]:
    """What the figures depend on."""
    facts = versions(("torch", "timm", "transformers", "accelerate", "av", "hiera-transformer", "triton"))
    row = {"cpu": facts["cpu"], "cores": facts["cores"], **facts["versions"]}
    if settings["device"] == "cuda":
        properties = torch.cuda.get_device_properties(0)
        row |= {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        row |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
    else:
        row["name"] = facts["cpu"]
    yield row


def tests(settings: dict[str, Any]) -> Iterator[Row]:
    """The tests that need a GPU; on a CPU they are skipped."""
    os.chdir(ROOT)
    arguments = ["-n", "0", "-q", "--capture=sys", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = pytest.main(arguments + (["-k", "gpu_computes"] if settings["device"] == "cpu" else []))
    print(printed.getvalue(), flush=True)
    lines = printed.getvalue().strip().splitlines()
    yield {"pytest": lines[-1] if lines else ""}
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"pytest": line}
    yield {"verdict": verdict("tests that need the device: pytest's exit status", int(code), 0, most=True)}


def parity(settings: dict[str, Any]) -> Iterator[Row]:
    """Ours and the reference in half the precision, beside the reference in fp32: no further from it than allowed."""
    for precision in ("bf16", "fp16"):
        # Gradients in fp16 need a scaler: part resumed has it. On a CPU they are slow.
        for task in ("inference", "mae") if settings["device"] == "cuda" or precision == "bf16" else ("inference",):
            case = case_of(settings, task, "base", precision)
            exact = replace(case, precision="fp32")
            ours, theirs = Contender(case, "ours"), Contender(case, "reference")
            truth, first = Contender(exact, "reference"), Contender(exact, "ours")
            with torch.backends.cudnn.flags(allow_tf32=False):
                yield from compare(case, first, ours, theirs, truth)
    gc.collect()


def compare(case: Case, first: Contender, ours: Contender, theirs: Contender, truth: Contender) -> Iterator[Row]:
    share_weights([first, ours, theirs, truth])
    training = case.task != "inference"
    with torch.set_grad_enabled(training):
        outputs = [each.output() for each in (truth, ours, theirs)]
    exact, mine, others = (output.detach().float() for output in outputs)
    row: Row = {"task": case.task, "precision": case.precision}
    row["ours_from_fp32"] = float((mine - exact).abs().max() / exact.abs().max())
    row["reference_from_fp32"] = float((others - exact).abs().max() / exact.abs().max())
    tolerance = TOLERANCES[case.precision]
    what = f"base, {case.task}, {case.precision}: output's distance from fp32"
    yield {"verdict": verdict(what, row["ours_from_fp32"], tolerance[0], most=True)}
    if training and case.precision == "bf16":
        for output in outputs:
            output.backward()
        exact_gradient = gradient_of(truth.model)
        row["our_gradient_from_fp32"] = apart(gradient_of(ours.model), exact_gradient)
        row["reference_gradient_from_fp32"] = apart(gradient_of(theirs.model), exact_gradient)
        what = f"base, {case.task}, {case.precision}: gradient's distance from fp32"
        yield {"verdict": verdict(what, row["our_gradient_from_fp32"], tolerance[1], most=True)}
    yield row


def gradient_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's gradient, under our names."""
    return dict(convert({name: p.grad for name, p in model.named_parameters() if p.grad is not None}))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of all of it relative to that of the other."""
    assert one.keys() == other.keys()
    squares = [((one[name] - other[name]).square().sum(), other[name].square().sum()) for name in other]
    return math.sqrt(sum(float(difference) for difference, _ in squares) / sum(float(whole) for _, whole in squares))


def batch_size_by_memory(used: list[float], total: float, most: int) -> int:
    """A power of two: what two models, ours and the reference, leave room for.

    Args:
        used: Peak of a step at batch 1 and at batch 2, MiB.
        total: Memory of the device, MiB.
        most: The largest batch.

    Returns:
        Clips.
    """
    a_clip = max(used[1] - used[0], 1e-3)
    room = MEMORY_SHARE * total - 2 * (used[0] - a_clip)
    return 2 ** int(math.log2(min(max(room / a_clip, 1), most)))


def timed(settings: dict[str, Any], case: Case, size: str, names: list[str]) -> Row:
    """Times a case; half the batch where memory does not suffice."""
    on_gpu = settings["device"] == "cuda"
    while True:
        try:
            # A step that is compiled is measured without its memory: that would compile it a second time.
            how: Any = {"with_memory": names[-1] == "reference"} if on_gpu else {"with_memory": False, "side": 256}
            result = measure(case, names, 10 if on_gpu else 1, strict=False, **how)
            break
        except torch.OutOfMemoryError:
            if case.batch_size == 1:
                raise
        case = replace(case, batch_size=case.batch_size // 2)
        gc.collect()
        torch.cuda.empty_cache()
    row, peak = result["rows"][names[-1] if names[-1] != "reference" else "ours"], peak_of(result["machine"]["device"])
    reference = result["rows"].get("reference")
    return {
        "task": case.task,
        "size": size,
        "mode": "compiled" if names[-1] == "ours compiled" else "eager",
        "batch": case.batch_size,
        "clips_per_second": row["clips_per_second"],
        "reference_clips_per_second": reference and reference["clips_per_second"],
        "speed_over_reference": reference and row["speed_over"]["reference"]["median"],
        "share_of_peak": peak and row["flops_per_second"] / peak,
        "share_of_product": row["flops_per_second"] / result["ceiling_flops_per_second"],
        "peak_mib": row["memory"] and row["memory"]["peak"],
        "reference_peak_mib": reference and reference["memory"] and reference["memory"]["peak"],
        "differs": (reference or row)["differences"],
        "waits": result.get("ours_synchronises"),
    }


def throughput(settings: dict[str, Any]) -> Iterator[Row]:
    """Eager, beside the reference, at the same batch: what the reference's memory leaves room for."""
    for size in SIZES:
        for task in TASKS if settings["device"] == "cuda" or size == "base" else TASKS[:1]:
            case = case_of(settings, task, size, "bf16" if settings["device"] == "cuda" else "fp32")
            try:
                if settings["device"] == "cuda":
                    total = torch.cuda.get_device_properties(0).total_memory / 2**20
                    used = [memory(replace(case, batch_size=count), "reference")["peak"] for count in (1, 2)]
                    case = replace(case, batch_size=batch_size_by_memory(used, total, MOST_CLIPS[task]))
                row = timed(settings, case, size, ["ours", "reference"])
            except (RuntimeError, SystemExit) as error:  # the other cases are measured all the same
                row = {"task": task, "size": size, "mode": "eager", "error": f"{task}, {size}: {error}"}
            yield row
            if row.get("waits"):
                yield {"verdict": verdict(f"{size}, {task}: steps that wait for the GPU", 1, 0, most=True)}
            gc.collect()
            if settings["device"] == "cuda":
                torch.cuda.empty_cache()


def compiled(settings: dict[str, Any]) -> Iterator[Row]:
    """The same cases compiled, as many as there is time for; batches as they were eager."""
    rows = settings["parts"].get("throughput", {}).get("rows", [])
    before = {(row.get("task"), row.get("size")): row for row in rows}
    on_gpu, longest = settings["device"] == "cuda", 0.0
    if not on_gpu:  # without its compiler, which takes half a minute there: what is traced is run as it is
        torch.compile = partial(torch.compile, backend="eager")
    for task, size in COMPILED if on_gpu else COMPILED[:1]:
        began = time.time()
        if on_gpu and settings["deadline"] - began < longest + 10:
            yield {"task": task, "size": size, "mode": "compiled", "not measured": "no time was left"}
            continue
        batch = before.get((task, size), {}).get("batch", MOST_CLIPS[task] // 4 if on_gpu else 2)
        try:
            torch.compiler.reset()
            case = case_of(settings, task, size, "bf16" if on_gpu else "fp32", batch)
            row = timed(settings, case, size, ["ours", "ours compiled"])
            yield row | {"seconds": round(time.time() - began, 1)}
        except Exception as error:  # the compiler has many kinds
            yield {"task": task, "size": size, "mode": "compiled", "error": f"{task}, {size}, compiled: {error}"[:300]}
        longest = max(longest, time.time() - began)
        gc.collect()


def extraction(settings: dict[str, Any]) -> Iterator[Row]:
    """The job from files to features, and the share of its time in which the GPU had nothing to do."""
    on_gpu, folder = settings["device"] == "cuda", Path(settings["folder"])
    paths = make(folder / "clips", 256 if on_gpu else 2, 10 if on_gpu else 1, distinct=4 if on_gpu else 1)
    arch = case_of(settings, "inference", "base", "bf16").arch
    frames, height, width = arch.input_size
    spec = ClipSpec(num_frames=frames, size=(height, width), resize=height)
    torch.manual_seed(0)
    model = str(save_pretrained(Hiera(arch, spec), folder / "model"))
    extractor, workers = FeatureExtractor.from_pretrained(model, device=settings["device"]), os.cpu_count() or 1
    options = {"num_workers": workers if on_gpu else 1, "batch_size": 32 if on_gpu else 2}
    row: Row = {**once(paths, extractor, model=model, device=settings["device"], **options), **options}
    row["clips_per_second"] = row["windows"] / row["wall"]
    row["idle_share"] = max(0.0, 1 - row["M"] / row["wall"])
    row["times_slower_part"] = row["wall"] / max(row["M"], row["D"] / workers)
    yield row


def resumed(settings: dict[str, Any]) -> Iterator[Row]:
    """A run that was stopped and goes on, on a GPU with its scaler, beside one that was not stopped."""
    deterministic()
    sys.path.insert(0, str(ROOT / "tests"))
    from training_sets import finetuning, write_colours

    on_gpu, folder = settings["device"] == "cuda", Path(settings["folder"])
    torch.manual_seed(0)
    spec = ClipSpec(num_frames=4, size=(64, 64), resize=64)
    start = save_pretrained(Hiera(arch_of(8), spec), folder / "start")
    changes = finetuning(write_colours(folder / "train", 3, seed=0), start) | {
        "run.device": settings["device"],
        "run.precision": "fp16" if on_gpu else "fp32",
        "run.duration": "8st" if on_gpu else "2st",
        "run.save_every": "4st" if on_gpu else "1st",
        "data.num_workers": "2" if on_gpu else "0",
        "data.repeats": "1",
    }

    def state(name: str, stop: int | None) -> tuple[dict[str, Tensor], str]:
        recipe = changes | {"run.output": str(folder / name)}
        if stop is not None:
            records: Any = finetune(load_recipe(Finetuning, changes=recipe))
            while next(records).step < stop:
                pass
            records.close()
        list(finetune(load_recipe(Finetuning, changes=recipe)))
        last = sorted((folder / name / "checkpoints").iterdir())[-1]
        tensors = torch.load(last / "optimizer.pt", weights_only=True)["state"]
        flat = {f"{key}.{kind}": value for key, kinds in tensors.items() for kind, value in kinds.items()}
        return flat, (last / "state.json").read_text().split('"scaler"')[1].split('"loader"')[0]

    unbroken, halved = state("whole", None), state("halved", 5 if on_gpu else 2)
    row: Row = {"precision": changes["run.precision"], "scaler": halved[1].strip(' :,"')}
    row["difference"] = distance(unbroken[0], halved[0])
    allowed = 0.0
    if row["difference"]:  # is it that of any two runs on this device?
        row["difference_of_equal_runs"] = distance(unbroken[0], state("again", None)[0])
        allowed = 2 * row["difference_of_equal_runs"]
    yield row
    what = "a run that goes on: "
    yield {"verdict": verdict(what + "its state's distance from one run's", row["difference"], allowed, most=True)}
    yield {"verdict": verdict(what + "its scaler is another", float(unbroken[1] != halved[1]), 0, most=True)}


def deterministic() -> None:
    """Sums in one order on a GPU too, where its libraries can: then equal runs are equal bit for bit."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative difference of two states; infinite where they have other parts."""
    if one.keys() != other.keys():
        return math.inf
    return max(float((one[key] - other[key]).norm() / (one[key].norm() + 1e-12)) for key in one)


def parallel(settings: dict[str, Any]) -> Iterator[Row]:
    """A step in DDP and one in FSDP2 (``run.shard``), in one process, beside the same step alone."""
    deterministic()
    device, on_gpu = settings["device"], settings["device"] == "cuda"
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{settings['folder']}/meeting", rank=0, world_size=1
    )
    keep = random_keep(4, 8, 0.5, generator=torch.Generator().manual_seed(0)).numpy()
    clip = torch.randn(4, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    for task in ("mae", "finetune"):
        states = {}
        for how in ("alone", "DDP", "FSDP2"):
            torch.manual_seed(0)
            model = HieraMAE(mae_arch_of(8)).to(device) if task == "mae" else Hiera(arch_of(8)).to(device)
            states[how] = stepped(model, how, clip, keep)
        for how in ("DDP", "FSDP2"):
            away = distance(states["alone"], states[how])
            yield {"task": task, "how": how, "difference": away}
            what = f"{task} step in {how} on one device: distance from the step alone"
            yield {"verdict": verdict(what, away, 1e-5, most=True)}
    torch.distributed.destroy_process_group()


def stepped(model: Hiera | HieraMAE, how: str, clip: Tensor, keep: Any) -> dict[str, Tensor]:
    """Gradients and loss of a step, and the weights after it, each in one piece on the CPU."""
    if how == "FSDP2":
        prepare(model, Run(duration="1st", videos_per_step=4, batch_size=4, shard=True))
    # As hiera_video.training.accelerator.distributed has it for several processes.
    wrapped: Any = DistributedDataParallel(model, gradient_as_bucket_view=True) if how == "DDP" else model
    # Not Adam, whose first step takes the sign of a gradient, also where that is zero but for rounding.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if isinstance(model, HieraMAE):
        loss = wrapped(clip, keep).loss
    else:
        loss = nn.functional.cross_entropy(wrapped(clip).float(), torch.arange(len(clip), device=clip.device))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    found = {f"{name}.grad": whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return found | {name: whole(p) for name, p in model.named_parameters()} | {"loss": loss.detach().cpu()}


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece."""
    full: Any = getattr(tensor, "full_tensor", lambda: tensor)()
    return full.detach().clone().cpu()
