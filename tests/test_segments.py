"""Segments of a timeline: where in a long video each class is seen, as a table and as clips."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hiera_video import classify, open_video
from hiera_video.cli import main
from hiera_video.data.camera_motion.textures import pictures
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.tasks.classify.cut import cut_clip
from hiera_video.tasks.classify.segments import FoundSegment, SegmentRule, find_segments

FPS = 15
EXACT = SegmentRule(smooth=0, gap=0, least=0)


def windows(count: int, hop: float = 1.0, length: float = 2.0) -> np.ndarray:
    starts = np.arange(count) * hop
    return np.stack([starts, starts + length], axis=1)


def found(curve: list[float], rule: SegmentRule = EXACT) -> list[tuple[float, float]]:
    scores = np.array([curve, [0.0] * len(curve)], dtype=np.float32).T
    return [(one.start, one.end) for one in find_segments(windows(len(curve)), scores, ["a", "b"], rule)]


def test_a_segment_runs_from_half_of_its_peak_to_half_of_its_peak() -> None:
    # Middles at 1, 2, 3, ... s.
    assert found([0, 0, 1, 1, 0, 0]) == [(2.5, 4.5)]
    assert found([1, 0, 0, 1]) == [(0.0, 1.5), (3.5, 5.0)]  # at an end it lasts as long as the video
    assert found([0, 0, 0.5, 0.5, 0, 0]) == [(2.6, 4.4)]  # half of the peak is below low, 0.3
    assert found([0.4, 0.45, 0.4]) == [] and found([0.4, 0.5, 0.4]) == [(0.0, 4.0)]  # high is to be reached once


def test_gaps_are_closed_short_ones_dropped_and_scores_smoothed() -> None:
    dip = [0, 1, 1, 0.2, 1, 1, 0]
    assert found(dip) == [(1.5, 3.625), (4.375, 6.5)] and found(dip, SegmentRule(0, gap=0.3, least=0)) == [(1.5, 6.5)]
    assert found([0, 1, 0, 0], SegmentRule(0, gap=0, least=1.5)) == []
    assert found([0, 0, 1, 0, 0, 0], SegmentRule(smooth=2, gap=0, least=0)) == []  # a third of it is left
    assert len(found([0, 1, 1, 0.2, 1, 1, 0], SegmentRule(smooth=2, low=0.2, gap=0, least=0))) == 1


def test_classes_may_overlap_and_are_told_with_mean_and_peak() -> None:
    scores = np.array([[0, 0.9, 0.7, 0], [0, 0, 0.8, 0.8]], dtype=np.float32).T
    assert find_segments(windows(4), scores, ["a", "b"], EXACT) == [
        FoundSegment("a", 1.5, 3.357, 0.8, 0.9),
        FoundSegment("b", 2.5, 5.0, 0.8, 0.8),
    ]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0, 4), st.floats(0, 4), st.floats(0, 4))
def test_segments_lie_in_the_video_apart_and_long_enough(
    curve: list[float], smooth: float, gap: float, least: float
) -> None:
    rule = SegmentRule(smooth, gap=gap, least=least)
    scores = np.array([curve], dtype=np.float32).T
    segments = find_segments(windows(len(curve)), scores, ["a"], rule)
    assert all(0 <= one.start < one.end <= len(curve) + 1 for one in segments)
    assert all(one.peak >= rule.high - 1e-4 and one.end - one.start >= least - 2e-3 for one in segments)
    assert all(b.start - a.end > gap - 2e-3 for a, b in itertools.pairwise(segments))


# --- a match ----------------------------------------------------------------------------------------------------------


def match(path: Path, events: list[tuple[str, float, float]], seconds: float) -> None:
    """A filmed field on which the camera rests but for the events: a label, its start and its end in seconds."""
    field = Image.fromarray(pictures(1, 5, 600)[0].permute(1, 2, 0).numpy())
    centre, width = np.array([300.0, 300.0]), 200.0
    steps = {"pan_left": (-1, 0), "pan_right": (1, 0), "tilt_up": (0, -1), "tilt_down": (0, 1)}
    frames = []
    for number in range(round(seconds * FPS)):
        label = next((name for name, start, end in events if start <= number / FPS < end), None)
        if label in steps:
            centre = centre + np.array(steps[label]) * 12 / FPS  # 6 % of the picture a second
        elif label is not None:
            width *= (0.93 if label == "zoom_in" else 1 / 0.93) ** (1 / FPS)
        (x, y), side = centre, width / 2
        box = (x - side, y - 0.75 * side, x + side, y + 0.75 * side)
        frames.append(np.asarray(field.resize((128, 96), Image.Resampling.BILINEAR, box=box)))
    write_mp4(path, frames, FPS, crf=20, options={"preset": "veryfast", "g": "30"})


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union."""
    both = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, both) / (max(one[1], other[1]) - min(one[0], other[0]))


