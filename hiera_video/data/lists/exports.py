"""Exports of annotation tools, recognised by what they hold: Label Studio, CVAT, VIA 3, and COCO-style video JSON.

How each of them counts decides what the first and the last frame of a segment are:

- Label Studio numbers frames from 1, and both ends of a range belong to it: frames a to b are [(a - 1) / fps, b / fps)
  seconds. A ``videorectangle`` lasts to the keyframe that is not ``enabled``, which belongs to it, or to
  ``framesCount``. Its fps are ``frameRate`` of the labelling configuration, 24 unless that is set; an export has it
  only in the ``time`` of keyframes, frame / fps. (TimelineRegion.js, VideoRegion.js and VideoCanvas.tsx there.)
- CVAT numbers the frames of the file from 0, whatever ``start_frame`` and ``frame_filter`` (``step=N``) are. A shape
  with ``outside="1"`` is at the first frame without the object; a track without one lasts to the task's
  end, its ``size`` times the step. A tag lasts to the next frame of the task. (``abs_frame_id`` in bindings.py there.)
- VIA 3 has seconds, ``z: [start, end]``; labels are those of the first attribute for spans of time. (CodeDoc.md there.)
- COCO has no rule for time. ``segment``, or ``start`` and ``end``, are seconds here, as in ActivityNet's files;
  ``start_frame`` and ``end_frame`` count from 0, and both belong to the segment.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.lists.annotations import Entries
from hiera_video.data.lists.tables import is_media, read_lines, wrong
from hiera_video.data.reading.files import VIDEO_EXTENSIONS
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import RequestError, UnreadableVideo

log = logging.getLogger("hiera_video")

TOOLS = "an export of Label Studio (JSON), CVAT (annotations.xml), VIA 3, or COCO-style (JSON with videos, annotations)"
REMEDY = "name the folder of the videos as root, or the rate by which frames count (hiera-video data import --fps)"
WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
Span = tuple[float, float]
#: Frames, and whether something is there no longer.
Events = list[tuple[int, bool]]
WHOLE: Span = (0.0, math.inf)
#: What COCO-style files call a start and an end; the last ones are frames.
SPANS = (("start", "end"), ("start_time", "end_time"), ("start_frame", "end_frame"))


class Segment(NamedTuple):
    """What one annotation says: labels of a video, or of a part of it.

    ``path``: of the video, its folder included. ``span``: seconds after the first frame, 0 to inf for the whole video.
    ``left_out``: why it does not come into the list, or None.
    """

    path: str
    labels: tuple[str, ...]
    span: Span = WHOLE
    left_out: str | None = None


@dataclass
class Export:
    """All annotations of one file.

    ``folder``: of the videos. ``fps``: where the export does not say it. ``segments``: with those that are left out.
    ``seen``: the parts that annotators saw, of videos that they did not see whole. ``even``: the tool spaces frames so.
    """

    file: str
    folder: str
    fps: float | None = None
    segments: list[Segment] = field(default_factory=list)
    seen: list[Segment] = field(default_factory=list)
    even: bool = False
    _kept: dict[tuple[str, Span], dict[str, None]] = field(default_factory=dict)
    _times: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, path: str, labels: Iterable[str], span: Span = WHOLE, left_out: str | None = None) -> None:
        """Takes an annotation, by the fields of :class:`Segment`; without a label, or repeated, it is left out."""
        names = dict.fromkeys(label.strip() for label in labels if label.strip())
        span = round(span[0], 6), round(span[1], 6)
        before = self._kept.get((path, span), {})
        if left_out is None and names.keys() <= before.keys():
            left_out = "it repeats another with this label, start and end" if names else "it has no label"
        elif left_out is None:
            self._kept[path, span] = before | names
        self.segments.append(Segment(path, tuple(names), span, left_out))

    def kept(self) -> list[Segment]:
        """What comes into the list: of annotations with the same start and end the labels are put together.

        Returns:
            Segments, each with at least one label.
        """
        return [Segment(path, tuple(labels), span) for (path, span), labels in self._kept.items()]

    def entries(self) -> Entries:
        """The export as a list of videos; what is left out is counted in the log, with the reasons.

        Returns:
            Its segments; the classes are sorted.
        """
        for reason, count in Counter(segment.left_out for segment in self.segments if segment.left_out).items():
            log.warning("%s: %d annotations left out: %s", self.file, count, reason)
        kept = self.kept()
        classes = sorted({label for segment in kept for label in segment.labels})
        entries = Entries(self.file, several=any(len(segment.labels) > 1 for segment in kept), classes=classes)
        for path, labels, (start, end), _ in kept:
            entries.add(0, path, list(labels))
            entries.starts.append(start)
            entries.ends.append(end)
        return entries

    def find(self, name: str) -> str:
        """The video that a tool names, by an address or a path of its own machine.

        It is the longest end of the name that is a file in the folder, if need be without the eight letters and the
        hyphen that Label Studio puts before the names of uploads; where there is none, the address, or the name there.
        """
        path, foreign = name, "://" in name or name.startswith("/data/")
        if foreign:
            parts = urlsplit(name)
            path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        folders = path.replace("\\", "/").split("/")
        ends = ["/".join(folders[place:]) for place in range(len(folders))]
        plain = [re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", end) for end in ends]
        files = [os.path.join(self.folder, end) for both in zip(ends, plain, strict=True) for end in both]
        default = name if "://" in name else os.path.join(self.folder, folders[-1] if foreign else path)
        return next(filter(os.path.isfile, files), default)

    def seconds(self, path: str, begin: int, end: int, where: str, rate: float | None = None, step: int = 1) -> Span:
        """Start and end of the frames from ``begin`` to before ``end``, which count from 0.

        Without a rate in the export (``rate``) they are frames of the file, at their own times. ``end`` may lie a step
        after the last one: tools round the number of frames up.
        """
        rate = rate or self.fps
        if rate and 0 < rate < math.inf:
            return begin / rate, end / rate
        if path not in self._times:
            try:
                with open_video(path) as video:
                    self._times[path] = np.append(video.times - video.times[0], video.duration)
            except UnreadableVideo as error:
                raise RequestError(f"{where}: frames have no times: {str(error).rstrip('.')}; {REMEDY}") from error
        times = self._times[path]
        count = len(times) - 1
        if begin >= count or end > count + step:
            raise wrong(where, 0, f"frame {end}", f"no more than the {count} frames of {path}: {REMEDY}")
        if self.even:
            times = np.linspace(0, times[-1], count + 1)
        return float(times[begin]), float(times[min(end, count)])


def read_export(file: str | os.PathLike[str], folder: str, *, fps: float | None = None) -> Export | None:
    """All annotations of an export.

    Args:
        file: The JSON or XML file.
        folder: The folder of the videos.
        fps: Frames a second, where the export does not say; None: those of the video.

    Returns:
        What it holds; None for a JSON list that is of no annotation tool.

    Raises:
        RequestError: It is no export, a field is missing or not legal, or a frame rate is needed and cannot be had.
    """
    if zipfile.is_zipfile(file):
        raise RequestError(f"{os.fspath(file)} is a ZIP archive: unpack it, and name the XML or JSON file in it")
    text, export = "\n".join(read_lines(file)), Export(os.fspath(file), folder, fps)
    try:
        data = ElementTree.fromstring(text) if text.lstrip().startswith("<") else json.loads(text)
        match data:
            case [] | [{"annotations": _}, *_] | [{"annotation_id": _}, *_]:
                _read_label_studio(export, data)
            case list():
                return None
            case ElementTree.Element(tag="annotations"):
                _read_cvat(export, data)
            case {"metadata": _, "view": _, "file": _}:
                _read_via(export, data)
            case {"videos": _, "annotations": _}:
                _read_coco(export, data)
            case _:
                raise wrong(file, 0, text, TOOLS)
    except (ElementTree.ParseError, json.JSONDecodeError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else error.position[0]
        raise wrong(file, line, text.split("\n")[line - 1].strip(), f"{TOOLS} ({error})") from None
    except RequestError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # something of another kind than anybody writes
        raise RequestError(f"{export.file} has not the form of {TOOLS} ({error}): export it again") from error
    if export.even and export._times:
        rule = "frames count by each video's own rate; if its <Video frameRate> (24 unless set) is another, name it"
        log.info("%s: %s: hiera-video data import --fps", export.file, rule)
    return export


def _field(item: Any, name: str, kind: type, where: str) -> Any:
    """A field of an object, which must be there and of this type."""
    value = item.get(name) if isinstance(item, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise wrong(f"{where}, {name}", 0, "" if value is None else value, WORDS[kind])
    return value


def _check(start: float, end: float, where: str, *, frames: bool) -> None:
    """Refuses a range that is negative or reversed; one frame may be start and end."""
    if not (0 <= start <= end if frames else 0 <= start < end < math.inf):
        raise wrong(
            where, 0, f"{start} to {end}", f"a start from 0 on, and an end {'not before' if frames else 'after'} it"
        )


def _runs(events: Events) -> Iterator[tuple[int, int]]:
    """Where something is there: the first frame, and the first one without it."""
    begun: int | None = None
    for frame, gone in events:
        if gone and begun is not None:
            yield begun, frame
        begun = None if gone else frame if begun is None else begun


def _read_label_studio(export: Export, tasks: list[Any]) -> None:
    export.even = True
    for place, task in enumerate(tasks, start=1):
        where = f"{export.file}: task {task.get('id', place) if isinstance(task, dict) else place}"
        if isinstance(task, dict) and "annotation_id" in task:
            raise RequestError(f"{where}: found JSON-MIN, but expected Label Studio's JSON: export again as JSON")
        data, notes = _field(task, "data", dict, where), _field(task, "annotations", list, where)
        media = (name for name, text in data.items() if isinstance(text, str) and is_media(text))
        path = export.find(_field(data, "video" if "video" in data else next(media, "video"), str, f"{where}, data"))
        results = [(note, result) for note in notes for result in _field(note, "result", list, f"{where}, annotations")]
        rate = _label_studio_rate([_field(result, "value", dict, where) for _, result in results], data)
        valid = [note for note in notes if not note.get("was_cancelled")]
        best = max(valid, key=lambda note: (bool(note.get("ground_truth")), note.get("updated_at") or ""), default=None)
        for note, result in results:
            left_out = None if note is best else "another annotation of its task is newer, or it was cancelled"
            _add_result(export, path, result, rate, f"{where}, {result.get('type')}", left_out)


def _label_studio_rate(values: Iterable[Any], data: Mapping[str, Any]) -> float | None:
    """Frames a second by a keyframe's time, by the number of frames, or by a field of the task."""
    for value in values:
        points = [(key.get("time"), key.get("frame")) for key in value.get("sequence", ()) if key.get("time")]
        time, frame = max(points, default=(value.get("duration"), value.get("framesCount")))
        if time and frame:
            return round(frame / time, 6)
    texts = [str(data.get(name)) for name in ("fps", "frame_rate", "framerate", "frameRate")]
    return next((float(text) for text in texts if re.fullmatch(r"\d*[1-9]\d*(\.\d+)?", text)), None)


