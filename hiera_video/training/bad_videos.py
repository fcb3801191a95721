"""Training videos that cannot be read: told, listed in the run's folder, and too many of them refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hiera_video.data.dataset import Problem
from hiera_video.errors import TrainingStopped
from hiera_video.files import replacing

log = logging.getLogger("hiera_video")


def list_bad(problems: Sequence[Problem], output: Path | None) -> None:
    """Warns of the videos that could not be read, and lists them in ``bad_videos.txt``; for the main process.

    Args:
        problems: The videos, each once.
        output: The run's folder; None: nothing is written.

    Raises:
        OutputError: The folder cannot be written.
    """
    if not problems:
        return
    replaced = sum(problem.replaced for problem in problems)
    where = "" if output is None else f": {output / 'bad_videos.txt'}"
    log.warning("%d videos could not be read, %d only in part%s", replaced, len(problems) - replaced, where)
    if output is not None:
        with replacing(output / "bad_videos.txt") as temporary:
            temporary.write_text("".join(f"{problem.path}: {problem.reason}\n" for problem in problems))


def too_many_bad(problems: Sequence[Problem], num_videos: int, max_bad_share: float) -> TrainingStopped | None:
    """What stops a run of which too many videos cannot be read.

    Args:
        problems: The videos that could not be read, each once.
        num_videos: Length of the training list.
        max_bad_share: ``data.max_bad_share``.

    Returns:
        The exception, where more than one video, and more than the share, cannot be read at all; else None.
    """
    bad = [problem.path for problem in problems if problem.replaced]
    if len(bad) <= max(1, max_bad_share * num_videos):
        return None
    return TrainingStopped(
        f"{len(bad)} of {num_videos} videos cannot be read, more than data.max_bad_share {max_bad_share:g}: "
        f"{', '.join(bad[:10])}{', ...' if len(bad) > 10 else ''}"
    )
