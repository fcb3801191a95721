"""The page in the browser: driven in a headless Chromium, and by its own HTTP interface."""

from __future__ import annotations

import builtins
import importlib
import os
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

import pytest
from PIL import Image
from test_cli import run

from hiera_video.data.camera_motion.generator import LABELS
from hiera_video.errors import RequestError, UnknownModel
from hiera_video.models.zoo import BUILT_IN
from hiera_video.tasks.classify import page as serve
from hiera_video.tasks.classify.classifier import VideoClassifier
from hiera_video.tasks.classify.page import Desk

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
def page(tiny_mae: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("gradio", reason="gradio is not installed")
    temporary = tmp_path_factory.mktemp("temporary")
    words = ["serve", "--model", f"{BUILT_IN},{tiny_mae}", "--port", "0", "--max-upload-mb", str(MAX_UPLOAD_MB)]
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


def drop(tab: Any, path: Path) -> None:
    tab.set_input_files("#video input[type=file]", str(path))


def test_a_video_is_answered_with_pictures(tab: Any, tmp_path: Path) -> None:
    drop(tab, CLIP)
    tab.wait_for_selector("#video video")
    tab.click("#answer")
    tab.wait_for_selector("#colours img")
    assert tab.inner_text("#classes").split()[:3] == ["classes", "zoom_in", "zoom_in"]
    for part in ("frames", "timeline", "colours"):
        width, height = tab.eval_on_selector(f"#{part} img", "image => [image.naturalWidth, image.naturalHeight]")
        assert width > 400 and height > 100
    assert not tab.is_visible("#reconstruction") and not tab.is_visible("#note")
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(Image.open(tmp_path / "page.png").convert("RGB").getcolors(maxcolors=2**24) or []) > 1000


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
    assert ((0, 3), "scores over time") in steps
    assert [list(one)[-1] for one in found] == ["classes", "frames", "timeline", "colours"]
    assert len(found[0]["classes"]) == 3 and max(found[0]["classes"], key=found[0]["classes"].get) == "zoom_in"
    assert set(found[0]["classes"]) < set(LABELS)
    seconds = count(0, 40)
    monkeypatch.setattr(serve, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
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
    assert list(last) == ["note", "classes", "frames", "timeline", "colours"] and str(videos) not in last["note"]


def test_requests_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_image_model: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    *_, last = desk(str(tiny_image_model)).answer(str(CLIP), str(tiny_image_model), quiet)
    assert "colours" in last and list(tmp_path.iterdir()) == []


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
