"""Exports of Label Studio, CVAT, VIA 3 and COCO-style files are read as their tools count."""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from annotation_tools import (
    EXPORTS,
    FPS,
    FRAMES,
    SECONDS,
    TRUTH,
    box,
    coco,
    cvat,
    cvat_document,
    cvat_meta,
    label_studio,
    rows,
    task,
    timeline,
    track,
    via,
    written,
)

from hiera_video.data.lists.exports import Export, read_export
from hiera_video.data.lists.video_list import list_videos
from hiera_video.errors import RequestError


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
