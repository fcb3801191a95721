"""A recipe for an MAE on one's own videos, which need no labels. Every choice here is ours."""

from __future__ import annotations

from collections.abc import Mapping

from hiera_video.data.lists.video_list import list_videos
from hiera_video.errors import RequestError
from hiera_video.models.zoo import GENERAL
from hiera_video.spec import PRETRAIN
from hiera_video.training.recipe import Data, Optim, Pretraining, PretrainModel, Run
from hiera_video.training.recipe_file import load_recipe

#: Clips that the model sees, in steps of so many, so many of each decoded video: 13 minutes at 25 a second (two cores).
CLIPS, CLIPS_A_STEP, CLIPS_A_VIDEO = 20_000, 32, 4


def own_pretraining(changes: Mapping[str, str]) -> Pretraining:
    """The recipe for an MAE on one's own videos: it goes on from the built-in model's trunk, with a new, small decoder.

    Args:
        changes: Fields by dotted name, as text: ``data.train`` names the videos, in class folders or in none; the rest
            changes what is chosen here.

    Returns:
        A recipe for :func:`~hiera_video.pretrain`.

    Raises:
        RequestError: There are no videos, or a value is wrong.
    """
    if "data.train" not in changes:
        raise RequestError("nothing to learn from: name your videos (--train FOLDER) or a recipe (--config)")
    blank = Pretraining(
        data=Data(repeats=CLIPS_A_VIDEO, frame_stride=2),
        augment=PRETRAIN,
        model=PretrainModel(
            start=GENERAL, mask_ratio=0.75, decoder_embed_dim=128, decoder_depth=4, decoder_num_heads=4
        ),
        optim=Optim(lr=1e-3, lr_videos=32 // CLIPS_A_VIDEO, betas=(0.9, 0.95), warmup="5%", end_lr=1e-5, clip_norm=1.0),
        run=Run(duration="1pass", videos_per_step=1, batch_size=1, save_every="10%", picture_every="25%"),
    )
    data = load_recipe(Pretraining, base=blank, changes=changes).data
    assert data.train is not None
    videos = list_videos(data.train, root=data.root, split=data.train_split, fold=data.fold, images=data.images)
    at_once = max(1, min(CLIPS_A_STEP // CLIPS_A_VIDEO, len(videos)))
    steps = max(1, CLIPS // (at_once * CLIPS_A_VIDEO))
    values = {"run.videos_per_step": str(at_once), "run.batch_size": str(at_once), "run.duration": f"{steps}st"}
    return load_recipe(Pretraining, base=blank, changes=values | dict(changes))