def _add_result(export: Export, path: str, result: Any, rate: float | None, where: str, left_out: str | None) -> None:
    kind, value = _field(result, "type", str, where), result["value"]
    if kind not in ("timelinelabels", "videorectangle", "choices", "taxonomy"):
        export.add(path, (), left_out=f"it is of the type {kind}")
        return
    names = value.get("labels") or () if kind == "videorectangle" else _field(value, kind, list, where)
    labels = ["/".join(name) if isinstance(name, list) else str(name) for name in names]
    if kind in ("choices", "taxonomy"):
        part = "it describes a region" if {"ranges", "sequence"} & value.keys() else None
        export.add(path, labels, left_out=left_out or part)
        return
    if kind == "videorectangle":
        ranges = [[begin + 1, end] for begin, end in _runs(_keyframes(value, where))]
    else:
        items = _field(value, "ranges", list, where)
        ranges = [[_field(item, side, int, where) for side in ("start", "end")] for item in items]
    for first, last in ranges:
        _check(first, last, where, frames=True)
        span = export.seconds(path, max(first, 1) - 1, max(last, 1), where, rate)  # scripts write 0 for the first frame
        export.add(path, labels, span, left_out)


def _keyframes(value: Any, where: str) -> Events:
    """Where a rectangle is, for :func:`_runs`."""
    events: Events = []
    for key in _field(value, "sequence", list, where):
        frame = _field(key, "frame", int, where)
        events += [(frame - 1, False)] if key.get("enabled", True) else [(frame - 1, False), (frame, True)]
    return events if not events or events[-1][1] else [*events, (_field(value, "framesCount", int, where), True)]


