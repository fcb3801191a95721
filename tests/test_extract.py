"""Features: equal to the reference's, at the right place and time; extracted once each, whatever happens on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import hiera
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from assets import H264
from numpy.typing import NDArray
from PIL import Image
from reference import reference_fields

from hiera_video import FeatureExtractor, create_model, extract, open_video, save_pretrained
from hiera_video.cli import main
from hiera_video.data.reading.pyav_decoder import PyAVDecoder
from hiera_video.data.windows import Walk, walk
from hiera_video.errors import OutputError, RequestError
from hiera_video.files import alone
from hiera_video.models.zoo import BUILT_IN
from hiera_video.tasks.features.feature_table import read_facts, read_failures, read_vectors
from hiera_video.tasks.features.inputs import Inputs, parse_part
from hiera_video.tasks.features.job import Extracted
from hiera_video.tasks.features.probe import probe
from hiera_video.tasks.features.search import search

SMALL_SHARDS = [
    sys.executable,
    "-c",
    "from hiera_video import cli; from hiera_video.tasks.features import feature_table; feature_table.MAX_ROWS = 3; "
    "exit(cli.main())",
    "extract",
]
#: While a shard is written, a file may have no more than 6000 bytes.
SMALL_DISK = """
import resource
from hiera_video import cli
from hiera_video.tasks.features.feature_table import Writer
flush, limits = Writer.flush, resource.getrlimit(resource.RLIMIT_FSIZE)
def limited(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        flush(self)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
Writer.flush = limited
exit(cli.main())
"""
COMMAND = [sys.executable, "-m", "hiera_video.cli", "extract"]


def command(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def run(inputs: list[Path | str], output: Path, **options: Any) -> Extracted:
    (summary,) = extract([str(one) for one in inputs], output=output, num_workers=1, **options)
    return summary


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of 0.3 to 3 seconds, all different."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(9):
        replace(H264, name=f"{number}.mp4", num_frames=9 + 10 * number, start=number).write(folder)
    return folder


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], NDArray[np.float32]]:
    """The embeddings of an uninterrupted run, by input and window."""
    output = tmp_path_factory.mktemp("whole") / "features"
    run([clips], output, hop=0.5)
    return embeddings(output)


def embeddings(folder: Path) -> dict[tuple[str, int], NDArray[np.float32]]:
    """By input and window: no window is there twice."""
    table, values = read_vectors(folder)
    keys = list(zip(table["input"].to_pylist(), table["window"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, values, strict=True))


def assert_same(
    found: dict[tuple[str, int], NDArray[np.float32]], expected: dict[tuple[str, int], NDArray[np.float32]]
) -> None:
    assert found.keys() == expected.keys()
    # Windows go through the model in other company, so that sums may come in another order.
    assert all(np.abs(found[key] - expected[key]).max() <= 1e-5 * np.abs(expected[key]).max() for key in found)


# --- what features are ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_maps_and_embedding_are_the_references_for_a_real_video(clips: Path) -> None:
    ours = create_model("hiera_nano_16x64", num_classes=9)
    fields = reference_fields(ours.arch)
    reference: Any = hiera.Hiera(**fields).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in reference.named_parameters():
        parameter.normal_(float("norm" in name and name.endswith("weight")), 0.05, generator=generator)
    ours.load_state_dict(reference.state_dict())
    extractor = FeatureExtractor(ours, device="cpu")
    seen: list[torch.Tensor] = []
    reference.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    (window,) = extractor(clips / "5.mp4", features="all")
    clip = ours.spec.normalize(torch.from_numpy(window.frames.copy()).permute(3, 0, 1, 2)[None])
    _, maps = reference(clip, return_intermediates=True)
    assert list(window.maps) == ["stage1", "stage2", "stage3", "stage4"]
    for found, expected in zip(window.maps.values(), maps, strict=True):
        assert found.shape == expected.shape[1:]
        assert np.abs(found - expected[0].numpy()).max() <= 1e-5 * float(expected.abs().max())
    assert window.embedding is not None
    assert np.abs(window.embedding - seen[0][0].numpy()).max() <= 1e-5 * float(seen[0].abs().max())


def write_video(path: Path, frames: NDArray[np.uint8], fps: int = 30) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("crop", ["center", "three", "none"])
def test_a_moving_square_is_strongest_where_and_when_it_is(crop: Any, tmp_path: Path) -> None:
    """Order, not only shape: the cell that differs most from a clip without the square holds it, at each step."""
    places = []
    frames = np.full((64, 96, 160, 3), 90, dtype=np.uint8)
    for number, frame in enumerate(frames):
        x, y = 40 + number, 20 + number // 2
        frame[y : y + 10, x : x + 10] = 255
        places.append((x + 5, y + 5))
    extractor = FeatureExtractor.from_pretrained(device="cpu")
    blank = write_video(tmp_path / "blank.mp4", np.full_like(frames, 90))
    moving = write_video(tmp_path / "moving.mp4", frames)
    features = "stage1,stage2"
    pairs = zip(
        extractor(moving, features=features, crop=crop), extractor(blank, features=features, crop=crop), strict=True
    )
    checked = 0
    for with_it, without in pairs:
        for stage in ("stage1", "stage2"):
            response = np.square(with_it.maps[stage] - without.maps[stage]).sum(axis=-1)
            cells = with_it.cells(stage)
            margin = (cells[0, 0, 2:] - cells[0, 0, :2]).max() / 2 + 5  # half a cell and half the square
            for step, at in enumerate(with_it.times[stage]):
                x, y = places[min(round(at * 30), 63)]
                left, top, right, bottom = with_it.box
                if not (left + margin < x < right - margin and top + margin < y < bottom - margin):
                    continue
                row, column = np.unravel_index(response[step].argmax(), response[step].shape)
                left, top, right, bottom = cells[row, column]
                assert left - margin <= x <= right + margin and top - margin <= y <= bottom + margin
                checked += 1
    assert checked >= 12


def test_windows_of_a_call_have_their_times_and_the_embedding_is_the_heads_input(clips: Path) -> None:
    extractor = FeatureExtractor.from_pretrained(device="cpu")
    windows = list(extractor(str(clips / "8.mp4"), window=1.0, hop=0.5, features="embedding,stage4"))
    assert [one.start for one in windows] == pytest.approx([0, 0.5, 1, 1.5, 89 / 30 - 1])
    assert [one.end for one in windows] == pytest.approx([1, 1.5, 2, 2.5, 89 / 30])
    assert [(one.number, one.count) for one in windows] == [(number, 5) for number in range(5)]
    plain = FeatureExtractor.from_pretrained(BUILT_IN, device="cpu")
    answers = list(plain(str(clips / "8.mp4"), window=1.0, hop=0.5, features="embedding,stage4"))
    for one, answer in zip(windows, answers, strict=True):
        clip = one.views.clips[one.view : one.view + 1]
        with torch.no_grad():
            expected = extractor.model(extractor.model.spec.normalize(clip))[0].numpy()
        assert one.embedding == pytest.approx(expected, rel=1e-4, abs=1e-5)
        tokens = torch.from_numpy(answer.maps["stage4"]).flatten(0, 2)
        expected = plain.model.norm(tokens.mean(dim=0)).detach().numpy()
        assert answer.embedding == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert (np.diff(one.times["stage4"]) > 0).all()
        assert one.start < one.times["stage4"][0] < one.times["stage4"][-1] < one.end


@pytest.mark.parametrize("name", ["hiera_tiny_224", "mae_hiera_nano_16x64"])
def test_image_models_and_maes_and_other_sizes(name: str, clips: Path, tmp_path: Path) -> None:
    model = create_model(name, input_size=(96, 96) if name == "hiera_tiny_224" else (8, 96, 64))
    save_pretrained(model, tmp_path / "model")
    extractor = FeatureExtractor.from_pretrained(tmp_path / "model", device="cpu")
    windows = list(extractor(str(clips / "8.mp4"), features="all"))
    count, grid = (3, (1, 24, 24)) if name == "hiera_tiny_224" else (2, (4, 24, 16))
    assert len(windows) == count
    for one in windows:
        assert one.maps["stage1"].shape[:3] == grid
        assert one.embedding is not None and one.embedding.shape == (extractor.model.num_features,)
    Image.new("RGB", (90, 70), "green").save(tmp_path / "green.png")
    (still,) = extractor(tmp_path / "green.png")
    assert (still.start, still.end, still.number, still.count) == (0.0, 0.0, 0, 1)


def test_what_is_no_file_has_the_features_of_the_file(clips: Path, tmp_path: Path) -> None:
    extractor = FeatureExtractor.from_pretrained(device="cpu")
    file = clips / "8.mp4"
    with open_video(file) as video:
        frames = video.frames(range(len(video))).pixels
    Image.fromarray(frames[0]).save(tmp_path / "still.png")
    (still,) = extractor(tmp_path / "still.png")
    expected = list(extractor(file, hop=0.5))
    with file.open("rb") as stream:
        sources: list[tuple[Any, float | None, str]] = [
            (file.read_bytes(), None, f"<{file.stat().st_size} bytes>"),
            (stream, None, str(file)),
            (frames, 30, "<89 frames>"),
            (torch.from_numpy(frames).permute(0, 3, 1, 2), 30, "<89 frames>"),
            ([Image.fromarray(frame) for frame in frames], 30, "<89 frames>"),
        ]
        for source, fps, name in sources:
            rows = list(extractor(source, hop=0.5, fps=fps))
            assert {row.input for row in rows} == {name}
            for row, other in zip(rows, expected, strict=True):
                assert (row.start, row.end) == pytest.approx((other.start, other.end))
                assert np.array_equal(row.frames, other.frames)
                assert row.embedding == pytest.approx(other.embedding, rel=1e-4, abs=1e-5)
    (same,) = extractor((tmp_path / "still.png").read_bytes())
    assert (same.start, same.end, same.padded) == (0.0, 0.0, False)
    assert np.array_equal(same.frames, still.frames)
    with pytest.raises(RequestError, match="a video cannot be read from the type int"):
        next(extractor(7))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"frames need their rate: pass fps="):
        next(extractor(frames))


# --- the folder -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_the_call_gives(clips: Path, tmp_path: Path) -> None:
    summary = run([clips], tmp_path / "out", hop=0.5)
    extractor = FeatureExtractor.from_pretrained(device="cpu")
    found = embeddings(tmp_path / "out")
    assert summary.inputs == 9 and summary.windows == len(found) and summary.error is None
    expected = {(str(path), one.number): one.embedding for path in clips.iterdir() for one in extractor(path, hop=0.5)}
    assert_same(found, expected)  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "out" / "windows")
    assert set(table["model"].to_pylist()) == {"hiera_nano_16x64.general"}
    short = table.filter([name.endswith("/0.mp4") for name in table["input"].to_pylist()]).to_pylist()
    assert [(row["padded"], row["windows"], row["end"]) for row in short] == [(True, 1, pytest.approx(0.3))]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"format": "npz"}, 0),
        ({"format": "safetensors"}, 0),
        ({"format": "safetensors", "dtype": "bfloat16"}, 1e-2),
        ({"dtype": "float16"}, 1e-3),
        ({"features": "all"}, 0),
        ({"features": "all", "format": "npz", "dtype": "float16"}, 1e-3),
    ],
)
def test_every_format_holds_the_same(
    options: dict[str, Any],
    tolerance: float,
    clips: Path,
    whole: dict[tuple[str, int], NDArray[np.float32]],
    tmp_path: Path,
) -> None:
    run([clips / "8.mp4"], tmp_path / "out", hop=0.5, **options)
    found = embeddings(tmp_path / "out")
    for key, values in found.items():
        assert np.abs(values - whole[key]).max() <= max(tolerance, 1e-5) * np.abs(whole[key]).max()
    row = pq.read_table(tmp_path / "out" / "windows").to_pylist()[-1]
    if options.get("features") == "all":
        extractor = FeatureExtractor.from_pretrained(device="cpu")
        only = list(extractor(row["input"], features="stage2", hop=0.5))[row["window"]]
        if options.get("format") == "npz":
            stored = np.load(tmp_path / "out" / row["file"])[f"stage2.{row['row']}"]
        else:
            from safetensors.numpy import load_file

            stored = load_file(tmp_path / "out" / row["file"])[f"stage2.{row['row']}"]
        assert np.abs(stored - only.maps["stage2"]).max() <= max(tolerance, 1e-5) * np.abs(only.maps["stage2"]).max()
        assert row["stage2_times"] == pytest.approx(only.times["stage2"])


def test_a_folder_of_another_model_is_refused_with_the_option_that_goes_on_in_it(clips: Path, tmp_path: Path) -> None:
    run([clips / "1.mp4"], tmp_path / "out", model=BUILT_IN)  # the default of earlier versions
    with pytest.raises(RequestError, match=rf"name another folder as output, or go on with --model {BUILT_IN}$"):
        run([clips / "1.mp4"], tmp_path / "out")
    assert run([clips / "1.mp4"], tmp_path / "out", model=BUILT_IN).before == 1


def test_three_crops_are_three_rows(clips: Path, tmp_path: Path) -> None:
    run([clips / "1.mp4"], tmp_path / "out", crop="three")
    rows = pq.read_table(tmp_path / "out" / "windows").to_pylist()
    assert [row["crop"] for row in rows] == ["first", "center", "last"]
    assert [row["box"][0] for row in rows] == pytest.approx([0, 8, 16], abs=1)
    assert run([clips / "1.mp4"], tmp_path / "out", crop="three").before == 1


def test_parts_together_are_the_whole_and_each_its_own(
    clips: Path, whole: dict[tuple[str, int], NDArray[np.float32]], tmp_path: Path
) -> None:
    counts = [run([clips], tmp_path / "out", hop=0.5, part=part).inputs for part in ("1/3", "2/3", "3/3")]
    assert sum(counts) == 9 and max(counts) < 9
    assert_same(embeddings(tmp_path / "out"), whole)
    assert run([clips], tmp_path / "out", hop=0.5).before == 9


def test_lists_are_read_by_line_and_an_input_named_twice_is_there_once(clips: Path, tmp_path: Path) -> None:
    shutil.copy(clips / "1.mp4", tmp_path / "mine.mp4")
    (tmp_path / "list.txt").write_text(f"{clips}/2.mp4\n\nmine.mp4\nhello world\n{clips}/2.mp4\n")
    (tmp_path / "list.csv").write_text(f"label,path\ncat,{clips}/3.mp4\ndog,{clips}/2.mp4\n")
    summary = run([tmp_path / "list.txt", tmp_path / "list.csv"], tmp_path / "out", window=2.0)
    assert summary.windows == 3 and summary.failed == 1
    assert {Path(name).name for name, _ in embeddings(tmp_path / "out")} == {"mine.mp4", "2.mp4", "3.mp4"}
    (failure,) = read_failures(tmp_path / "out")
    assert failure["error"] == f"{tmp_path}/list.txt, line 4: 'hello world' is no path of a video or image."


@pytest.mark.slow  # a process and four jobs
def test_of_an_mae_whose_head_is_drawn_at_load_the_same_command_goes_on(
    clips: Path, tiny_mae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = [str(clips), "--output", str(output), "--model", str(tiny_mae), "--format", "safetensors"]
    first = subprocess.run([*COMMAND, *words, "--part", "1/2"], capture_output=True, check=False, umask=0o027)
    assert first.returncode == 0, first.stderr
    assert {oct(path.stat().st_mode)[-3:] for path in output.rglob("*") if path.is_file()} == {"640"}
    assert main(["extract", *words, "--part", "2/2"]) == 0
    assert main(["extract", *words]) == 0
    assert "9 before" in capsys.readouterr().out
    (hit,) = search(str(clips / "0.mp4"), index=output, top_k=1)
    assert hit.input == str(clips / "0.mp4") and hit.similarity == pytest.approx(1, abs=1e-5)
    torch.manual_seed(1)
    again = FeatureExtractor.from_pretrained(tiny_mae, device="cpu")
    (row, *_) = again(clips / "8.mp4")
    assert row.embedding == pytest.approx(embeddings(output)[str(clips / "8.mp4"), 0], rel=1e-4, abs=1e-5)
    labels = tmp_path / "labels.csv"
    labels.write_text("input,label\n" + "".join(f"{n}.mp4,{'long' if n > 4 else 'short'}\n" for n in range(9)))
    assert [score.method for score in probe(str(output), labels=str(labels), k=1, folds=2)] == [
        "knn",
        "linear",
        "lda",
        "chance",
    ]


def test_statistics_lie_beside_embeddings_and_alone_have_a_clip_of_their_own(
    clips: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Both can be probed; each is what the model gives for the clip that the window says."""
    extractor = FeatureExtractor.from_pretrained(tiny_model, device="cpu")
    names = [str(clips / f"{number}.mp4") for number in range(9)]
    for number, (features, formats) in enumerate(
        (("embedding,statistics", ("parquet", "npz")), ("statistics", (None,)))
    ):
        for format in formats:
            output = tmp_path / f"{number}-{format}"
            list(extract(names, output=output, model=str(tiny_model), features=features, format=format, device="cpu"))
            table, rows = read_vectors(output, "statistics")
            expected = [row.statistics for name in names for row in extractor(name, features=features)]
            np.testing.assert_allclose(rows, np.stack(expected), rtol=1e-4, atol=1e-5)
            assert read_facts(output)["window"] == pytest.approx(1.28 if number else extractor.model.spec.span)
            assert len(table) == len(expected)
    (one,) = list(extractor(names[0], features="statistics"))[:1]
    clip = extractor.model.spec.normalize(one.views.clips[one.view][None])  # type: ignore[union-attr]
    assert clip.shape[2:] == (32, 96, 96)
    with torch.inference_mode():
        again = extractor.model.statistics(clip, strides=(1, 2))
    assert one.statistics == pytest.approx(again[0].numpy(), rel=1e-4, abs=1e-5)
    labels = tmp_path / "labels.csv"
    labels.write_text("input,label\n" + "".join(f"{n}.mp4,{'long' if n > 4 else 'short'}\n" for n in range(9)))
    both, alone = tmp_path / "0-parquet", tmp_path / "1-None"
    with_options = {"labels": str(labels), "k": 1, "folds": 2}
    assert list(probe(str(alone), **with_options)) == list(probe(str(alone), features="statistics", **with_options))  # type: ignore[arg-type]
    assert list(probe(str(both), **with_options)) == list(probe(str(both), features="embedding", **with_options))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="holds statistics but no embedding"):
        probe(str(alone), features="embedding", **with_options)  # type: ignore[arg-type]


