"""The page in the browser: driven in a headless Chromium, and by its own HTTP interface."""

from __future__ import annotations

import builtins
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from test_cli import run

from hiera_video import open_video
from hiera_video.data.camera_motion.generator import LABELS
from hiera_video.errors import RequestError, UnknownModel
from hiera_video.models.zoo import BUILT_IN
from hiera_video.tasks.classify import desk as desks
from hiera_video.tasks.classify import page as pages
from hiera_video.tasks.classify.classifier import VideoClassifier
from hiera_video.tasks.classify.desk import PARTS, Desk
from hiera_video.visual.scores_html import scores_html

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "docs" / "zoom_in.mp4"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
FLAGS += " disable-sync"
MAX_UPLOAD_MB = 1


@dataclass
class Page:
    """A page that a process of its own serves; ``temporary``: where it may leave files."""

    address: str
    temporary: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def page(tiny_mae: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("gradio", reason="gradio is not installed")
    temporary = tmp_path_factory.mktemp("temporary")
    words = [
        "serve",
        "--model",
        f"{BUILT_IN},{tiny_mae},{tiny_model}",
        "--port",
        "0",
        "--max-upload-mb",
        str(MAX_UPLOAD_MB),
    ]
    command = [sys.executable, "-m", "hiera_video.cli", *words]
    env = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            yield Page(address, temporary, process)
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err
    assert list(temporary.iterdir()) == []  # nothing is left behind


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as session:
        options = {"executable_path": CHROMIUM, "args": [f"--{flag}" for flag in FLAGS.split()]}
        browser = session.chromium.launch_persistent_context(str(tmp_path_factory.mktemp("profile")), **options)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any, page: Page) -> Iterator[Any]:
    """A visitor who has the page open; nothing was asked for from elsewhere."""
    one = chromium.new_page()
    elsewhere: list[str] = []
    own = (page.address, "data:", "blob:")
    one.on("request", lambda request: None if request.url.startswith(own) else elsewhere.append(request.url))
    one.set_default_timeout(45_000)
    one.goto(page.address)
    one.wait_for_selector("#answer")
    yield one
    one.close()
    assert elsewhere == []