def _read_cvat(export: Export, tree: ElementTree.Element) -> None:
    metas = [meta for place in ("task", "job", "project/tasks/task") for meta in tree.findall(f"meta/{place}")]
    stem = os.path.join(export.folder, os.path.splitext(os.path.basename(export.file))[0])
    beside = [stem + end for end in sorted(VIDEO_EXTENSIONS) if os.path.isfile(stem + end)]
    names = sorted({str(label.findtext("name")) for label in tree.iterfind("meta//label")})
    owners = [str(meta.findtext("id")) if len(metas) > 1 else "" for meta in metas]
    for item in (item for item in tree if len(metas) > 1 and item.tag in ("track", "image")):
        if item.get("task_id") not in owners:
            at = f"{export.file}: {item.tag} {item.get('id')}, task_id"
            raise wrong(at, 0, item.get("task_id", ""), f"one of the tasks in meta: {', '.join(owners)}")
    for meta, owner in zip(metas or [tree], owners or [""], strict=True):
        where = f"{export.file}: {meta.tag} {meta.findtext('id')}"
        named = [meta.findtext("source"), meta.findtext("name"), *beside]  # a job's export names no video
        name = next((name for name in named if name and is_media(name)), None)
        if name is None:
            expected = "a video: export a task of one video, or call the export as its video, match.xml for match.mp4"
            raise wrong(f"{where}, source", 0, named[0] or "", expected)
        path, start = export.find(name), _whole(meta.findtext("start_frame") or "0", where)
        step = int((re.search(r"step=([1-9]\d*)", meta.findtext("frame_filter") or "") or ("", "1"))[1])
        stop = start + _whole(meta.findtext("size"), f"{where}, size") * step
        items = list(_cvat_shapes(tree, owner, step, export.file))
        for label, shapes, at in items:
            if names and label not in names:
                raise wrong(f"{at}, label", 0, label, f"one of the labels in meta: {', '.join(names)}")
            for begin, end in _runs([*sorted(shapes), (stop, True)]):
                _check(begin, end, at, frames=True)
                export.add(path, [label], export.seconds(path, begin, end, at, step=step))
        if items:
            export.seen.append(Segment(path, (), export.seconds(path, start, stop, where, step=step)))


