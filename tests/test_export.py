"""Exported files: the logits of the model at any batch, what they say of themselves, and what is refused."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_cli import run
from torch import Tensor

from hiera_video.data.views import load_views
from hiera_video.models.checkpoints.saving import config_of
from hiera_video.models.hiera import Hiera
from hiera_video.models.zoo import create_model, from_pretrained
from hiera_video.spec import ClipSpec
from hiera_video.tasks import export as exporting
from hiera_video.tasks.classify.classifier import VideoClassifier
from hiera_video.tasks.export import SUFFIXES, export, export_model

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "run_onnx.py"
CLIP = ROOT / "docs" / "zoom_in.mp4"
REAL = ROOT.parent / "shared" / "videos"
BUILT_IN = "hiera_nano_16x64.camera_motion"


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def random_clips(model: Hiera, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, *model.arch.input_size, generator=generator)


def session_of(path: Path, threads: int = 1) -> Callable[[Tensor], Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads wait by turning round and round, at the cost of torch's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clip": clips.numpy()})[0])


@pytest.fixture(scope="module")
def files(tiny_model: Path, tiny_image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small video model in both formats, and the small image model as ONNX, as if its weights were large."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("exported")
    made = {name: folder / name for name in ("video.onnx", "video.pt2", "image.onnx")}
    (video,) = export(str(tiny_model), output=made["video.onnx"])
    (program,) = export(str(tiny_model), output=made["video.pt2"], format="torch-export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGE", 0)
        (image,) = export(str(tiny_image_model), output=made["image.onnx"])
    assert max(one.difference for one in (video, program, image)) < 1e-5
    assert [one.input for one in (video, program, image)] == ["Bx3x4x32x32", "Bx3x4x32x32", "Bx3x32x32"]
    assert image.megabytes == pytest.approx(sum(path.stat().st_size for path in folder.glob("image*")) / 1e6, abs=0.1)
    return made


@pytest.mark.parametrize("name", ["video.onnx", "image.onnx", "video.pt2"])
def test_a_file_gives_the_models_logits_at_any_batch(
    name: str, files: dict[str, Path], tiny_model: Path, tiny_image_model: Path
) -> None:
    model = from_pretrained(tiny_image_model if "image" in name else tiny_model)
    call = torch.export.load(files[name]).module() if name.endswith(".pt2") else session_of(files[name])
    for batch in (1, 2, 3, 5):
        clips = random_clips(model, batch)
        with torch.inference_mode():
            assert relative(call(clips), model(clips)) < 1e-5


def test_both_formats_hold_the_whole_config(files: dict[str, Path], tiny_model: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(files["video.onnx"], providers=["CPUExecutionProvider"])
    extra = {"config.json": ""}
    torch.export.load(files["video.pt2"], extra_files=extra)
    for text in (session.get_modelmeta().custom_metadata_map["config.json"], extra["config.json"]):
        assert json.loads(text) == json.loads((tiny_model / "config.json").read_text())
        assert ClipSpec.from_dict(json.loads(text)["clip"]) == from_pretrained(tiny_model).spec
    assert json.loads(text)["labels"] == list("abcdef") and {"views", "license"} <= json.loads(text).keys()
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("clip", ["batch", 3, 4, 32, 32], "tensor(float)")
    assert (gives.name, gives.shape) == ("logits", ["batch", 6])


def test_no_file_holds_paths_of_this_machine(files: dict[str, Path]) -> None:
    for path in files.values():
        assert b"layers.py" not in path.read_bytes()


def test_large_weights_lie_in_a_file_of_their_own(files: dict[str, Path]) -> None:
    names = sorted(path.name for path in files["video.onnx"].parent.iterdir())
    assert names == ["image.onnx", "image.onnx.data", "video.onnx", "video.pt2"]


@pytest.mark.slow  # an export of its own
def test_what_differs_from_the_model_is_not_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = from_pretrained(tiny_model)
    model.head.projection.bias.data[0] = float("nan")
    with pytest.raises(exporting.OutputError, match=r"a\.pt2 was not written: its logits differ .* by nan"):
        export_model(model, tmp_path / "a.pt2", "torch-export")
    monkeypatch.setitem(exporting.TOLERANCE, "float32", -1.0)
    with pytest.raises(exporting.OutputError, match=r"differ from the model's by 0 of the largest, and -1 is allowed"):
        export_model(from_pretrained(tiny_model), tmp_path / "a.pt2", "torch-export")
    assert not list(tmp_path.iterdir())


# --- float16 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(files: dict[str, Path], tiny_model: Path) -> Path:
    """The small video model as ONNX in float16, beside that in float32."""
    path = files["video.onnx"].with_name("half.onnx")
    (written,) = export(str(tiny_model), output=path, dtype="float16")
    assert 1e-6 < written.difference < 1e-2 and written.dtype == "float16"
    return path


def is_near(call: Callable[[Tensor], Tensor], model: Hiera) -> bool:
    """Whether float32 logits come of float32 clips of any batch, within float16's rounding, but not exactly."""
    near = []
    for batch in (1, 2, 5):
        clips = random_clips(model, batch)
        with torch.inference_mode():
            logits = call(clips)
            near.append(logits.dtype == torch.float32 and 1e-6 < relative(logits, model(clips)) < 1e-2)
    return all(near)