def moving(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "segments.json").read_text())
    return [row for row in rows if row["label"] != "static"]


def matched(rows: list[dict[str, Any]], events: list[tuple[str, float, float]]) -> float:
    """The mean over events of the best overlap of a segment with the same label."""
    best = [
        max([overlap((row["start"], row["end"]), (start, end)) for row in rows if row["label"] == label], default=0.0)
        for label, start, end in events
    ]
    return sum(best) / len(best)


THREE = [("pan_right", 8.0, 16.0), ("zoom_in", 26.0, 33.0), ("pan_left", 44.0, 52.0)]


@pytest.fixture(scope="module")
def cut_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A match of a minute, classified with segments, and cut exactly."""
    folder = tmp_path_factory.mktemp("match")
    match(folder / "match.mp4", THREE, 60)
    (folder / "bad.mp4").write_bytes(b"no video")
    inputs = [str(folder / "bad.mp4"), str(folder / "match.mp4")]
    words = ["--timeline", str(folder / "exact"), "--cut", str(folder / "clips_exact")]
    assert main(["classify", *inputs, *words]) == 1  # one input is bad, the other is answered
    return folder


def test_events_are_found_with_their_times(cut_up: Path) -> None:
    rows = moving(cut_up / "exact")
    assert [row["label"] for row in rows] == [label for label, _, _ in THREE]
    assert matched(rows, THREE) >= 0.8
    with (cut_up / "exact" / "segments.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(json.loads((cut_up / "exact" / "segments.json").read_text()))
    assert list(table[0]) == ["input", "label", "start", "end", "mean", "peak"]
    assert table[0]["input"] == str(cut_up / "match.mp4")
    assert (cut_up / "exact" / "match.mp4.png").stat().st_size > 10_000


def marks(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return video.frames(range(len(video))).pixels.astype(int)


def test_exact_clips_begin_and_end_within_a_frame(cut_up: Path) -> None:
    rows = json.loads((cut_up / "exact" / "segments.json").read_text())
    files = sorted((cut_up / "clips_exact").iterdir())
    assert [file.name for file in files] == [
        f"match.mp4_{number:03d}_{row['label']}.mp4" for number, row in enumerate(rows, start=1)
    ]
    whole = marks(cut_up / "match.mp4")
    for row, file in zip(rows, files, strict=True):
        clip, first = marks(file), int(row["start"] * FPS)
        assert abs(len(clip) - (row["end"] - row["start"]) * FPS) <= 2  # a frame at each end
        for place in (0, len(clip) - 1):
            assert np.abs(clip[place] - whole[first + place]).mean() < 4


def test_copied_clips_begin_at_the_keyframe_before_and_are_the_same_pictures(cut_up: Path) -> None:
    rows = json.loads((cut_up / "exact" / "segments.json").read_text())
    whole = marks(cut_up / "match.mp4")
    for number, row in enumerate(rows, start=1):
        segment = FoundSegment(**{name: value for name, value in row.items() if name != "input"})
        file, _ = cut_clip(row["input"], segment, cut_up / "clips_copy" / str(number), by="copy")
        clip = marks(file)
        keyframe = int(row["start"] * FPS) // 30 * 30
        assert np.array_equal(clip, whole[keyframe : keyframe + len(clip)])
        assert abs(keyframe + len(clip) - row["end"] * FPS) <= 4  # frames that are shown later are coded first


CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize("name", ["transposed.mp4", "mirrored_left_right.mp4", "trimmed_by_edit_list.mp4"])
@pytest.mark.parametrize("by", ["exact", "copy"])
def test_a_clip_stands_upright_and_has_the_times_of_its_video(name: str, by: Any, tmp_path: Path) -> None:
    with open_video(CASES / name) as video:
        times, whole = video.times, video.frames(range(len(video))).pixels.astype(int)
    everything = FoundSegment("all", float(times[0]), float(times[-1]), 1.0, 1.0)
    file, error = cut_clip(str(CASES / name), everything, tmp_path / "clip", by=by)
    with open_video(file) as video:
        clip = video.frames(range(len(video))).pixels.astype(int)
        # What an edit list trims away is decoded before the first frame: a copy may show it.
        extra = len(clip) - len(whole) if by == "copy" else 0
        assert 0 <= extra <= 30 and error is None
        assert video.times[extra:] - video.times[extra] == pytest.approx(times - times[0], abs=1e-3)
    height, width = (side - side % 2 for side in whole.shape[1:3])
    assert np.abs(clip[extra:] - whole[:, :height, :width]).mean() < 4


def test_clips_of_inputs_of_one_name_do_not_take_each_others_place(tmp_path: Path) -> None:
    for folder, label in (("a", "pan_left"), ("b", "zoom_in")):
        (tmp_path / folder).mkdir()
        match(tmp_path / folder / "x.mp4", [(label, 0, 4)], 4)
    list(classify([str(tmp_path / "a"), str(tmp_path / "b")], timeline=tmp_path / "out", cut=tmp_path / "clips"))
    rows = json.loads((tmp_path / "out" / "segments.json").read_text())
    assert len(rows) == len(list((tmp_path / "clips").iterdir())) >= 2
    list(classify([str(tmp_path / "a")], timeline=tmp_path / "out", segments=True, high=1.0, least=60))
    assert json.loads((tmp_path / "out" / "segments.json").read_text()) == []  # and not those of before


def test_a_day_of_windows_takes_memory_as_its_scores_do() -> None:
    scores = np.zeros((86_400, 2), dtype=np.float32)
    scores[40_000:40_010, 0] = 1
    (one,) = find_segments(windows(len(scores)), scores, ["a", "b"], SegmentRule())
    assert (one.start, one.end) == (40_000.5, 40_010.5)


@pytest.mark.slow
def test_twelve_events_of_ten_minutes(tmp_path: Path) -> None:
    order = ["pan_right", "zoom_in", "pan_left", "zoom_out", "tilt_up", "tilt_down"] * 2
    lengths = [6, 7, 6, 7, 8, 8, 12, 10, 12, 10, 12, 12]
    starts = np.linspace(12, 575, 12)
    events = [(label, float(at), float(at) + long) for label, at, long in zip(order, starts, lengths, strict=True)]
    match(tmp_path / "match.mp4", events, 600)
    list(classify([str(tmp_path / "match.mp4")], timeline=tmp_path / "out", segments=True))
    rows = moving(tmp_path / "out")
    assert matched(rows, events) >= 0.8 and len(rows) <= 14


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--segments"], "segments are made of a timeline: name its folder (--timeline)"),
        (["--cut", "clips"], "segments are made of a timeline: name its folder (--timeline)"),
        (["--timeline", "out", "--high", "0.6"], "smooth, high, low, gap and least are of segments: ask for them"),
        (["--timeline", "out", "--cut-by", "copy"], "cut_by is of clips: name their folder (--cut)"),
        (["--timeline", "out", "--segments", "--low", "0.7"], "low is 0.7 and high 0.5, but 0 < low <= high <= 1"),
        (["--timeline", "out", "--segments", "--gap", "-1"], "gap is -1, but is a number of seconds, 0 or more"),
        (["--timeline", "out", "--cut", "c", "--cut-by", "hand"], "cut-by"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "x.mp4", *words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("hiera-video: ") and sentence in last


def test_a_stream_that_cannot_be_copied_costs_its_clips_alone(tmp_path: Path) -> None:
    frames = [np.full((96, 128, 3), 10 * number, dtype=np.uint8) for number in range(20)]
    for number, frame in enumerate(frames):
        (tmp_path / "film").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "film" / f"{number:04d}.png")
    with av.open(str(tmp_path / "film.gif"), "w") as out:
        stream: Any = out.add_stream("gif", rate=10, width=128, height=96, pix_fmt="rgb8")
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="rgb8")))
        out.mux(stream.encode(None))
    (answer,) = classify(
        [str(tmp_path / "film.gif")],
        timeline=tmp_path / "out",
        cut=tmp_path / "clips",
        cut_by="copy",
        high=0.3,
        low=0.2,
    )
    assert answer.predictions and (tmp_path / "out" / "segments.csv").exists()
    assert answer.error is None or "use cut_by exact" in answer.error