def _cvat_shapes(tree: ElementTree.Element, task: str, step: int, file: str) -> Iterator[tuple[str, Events, str]]:
    """Label, frames, and where this stands: of each track of a task ("": of all), and of its tags by label."""
    for track in tree.iter("track"):
        if task in ("", track.get("task_id")):
            where = f"{file}: track {track.get('id')}"
            frames = [(_whole(shape.get("frame"), f"{where}, frame"), shape.get("outside") == "1") for shape in track]
            yield track.get("label", ""), frames, where
    tags: dict[str, set[int]] = {}
    for image in tree.iter("image"):
        if task in ("", image.get("task_id")):
            match = re.search(r"frame_(\d+)", image.get("name", ""))  # in a project, ids go on from task to task
            for shape in image:
                frame = _whole(match[1] if match else image.get("id"), f"{file}: image, id")
                tags.setdefault(shape.get("label", ""), set()).add(frame)
    for label, some in tags.items():
        ends = [(frame + step, True) for frame in some if frame + step not in some]
        yield label, [*((frame, False) for frame in some), *ends], f"{file}: image"


def _whole(text: str | None, where: str) -> int:
    if not re.fullmatch(r"\d+", text or ""):
        raise wrong(where, 0, text or "", "the number of a frame, from 0 on")
    return int(str(text))