def write_mpeg4(path: Path, seconds: float = 2.0) -> None:
    """A grey level that rises, as MPEG-4 Part 2 in an AVI, which browsers do not play."""
    with av.open(str(path), "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=25, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(round(25 * seconds)):
            pixels = np.full((96, 128, 3), 40 + 160 * number / (25 * seconds), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def drop(tab: Any, path: Path) -> None:
    tab.set_input_files("#video input[type=file]", str(path))


def test_a_video_is_answered_with_pictures(tab: Any, tmp_path: Path) -> None:
    drop(tab, CLIP)
    tab.wait_for_selector("#video video")
    tab.click("#answer")
    tab.wait_for_selector("#colours img", state="attached")
    for part in ("evidence", "colours"):  # they are loaded when they come into sight
        tab.evaluate(f"document.querySelector('#{part} img').scrollIntoView()")
        tab.wait_for_function(f"document.querySelector('#{part} img').naturalWidth > 0")
    assert tab.inner_text("#classes").split()[:3] == ["classes", "zoom_in", "zoom_in"]
    for part in ("frames", "evidence", "colours"):
        width, height = tab.eval_on_selector(f"#{part} img", "image => [image.naturalWidth, image.naturalHeight]")
        assert width > 400 and height > 100
    assert not tab.is_visible("#reconstruction") and not tab.is_visible("#note") and not tab.is_visible("#preview")
    assert tab.is_visible("#timeline svg") and not tab.is_visible("text=doubtful")
    assert not tab.is_visible("[title='Trim video to selection']")  # it would load a program from elsewhere
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(Image.open(tmp_path / "page.png").convert("RGB").getcolors(maxcolors=2**24) or []) > 1000


def test_on_a_phone_the_example_has_segments_that_play(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.click("#example")
    tab.wait_for_selector("#video video")
    tab.click("#answer")
    tab.wait_for_selector("#colours img", state="attached")
    rows = tab.query_selector_all("#timeline .rows button")
    assert [row.inner_text().split()[0] for row in rows] == ["pan_right", "static", "zoom_in"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = "[...document.querySelectorAll('#timeline *')].map(part => parseFloat(getComputedStyle(part).fontSize))"
    assert min(tab.evaluate(sizes)) >= 12
    player = "document.querySelector('#video video')"
    start, end = (float(rows[1].get_attribute(f"data-{name}")) for name in ("from", "to"))
    rows[1].click()
    tab.wait_for_function(f"{player}.paused && {player}.currentTime >= {end}")
    assert start < end <= tab.evaluate(f"{player}.currentTime") < end + 0.6
    box = tab.query_selector("#timeline .chart").bounding_box()
    tab.click("#timeline .chart", position={"x": box["width"] / 4, "y": 120})
    tab.wait_for_function(f"Math.abs({player}.currentTime - 12.5 / 4) < 1")


def test_what_a_browser_does_not_play_has_a_preview(tab: Any, tmp_path: Path) -> None:
    write_mpeg4(tmp_path / "old.avi")
    drop(tab, tmp_path / "old.avi")
    tab.wait_for_function("(document.querySelector('#preview video') || {}).videoWidth == 128")
    assert tab.evaluate("document.querySelector('#preview video').duration") == pytest.approx(2, abs=0.1)
    assert "here is a preview, small" in tab.inner_text("#preview")
    tab.click("#video button[aria-label=Clear]")
    tab.wait_for_selector("#preview", state="hidden")


def test_a_doubtful_answer_is_called_so(tab: Any, tiny_model: Path) -> None:
    drop(tab, CLIP)
    tab.wait_for_selector("#video video")
    tab.click("#model input")
    tab.click(f"[role=option]:has-text('{tiny_model.name}')")
    tab.click("#answer")
    tab.wait_for_selector("#classes.doubtful")
    assert re.search(r"doubtful: \d\d %", tab.inner_text("#classes"))
    style = "getComputedStyle(document.querySelector('#classes h2'), '::before').content"
    assert tab.evaluate(style) == '"doubtful:"'


def test_an_mae_shows_its_reconstruction(tab: Any, tiny_mae: Path) -> None:
    drop(tab, CLIP)
    tab.wait_for_selector("#video video")
    tab.click("#model input")
    tab.click(f"[role=option]:has-text('{tiny_mae.name}')")
    tab.click("#answer")
    tab.wait_for_selector("#reconstruction img")
    assert tab.is_visible("#frames") and not tab.is_visible("#classes")


def test_a_wrong_file_gets_the_command_lines_sentence(
    tab: Any, videos: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    drop(tab, videos / "text.mp4")
    tab.wait_for_selector("#video video")
    tab.click("#answer")
    tab.wait_for_selector("#note textarea")
    _, out, _ = run(capsys, "classify", videos / "text.mp4", "--model", tiny_model)
    sentence = out.splitlines()[1].removeprefix("  error: ").replace(str(videos / "text.mp4"), "text.mp4")
    assert tab.input_value("#note textarea") == sentence
    assert not tab.is_visible("#frames") and "Traceback" not in tab.inner_text("body")


def test_a_file_over_the_limit_is_refused(tab: Any, tmp_path: Path, page: Page) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes(CLIP.read_bytes() + bytes(2 * MAX_UPLOAD_MB * 10**6))
    drop(tab, large)
    tab.wait_for_selector("text=exceed the maximum allowed size")  # it is not sent at all; sent, it is not taken:
    body = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="large.mp4"\r\n\r\n%s\r\n--edge--\r\n'
    upload = urllib.request.Request(f"{page.address}/gradio_api/upload", data=body % large.read_bytes())
    upload.add_header("Content-Type", "multipart/form-data; boundary=edge")
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(upload, timeout=30)
    assert not [path for path in page.temporary.rglob("*") if path.is_file() and path.stat().st_size > 10**6]


def test_two_visitors_at_once_do_not_mix(page: Page, tmp_path: Path, videos: Path) -> None:
    client = pytest.importorskip("gradio_client")
    classifier = VideoClassifier.from_pretrained()
    files = [CLIP, videos / "a.mp4", videos / "audio.mp4"]

    def ask(number: int) -> tuple[dict[str, Any], str]:
        visitor = client.Client(page.address, verbose=False, download_files=str(tmp_path / str(number)))
        video = client.handle_file(str(files[number]))
        note, classes, *_ = visitor.predict(video, BUILT_IN, api_name="/answer")
        return classes["value"], note["value"]

    with ThreadPoolExecutor(len(files)) as visitors:
        answers = list(visitors.map(ask, range(len(files))))
    for path, (classes, _) in zip(files[:2], answers[:2], strict=True):
        expected = classifier(path).predictions
        found = {one["label"]: one["confidence"] for one in classes["confidences"]}
        assert list(found) == [score.label for score in expected]
        assert list(found.values()) == pytest.approx([score.score for score in expected], abs=1e-4)
    assert not answers[2][0] and answers[2][1].startswith("audio.mp4 ")


# --- without a browser ------------------------------------------------------------------------------------------------


def quiet(*_: object, **__: object) -> None:
    """A progress bar that nobody sees."""


def desk(*names: str, time_limit: float = 60) -> Desk:
    return Desk(list(names), time_limit=time_limit, top_k=3, device="cpu", precision="auto")


def test_what_is_found_grows_and_a_long_answer_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[Any, str]] = []
    found = list(desk(BUILT_IN).answer(str(CLIP), BUILT_IN, lambda done, desc, **_: steps.append((done, desc))))
    assert ((0, 3), PARTS["timeline"]) in steps
    assert [list(one)[-1] for one in found] == ["classes", "frames", "timeline", "evidence", "colours"]
    assert len(found[0]["classes"]) == 3 and max(found[0]["classes"], key=found[0]["classes"].get) == "zoom_in"
    assert set(found[0]["classes"]) < set(LABELS)
    seconds = count(0, 40)
    monkeypatch.setattr(desks, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    *_, last = desk(BUILT_IN, time_limit=60).answer(str(CLIP), BUILT_IN, quiet)
    assert list(last) == ["classes", "frames", "timeline", "note"]
    assert last["note"] == "the answer takes longer than 60 s: send a shorter video"


def test_a_request_for_another_model_or_none_is_a_sentence(videos: Path) -> None:
    (found,) = desk(BUILT_IN).answer(None, BUILT_IN, quiet)
    assert found == {"note": "there is no video yet: drop one on the page, or record one"}
    (found,) = desk(BUILT_IN).answer(str(CLIP), "/etc", quiet)
    assert found == {"note": "there is no model '/etc' on this page"}
    with pytest.raises(UnknownModel):
        desk(BUILT_IN).model("another")
    with pytest.raises(RequestError, match="model names nothing"):
        desk()


def test_a_file_of_which_a_part_can_be_read_has_a_note_too(videos: Path, tiny_model: Path) -> None:
    *_, last = desk(str(tiny_model)).answer(str(videos / "cut.mkv"), str(tiny_model), quiet)
    assert (
        list(last) == ["note", "classes", "frames", "timeline", "evidence", "colours"]
        and str(videos) not in last["note"]
    )


def test_requests_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_image_model: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    *_, last = desk(str(tiny_image_model)).answer(str(CLIP), str(tiny_image_model), quiet)
    assert "colours" in last and list(tmp_path.iterdir()) == []


def test_the_timeline_names_and_marks_segments_to_play() -> None:
    answers = desk(BUILT_IN).answer(str(pages.EXAMPLE), BUILT_IN, quiet)
    last = next(parts for parts in answers if "timeline" in parts)
    answers.close()  # type: ignore[attr-defined]
    rows = re.findall(r'data-from="([\d.]+)" data-to="([\d.]+)"><span>.*?</i>(\w+)</span>', last["timeline"])
    assert [label for *_, label in rows] == ["pan_right", "static", "zoom_in"]
    truth = [(0, 7.5), (7.5, 10), (10, 12.5)]
    for (start, end, _), (begin, until) in zip(rows, truth, strict=True):
        assert float(start) == pytest.approx(begin, abs=1.1) and float(end) == pytest.approx(until, abs=1.1)
    assert last["timeline"].count("data:image/jpeg;base64,") == 6 and "http" not in last["timeline"]


def test_models_are_shown_by_their_names(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one/run", "other/run", "third")]
    for path in paths:
        Path(path).mkdir(parents=True)
    shown = [label for label, _ in pages._choices([BUILT_IN, *paths])]
    assert shown == [BUILT_IN, *paths[:2], "third"]


def test_names_of_classes_are_text_and_colours_are_the_same_everywhere() -> None:
    times = np.array([[0.0, 1.0], [1.0, 2.0]])
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], dtype=np.float32)
    labels = ["<b>run</b>", "walk", "never"]
    html = scores_html(times, scores, labels, [], [("<b>run</b>", 0.0, 1.0, 0.9), ("walk", 1.0, 2.0, 0.8)], top_k=3)
    assert "<b>" not in html and "&lt;b&gt;run&lt;/b&gt;, up to 90 %" in html and "never" not in html
    colour = re.findall(r"background:(#\w+)\"></i>walk", html)
    assert len(colour) == 2 and len(set(colour)) == 1 and html.count(colour[0]) == 4  # name, curve, bar and row


def test_a_preview_is_h264_as_long_as_the_video(tmp_path: Path, videos: Path) -> None:
    write_mpeg4(tmp_path / "old.avi")
    says = desk(BUILT_IN).preview(str(tmp_path / "old.avi"), tmp_path / "new.mp4")
    assert says == "Your browser does not play this kind of file: here is a preview, small and without sound."
    with open_video(tmp_path / "new.mp4") as video:
        assert video.index.codec == "h264" and video.duration == pytest.approx(2, abs=0.1) and len(video) == 25
        levels = video.frames(range(25)).pixels.mean(axis=(1, 2, 3))
        assert levels == pytest.approx(40 + 160 * np.arange(0, 50, 2) / 50, abs=6)
    assert desk(BUILT_IN).preview(str(videos / "text.mp4"), tmp_path / "none.mp4") is None
    assert not (tmp_path / "none.mp4").exists()


def test_a_preview_that_takes_too_long_shows_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mpeg4(tmp_path / "old.avi", seconds=5)
    seconds = count(0, 40)
    monkeypatch.setattr(desks, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    says = desk(BUILT_IN).preview(str(tmp_path / "old.avi"), tmp_path / "new.mp4")
    assert says is not None and "here is a preview of its first 2 s" in says
    with open_video(tmp_path / "new.mp4") as video:
        assert len(video) == 32


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--port", "99999"), "127.0.0.1:99999 cannot be opened ("),
        (("--host", "256.0.0.1"), "256.0.0.1:7860 cannot be opened ("),
        (("--model", "hiera_bse_16x224"), "no model is called 'hiera_bse_16x224'"),
        (("--model", ","), "model names nothing: leave it out, or name at least one"),
        (("--max-upload-mb", "0"), "max_upload_mb is 0, but is a number above 0"),
        (("--time-limit", "-1"), "time_limit is -1, but is a number above 0"),
        (("--top-k", "0"), "top_k is 0, but is at least 1"),
    ],
)
def test_a_wrong_request_is_exit_2(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", stand_in(importlib.import_module))
    code, out, err = run(capsys, "serve", *words)
    assert (code, out) == (2, "") and err.splitlines()[-1].startswith(f"hiera-video: {sentence}")


def test_without_gradio_the_remedy_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(capsys, "serve") == (2, "", 'hiera-video: serve needs gradio: pip install "hiera-video[serve]"\n')


def stand_in(real: Any) -> Any:
    """``import_module`` without gradio, which takes seconds and is not reached."""
    return lambda name: builtins if name == "gradio" else real(name)