def test_float16_takes_and_gives_float32_and_is_near_the_model_at_any_batch(half: Path, tiny_model: Path) -> None:
    assert is_near(session_of(half), from_pretrained(tiny_model))


def test_float16_weights_and_products_are_float16(half: Path, files: dict[str, Path]) -> None:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(half)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    float16, float32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    products = [node for node in graph.node if node.op_type in ("MatMul", "Conv", "Gemm")]
    assert products and {types[node.output[0]] for node in products} == {float16}
    assert {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1} == {float16}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {float32}
    assert half.stat().st_size < 0.75 * files["video.onnx"].stat().st_size


@pytest.mark.slow  # an export of its own
def test_a_float16_program_of_torch_export_is_near_too(tiny_model: Path, tmp_path: Path) -> None:
    (written,) = export(str(tiny_model), output=tmp_path / "a.pt2", format="torch-export", dtype="float16")
    program = torch.export.load(written.output)
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.float16}
    assert is_near(program.module(), from_pretrained(tiny_model))


def test_statistics_of_stages_stay_float32_in_a_float16_model() -> None:
    model = create_model("hiera_nano_16x64", num_classes=5, head="readout", head_stages=(1, 2), readout_dim=8).eval()
    clips = random_clips(model, 2)
    with torch.inference_mode():
        assert relative(exporting._Half(model).eval()(clips), model(clips)) < 1e-2


def test_what_float16_rounds_to_infinity_is_seen_where_onnxruntime_computes_in_float32(tiny_model: Path) -> None:
    model = from_pretrained(tiny_model).eval()
    mlp: Any = model.blocks[0].mlp
    mlp.fc1.weight.data *= 1e6
    mlp.fc2.weight.data /= 1e6
    half = exporting._Half(model).eval()
    assert exporting._difference(model, [model]) == 0.0
    assert not exporting._difference(model, [model, half]) <= exporting.TOLERANCE["float16"]


