"""From files to scores: a decoder costs its file, threads end with the program, and a model knows what it answers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from assets import H264, numbers_in
from PIL import Image

from hiera_video import VideoClassifier, from_pretrained, load_views, save_pretrained
from hiera_video.data.ahead import map_ahead
from hiera_video.data.memory import video_of
from hiera_video.data.reading import child_process
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.tasks.classify.classifier import scores_of
from hiera_video.tasks.classify.page import Desk
from hiera_video.tasks.classify.timeline import timelines
from hiera_video.tasks.evaluate.job import evaluate
from hiera_video.training.recipe import EvaluateData, EvaluateModel, EvaluateRun, Evaluation

ILL = """
import os, signal, time
from hiera_video.data.reading import child_process
open_video = child_process.open_video
def opens(path, **options):
    if os.path.basename(path) == "crash.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if os.path.basename(path) == "hang.mp4":
        time.sleep(3600)
    return open_video(path, **options)
child_process.open_video = opens
"""


@pytest.fixture
def ill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of good videos; the children's decoder crashes on one of them and hangs on another."""
    (tmp_path / "sitecustomize.py").write_text(ILL)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "videos"
    folder.mkdir()
    data = H264.write(tmp_path).read_bytes()
    for name in ("a.mp4", "crash.mp4", "hang.mp4", "z.mp4"):
        (folder / name).write_bytes(data)
    real = IsolatedReader.__init__
    monkeypatch.setattr(IsolatedReader, "__init__", lambda self, *, time_limit=60: real(self, time_limit=5))
    return folder


def sentences(folder: Path) -> list[str | None]:
    crash, hang = folder / "crash.mp4", folder / "hang.mp4"
    return [
        None,
        f"{crash} makes the decoder crash (SIGSEGV): convert it, or leave it out.",
        f"{hang} takes longer than 5 s to decode: leave it out, or raise time_limit.",
        None,
    ]


def test_a_decoder_that_crashes_or_hangs_costs_its_file_in_classify(ill: Path, tiny_model: Path) -> None:
    answers = list(VideoClassifier.from_pretrained(tiny_model, device="cpu").stream([str(ill)]))
    assert [answer.error for answer in answers] == sentences(ill)
    assert [bool(answer.predictions) for answer in answers] == [True, False, False, True]
    assert answers[0].predictions == answers[3].predictions


@pytest.mark.slow  # a hang's time limit; classify has it in the fast tests
def test_a_decoder_that_crashes_or_hangs_costs_its_file_in_a_timeline(
    ill: Path, tiny_model: Path, tmp_path: Path
) -> None:
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    answers = list(timelines(classifier, [str(ill)], tmp_path / "out", hop=None, top_k=2, batch_size=8))
    assert [answer.error for answer in answers] == sentences(ill)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.mp4.csv", "a.mp4.png", "z.mp4.csv", "z.mp4.png"]


@pytest.mark.slow  # the same
def test_a_decoder_that_crashes_or_hangs_costs_its_file_in_evaluate(
    ill: Path, tiny_model: Path, tmp_path: Path
) -> None:
    names = ("a.mp4", "crash.mp4", "hang.mp4", "z.mp4")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{ill / name},a\n" for name in names))
    recipe = Evaluation(
        data=EvaluateData(source=str(tmp_path / "list.csv")),
        model=EvaluateModel(start=str(tiny_model)),
        run=EvaluateRun(device="cpu", output=str(tmp_path / "out")),
    )
    total = next(iter(evaluate(recipe)))
    assert (total.listed, total.videos, total.error) == (4, 2, "2 of 4 videos could not be read")
    bad = json.loads((tmp_path / "out" / "result.json").read_text())["bad"]
    assert [one["error"] for one in bad] == sentences(ill)[1:3]


def test_a_decoder_that_crashes_or_hangs_is_a_note_on_the_page(ill: Path, tiny_model: Path) -> None:
    desk = Desk([str(tiny_model)], time_limit=20, top_k=2, device="cpu", precision="fp32")
    for name, sentence in zip(("crash.mp4", "hang.mp4"), sentences(ill)[1:3], strict=True):
        *_, last = desk.answer(str(ill / name), str(tiny_model), lambda *args, **more: None)
        assert last == {"note": str(sentence).replace(str(ill / name), name)}