def _read_via(export: Export, data: Any) -> None:
    tables = (_field(data, name, dict, export.file) for name in ("metadata", "view", "file", "attribute"))
    notes, views, files, attributes = tables
    for key, note in notes.items():
        where = f"{export.file}: metadata {key}"
        z, values = _field(note, "z", list, where), _field(note, "av", dict, where)
        shown = _field(views.get(str(note.get("vid"))), "fid_list", list, f"{where}, view {note.get('vid')}")
        file = files.get(str(shown[0] if shown else None))
        name = _field(file, "fname", str, f"{where}, file {shown[:1]}")
        path = export.find((file.get("loc") in (2, 3) and file.get("src")) or name)  # an address, or a path
        anchor, span, left_out = "FILE1_Z0_XY0", WHOLE, None
        if len(z) == 2:
            start, end = (_field({"z": time}, "z", float, where) for time in z)
            _check(start, end, f"{where}, z", frames=False)
            anchor, span = "FILE1_Z2_XY0", (start, end)
        elif z or note.get("xy"):
            left_out = "it marks a moment or a region, not a span of time"
        if file.get("type", 4) != 4:
            left_out = "its file is no video"
        named = next((name for name, attribute in attributes.items() if attribute.get("anchor_id") == anchor), "")
        export.add(path, _via_labels(attributes.get(named, {}), values.get(named), where), span, left_out)


def _via_labels(attribute: Mapping[str, Any], value: Any, where: str) -> list[str]:
    """The words for a value: options are named by their keys, several (checkboxes, type 2) with commas between."""
    keys, options = str(value or ""), attribute.get("options") or {}
    if attribute.get("type") == 1 or not options:
        return [keys]
    parts = [key for key in (keys.split(",") if attribute.get("type") == 2 else [keys]) if key]
    return [_field(options, key, str, f"{where}, option of {attribute.get('aname')}") for key in parts]


def _read_coco(export: Export, data: Any) -> None:
    tables = {name: _field(data, name, list, export.file) for name in ("videos", "categories", "annotations")}
    entries = {name: {item.get("id"): item for item in tables[name]} for name in ("videos", "categories")}
    for place, note in enumerate(tables["annotations"]):
        where = f"{export.file}: annotation {note.get('id', place)}"
        for name, table in (("video_id", "videos"), ("category_id", "categories")):
            if note.get(name) not in entries[table]:
                raise wrong(f"{where}, {name}", 0, note.get(name, ""), f"the id of one of the {table}")
        video, category = entries["videos"][note["video_id"]], entries["categories"][note["category_id"]]
        at = f"{export.file}: video {note['video_id']}"
        path = export.find(_field(video, "name" if "name" in video else "file_name", str, at))
        label, span = _field(category, "name", str, f"{export.file}: category {note['category_id']}"), WHOLE
        if "segment" in note:
            note |= dict(zip(SPANS[0], _field(note, "segment", list, where), strict=False))
        for names in [names for names in SPANS if note.keys() & set(names)][:1]:
            frames = names == SPANS[2]
            start, end = (_field(note, name, int if frames else float, where) for name in names)
            _check(start, end, f"{where}, {names[0]}", frames=frames)
            rate = video.get("fps") and _field(video, "fps", float, at)
            span = export.seconds(path, start, end + 1, where, rate) if frames else (start, end)
        box = span == WHOLE and {"bbox", "bboxes"} & note.keys()
        export.add(path, [label], span, "it is a box without start and end" if box else None)
