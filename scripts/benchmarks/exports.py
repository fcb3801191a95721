"""Exported files under onnxruntime on a processor: float32, float16, int8; size, latency and answers of each.

    python scripts/benchmarks/exports.py --videos /tmp/real --json exports.json

``--videos`` is a folder with a ``labels.csv``, as scripts/evaluate_camera_motion.py makes it. Its first ``--calibrate``
videos show onnxruntime's quantiser what ranges activations have; the others are answered (one view of each). int8 is
made in two ways: ``dynamic``, of products with weights, activations being quantised as they come; and ``static``,
QuantizeLinear and DequantizeLinear in the graph, ranges from the calibration, of all products, those inside the
attention too, and of the patch convolution. All else stays float32. Times are of one clip on ``--threads`` threads:
rounds in which the files take turns, every second one backwards; CPU seconds, since other programs disturb the clock.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from common import in_turn, machine, ratio, spread, write_json
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from hiera_video.data.views import load_views
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import from_pretrained
from hiera_video.tasks.export import export_model

Floats: TypeAlias = NDArray[np.float32]


class Clips(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Clips one after the other, as onnxruntime's quantiser asks for them."""

    def __init__(self, clips: Floats) -> None:
        self._left = iter(clips)

    def get_next(self) -> dict[str, Floats] | None:
        """The next clip by the graph's name of it, or None after the last."""
        clip = next(self._left, None)
        return None if clip is None else {"clip": clip[np.newaxis]}


def clips_of(folder: Path, model: Hiera) -> tuple[Floats, list[int]]:
    """The centre clips of labelled videos, normalised float32 [N, 3, T, H, W], and the numbers of their classes."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    clips = torch.cat([load_views(folder / row["file"], model.spec, 1, 1).clips for row in rows])
    labels = model.labels or []
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1, 1) for values in (model.spec.mean, model.spec.std))
    scaled: Floats = np.asarray((clips.numpy() / np.float32(255) - mean) / std, dtype=np.float32)
    return scaled, [labels.index(row["label"]) for row in rows]


def make_files(model: Hiera, folder: Path, calibration: Floats) -> dict[str, Path]:
    """The four files."""
    files = {name: folder / f"{name}.onnx" for name in ("float32", "float16", "int8_dynamic", "int8_static")}
    export_model(model, files["float16"], dtype="float16")
    export_model(model, files["float32"])
    prepared = folder / "prepared.onnx"
    quant_pre_process(files["float32"], prepared, skip_symbolic_shape=True)
    # Seven bits: without VNNI, sums of products of eight bits overflow their sixteen.
    weights: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": not has_vnni()}
    quantize_dynamic(prepared, files["int8_dynamic"], op_types_to_quantize=["MatMul", "Gemm"], **weights)
    quantize_static(
        prepared,
        files["int8_static"],
        Clips(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        activation_type=QuantType.QUInt8,
        **weights,
    )
    return files


def has_vnni() -> bool:
    """Whether the processor adds up products of eight bits in 32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "vnni" in info.read_text()


def opened(path: Path, threads: int) -> Callable[[Floats], Floats]:
    """A file as a function: clips to logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is no work
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(clips: Floats) -> Floats:
        logits: Floats = session.run(["logits"], {"clip": clips})[0]
        return logits

    return run


def measured(runs: dict[str, Callable[[Floats], Floats]], clip: Floats, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each in each round; a round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name in in_turn(runs, number):
            begin = time.process_time()
            runs[name](clip)
            if number >= 0:
                seconds[name].append(time.process_time() - begin)
    return seconds


def main() -> None:
    """Makes the files, asks them, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hiera_nano_16x64.camera_motion")
    parser.add_argument("--videos", type=Path, required=True, help="folder of labelled videos")
    parser.add_argument("--calibrate", type=int, default=36, help="how many of them calibrate, and are not answered")
    parser.add_argument("--output", type=Path, default=Path("onnx_files"), help="folder for the exported files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    model = from_pretrained(asked.model)
    clips, truth = clips_of(asked.videos, model)
    files = make_files(model, asked.output, clips[: asked.calibrate])
    clips, truth = clips[asked.calibrate :], truth[asked.calibrate :]
    runs = {name: opened(path, asked.threads) for name, path in files.items()}
    logits = {name: np.concatenate([run(clip[np.newaxis]) for clip in clips]) for name, run in runs.items()}
    seconds = measured(runs, clips[:1], asked.rounds)
    facts = machine(["onnxruntime", "onnx", "torch"]) | {"vnni": has_vnni(), "load": os.getloadavg()[0]}
    best = {name: values.argmax(axis=1) for name, values in logits.items()}
    rows: dict[str, dict[str, Any]] = {
        name: {
            "megabytes": round(files[name].stat().st_size / 1e6, 1),
            "seconds": spread(seconds[name]),
            "speed_over_float32": ratio(seconds["float32"], seconds[name]),
            "top1": float(np.mean(best[name] == truth)),
            "agreement": float(np.mean(best[name] == best["float32"])),
            "difference": float(abs(logits[name] - logits["float32"]).max() / abs(logits["float32"]).max()),
        }
        for name in runs
    }
    print(f"{facts['cpu']}, VNNI {'yes' if has_vnni() else 'no'}; onnxruntime {onnxruntime.__version__}")
    print(f"{asked.model}, {len(clips)} videos, {asked.threads} threads, {asked.rounds} rounds; CPU milliseconds")
    print("| file | MB | ms a clip | speed over float32 | top1 | same answer | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        speed = row["speed_over_float32"]
        print(
            f"| {name} | {row['megabytes']} | {1000 * row['seconds']['median']:.1f} | {speed['median']:.2f} "
            f"({speed['quartile_low']:.2f} to {speed['quartile_high']:.2f}) | {row['top1']:.1%} | "
            f"{row['agreement']:.1%} | {row['difference']:.2g} |"
        )
    write_json(asked.json, {"machine": facts, "model": asked.model, "videos": len(clips), "rows": rows})


if __name__ == "__main__":
    main()
