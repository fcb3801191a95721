"""Exports of Label Studio, CVAT, VIA 3 and COCO-style files, written here as their documentation says."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from assets import H264, numbers_in
from training_sets import write_video

from hiera_video.cli import main
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.exports import Export, read_export
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.errors import RequestError
from hiera_video.spec import Augment, ClipSpec
from hiera_video.tasks.train.data import lists_of
from hiera_video.training.recipe import Data

FPS, FRAMES = 30, 60
#: Video, label, first and last frame, counted from 0; the last one reaches the end of its video.
TRUTH = [("a.mp4", "jump", 0, 14), ("a.mp4", "swim", 20, 20), ("b.mp4", "jump", 5, 34), ("b.mp4", "swim", 30, 59)]
SECONDS = [(0.0, 0.5), (20 / 30, 0.7), (5 / 30, 35 / 30), (1.0, 2.0)]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 and sub/b.mp4: 2 s at 30 frames a second."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "sub").mkdir()
    for number, name in enumerate(("a.mp4", "sub/b.mp4")):
        picture = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        write_video(folder / name, [np.roll(picture, shift, axis=1) for shift in range(FRAMES)])
    (folder / "b.mp4").symlink_to("sub/b.mp4")
    return folder


def written(place: Path, what: object) -> Path:
    place.write_text(what if isinstance(what, str) else json.dumps(what))
    return place


# --- the same truth as each tool writes it ----------------------------------------------------------------------------


def timeline(label: str, first: int, last: int) -> dict[str, Any]:
    ranges = [{"start": first + 1, "end": last + 1}]
    value = {"ranges": ranges, "timelinelabels": [label]}
    return {"id": "x", "type": "timelinelabels", "from_name": "t", "to_name": "video", "value": value}


def task(video: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    note = {"id": 5, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 7, "annotations": [note], "data": {"video": video}, "predictions": [], **more}


def label_studio() -> list[dict[str, Any]]:
    names = {"a.mp4": "/data/upload/3/0a1b2c3d-a.mp4", "b.mp4": "/data/local-files/?d=sub/b.mp4"}
    return [task(names[v], *(timeline(*rest) for name, *rest in TRUTH if name == v)) for v in ("a.mp4", "b.mp4")]


def cvat_meta(
    video: str = "a.mp4", *, start: int = 0, stop: int = FRAMES - 1, step: int = 1, kind: str = "task"
) -> str:
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in ("person", "swim", "jump"))
    return (
        f"<{kind}><id>{video}</id><name>my task</name><size>{(stop - start) // step + 1}</size>"
        f"<start_frame>{start}</start_frame><stop_frame>{stop}</stop_frame>"
        f"<frame_filter>{f'step={step}' if step > 1 else ''}</frame_filter><labels>{labels}</labels>"
        f"<source>{video}</source></{kind}>"
    )


def box(frame: int, outside: int, keyframe: int = 1) -> str:
    place = 'xtl="1.00" ytl="1.00" xbr="9.00" ybr="9.00" z_order="0"'
    return f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="{keyframe}" {place}></box>'


def track(label: str, *boxes: str, task_id: str = "") -> str:
    owner = f' task_id="{task_id}" subset="default"' if task_id else ""
    return f'<track id="4" label="{label}" source="manual"{owner}>{"".join(boxes)}</track>'


def cvat_document(meta: str, *items: str) -> str:
    head = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta>{meta}</meta>'
    return f"{head}{''.join(items)}</annotations>"


def cvat() -> str:
    """A project of two tasks: each frame of a track is written, and the first one without the object."""
    tracks = []
    for video, label, first, last in TRUTH:
        boxes = [box(frame, 0, int(frame == first)) for frame in range(first, last + 1)]
        tracks.append(track(label, *boxes, *([box(last + 1, 1)] if last + 1 < FRAMES else []), task_id=video))
    return cvat_document(f"<project><tasks>{cvat_meta('a.mp4')}{cvat_meta('b.mp4')}</tasks></project>", *tracks)


def via() -> dict[str, Any]:
    files = {"1": {"fid": "1", "fname": "a.mp4", "type": 4, "loc": 1, "src": ""}}
    files["2"] = {"fid": "2", "fname": "b", "type": 4, "loc": 2, "src": "https://example.org/media/b.mp4"}
    options = {"0": "jump", "1": "swim"}
    segment = {"aname": "Action", "anchor_id": "FILE1_Z2_XY0", "type": 4, "options": options, "default_option_id": ""}
    metadata = {}
    for number, ((video, label, _, _), (start, end)) in enumerate(zip(TRUTH, SECONDS, strict=True)):
        key = {"jump": "0", "swim": "1"}[label]
        vid = {"a.mp4": "1", "b.mp4": "2"}[video]
        z = [round(start, 3), round(end, 3)]
        metadata[f"{vid}_{number}"] = {"vid": vid, "flg": 0, "z": z, "xy": [], "av": {"1": key}}
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "data_format_version": "3.1.1", "vid_list": ["1", "2"]},
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
        "attribute": {"1": segment},
        "file": files,
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
        "metadata": metadata,
    }


def coco(fields: str = "segment") -> dict[str, Any]:
    numbers = {"a.mp4": 10, "b.mp4": 11}
    notes = []
    for number, ((video, label, first, last), (start, end)) in enumerate(zip(TRUTH, SECONDS, strict=True)):
        times: dict[str, Any] = (
            {"segment": {"segment": [start, end]}, "start": {"start": start, "end": end}}[fields]
            if (fields != "frames")
            else {"start_frame": first, "end_frame": last}
        )
        category = {"jump": 1, "swim": 2}[label]
        notes.append({"id": number, "video_id": numbers[video], "category_id": category, **times})
    videos = [{"id": number, "file_name": f"clips/{name}"} for name, number in numbers.items()]
    categories = [{"id": 1, "name": "jump"}, {"id": 2, "name": "swim"}, {"id": 3, "name": "run"}]
    return {"info": {}, "videos": videos, "categories": categories, "annotations": notes}


EXPORTS: dict[str, Callable[[], object]] = {
    "label_studio.json": label_studio,
    "annotations.xml": cvat,
    "via.json": via,
    "coco.json": coco,
    "coco_start.json": lambda: coco("start"),
    "coco_frames.json": lambda: coco("frames"),
}


def rows(videos: VideoList) -> list[tuple[str, list[str], float, float]]:
    starts, ends = videos.starts.tolist(), videos.ends.tolist()
    names = [Path(videos.path(index)).name for index in range(len(videos))]
    labels = [videos.class_names(index) for index in range(len(videos))]
    return sorted(zip(names, labels, starts, ends, strict=True))


@pytest.mark.parametrize("name", EXPORTS)
def test_each_tool_s_export_of_the_same_truth_gives_the_same_list(name: str, pool: Path, tmp_path: Path) -> None:
    videos = list_videos(written(tmp_path / name, EXPORTS[name]()), root=pool)
    assert videos.classes == ["jump", "swim"]
    found = rows(videos)
    assert [(video, label) for video, (label,), _, _ in found] == [truth[:2] for truth in TRUTH]
    tolerance = 1e-3 if name == "via.json" else 1e-6  # VIA's times are in milliseconds here
    times = [span for _, _, *span in found]
    np.testing.assert_allclose(times, SECONDS, rtol=0, atol=tolerance)


def test_label_studio_and_cvat_agree_to_the_bit(pool: Path, tmp_path: Path) -> None:
    first = list_videos(written(tmp_path / "ls.json", label_studio()), root=pool)
    second = list_videos(written(tmp_path / "cvat.xml", cvat()), root=pool)
    assert rows(first) == rows(second)


# --- Label Studio -----------------------------------------------------------------------------------------------------


def read(export: object, pool: Path, place: Path, **options: Any) -> Export:
    found = read_export(written(place, export), str(pool), **options)
    assert found is not None
    return found


def spans(export: Export) -> list[tuple[float, float]]:
    return [(round(segment.span[0] * FPS, 3), round(segment.span[1] * FPS, 3)) for segment in export.kept()]


def left_out(export: Export) -> list[str]:
    return [segment.left_out for segment in export.segments if segment.left_out is not None]


def rectangle(*keys: tuple[int, bool], rate: float = FPS, **more: Any) -> dict[str, Any]:
    sequence = [
        {
            "frame": frame,
            "enabled": enabled,
            "x": 1,
            "y": 1,
            "width": 5,
            "height": 5,
            "rotation": 0,
            "time": frame / rate,
        }
        for frame, enabled in keys
    ]
    value = {"framesCount": FRAMES, "duration": FRAMES / rate, "sequence": sequence, "labels": ["person"], **more}
    return {"id": "r", "type": "videorectangle", "from_name": "box", "to_name": "video", "value": value}


def test_a_rectangle_lasts_to_the_keyframe_that_is_not_enabled_or_to_the_end(pool: Path, tmp_path: Path) -> None:
    tasks = [
        task("a.mp4", rectangle((1, True), (5, False), (8, True), (10, True), (12, False), (20, False), (50, True)))
    ]
    assert spans(read(tasks, pool, tmp_path / "x.json")) == [(0, 5), (7, 12), (19, 20), (49, 60)]


def test_label_studio_frames_count_by_the_keyframes_times_of_the_task(pool: Path, tmp_path: Path) -> None:
    tasks = [task("a.mp4", timeline("jump", 0, 11), rectangle((1, True), (24, False), rate=24))]
    assert [segment.span for segment in read(tasks, pool, tmp_path / "x.json").kept()] == [(0.0, 0.5), (0.0, 1.0)]


@pytest.mark.parametrize(("where", "value"), [("data", 24), ("data", "24.0"), ("option", 24)])
def test_or_by_the_tasks_own_field_or_the_option(where: str, value: Any, pool: Path, tmp_path: Path) -> None:
    tasks = [task("not_here.mp4", timeline("jump", 12, 23))]
    tasks[0]["data"] |= {"fps": value} if where == "data" else {}
    export = read(tasks, pool, tmp_path / "x.json", fps=value if where == "option" else None)
    assert [segment.span for segment in export.kept()] == [(0.5, 1.0)]


def test_frames_counted_by_the_videos_rate_are_a_line_in_the_log(
    pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    read(label_studio(), pool, tmp_path / "x.json", fps=30)
    read(cvat(), pool, tmp_path / "x.xml")
    assert not caplog.records
    read(label_studio(), pool, tmp_path / "x.json")
    assert "if its <Video frameRate> (24 unless set) is another, name it: hiera-video data import --fps" in caplog.text


def test_choices_and_taxonomies_are_labels_of_whole_videos(pool: Path, tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["indoor"]}}
    kinds = {"type": "taxonomy", "value": {"taxonomy": [["sport", "ball", "tennis"], ["sport", "run"]]}}
    videos = list_videos(written(tmp_path / "x.json", [task("a.mp4", choice), task("b.mp4", kinds)]), root=pool)
    assert rows(videos) == [
        ("a.mp4", ["indoor"], 0.0, math.inf),
        ("b.mp4", ["sport/ball/tennis", "sport/run"], 0.0, math.inf),
    ]
    assert videos.labels.dtype == np.float32  # several labels are possible


def test_one_choice_a_video_makes_a_list_of_one_label_each(pool: Path, tmp_path: Path) -> None:
    choices = [{"type": "choices", "value": {"choices": [name]}} for name in ("2", "7")]
    tasks = [task(video, choice) for video, choice in zip(("a.mp4", "b.mp4"), choices, strict=True)]
    videos = list_videos(written(tmp_path / "x.json", tasks), root=pool)
    assert (videos.classes, videos.labels.tolist()) == (["2", "7"], [0, 1])  # names, though they look like numbers


def test_what_label_studio_holds_beside_the_labels_is_left_out_with_its_reason(pool: Path, tmp_path: Path) -> None:
    first = task("a.mp4", timeline("jump", 0, 5))
    again = {
        "ground_truth": False,
        "was_cancelled": False,
        "updated_at": "2026-02-01",
        "result": [timeline("swim", 0, 5)],
    }
    first["annotations"] += [again, {"was_cancelled": True, "result": [timeline("swim", 3, 5)]}]
    text = {"type": "textarea", "value": {"text": ["nice"]}}
    part = {"type": "choices", "value": {"choices": ["fast"], "ranges": [{"start": 1, "end": 2}]}}
    bare = {"type": "timelinelabels", "value": {"timelinelabels": [], "ranges": [{"start": 1, "end": 2}]}}
    second = task("b.mp4", timeline("jump", 0, 5), timeline("jump", 0, 5), text, part, bare)
    export = read([first, second], pool, tmp_path / "x.json")
    assert [segment.labels for segment in export.kept()] == [("swim",), ("jump",)]
    assert left_out(export) == [
        "another annotation of its task is newer, or it was cancelled",
        "another annotation of its task is newer, or it was cancelled",
        "it repeats another with this label, start and end",
        "it is of the type textarea",
        "it describes a region",
        "it has no label",
    ]


def test_list_videos_counts_in_the_log_what_it_leaves_out(
    pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list_videos(written(tmp_path / "x.json", [task("a.mp4", *[timeline("jump", 0, 5)] * 3)]), root=pool)
    assert "x.json: 2 annotations left out: it repeats another with this label, start and end" in caplog.text


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("/data/upload/12/89abcdef-a.mp4", "a.mp4"),
        ("/data/local-files/?d=somewhere/sub/b.mp4", "sub/b.mp4"),
        ("s3://bucket/sub/b.mp4", "sub/b.mp4"),
        ("https://example.org/x/a.mp4?token=1", "a.mp4"),
        ("C:\\films\\sub\\b.mp4", "sub/b.mp4"),
        ("/home/someone/sub/b.mp4", "sub/b.mp4"),
        ("/data/upload/12/89abcdef-c.mp4", "89abcdef-c.mp4"),
        ("films/c.mp4", "films/c.mp4"),
    ],
)
def test_videos_are_found_by_the_end_of_a_foreign_path(name: str, place: str, pool: Path) -> None:
    assert Export("x.json", str(pool)).find(name) == f"{pool}/{place}"


def test_an_address_without_a_file_stays_one(pool: Path) -> None:
    assert Export("x.json", str(pool)).find("https://example.org/c.mp4") == "https://example.org/c.mp4"


# --- CVAT -------------------------------------------------------------------------------------------------------------


def test_a_track_is_cut_where_it_is_outside_and_lasts_to_the_tasks_last_frame(pool: Path, tmp_path: Path) -> None:
    boxes = [box(3, 0), box(4, 0, 0), box(9, 1), box(20, 1), box(30, 0), box(31, 0, 0)]
    export = read(cvat_document(cvat_meta(), track("person", *boxes)), pool, tmp_path / "x.xml")
    assert spans(export) == [(3, 9), (30, 60)]


def test_frames_of_a_task_with_a_start_and_a_step_are_those_of_the_file(pool: Path, tmp_path: Path) -> None:
    boxes = [box(10, 0), box(15, 0, 0), box(20, 1), box(50, 0)]
    meta = cvat_meta(start=10, stop=55, step=5)
    export = read(cvat_document(meta, track("person", *boxes)), pool, tmp_path / "x.xml")
    assert spans(export) == [(10, 20), (50, 60)]
    assert [(round(s.span[0] * FPS), round(s.span[1] * FPS)) for s in export.seen] == [(10, 60)]


def test_a_job_names_no_video_and_takes_that_of_the_export_s_name(pool: Path, tmp_path: Path) -> None:
    meta = re.sub("<(name>my task|source>a.mp4)</(name|source)>", "", cvat_meta(kind="job"))
    document = cvat_document(meta, track("person", box(3, 0), box(9, 1)))
    (segment,) = read(document, pool, tmp_path / "a.xml").kept()
    assert (segment.path, round(segment.span[1] * FPS)) == (f"{pool}/a.mp4", 9)
    with pytest.raises(RequestError, match=r"or call the export as its video, match\.xml for match\.mp4"):
        read(document, pool, tmp_path / "c.xml")


def test_tags_of_neighbouring_frames_are_one_segment(pool: Path, tmp_path: Path) -> None:
    """ "CVAT for images" of a video: frames are named by their number in the file, also in a project."""

    def image(number: int, *labels: str) -> str:
        tags = "".join(f'<tag label="{label}" source="manual"></tag>' for label in labels)
        return f'<image id="{100 + number}" name="frame_{number:06d}" width="48" height="40">{tags}</image>'

    images = [image(0, "jump"), image(5, "jump", "swim"), image(10, "swim"), image(15), image(20, "swim"), image(25)]
    export = read(cvat_document(cvat_meta(stop=25, step=5), *images), pool, tmp_path / "x.xml")
    assert {(s.labels[0], round(s.span[0] * FPS), round(s.span[1] * FPS)) for s in export.kept()} == {
        ("jump", 0, 10),
        ("swim", 5, 15),
        ("swim", 20, 25),
    }


def test_frames_of_a_video_with_uneven_times_have_their_own(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 12, 30, 31]
    with av.open(str(tmp_path / "uneven.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 48, 40, "yuv420p", Fraction(1, 30)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((40, 48, 3), number * 20, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    document = cvat_document(cvat_meta("uneven.mp4", stop=7), track("person", box(3, 0), box(6, 1)))
    assert spans(read(document, tmp_path, tmp_path / "x.xml")) == [(10, 30)]


# --- VIA 3 ------------------------------------------------------------------------------------------------------------


def test_via_moments_regions_and_sounds_are_left_out_and_checkboxes_are_several_labels(
    pool: Path, tmp_path: Path
) -> None:
    project = via()
    project["file"]["3"] = {"fid": "3", "fname": "talk.mp3", "type": 8, "loc": 1, "src": ""}
    project["view"]["3"] = {"fid_list": ["3"]}
    project["attribute"]["1"]["type"] = 2
    project["attribute"]["2"] = {"aname": "Where", "anchor_id": "FILE1_Z0_XY0", "type": 1, "options": {}}
    project["metadata"] = {
        "a": {"vid": "1", "flg": 0, "z": [0.25, 1.5], "xy": [], "av": {"1": "0,1"}},
        "b": {"vid": "1", "flg": 0, "z": [0.5], "xy": [2, 1, 1, 5, 5], "av": {}},
        "c": {"vid": "3", "flg": 0, "z": [0, 1], "xy": [], "av": {"1": "0"}},
        "d": {"vid": "2", "flg": 0, "z": [], "xy": [], "av": {"2": "hall"}},
        "e": {"vid": "2", "flg": 0, "z": [0, 1], "xy": [], "av": {"1": ""}},
    }
    export = read(project, pool, tmp_path / "x.json")
    assert [(s.labels, s.span) for s in export.kept()] == [(("jump", "swim"), (0.25, 1.5)), (("hall",), (0, math.inf))]
    reasons = ["it marks a moment or a region, not a span of time", "its file is no video", "it has no label"]
    assert left_out(export) == reasons


# --- what is wrong ----------------------------------------------------------------------------------------------------


def changed(what: Any, path: list[Any], value: Any) -> Any:
    """A copy with another value at a place, or without it where the value is None."""
    copy = json.loads(json.dumps(what))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


RESULT = [0, "annotations", 0, "result", 0]
BOX = track("person", box(3, 0), box(9, 1))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("[{", r"x\.json, line 1: found '\[\{', but expected an export of Label Studio .*\(Expecting property name"),
        (
            "{}",
            r"x\.json: found '\{\}', but expected an export of Label Studio \(JSON\), CVAT \(annotations\.xml\), VIA 3",
        ),
        ("<annotations>", r"x\.json, line 1: found '<annotations>', but expected .*\(no element found"),
        ("<svg/>", r"x\.json: found '<svg/>', but expected an export"),
        (
            [{"annotation_id": 1, "video": "a.mp4"}],
            "task 1: found JSON-MIN, but expected Label Studio's JSON: export again",
        ),
        (changed(label_studio(), [1, "data"], None), "task 7, data: found nothing, but expected an object"),
        (
            changed(label_studio(), [0, "data"], {"text": "hi"}),
            "task 7, data, video: found nothing, but expected a text",
        ),
        (changed(label_studio(), [0, "annotations"], 3), "task 7, annotations: found '3', but expected a list"),
        (
            changed(label_studio(), [*RESULT, "value", "ranges"], None),
            "task 7, timelinelabels, ranges: found nothing, but expected a list",
        ),
        (
            changed(label_studio(), [*RESULT, "value", "ranges", 0, "end"], "9"),
            "task 7, timelinelabels, end: found '9', but expected a whole number",
        ),
        (
            changed(label_studio(), [*RESULT, "value", "ranges", 0], {"start": 9, "end": 3}),
            "task 7, timelinelabels: found '9 to 3', but expected a start from 0 on, and an end not before it",
        ),
        (
            changed(label_studio(), [*RESULT, "value", "ranges", 0], {"start": -2, "end": 3}),
            "task 7, timelinelabels: found '-2 to 3', but expected a start from 0 on",
        ),
        (
            changed(label_studio(), [*RESULT, "value", "ranges", 0], {"start": 9, "end": 300}),
            r"found 'frame 300', but expected no more than the 60 frames of .*a\.mp4: name the folder of the videos as "
            r"root, or the rate by which frames count \(hiera-video data import --fps\)",
        ),
        (
            changed(label_studio(), [0, "data", "video"], "c.mp4"),
            r"task 7, timelinelabels: frames have no times: .*c\.mp4 cannot be read .*; name the folder of the videos",
        ),
        (cvat_document(""), r"x\.json: annotations None, source: found nothing, but expected a video"),
        (
            cvat_document(cvat_meta("photos.zip"), BOX),
            "task photos.zip, source: found 'photos.zip', but expected a video: export a task of one video",
        ),
        (
            cvat_document(cvat_meta().replace("<size>60", "<size>"), BOX),
            "a.mp4, size: found nothing, but expected the number",
        ),
        (
            cvat_document(cvat_meta(), track("cat", box(3, 0))),
            "track 4, label: found 'cat', but expected one of the labels in meta: jump, person, swim",
        ),
        (
            cvat_document(cvat_meta(), BOX.replace('frame="9"', 'frame="-9"')),
            "track 4, frame: found '-9', but expected the",
        ),
        (
            cvat_document(cvat_meta(), BOX.replace('frame="9"', "")),
            "track 4, frame: found nothing, but expected the number",
        ),
        (changed(via(), ["attribute"], None), r"x\.json, attribute: found nothing, but expected an object"),
        (
            changed(via(), ["metadata", "1_0", "z"], [1.5, 0.5]),
            "metadata 1_0, z: found '1.5 to 0.5', but expected a start",
        ),
        (changed(via(), ["metadata", "1_0", "z"], [0.5, "x"]), "metadata 1_0, z: found 'x', but expected a number"),
        (
            changed(via(), ["metadata", "1_0", "vid"], "9"),
            "metadata 1_0, view 9, fid_list: found nothing, but expected a",
        ),
        (changed(via(), ["file", "1"], None), r"metadata 1_0, file \['1'\], fname: found nothing, but expected a text"),
        (
            changed(via(), ["metadata", "1_0", "av", "1"], "4"),
            "metadata 1_0, option of Action, 4: found nothing, but expected a text",
        ),
        (
            changed(coco(), ["annotations", 1, "video_id"], 99),
            "annotation 1, video_id: found '99', but expected the id of",
        ),
        (
            changed(coco(), ["annotations", 1, "category_id"], 7),
            "annotation 1, category_id: found '7', but expected the id",
        ),
        (
            changed(coco(), ["annotations", 1, "segment"], [2]),
            "annotation 1, end: found nothing, but expected a number",
        ),
        (changed(coco(), ["annotations", 1, "segment"], [2, 1]), "annotation 1, start: found '2 to 1', but expected a"),
        (changed(coco("frames"), ["annotations", 1, "end_frame"], -1), "annotation 1, start_frame: found '20 to -1'"),
        (changed(coco(), ["categories"], None), r"x\.json, categories: found nothing, but expected a list"),
        (changed(coco(), ["videos", 0, "file_name"], None), "video 10, file_name: found nothing, but expected a text"),
    ],
)
def test_a_wrong_export_is_refused_in_one_sentence(what: object, sentence: str, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=sentence):
        list_videos(written(tmp_path / "x.json", what), root=pool)


def test_a_zip_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", cvat())
    with pytest.raises(
        RequestError, match=r"task\.zip is a ZIP archive: unpack it, and name the XML or JSON file in it"
    ):
        read_export(tmp_path / "task.zip", str(tmp_path))


def test_a_label_that_a_validation_list_has_alone_is_named(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"coco\.json: found 'swim', but expected one of 2 classes"):
        list_videos(written(tmp_path / "coco.json", coco()), root=pool, classes=["jump", "run"])


@pytest.mark.parametrize("name", [name for name in EXPORTS if name.endswith("json")])
def test_a_value_of_another_kind_anywhere_is_refused_in_a_sentence_or_read(
    name: str, pool: Path, tmp_path: Path
) -> None:
    """Never a traceback: each value in turn is replaced by others."""
    whole = json.loads(json.dumps(EXPORTS[name]()))

    def places(value: Any, path: list[Any]) -> Iterator[list[Any]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, below in inner:
            yield [*path, key]
            yield from places(below, [*path, key])

    for path in places(whole, []):
        for value in (None, 3, [[1]]):
            with contextlib.suppress(RequestError):
                export = read_export(written(tmp_path / name, changed(whole, path, value)), str(pool), fps=30)
                assert export is None or export.entries()


# --- in training and on the command line ------------------------------------------------------------------------------


def test_the_lists_of_a_run_are_read_from_exports(pool: Path, tmp_path: Path) -> None:
    train, val = written(tmp_path / "train.json", label_studio()), written(tmp_path / "val.xml", cvat())
    lists = lists_of(Data(train=str(train), val=str(val), root=str(pool)))
    assert lists.train is not None and lists.val is not None
    assert rows(lists.train) == rows(lists.val)


@pytest.mark.slow  # a whole run
def test_finetune_takes_an_export(
    pool: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = written(tmp_path / "project.json", label_studio())
    argv = ["--train", file, "--val", file, "--data.root", pool, "--model", tiny_model, "--output", tmp_path / "run"]
    assert main(["finetune", *map(str, argv), "--run.duration", "1pass", "--data.num_workers", "0"]) == 0
    assert "4 videos of 2 classes" in caplog.text


def test_a_clip_of_a_labelled_segment_shows_its_frames_alone(tmp_path: Path) -> None:
    name = H264.write(tmp_path).name  # its frames are numbered
    file = written(tmp_path / "project.json", [task(name, timeline("jump", 30, 59), timeline("swim", 61, 66))])
    plain = Augment(crop_area=(1.0, 1.0), crop_aspect=(4 / 3, 4 / 3), flip=0.0, num_ops=0, erasing=0.0)
    spec = ClipSpec(num_frames=4, frame_stride=1, size=(32, 32), resize=40)
    dataset = ClipDataset(list_videos(file), spec, augment=plain, isolate=False)
    for epoch in range(4):
        for index, (first, last) in enumerate([(30, 59), (61, 66)]):
            pixels = dataset[epoch, index]["clip"][0].permute(1, 2, 3, 0).numpy()
            assert all(first <= number <= last for number in numbers_in(pixels))


@dataclass
class Run:
    code: int
    out: str
    err: str
    table: list[dict[str, str]]
    """The list that was written."""


@pytest.fixture
def run(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def start(*words: object) -> Run:
        output = tmp_path / "list.csv"
        code = main(["data", "import", *map(str, words), "--output", str(output)])
        out, err = capsys.readouterr()
        table = list(csv.DictReader(output.read_text().splitlines())) if output.exists() else []
        return Run(code, out, err, table)

    return start


def test_data_import_writes_a_list_that_reads_back_as_the_export(
    run: Callable[..., Run], pool: Path, tmp_path: Path
) -> None:
    files = [written(tmp_path / name, EXPORTS[name]()) for name in ("annotations.xml", "coco.json")]
    done = run(*files, "--root", pool)
    assert done.code == 0
    header, *lines = (line.split() for line in done.out.splitlines()[:5])
    assert header == ["label", "segments", "videos", "seconds", "left_out"]
    assert [line[:2] for line in lines[:3]] == [["jump", "2"], ["swim", "2"], ["all", "4"]]
    assert "it repeats another with this label, start and end" in done.out
    assert done.table[1] == {"path": f"{pool}/a.mp4", "start": "0.666667", "end": "0.7", "label": "swim"}
    assert rows(list_videos(tmp_path / "list.csv")) == rows(list_videos(files[0], root=pool))


def test_data_import_counts_as_json(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["indoor", "loud"]}}
    text = {"type": "textarea", "value": {"text": ["nice"]}}
    file = written(tmp_path / "x.json", [task("a.mp4", timeline("jump", 0, 5), text), task("b.mp4", choice)])
    done = run(file, "--root", pool, "--format", "json")
    count = {"segments": 1, "videos": 1, "seconds": None, "left_out": "", "error": None}
    assert json.loads(done.out) == [
        {"label": "jump", **count, "seconds": 0.2},
        {"label": "indoor", **count},
        {"label": "loud", **count},
        {"label": "all", **count, "segments": 2, "videos": 2},
        {"label": "no label", **count, "left_out": "it is of the type textarea"},
    ]
    assert done.table[1] == {"path": f"{pool}/b.mp4", "start": "0", "end": "", "labels": "indoor;loud"}
    assert rows(list_videos(tmp_path / "list.csv")) == rows(list_videos(file, root=pool))


def test_background_lies_where_nobody_labelled_anything(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    document = cvat_document(
        cvat_meta(start=5, stop=54), track("jump", box(10, 0), box(13, 1)), track("swim", box(30, 0), box(36, 1))
    )
    again = task("b.mp4", timeline("jump", 20, 24))
    again["annotations"].append({"was_cancelled": True, "result": [timeline("jump", 28, 40)]})
    files = [written(tmp_path / "x.xml", document), written(tmp_path / "y.json", [again])]
    words = [*files, "--root", pool, "--background", 9, "--fps", 30]
    done = run(*words)
    assert done.code == 0
    taken: dict[str, list[tuple[float, float]]] = {}
    lengths = []
    for row in done.table:
        span = float(row["start"]) * FPS, float(row["end"]) * FPS
        taken.setdefault(Path(row["path"]).name, []).append(span)
        lengths += [round(span[1] - span[0], 3)] if row["label"] == "background" else []
    assert len(lengths) == 9 and set(lengths) <= {3, 5, 6}
    taken["b.mp4"].append((28, 41))  # it was labelled, if not for good
    assert min(taken["a.mp4"])[0] >= 5 and max(taken["a.mp4"])[1] <= 55  # the task's frames
    for some in taken.values():
        some.sort()
        assert all(before[1] <= after[0] + 1e-3 for before, after in pairwise(some))
    assert run(*words).table == done.table != run(*words, "--seed", 1).table


def test_background_has_no_more_segments_than_there_is_room(
    run: Callable[..., Run], pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = run(
        written(tmp_path / "x.json", [task("a.mp4", timeline("jump", 0, 24))]), "--root", pool, "--background", 5
    )
    assert sum(row["label"] == "background" for row in done.table) == 1
    assert "background: there is room for 1 of 5 segments where nobody labelled anything" in caplog.text


def test_a_bad_export_is_told_and_the_others_are_written(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    good = written(tmp_path / "good.json", label_studio())
    bad = written(tmp_path / "bad.json", [{"id": 1, "template": "Holding [something]"}])
    done = run(bad, good, tmp_path / "absent.xml", "--root", pool)
    assert done.code == 1 and len(done.table) == 4
    lines = done.out.splitlines()[-2:]
    assert lines[0].startswith(f"{bad} is something else: expected an export of Label Studio (JSON), CVAT")
    assert lines[1].startswith(f"{tmp_path}/absent.xml cannot be read (No such file or directory)")


def test_nothing_is_written_where_nothing_is_labelled(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    done = run(written(tmp_path / "x.json", [task("a.mp4", {"type": "textarea", "value": {}})]), "--root", pool)
    assert done.code == 1 and not done.table
    assert done.out.splitlines()[-1] == f"{tmp_path}/list.csv is not written: there is no label"


def test_videos_that_are_not_there_stay_in_the_list_and_are_told(
    run: Callable[..., Run], pool: Path, tmp_path: Path
) -> None:
    done = run(written(tmp_path / "x.json", coco()))
    assert done.code == 1 and len(done.table) == 4
    sentence = f"2 videos are not there, such as {tmp_path}/clips/a.mp4: name their folder as --root"
    assert done.out.splitlines()[-1] == sentence


def test_a_semicolon_in_one_of_several_labels_is_refused(run: Callable[..., Run], pool: Path, tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["a;b", "c"]}}
    done = run(written(tmp_path / "x.json", [task("a.mp4", choice)]), "--root", pool)
    assert done.code == 2 and not done.table
    assert "label 'a;b' has a semicolon, which stands between labels: rename it" in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fps", "0"], "fps is 0, but must be above 0"),
        (["--fps", "fast"], "--fps is 'fast', but must be a number"),
        (["--background", "-1"], "background is -1, but must be at least 0"),
        (["--background", "some"], "--background is 'some', but must be a whole number"),
        (["--seed", "-3"], "seed is -3, but must be at least 0"),
        (["--root", ""], "--root is '', but must be a path"),
        (["--output", "{tmp}/x.json"], "output {tmp}/x.json is an export that would be lost: name another file"),
        (["--output", "{tmp}/no/list.csv"], "{tmp}/no/list.csv cannot be written: there is no folder {tmp}/no"),
    ],
)
def test_a_wrong_option_of_data_import_is_one_sentence(
    words: list[str], sentence: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "x.json", label_studio())
    words = [word.format(tmp=tmp_path) for word in words]
    output = [] if "--output" in words else ["--output", str(tmp_path / "list.csv")]
    assert main(["data", "import", str(file), *output, *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hiera-video: {sentence.format(tmp=tmp_path)}") and err.count("\n") == 1
