"""The one writer of mp4 files: frames, times and proportions come back, and a file is whole or not there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from assets import numbers_in, picture
from numpy.typing import NDArray

from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import OutputError


def test_frames_come_back_at_their_rate_and_an_odd_row_is_left_out(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", (picture(number, 49, 65) for number in range(12)), 25)
    with open_video(tmp_path / "a.mp4") as video:
        assert numbers_in(video.frames(range(12)).pixels) == list(range(12))
        assert (video.fps, video.height, video.width) == (25, 48, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_times_and_proportions_are_kept() -> None:
    buffer, times = io.BytesIO(), [0, Fraction(1, 10), 0.5, 2.25]
    frames = [picture(number, 48, 64) for number in range(4)]
    write_mp4(buffer, frames, 30, times=times, pixel_aspect=Fraction(16, 11))
    with open_video(buffer.getvalue()) as video:
        np.testing.assert_allclose(video.times, np.array(times, dtype=float), atol=1e-4)
        assert video.pixel_aspect == Fraction(16, 11)


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield picture(0, 48, 64)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_mp4(tmp_path / "a.mp4", broken(), 25)
    with pytest.raises(ValueError, match="a video needs at least one frame"):
        write_mp4(tmp_path / "a.mp4", [], 25)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"none/a.mp4 cannot be written: No such file or directory"):
        write_mp4(tmp_path / "none/a.mp4", [picture(0, 48, 64)], 25)
