"""Classify videos and images: files in, labels with scores out, in the order of the inputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hiera_video.data.reading.files import find_inputs, is_address
from hiera_video.errors import RequestError
from hiera_video.files import check_output
from hiera_video.models.evidence import Method
from hiera_video.models.zoo import BUILT_IN, KINETICS
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import Prediction, VideoClassifier
from hiera_video.tasks.classify.segments import CutBy, SegmentRule
from hiera_video.tasks.records import Results
from hiera_video.training.devices import Precision

log = logging.getLogger("hiera_video")

#: Addresses that can only be live.
SCHEMES = {"rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp"}


def classify(
    inputs: list[str],
    *,
    model: str | None = None,
    top_k: int = 5,
    views: str | None = None,
    batch_size: int = 8,
    device: str = "auto",
    precision: Precision = "auto",
    picture: Path | None = None,
    explain: Path | None = None,
    explain_label: str | None = None,
    explain_by: Method = "shares",
    timeline: Path | None = None,
    hop: float | None = None,
    segments: bool = False,
    cut: Path | None = None,
    cut_by: CutBy = "exact",
    smooth: float = 1.0,
    high: float = 0.5,
    low: float = 0.3,
    gap: float = 1.0,
    least: float = 1.0,
    live: bool = False,
) -> Results[Prediction]:
    """Classify videos and images, or a camera or stream while it comes.

    Args:
        inputs: Files, folders (to their depths), globs, http(s) addresses; or one camera's number or stream (rtsp://).
        model: A name (see `hiera-video models`), a file, a folder or a hub id. Default: the built-in model.
        top_k: How many classes to name.
        views: Clips x crops that scores are averaged over, such as 5x3. Default: the model's own.
        batch_size: Clips that go through the model at once.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto is bf16 where GPU or CPU has it and the model is wide enough to gain, else fp32.
        picture: Write a PNG here: each input's frames with its best classes as bars.
        explain: Write where and when the evidence for a label lies: a .png, for one input also an .mp4.
        explain_label: The label to explain. Default: of each input its best.
        explain_by: shares (of patches in the logit), head_shares (of the tokens the head sees), gradcam or rollout.
        timeline: A folder for scores over time: of each input a CSV file and a PNG. The answer is then their mean.
        hop: Seconds from one window of a timeline to the next (default: half a clip), or of a stream (default: 0.5).
        segments: Write segments.csv and .json beside the timeline: where each class begins and ends.
        cut: A folder for the segments as clips; it implies segments.
        cut_by: exact codes each clip again, without sound; copy takes the stream from the keyframe before, with sound.
        smooth: Seconds over which a segment's scores are averaged first.
        high: The score that a segment must reach somewhere.
        low: The score below which a segment ends; it ends below half of its peak, too.
        gap: Segments of a class that are no more seconds apart are one.
        least: Segments of fewer seconds are dropped.
        live: Read an http(s) address as a live stream; other schemes and cameras are always live.

    Returns:
        The answers, each computed when it is asked for.

    Raises:
        RequestError, OutputError, WeightsError: Options do not go together; an output or the weights cannot be had.
    """
    asked = _Asked(inputs, live, views, picture, explain, explain_label, explain_by, timeline, hop, top_k, batch_size)
    segments_asked = _wanted(timeline, segments, cut, cut_by, (smooth, high, low, gap, least))
    return asked.answers(_classifier(model, device, precision), segments_asked)


def _wanted(
    timeline: Path | None, segments: bool, cut: Path | None, cut_by: CutBy, values: tuple[float, ...]
) -> dict[str, Any]:
    """What a timeline is asked for about segments."""
    rule = SegmentRule(*values)
    if cut is None and cut_by != "exact":
        raise RequestError("cut_by is of clips: name their folder (--cut)")
    if not segments and cut is None:
        if rule != SegmentRule():
            raise RequestError("smooth, high, low, gap and least are of segments: ask for them (--segments)")
        return {}
    if timeline is None:
        raise RequestError("segments are made of a timeline: name its folder (--timeline)")
    return {"rule": rule, "cut": cut and Path(cut), "cut_by": cut_by}


def _classifier(model: str | None, device: str, precision: Precision) -> VideoClassifier:
    if model is None:
        said = "the built-in model answers: %s, nine camera motions; for Kinetics actions add --model %s"
        log.info(said, BUILT_IN, KINETICS)
    return VideoClassifier.from_pretrained(model or BUILT_IN, device=device, precision=precision)


def is_live(name: str) -> bool:
    """Whether an input can only be live.

    Args:
        name: What the user named.

    Returns:
        True for a camera's number and for an address such as rtsp://; False for a file that is named like a number.
    """
    return (name.isdecimal() and not os.path.exists(name)) or urlsplit(name).scheme in SCHEMES


@dataclass(frozen=True)
class _Asked:
    """What is asked for of the inputs, by the names of the options."""

    inputs: list[str]
    live: bool
    views: str | None
    picture: Path | None
    explain: Path | None
    explain_label: str | None
    explain_by: Method
    timeline: Path | None
    hop: float | None
    top_k: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuses, before the model is loaded, what does not go together, and what cannot be live or written."""
        object.__setattr__(self, "live", self.live or any(map(is_live, self.inputs)))
        if self.views is not None:
            parse_views(self.views)
        beside = (self.views, self.picture, self.explain)
        if self.live and (*beside, self.timeline) != (None,) * 4:
            raise RequestError("a live stream has neither views nor a picture, explanation or timeline: leave them out")
        if self.timeline is None and self.hop is not None and not self.live:
            raise RequestError("hop is of a timeline: name its folder (--timeline)")
        if self.timeline is not None and beside != (None,) * 3:
            own = "windows for views and a picture of its own"
            raise RequestError(f"a timeline has {own}: leave out views, picture and explain")
        if self.picture is not None:
            check_output(Path(self.picture))
        self._check_explanation()
        if self.live:
            _check_live(self.inputs)

    def _check_explanation(self) -> None:
        if self.explain is None:
            if self.explain_label is not None or self.explain_by != "shares":
                raise RequestError("explain_label and explain_by are of an explanation: name its file (--explain)")
            return
        target = Path(self.explain)
        if target.suffix not in (".png", ".mp4"):
            raise RequestError(f"explain is {str(target)!r}, but names a .png or, for one input, an .mp4")
        if target.suffix == ".mp4" and len(find_inputs(self.inputs)) > 1:
            raise RequestError(f"{target} can show one input: name a .png for several")
        check_output(target)

    def answers(self, classifier: VideoClassifier, segments: dict[str, Any]) -> Results[Prediction]:
        """The answers, by the module that gives them; the others are not imported."""
        inputs, top_k, batch_size = self.inputs, self.top_k, self.batch_size
        if self.timeline is not None:
            from hiera_video.tasks.classify.timeline import timelines

            how: dict[str, Any] = {"hop": self.hop, "top_k": top_k, "batch_size": batch_size}
            return timelines(classifier, inputs, Path(self.timeline), **how, **segments)
        if self.live:
            from hiera_video.tasks.classify.live import live_answers

            return live_answers(classifier, inputs[0], hop=self.hop, top_k=top_k)
        how = {"top_k": top_k, "views": self.views, "keep_frames": self.picture is not None}
        if self.explain is None:
            results = classifier.stream(inputs, batch_size=batch_size, **how)
        else:
            from hiera_video.tasks.classify.explain import explained

            target = Path(self.explain)
            results = explained(classifier, inputs, target, label=self.explain_label, by=self.explain_by, **how)
        return results if self.picture is None else Results(len(results), _with_picture(results, Path(self.picture)))


def _check_live(inputs: list[str]) -> None:
    if len(inputs) != 1:
        raise RequestError("one camera or stream at a time can be classified: name it alone")
    (name,) = inputs
    if os.path.isfile(name) or not (is_live(name) or is_address(name) or os.path.exists(name)):
        raise RequestError(f"{name} is no camera's number and no stream's address: leave out live")


def _with_picture(results: Iterable[Prediction], picture: Path) -> Iterator[Prediction]:
    from hiera_video.visual.strips import MAX_ROWS, draw_strips

    shown: list[Prediction] = []
    for result in results:
        if result.frames is not None and len(shown) < MAX_ROWS:
            shown.append(result)
        yield result
    rows = [(Path(row.input).name, row.frames, row.predictions) for row in shown if row.frames is not None]
    draw_strips(rows, picture)
    log.info("%s shows the frames and answers of %d inputs", picture, len(shown))
