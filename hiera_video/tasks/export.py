"""Models as files that run elsewhere: an ONNX graph, or a program of ``torch.export``; each is checked, then written.

The graph takes ``clip``, normalised float32 ``[B, C, T, H, W]`` (images ``[B, C, H, W]``) of one size and any batch B,
and gives float32 ``logits`` ``[B, num_classes]``, also where it computes in float16. How to make clips, and what the
classes are called, travels inside: the ``config.json`` of our folder is an entry of that name in ONNX's metadata and
among torch.export's extra files.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hiera_video.cells import cells
from hiera_video.errors import OutputError, RequestError
from hiera_video.files import check_output
from hiera_video.models.checkpoints.build import fitted
from hiera_video.models.checkpoints.saving import config_of
from hiera_video.models.heads import SEE_STAGES
from hiera_video.models.hiera import Hiera
from hiera_video.models.unroll import Size
from hiera_video.models.zoo import from_pretrained
from hiera_video.tasks.records import Results

log = logging.getLogger("hiera_video")

Format = Literal["onnx", "torch-export"]
DType = Literal["float32", "float16"]
#: What a format's files are called, so that no program takes one for the other.
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
#: The entry, in both formats, with what ``config.json`` of our folder says.
CONFIG = "config.json"
#: Largest max|a - b| / max|b| between what is written and the model in float32. Measured in float16: up to 5e-3.
TOLERANCE: dict[DType, float] = {"float32": 1e-3, "float16": 1e-2}
#: Batch sizes at which that is measured: the one that compilers like to specialise on, and another.
BATCHES = (1, 3)
#: Bytes of weights above which they lie in a file of their own: protobuf, and so an ONNX file, ends at 2 GiB.
LARGE = 1_900_000_000

#: A written file as a function: clips to logits.
Runner: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        output: The file.
        format: "onnx" or "torch-export".
        input: The shape of a batch of clips, with B for any batch size.
        megabytes: Its size, weights beside it included.
        difference: max|a - b| / max|b| of the logits of random clips, beside the model's in float32, checked before.
        dtype: "float32" or "float16": of weights and arithmetic; input and logits are float32.
        error: None: a file that cannot be written is a request that cannot be met.
    """

    output: str
    format: str
    input: str
    megabytes: float
    difference: float
    dtype: DType = "float32"
    error: None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields but ``error``."""
        return {key: value for key, value in vars(self).items() if key != "error"}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row."""
        return [self.to_dict()]

    def text(self) -> str:
        """One line."""
        return cells(self.to_dict())


class _Half(nn.Module):
    """A copy of a model with weights and arithmetic in float16; clips and logits are float32, as the model's own.

    The statistics of stages, and the head that sees them, stay float32, as their code has them.
    """

    def __init__(self, model: Hiera) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()
        if model.arch.head in SEE_STAGES:
            self.model.head.float()

    def forward(self, clip: Tensor) -> Tensor:
        return self.model(clip.half()).float()


def export(
    model: str,
    *,
    output: Path,
    format: Format = "onnx",
    dtype: DType = "float32",
    size: int | None = None,
    num_frames: int | None = None,
) -> Results[Exported]:
    """Write a classifier as a file that runs without this package, checked against the model.

    Args:
        model: A name (see `hiera-video models`), a file, a folder or a hub id.
        output: The file to write: NAME.onnx or, of torch-export, NAME.pt2.
        format: onnx, or torch-export, which torch.export.load reads.
        dtype: float32, or float16 for weights and arithmetic: half the size, for GPUs. Clips and logits stay float32.
        size: Height and width of the clips in pixels. Default: the model's own.
        num_frames: Frames of a clip. Default: the model's own.

    Returns:
        The file that was written.

    Raises:
        RequestError: The format lacks a package, the output's ending is another format's, or the model has no logits.
        OutputError: The file cannot be written, or does not give the model's logits.
    """
    output = Path(output)
    _check_request(output, format, dtype)
    classifier = from_pretrained(model)
    if classifier.new_head:
        raise RequestError(
            f"{model} is a masked autoencoder, or the encoder of one, and has no logits to export: "
            f"fine-tune it first (hiera-video finetune --model {model} --train VIDEOS)"
        )
    input_size = _input_size(classifier.clip_size, size, num_frames)
    if classifier.arch.head == "stages":  # its trunk takes any size
        classifier.spec = fitted(classifier.spec, input_size)
    elif input_size != classifier.arch.input_size:
        classifier = from_pretrained(model, input_size=input_size)
    return Results(1, iter([export_model(classifier, output, format, dtype)]))


