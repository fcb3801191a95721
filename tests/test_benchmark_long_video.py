"""The benchmark of a long video, with one of seconds: the file that is made, what processes take, other checkouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiera_video import open_video
from hiera_video.data.reading.mp4 import write_mp4

SCRIPTS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ("long_video", "extract", "common", "race", "peers", "clip_files"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import long_video

    return long_video


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A second, with B-frames, whose frames grow brighter."""
    frames = [np.full((64, 64, 3), 20 + 7 * number, np.uint8) for number in range(30)]
    write_mp4(tmp_path / "second.mp4", frames, 30, crf=10, options={"bf": "2"})
    return tmp_path / "second.mp4"


def test_a_repeated_file_shows_its_frames_again_and_again(script: Any, second: Path, tmp_path: Path) -> None:
    script.repeat(second, tmp_path / "long.mp4", 3)
    with open_video(second) as source, open_video(tmp_path / "long.mp4") as video:
        assert len(video) == 90
        np.testing.assert_allclose(np.diff(video.times), 1 / 30, atol=1e-4)
        np.testing.assert_array_equal(video.frames(range(60, 90)).pixels, source.frames(range(30)).pixels)


def test_a_folder_that_is_no_checkout_is_refused(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no checkout"):
        script.version(tmp_path)


@pytest.mark.slow  # it runs four commands
def test_two_checkouts_are_compared(
    script: Any, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(script, "make_long", lambda folder, minutes: second)
    monkeypatch.delitem(script.JOBS, "extract")
    output = tmp_path / "result.json"
    script.main(tmp_path, script.HERE, rounds=1, video=second, model=str(tiny_model), output=output)
    result = json.loads(output.read_text())
    runs = result["jobs"]["classify --timeline"]
    assert list(runs) == ["before", "after"]
    for run in (run for lengths in runs.values() for each in lengths.values() for run in each):
        assert run["seconds"] > 0.5 and 50 < run["peak_mb"] < 5000
    assert "| classify --timeline | after (" in output.with_suffix(".md").read_text()