# --- ends -------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.views import test_views
from hiera_video.spec import ClipSpec
def main():
    videos = VideoList.make([{path!r}] * 40, [0] * 40, ["a"])
    global views
    views = test_views(videos, ClipSpec(num_frames=4, size=(32, 32), resize=36), 2, 3)
    for answer in views:
        assert answer["clips"] is not None
        print("READ", flush=True)
        {how}
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("break", 0),
        pytest.param("raise SystemExit(3)", 3, marks=pytest.mark.slow),
        pytest.param("raise ValueError", 1, marks=pytest.mark.slow),
        ("__import__('time').sleep(600)", 130),
    ],
)
def test_a_program_that_leaves_its_views_open_ends_at_once(how: str, code: int, tmp_path: Path) -> None:
    """By a break, an exit, an exception, and Ctrl-C; none of its children stays."""
    (tmp_path / "program.py").write_text(PROGRAM.format(path=str(H264.write(tmp_path)), how=how))
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "READ\n"
        children = psutil.Process(program.pid).children(recursive=True) if code == 130 else []
        if code == 130:
            program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    assert program.returncode in ({code} if code != 130 else {130, -signal.SIGINT}), err
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_results_come_in_order_and_an_exception_in_its_place() -> None:
    def read(number: int, reader: Any) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        if number == 7:
            raise UnreadableVideo("seven")
        return number

    found = []
    with pytest.raises(UnreadableVideo, match="seven"):
        for number in map_ahead(read, range(20), num_workers=3, isolate=False):
            found.append(number)
    assert found == list(range(7))
    with pytest.raises(RequestError, match=r"num_workers is -1, but is at least 0\."):
        map_ahead(read, range(3), num_workers=-1)


def test_a_reader_that_is_stopped_gives_up_what_it_waits_for(ill: Path) -> None:
    given_up: list[str] = []

    def read(path: Path, reader: IsolatedReader | None) -> None:
        assert reader is not None
        reader.time_limit = 120
        try:
            reader.open(path)
        except UnreadableVideo as error:
            given_up.append(str(error))

    results = map_ahead(read, [ill / "a.mp4", ill / "hang.mp4", ill / "z.mp4"], num_workers=2)
    assert next(results) is None
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "hiera_video reader"]
    assert not [sentence for sentence in given_up if "takes longer" in sentence]


# --- what a model answers ---------------------------------------------------------------------------------------------


def test_a_multi_label_model_says_so_and_gives_sigmoid_scores(tiny_model: Path, videos: Path, tmp_path: Path) -> None:
    model = from_pretrained(tiny_model)
    assert not model.multi_label and "multi_label" not in json.loads((tiny_model / "config.json").read_text())
    model.multi_label = True
    folder = save_pretrained(model, tmp_path / "several")
    assert json.loads((folder / "config.json").read_text())["multi_label"] is True
    classifier = VideoClassifier.from_pretrained(folder, device="cpu")
    clips = load_views(videos / "a.mp4", classifier.model.spec, 2, 1).clips
    with torch.inference_mode():
        expected = classifier.model(classifier.model.spec.normalize(clips)).sigmoid().mean(dim=0)
    answer = classifier(videos / "a.mp4", top_k=6)
    assert {score.index: score.score for score in answer.predictions} == pytest.approx(
        dict(enumerate(expected.tolist()))
    )
    assert sum(score.score for score in answer.predictions) != pytest.approx(1, abs=0.1)
    timeline = next(timelines(classifier, [str(videos / "a.mp4")], tmp_path / "t", hop=None, top_k=6, batch_size=8))
    assert sum(score.score for score in timeline.predictions) != pytest.approx(1, abs=0.1)
    assert not from_pretrained(folder, num_classes=3).multi_label  # a new head


def test_two_certain_labels_are_both_certain() -> None:
    logits = torch.tensor([[7.0, 7.0, -7.0]])
    assert scores_of(logits, multi_label=True)[0].tolist() == pytest.approx([0.999, 0.999, 0.001], abs=1e-3)
    assert scores_of(logits, multi_label=False)[0].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)


# --- inputs that are no files -----------------------------------------------------------------------------------------


