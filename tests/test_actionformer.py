"""Features as ActionFormer and OpenTAD read them: rows are where their seconds are, what a user wrote is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from assets import H264, VARIABLE
from numpy.typing import NDArray
from training_sets import write_video

from hiera_video import extract
from hiera_video.cli import main
from hiera_video.tasks.features.feature_table import read_vectors

HOP, CHANGE_S = 0.2, 2.0


def write_change(path: Path) -> Path:
    """Three seconds at 30 a second: one pattern, and from CHANGE_S on another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    write_video(path, [before if number < 30 * CHANGE_S else after for number in range(100)])
    return path


def load(config: Path) -> dict[str, dict[str, Any]]:
    """What a program that follows ActionFormer's format has of each video: features [C, T], its segments in rows."""
    data = yaml.safe_load(config.read_text())["dataset"]
    database = json.loads(Path(data["json_file"]).read_text())["database"]
    loaded = {}
    for name, entry in database.items():
        features = np.load(f"{data['feat_folder']}{name}{data['file_ext']}").astype(np.float32)
        assert features.ndim == 2 and features.shape[1] == data["input_dim"]
        seconds = np.array([act["segment"] for act in entry["annotations"]], dtype=np.float32)
        stride = data["feat_stride"] * data["downsample_rate"]
        segments = (seconds * entry["fps"] - 0.5 * data["num_frames"]) / stride
        rows = np.arange(len(features[:: data["downsample_rate"]]))
        centres = (rows * stride + 0.5 * data["num_frames"]) / entry["fps"]
        loaded[name] = {"features": features.T, "segments": segments, "centres": centres, **entry}
    return loaded


def change_row(features: NDArray[np.float32]) -> float:
    """The row, with its fraction, that is half way from what the first row shows to what the last one does."""
    first, last = features[:, 0], features[:, -1]
    share = (features.T - first) @ (last - first) / np.square(last - first).sum()
    row = int(np.argmax(share >= 0.5))
    return row - float((share[row] - 0.5) / (share[row] - share[row - 1]))