def test_what_onnxruntime_cannot_run_here_is_refused_in_one_sentence(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    version = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed").__version__
    clip, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [1]) for name in ("clip", "logits")
    )
    node = onnx.helper.make_node("Cbrt", ["clip"], ["logits"], domain="nowhere")
    graph = onnx.helper.make_graph([node], "graph", [clip], [logits])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(exporting.OutputError) as caught:
        exporting._onnx_runner(tmp_path / "a.onnx")
    sentence = str(caught.value)
    assert sentence.startswith(
        f"a.onnx was not written: it cannot be checked, since onnxruntime {version} cannot run it on this machine ("
    )
    assert (
        "Cbrt" in sentence and sentence.endswith("): update onnxruntime, or leave --dtype out") and "\n" not in sentence
    )


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote_at_another_size_and_replaces_a_file(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt2"
    path.write_text("old")
    argv = ("--format", "torch-export", "--output", path, "--size", 64, "--num-frames", 2)
    code, out, err = run(capsys, "export", tiny_model, *argv)
    assert code == 0 and out.split()[:3] == [str(path), "torch-export", "Bx3x2x64x64"] and "Traceback" not in err
    extra = {"config.json": ""}
    torch.export.load(path, extra_files=extra)
    assert out.count("\n") == 1 and json.loads(extra["config.json"])["clip"]["size"] == [64, 64]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--output", "a.onnx", "--format", "onxx"), "--format is 'onxx', but must be one of onnx, torch-export"),
        (("--output", "a.pt2"), "a.pt2 must end in .onnx, as files of format onnx do"),
        (
            ("--output", "a.onnx", "--format", "torch-export"),
            "a.onnx must end in .pt2, as files of format torch-export",
        ),
        (("--output", "nowhere/a.onnx"), "nowhere/a.onnx cannot be written: there is no folder nowhere"),
        (("--output", "folder.onnx"), "folder.onnx is a folder; name a file in it"),
        (
            ("--output", "a.onnx", "--dtype", "bfloat16"),
            "--dtype is 'bfloat16', but must be one of float32, float16",
        ),
        ((), "--output is missing: see hiera-video export --help"),
        (("--output", "a.onnx", "--size", "33"), "33"),
        (("--output", "a.onnx", "--sise", "32"), "there is no option --sise; did you mean --size?"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    options: tuple[str, ...],
    sentence: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    code, out, err = run(capsys, "export", tiny_model, *options)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("hiera-video: ")
    assert sentence in err
    assert [path.name for path in Path().iterdir()] == ["folder.onnx"]


def test_what_has_no_logits_says_so(
    tiny_mae: Path, tiny_image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--format", "torch-export", "--output", tmp_path / "a.pt2")
    code, _, err = run(capsys, "export", tiny_mae, *argv)
    assert code == 2 and err.splitlines()[-1].startswith(f"hiera-video: {tiny_mae} is a masked autoencoder, or the ")
    assert "no logits to export: fine-tune it first" in err
    code, _, err = run(capsys, "export", tiny_image_model, *argv, "--num-frames", 8)
    assert code == 2 and "num_frames is of video models, and this one takes pictures" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_before_the_model_is_read(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if name != package:
            monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, "export", "no_such_model", "--output", tmp_path / "a.onnx")
    assert (code, err) == (2, f'hiera-video: format onnx needs {package}: pip install "hiera-video[export]"\n')


# --- without torch ----------------------------------------------------------------------------------------------------


def without_torch(*argv: str) -> subprocess.CompletedProcess[str]:
    """The script in a process that fails where torch or this package was imported."""
    code = (
        f"import runpy, sys; sys.argv = {['run_onnx.py', *argv]!r}; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
        "assert 'torch' not in sys.modules and 'hiera_video' not in sys.modules"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)


def answers(video: Path, model: Path) -> dict[str, float]:
    done = without_torch(str(video), str(model))
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return {label: float(score.rstrip("%")) / 100 for score, label in rows}


@pytest.mark.parametrize("name", ["video.onnx", "image.onnx"])
def test_the_script_agrees_with_classify(
    name: str, files: dict[str, Path], tiny_model: Path, tiny_image_model: Path, videos: Path
) -> None:
    classifier = VideoClassifier.from_pretrained(tiny_image_model if "image" in name else tiny_model)
    for video in (CLIP, videos / "b" / "turned.mp4"):
        expected = {one.label: one.score for one in classifier(video, views="1x1").predictions}
        found = answers(video, files[name])
        assert next(iter(found)) == next(iter(expected))
        assert found == pytest.approx(expected, rel=0.02)


def test_the_script_says_in_one_line_what_is_wrong(files: dict[str, Path], videos: Path, tmp_path: Path) -> None:
    for video, model in (
        (videos / "missing.mp4", files["video.onnx"]),
        (videos / "audio.mp4", files["video.onnx"]),
        (videos / "text.mp4", files["video.onnx"]),
        (CLIP, videos / "text.mp4"),
    ):
        done = without_torch(str(video), str(model))
        assert done.returncode == 1 and done.stderr.startswith("run_onnx: ") and done.stderr.count("\n") == 1


# --- by hand: published sizes, real clips -----------------------------------------------------------------------------


def real_clips(model: Hiera) -> Tensor:
    """The centre clip of each readable real video, normalised."""
    if not REAL.is_dir():
        pytest.skip(f"there is no folder {REAL}")
    clips = torch.cat([load_views(path, model.spec, 1, 1).clips for path in sorted(REAL.iterdir())])
    return model.spec.normalize(clips if len(model.arch.input_size) == 3 else clips[:, :, 0])


def median_ms(calls: list[Callable[[Tensor], Tensor]], clips: Tensor, pairs: int) -> list[float]:
    """Medians of calls that take turns, in milliseconds."""
    times: NDArray[np.float64] = np.zeros((pairs, len(calls)))
    for row in times:
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call(clips)
            row[index] = 1000 * (time.perf_counter() - start)
    return [statistics.median(column) for column in times.T]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hiera_base_16x224", "hiera_base_224"])
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_base_on_real_clips(name: str, format: exporting.Format, tmp_path: Path) -> None:
    """Prints the largest difference and the speeds of two threads; on a busy machine with OMP_WAIT_POLICY=passive."""
    torch.manual_seed(0)
    model = create_model(name, head_init_scale=1.0).eval()
    clips = real_clips(model)
    path = tmp_path / f"base{SUFFIXES[format]}"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        print(export_model(model, path, format), config_of(model)["clip"])
        call = session_of(path, threads=2) if format == "onnx" else torch.export.load(path).module()
        with torch.inference_mode():
            worst = max(relative(call(clip[None]), model(clip[None])) for clip in clips)
            eager, exported = median_ms([model, call], clips[:1], 5)
    finally:
        torch.set_num_threads(threads)
    print(f"{name} {format}: {worst:.2g} on {len(clips)} clips; eager {eager:.0f} ms, exported {exported:.0f} ms")
    assert worst < 1e-3


@pytest.mark.slow
def test_the_script_names_the_motion_of_real_videos_as_classify_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "nano.onnx"
    (_,) = export(BUILT_IN, output=path)
    classifier = VideoClassifier.from_pretrained(BUILT_IN)
    for video in (CLIP, *sorted(REAL.glob("*"))):
        if video.name == "corrupted.mp4":
            continue  # the script shows what is left of its damaged frames
        best = classifier(video, views="1x1").predictions[0]
        found = answers(video, path)
        print(video.name, best.label, f"{best.score:.4f}", next(iter(found.items())))
        assert next(iter(found)) == best.label
        assert found[best.label] == pytest.approx(best.score, rel=0.02)