def export_model(model: Hiera, output: Path, format: Format = "onnx", dtype: DType = "float32") -> Exported:
    """Writes a classifier, once the file gives the model's own logits.

    Weights above 2 GB come to lie beside an ONNX file, in ``NAME.onnx.data``: the two belong together.

    Args:
        model: The classifier; it goes to the CPU and into evaluation mode.
        output: The file to write.
        format: "onnx" or "torch-export".
        dtype: "float32" or "float16", of weights and arithmetic.

    Returns:
        The file that was written.

    Raises:
        RequestError: The format lacks a package, or the output's ending is another format's.
        OutputError: The file cannot be written, onnxruntime cannot run it here, or its logits differ from the model's
            in float32 by more than ``TOLERANCE``; nothing is written.
    """
    _check_request(output, format, dtype)
    model = model.cpu().float().eval().requires_grad_(False)
    size = (model.arch.in_chans, *model.clip_size)
    log.info("exporting and checking: this takes from seconds to minutes")
    module = _Half(model).eval() if dtype == "float16" else model
    program = torch.export.export(
        module, (torch.zeros(2, *size),), dynamic_shapes={"clip": {0: torch.export.Dim("batch", min=1)}}, strict=False
    )
    for node in program.graph.nodes:  # source lines, with the paths of this machine
        node.meta.pop("stack_trace", None)
    config = json.dumps(config_of(model), ensure_ascii=False)
    write = _write_onnx if format == "onnx" else _write_torch
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            draft = Path(folder) / output.name
            runs = [write(program, draft, config)]
            if format == "onnx" and dtype == "float16":
                # On a processor onnxruntime computes much of such a graph in float32, and does not see what a GPU
                # rounds to infinity: torch does, and is slow.
                runs.append(module)
            difference = _difference(model, runs)
            if not difference <= TOLERANCE[dtype]:
                raise OutputError(
                    f"{output} was not written: its logits differ from the model's by {difference:.2g} of the largest, "
                    f"and {TOLERANCE[dtype]:g} is allowed"
                )
            megabytes = sum(file.stat().st_size for file in draft.parent.iterdir()) / 1e6
            for file in sorted(draft.parent.iterdir(), key=lambda file: file == draft):  # weights first
                file.replace(output.parent / file.name)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error
    return Exported(str(output), format, "x".join(map(str, ("B", *size))), round(megabytes, 1), difference, dtype)


def _check_request(output: Path, format: str, dtype: str) -> None:
    """Raises, before any work, where a value is unknown, the format lacks a package, or the file cannot be written."""
    for name, value, values in (("format", format, SUFFIXES), ("dtype", dtype, TOLERANCE)):
        if value not in values:
            raise RequestError(f"{name} is {value!r}, but can be {' or '.join(values)}")
    if output.suffix != SUFFIXES[format]:
        raise RequestError(f"{output} must end in {SUFFIXES[format]}, as files of format {format} do")
    check_output(output)
    try:
        for package in ("onnx", "onnxruntime", "onnxscript") if format == "onnx" else ():
            importlib.import_module(package)
    except ImportError as error:
        raise RequestError(f'format onnx needs {error.name}: pip install "hiera-video[export]"') from error


def _input_size(own: Size, size: int | None, num_frames: int | None) -> Size:
    space = own[-2:] if size is None else (size, size)
    if len(own) == 3:
        return (own[0] if num_frames is None else num_frames, *space)
    if num_frames is not None:
        raise RequestError("num_frames is of video models, and this one takes pictures: leave it out")
    return space


def _write_onnx(program: torch.export.ExportedProgram, path: Path, config: str) -> Runner:
    # 20 is the first with GELU as one operator.
    names: dict[str, Any] = {"input_names": ["clip"], "output_names": ["logits"]}
    made: Any = torch.onnx.export(program, opset_version=20, dynamo=True, verbose=False, **names)
    for node in made.model.graph:
        node.metadata_props.clear()
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        value.shape = type(value.shape)(["batch", *value.shape[1:]])
    made.model.metadata_props[CONFIG] = config
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    made.save(path, external_data=weights > LARGE)
    return _onnx_runner(path)


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: of float16 it warns of each sum of constants that it does not fold
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own errors have no base of theirs
        raise OutputError(
            f"{path.name} was not written: it cannot be checked, since onnxruntime {onnxruntime.__version__} cannot "
            f"run it on this machine ({' '.join(str(error).split())}): update onnxruntime, or leave --dtype out"
        ) from error
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clip": clips.numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, path: Path, config: str) -> Runner:
    torch.export.save(program, path, extra_files={CONFIG: config})
    return torch.export.load(path).module()


@torch.inference_mode()
def _difference(model: Hiera, runs: list[Runner]) -> float:
    """The largest max|a - b| / max|b| of the logits, over random clips in batches of ``BATCHES``; of runs behind the
    first, over the first batch alone.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, calls in zip(BATCHES, (runs, runs[:1]), strict=True):
        shape = (batch, model.arch.in_chans, *model.clip_size)
        clips = model.spec.normalize(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        expected = model(clips)
        differences += [(call(clips) - expected).abs().max() / expected.abs().max() for call in calls]
    return torch.stack(differences).max().item()  # Python's max would pass over a NaN