def test_bytes_open_files_frames_and_pictures_are_answered_as_the_file_is(tmp_path: Path, tiny_model: Path) -> None:
    path = H264.write(tmp_path)
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    expected = classifier(path).predictions
    with video_of(path) as video:
        frames = video.frames(range(len(video))).pixels
    tensor = torch.from_numpy(frames)
    with path.open("rb") as file:
        for source in (path.read_bytes(), file, io.BytesIO(path.read_bytes())):
            assert classifier(source).predictions == expected
    pictures = [Image.fromarray(frame) for frame in frames]
    for source in (frames, tensor, tensor.permute(0, 3, 1, 2), pictures):
        answer = classifier(source, fps=30)
        assert (answer.input, answer.predictions, answer.duration) == ("<90 frames>", expected, 3)
    several = list(classifier.stream([path.read_bytes(), str(path), frames], fps=30))
    assert [answer.predictions for answer in several] == [expected] * 3


def test_the_bytes_of_a_picture_are_a_picture(tmp_path: Path, tiny_image_model: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    classifier = VideoClassifier.from_pretrained(tiny_image_model, device="cpu")
    answer, expected = classifier((tmp_path / "picture.png").read_bytes()), classifier(tmp_path / "picture.png")
    assert (answer.predictions, answer.duration) == (expected.predictions, 0)
    with video_of((tmp_path / "picture.png").read_bytes()) as video:
        assert len(video) == 1 and np.array_equal(video.frames([0]).pixels[0], pixels)


def test_frames_in_memory_are_a_video_with_times(tmp_path: Path) -> None:
    with video_of(H264.write(tmp_path)) as video:
        frames = video.frames(range(len(video))).pixels
    with video_of(frames, 25) as video:
        assert (len(video), video.fps, video.duration, video.height, video.width) == (90, 25, 3.6, 48, 64)
        assert video.times[:3].tolist() == [0, 0.04, 0.08]
        assert [numbers_in(part.pixels) for part in video.stream([[1, 5], [4, 9]])] == [[1, 5], [4, 9]]


def test_bytes_that_are_no_video_are_named_by_their_number(tiny_model: Path) -> None:
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    with pytest.raises(UnreadableVideo, match=r"^<8 bytes> is not a video that FFmpeg can open"):
        classifier(b"nonsense")


FRAMES = np.zeros((4, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "fps", "sentence"),
    [
        (3, None, "a video cannot be read from the type int: give a path, an address, bytes, an open binary file, fra"),
        (FRAMES, None, "frames need their rate: pass fps=, such as fps=25."),
        (FRAMES, 0.0, "frames need their rate: pass fps=, such as fps=25 (it is 0)."),
        (FRAMES / 255, 25, "frames are float64 [4, 8, 8, 3], but must be uint8 [T, H, W, 3] with values from 0 to 255"),
        (
            FRAMES[0],
            25,
            "frames are uint8 [8, 8, 3], but must be uint8 [T, H, W, 3] with values from 0 to 255, RGB, and",
        ),
        (FRAMES[:0], 25, "frames are uint8 [0, 8, 8, 3], but must be uint8 [T, H, W, 3]"),
        ([], 25, "the list of frames is empty: give at least one PIL picture."),
        ([FRAMES[0]], 25, "a list of frames must hold PIL pictures, but holds a ndarray."),
        (
            [Image.new("RGB", (8, 6)), Image.new("RGB", (6, 8))],
            25,
            "the frames of a video have one size, but these are 6 x 8 and 8 x 6 pixels.",
        ),
        (io.StringIO("text"), None, "<file object> is open as text: open it with mode 'rb'."),
    ],
)
def test_what_cannot_be_taken_gets_one_sentence(
    source: Any, fps: float | None, sentence: str, tiny_model: Path
) -> None:
    classifier = VideoClassifier.from_pretrained(tiny_model, device="cpu")
    for take in (lambda: video_of(source, fps), lambda: classifier(source, fps=fps)):
        with pytest.raises(RequestError) as refused:
            take()
        assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)


def test_no_child_is_started_anew_for_each_call(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    started: list[int] = []
    real = child_process.IsolatedReader._start
    monkeypatch.setattr(child_process.IsolatedReader, "_start", lambda self: started.append(1) or real(self))
    classifier, path = VideoClassifier.from_pretrained(tiny_model, device="cpu"), H264.write(tmp_path)
    for _ in range(3):
        classifier(path)
    assert len(started) == 1