def test_a_head_that_belongs_to_the_weights_counts(tiny_model: Path, tmp_path: Path) -> None:
    extractor = FeatureExtractor.from_pretrained(tiny_model, device="cpu")
    before = extractor.weights
    with torch.no_grad():
        extractor.model.head.projection.bias.add_(1)
    assert extractor.weights != before == FeatureExtractor.from_pretrained(tiny_model, device="cpu").weights


# --- faults -----------------------------------------------------------------------------------------------------------


def interrupted(inputs: Path, output: Path, moments: list[float]) -> int:
    """Starts the command again and again, killing it at these moments after its first shard; how often it was."""
    kills = 0
    for moment in moments:
        process = subprocess.Popen(
            [*SMALL_SHARDS, str(inputs), "--output", str(output), "--hop", "0.5"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = set(output.glob("windows/*.parquet"))
        while process.poll() is None and not set(output.glob("windows/*.parquet")) - before:
            time.sleep(0.01)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    return kills


@pytest.mark.slow  # six starts
def test_killed_and_started_again_every_window_is_there_once_with_the_same_values(
    clips: Path, whole: dict[tuple[str, int], NDArray[np.float32]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert interrupted(clips, output, [0.0, 0.05]) >= 1
    assert not (output / "windows").exists() or len(list((output / "windows").glob("*.parquet"))) < 12
    run([clips], output, hop=0.5)
    assert_same(embeddings(output), whole)
    assert not list(output.glob("**/.part*.parquet*"))


@pytest.mark.slow
def test_two_thousand_clips_killed_at_five_moments(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(40):
        replace(H264, name=f"{number}.mp4", num_frames=9 + number, start=number).write(clips)
    for number in range(40, 2000):
        shutil.copy(clips / f"{number % 40}.mp4", clips / f"{number}.mp4")
    rng = random.Random(0)
    kills = interrupted(clips, tmp_path / "out", [rng.uniform(0, 4) for _ in range(5)])
    command(clips, "--output", tmp_path / "out", "--hop", "0.5")
    command(clips, "--output", tmp_path / "whole", "--hop", "0.5")
    print(f"{kills} kills")
    assert kills == 5
    assert_same(embeddings(tmp_path / "out"), embeddings(tmp_path / "whole"))


def peak_memory(words: list[str | Path]) -> int:
    """Bytes that the processes of a command had in memory at most, added up."""
    # Told by a small process that waits for the command: a peak at its very end is not missed.
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)"
    code += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    peaks: dict[int, int] = {}
    with psutil.Popen([sys.executable, "-c", code, *COMMAND, *map(str, words)], stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            for one in process.children(recursive=True):
                with suppress(OSError, IndexError):  # it has just ended
                    status = Path(f"/proc/{one.pid}/status").read_text()
                    peaks[one.pid] = int(status.partition("VmHWM:")[2].split()[0])
            time.sleep(0.05)
        largest = int(process.stdout.read())
    assert process.returncode == 0
    return 1024 * (sum(peaks.values()) - max(peaks.values()) + largest)


@pytest.mark.slow
def test_two_hours_take_no_more_memory_than_two_minutes_and_each_frame_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.kron(
        np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8), np.ones((16, 16, 1), "u1")
    )
    paths = {}
    for minutes in (2, 120):
        frames = (np.roll(picture, number, axis=1) for number in range(minutes * 60 * 10))
        with av.open(str(tmp_path / f"{minutes}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        paths[minutes] = tmp_path / f"{minutes}.mp4"
    peaks = {
        minutes: peak_memory([path, "--output", tmp_path / f"out{minutes}", "--hop", "1.5", "--num-workers", "1"])
        for minutes, path in paths.items()
    }
    print({minutes: f"{peak >> 20} MiB" for minutes, peak in peaks.items()})
    assert peaks[120] - peaks[2] < 150 * 2**20
    assert len(embeddings(tmp_path / "out120")) == pytest.approx(120 * 60 / 1.5, abs=2)

    asked: Counter[int] = Counter()
    read = PyAVDecoder.read

    def counting(self: PyAVDecoder, wanted: NDArray[np.int64], short_side: int | None) -> object:
        asked.update(wanted.tolist())
        return read(self, wanted, short_side)

    monkeypatch.setattr(PyAVDecoder, "read", counting)
    spec = create_model("hiera_nano_16x64").spec
    assert sum(len(one) for one in walk(str(paths[120]), Walk(spec, hop=0.5))) > 14000
    assert set(asked.values()) == {1} and len(asked) > 0.9 * 120 * 60 * 10


def test_a_bad_file_loses_no_good_one(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    (tmp_path / "cut.mp4").write_bytes((clips / "8.mp4").read_bytes()[:-1500])
    done = command(clips / "1.mp4", tmp_path / "bad.mp4", tmp_path / "cut.mp4", "none.mp4", clips / "2.mp4",
                   "--output", tmp_path / "out", code=1)  # fmt: skip
    assert "bad.mp4 is not a video" in done.stderr and "none.mp4 cannot be read" in done.stderr
    assert {str(clips / "1.mp4"), str(clips / "2.mp4")} <= {name for name, _ in embeddings(tmp_path / "out")}
    failed = {Path(row["input"]).name for row in read_failures(tmp_path / "out")}
    assert {"bad.mp4", "none.mp4"} <= failed <= {"bad.mp4", "none.mp4", "cut.mp4"}
    shutil.copy(clips / "0.mp4", tmp_path / "bad.mp4")  # mended: it is tried again, and is no failure any more
    summary = run([tmp_path / "bad.mp4", clips / "1.mp4"], tmp_path / "out")
    assert (summary.before, summary.windows, summary.failed) == (1, 1, 0)
    assert "bad.mp4" not in {Path(row["input"]).name for row in read_failures(tmp_path / "out")}


@pytest.mark.slow  # half a minute; test_reader and test_classify read the samples too
@pytest.mark.skipif("HIERA_VIDEO_SAMPLES" not in os.environ, reason="real clips: HIERA_VIDEO_SAMPLES=FOLDER")
def test_every_sample_is_answered_or_told(tmp_path: Path) -> None:
    samples = Path(os.environ["HIERA_VIDEO_SAMPLES"])
    summary = run([samples], tmp_path / "out")
    names = {Path(name).name for name, _ in embeddings(tmp_path / "out")}
    assert summary.failed == 1 and names == {path.name for path in samples.iterdir()}
    (failure,) = read_failures(tmp_path / "out")
    assert Path(failure["input"]).name == "corrupted.mp4" and failure["windows"] > 0


@pytest.mark.slow  # several starts
def test_a_full_disk_ends_the_run_in_one_sentence_and_with_room_it_goes_on(
    clips: Path, whole: dict[tuple[str, int], NDArray[np.float32]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = [str(clips), "--output", str(output), "--hop", "0.5"]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, "extract", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hiera-video: ") and "cannot be written: " in last and str(output) in last
    assert not list(output.glob("**/.part*.parquet.*"))
    run([clips], output, hop=0.5)
    assert_same(embeddings(output), whole)


def test_a_second_run_of_the_same_part_is_refused(clips: Path, tmp_path: Path) -> None:
    code = "from pathlib import Path; from hiera_video.files import alone\n"
    code += "with alone(Path('out'), 'part-1-of-1'): print('mine', flush=True); input()"
    run([clips / "0.mp4"], tmp_path / "out")
    other = [sys.executable, "-c", code]
    with subprocess.Popen(other, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"mine\n"
        with pytest.raises(RequestError, match="another run is writing part-1-of-1"):
            run([clips / "1.mp4"], tmp_path / "out")
    with (
        alone(tmp_path / "out", "part-1-of-1"),
        pytest.raises(RequestError, match="another run is writing part-1-of-1"),
    ):
        run([clips / "1.mp4"], tmp_path / "out")
    run([clips / "1.mp4"], tmp_path / "out")


# --- ray --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # Ray takes a minute to start and end
def test_on_ray_it_is_the_same_though_a_worker_is_killed(
    clips: Path, whole: dict[tuple[str, int], NDArray[np.float32]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = [str(clips), "none.mp4", "--output", str(output), "--hop", "0.5", "--engine", "ray"]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = False
    while process.poll() is None:
        for one in psutil.Process(process.pid).children(recursive=True) if not killed else ():
            with suppress(psutil.Error):
                if "ray::" in one.name() and "FlatMap" in one.name():
                    one.kill()
                    killed = True
                    break
        time.sleep(0.02)
    said, errors = process.communicate()
    assert killed and process.returncode == 1, errors
    assert "none.mp4 cannot be read" in errors and "1 failed" in said
    assert_same(embeddings(output), whole)


def test_without_ray_the_command_to_install_it_is_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused([str(clips), "--output", str(tmp_path / "out"), "--engine", "ray"], capsys)
    assert "pip install 'hiera-video[ray]'" in said and not (tmp_path / "out").exists()


# --- bad requests -----------------------------------------------------------------------------------------------------


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says, in this process, to a request that is wrong."""
    try:
        code = main(["extract", *words])
    except SystemExit as end:  # argument parsers leave in this way
        code = end.code  # type: ignore[assignment]
    assert code == 2
    return capsys.readouterr().err


BAD = {
    "--hop 0": "hop is 0, but is a number of seconds above 0",
    "--window -1": "window is -1, but is a number of seconds above 0",
    "--part 5/4": "part '5/4' must be a number of so many",
    "--features stage9": "features 'stage9' is unknown: take embedding, statistics, stage1",
    "--features stage1 --format parquet": "format parquet holds embeddings and statistics alone",
    "--dtype bfloat16": "parquet has no bfloat16",
    "--crop left": "--crop is 'left', but must be one of center, three, none",
    "--batch-size 0": "batch_size is 0, but is at least 1",
    "--hopp 1": "there is no option --hopp; did you mean --hop?",
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_request_is_one_sentence(
    words: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([str(clips / "0.mp4"), "--output", str(tmp_path / "out"), *words.split()], capsys)
    assert BAD[words] in said and said.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_an_output_made_otherwise_is_left_alone(clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run([clips / "0.mp4"], output, hop=1.0)
    facts = read_facts(output)
    with pytest.raises(RequestError, match=r"was made with hop 1\.0, not 2\.0: name another folder"):
        run([clips / "1.mp4"], output, hop=2.0)
    save_pretrained(create_model("hiera_nano_16x64"), tmp_path / "model")
    with pytest.raises(RequestError, match="was made with weights"):
        run([clips / "1.mp4"], output, hop=1.0, model=str(tmp_path / "model"))
    assert read_facts(output) == facts and len(embeddings(output)) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty and holds no extraction"):
        run([clips / "0.mp4"], other)
    with pytest.raises(OutputError, match="cannot be written"):
        run([clips / "0.mp4"], tmp_path / "model" / "config.json")


def test_missing_words_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--output is missing" in refused(["a.mp4"], capsys)
    assert "nothing to do" in refused(["--output", str(tmp_path)], capsys)
    with pytest.raises(RequestError, match="is no file: name a list"):
        Inputs(["none.txt"])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="has no column input, path or video"):
        list(Inputs([str(tmp_path / "bad.csv")]))
    with pytest.raises(RequestError, match="holds no features"):
        read_vectors(tmp_path)


def test_parse_part() -> None:
    assert parse_part("3/16") == (3, 16)
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(RequestError, match="part"):
            parse_part(wrong)
