"""What a video that is scored costs here, in an evaluation and in the validation of a training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.sampling import sampler_of
from hiera_video.data.views import load_ahead, segments_of
from hiera_video.spec import parse_views
from hiera_video.tasks.classify.classifier import Scorer, score_views
from hiera_video.tasks.evaluate.job import settle
from hiera_video.tasks.plan.measure import Costs, Part, since_start
from hiera_video.training.recipe import Evaluation


def evaluation(recipe: Evaluation, seconds: float, run_model: bool) -> Costs:
    """Measures the videos of an evaluation, by its own readers and model on some of its files.

    Args:
        recipe: Of the evaluation.
        seconds: For all measurements together, start-up aside; a slow step takes as long as it takes.
        run_model: Whether the model runs here; else files are read and FLOPs counted alone.

    Returns:
        The costs.

    Raises:
        RequestError: The job would be refused.
        UnreadableVideo: No file can be read.
        WeightsError: The model cannot be had.
    """

    job, data = settle(recipe), recipe.data
    costs = Costs(job.device, job.precision, data.num_workers, seconds, run_model, since_start())
    costs.steps = -(-len(job.videos) * int(np.prod(parse_views(job.views))) // recipe.run.batch_size)
    options: dict[str, Any] = {
        "views": job.views,
        "sampling": job.sampling,
        "decode": data.decode,
        "batch": recipe.run.batch_size,
    }
    costs.parts = [scoring(costs, job.scorer, job.videos, 1, data, 1.0, **options)]
    return costs


def scoring(
    costs: Costs,
    scorer: Scorer,
    videos: VideoList,
    times: int,
    data: Any,
    share: float,
    *,
    views: str,
    sampling: str,
    decode: str,
    batch: int,
) -> Part:
    """Measures a video that is scored.

    Args:
        costs: What they are added to.
        scorer: The model.
        videos: The list.
        times: How often the whole list is scored.
        data: Of the recipe: how files are read.
        share: Of the seconds of all measurements.
        views: Clips x crops.
        sampling: As in a recipe.
        decode: As in a recipe.
        batch: Clips that go through the model at once.

    Returns:
        The part.
    """
    clips, crops = parse_views(views)
    good, _ = costs.look([videos.path(index) for index in range(len(videos))], times)
    options = {"sample": sampler_of(sampling, scorer.spec, clips), "fps": data.fps, "decode": decode}
    options |= {"num_workers": data.num_workers, "time_limit": data.time_limit}
    part = costs.part(
        "video to score",
        times * len(videos),
        lambda: load_ahead(segments_of(videos, itertools.cycle(good)), scorer.spec, clips, crops, **options),
        lambda loaded: int(loaded.views is not None),
        partial(score_views, scorer, batch_size=batch),
        lambda loaded: scorer(loaded.views.clips[:1]),
        share=share,
        in_one=1 / (clips * crops),
    )
    return replace(part, once=times * part.once)
