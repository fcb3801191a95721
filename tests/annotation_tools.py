"""One truth as Label Studio, CVAT, VIA 3 and COCO-style files have it, written as their documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hiera_video.data.lists.video_list import VideoList

FPS, FRAMES = 30, 60
#: Video, label, first and last frame, counted from 0; the last one reaches the end of its video.
TRUTH = [("a.mp4", "jump", 0, 14), ("a.mp4", "swim", 20, 20), ("b.mp4", "jump", 5, 34), ("b.mp4", "swim", 30, 59)]
SECONDS = [(0.0, 0.5), (20 / 30, 0.7), (5 / 30, 35 / 30), (1.0, 2.0)]


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