@pytest.fixture(scope="module")
def arrays(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of one name and a file that is none, as the command writes them."""
    folder = tmp_path_factory.mktemp("videos")
    write_change(folder / "train" / "match.mp4")
    write_change(folder / "val" / "match.mp4")
    (folder / "text.mp4").write_text("this is no video")
    argv = ["extract", str(folder), "--output", str(folder / "out"), "--layout", "actionformer", "--hop", str(HOP)]
    assert main([*argv, "--model", str(tiny_model), "--num-workers", "1", "--device", "cpu"]) == 1
    return folder / "out" / "actionformer"


def test_an_event_at_a_known_second_is_in_its_row_to_half_a_stride(arrays: Path) -> None:
    annotations = json.loads((arrays / "annotations.json").read_text())
    for entry in annotations["database"].values():
        entry["annotations"] = [{"label": "change", "label_id": 0, "segment": [CHANGE_S, 3.0]}]
    (arrays / "annotations.json").write_text(json.dumps(annotations))
    loaded = load(arrays / "actionformer.yaml")
    assert len(loaded) == 2
    for video in loaded.values():
        assert abs(change_row(video["features"]) - video["segments"][0, 0]) <= 0.5
        row = video["segments"][0, 0] * HOP + video["centres"][0]
        assert row == pytest.approx(CHANGE_S, abs=1e-5)
        assert video["duration"] == pytest.approx(100 / 30, abs=1e-3)


def test_each_row_is_the_window_at_its_seconds_to_half_a_stride(arrays: Path) -> None:
    """All windows but a last one that ends with the video and would be more than half a stride before its place."""
    table, vectors = read_vectors(arrays.parent)
    inputs = np.array(table["input"].to_pylist())
    middles = (table["start"].to_numpy() + table["start"].to_numpy() + 16 / 30) / 2
    for video in load(arrays / "actionformer.yaml").values():
        mine = inputs == video["input"]
        count = video["features"].shape[1]
        assert mine.sum() - 1 <= count <= mine.sum()
        assert np.array_equal(video["features"].T, vectors[mine][:count])
        assert np.abs(middles[mine][:count] - video["centres"]).max() <= HOP / 2 + 1e-6


def test_two_videos_of_one_name_have_an_array_each_and_their_split(arrays: Path) -> None:
    database = json.loads((arrays / "annotations.json").read_text())["database"]
    assert [(Path(entry["input"]).parent.name, entry["subset"]) for entry in database.values()] == [
        ("train", "training"),
        ("val", "validation"),
    ]
    first, second = database
    assert first == "match" and second.startswith("match-")
    assert {path.name for path in arrays.glob("*.npy")} == {f"{first}.npy", f"{second}.npy"}


def test_opentads_config_says_the_same(arrays: Path) -> None:
    space: dict[str, Any] = {}
    exec(compile((arrays / "opentad.py").read_text(), "opentad.py", "exec"), space)
    data, ours = space["dataset"]["train"], yaml.safe_load((arrays / "actionformer.yaml").read_text())["dataset"]
    assert (data["ann_file"], data["data_path"]) == (ours["json_file"], ours["feat_folder"])
    assert (data["feature_stride"], data["offset_frames"]) == (ours["feat_stride"], round(ours["num_frames"] / 2))
    assert space["model"]["projection"]["in_channels"] == ours["input_dim"]
    for entry in json.loads((arrays / "annotations.json").read_text())["database"].values():
        assert entry["frame"] / entry["duration"] == pytest.approx(entry["fps"])  # its frames a second


def test_a_second_run_keeps_names_annotations_and_configs(arrays: Path, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(arrays.parent, output)
    mine = output / "actionformer"
    annotations = json.loads((mine / "annotations.json").read_text())
    before = dict(annotations["database"])
    before["match"]["annotations"] = [{"label": "goal", "label_id": 0, "segment": [1, 2]}]
    (mine / "annotations.json").write_text(json.dumps(annotations))
    (mine / "opentad.py").write_text("mine = 1\n")
    new = write_change(tmp_path / "another" / "match.mp4")
    options: dict[str, Any] = {"model": str(tiny_model), "hop": HOP, "num_workers": 0, "device": "cpu"}
    (done,) = extract([before["match"]["input"], str(new)], output=output, layout="actionformer", **options)
    assert (done.before, done.failed) == (1, 0)
    after = json.loads((mine / "annotations.json").read_text())["database"]
    assert {name: after[name] for name in before} == before and len(after) == 3
    assert (mine / "opentad.py").read_text() == "mine = 1\n"
    (mine / "annotations.json").write_text("{}")
    assert main(["extract", str(new), "--output", str(output), "--layout", "actionformer", *words(options)]) == 2
    assert (mine / "annotations.json").read_text() == "{}"


def words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_uneven_frame_times_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """20 frames a second and then 5: the relation is in seconds, and fps the same for all."""
    VARIABLE.write(tmp_path)
    H264.write(tmp_path)
    options: dict[str, Any] = {"model": str(tiny_model), "num_workers": 0, "device": "cpu", "hop": 0.3}
    list(extract([str(tmp_path)], output=tmp_path / "out", layout="actionformer", **options))
    table, _ = read_vectors(tmp_path / "out")
    for video in load(tmp_path / "out" / "actionformer" / "actionformer.yaml").values():
        mine = [name == video["input"] for name in table["input"].to_pylist()]
        starts = table["start"].to_numpy()[mine][: len(video["centres"])]
        assert np.abs(starts + 8 / 30 - video["centres"]).max() <= 0.15 + 1e-6
        assert video["fps"] == pytest.approx(30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--features", "stage3"], "layout actionformer has one vector a window: features stage3 must be embedding"),
        (["--features", "embedding,statistics"], "features embedding,statistics must be embedding alone"),
        (["--crop", "three"], "layout actionformer has one row a window: take crop center or none, not three"),
        (["--part", "1/2"], "layout actionformer is written of all inputs: run the parts without layout"),
    ],
)
def test_what_does_not_go_with_the_layout_is_one_sentence(
    options: list[str], said: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["extract", "clip.mp4", "--output", str(tmp_path / "out"), "--layout", "actionformer"]
    assert main([*argv, "--model", str(tiny_model), "--device", "cpu", *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
