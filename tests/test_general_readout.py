"""The readout of the general model is what its script says: whitened statistics, and what a teacher says, regressed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("efficientnet_lite_pytorch")

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from general_readout import FLOOR, LOOK, LOOK_SHARE, MOTION, readout_of

from hiera_video.models.zoo import GENERAL, from_pretrained


@pytest.fixture(scope="module")
def made() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a model says of 2,000 clips (240 statistics of very unequal strength, 80 others), and a teacher, who is a
    linear function of it: and the readout of them.
    """
    draws = torch.Generator().manual_seed(0)
    mixed = torch.randn(2000, 320, generator=draws) @ torch.randn(320, 320, generator=draws)
    seen = mixed * torch.logspace(-2, 2, 320) + 3
    taught = mixed[:, -100:] @ torch.randn(100, 128, generator=draws)
    weight, bias = readout_of(seen, 240, taught)
    return seen, taught, seen @ weight.T + bias


def test_the_first_channels_are_statistics_of_which_none_outweighs_the_others(
    made: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    seen, _, embedding = made
    motion = embedding[:, :MOTION]
    assert embedding.shape == (len(seen), MOTION + LOOK) and embedding.mean(dim=0).abs().max() < 0.01
    correlation = torch.corrcoef(motion.T) - torch.eye(MOTION)
    assert correlation.abs().max() < 0.01
    deviation = motion.std(dim=0)
    # A strength s becomes s / (s + FLOOR): of 240 channels alike, all are far above the floor.
    assert deviation.min() > deviation.max() * 0.5 and FLOOR < 0.5


def test_the_others_tell_what_the_teacher_says_and_both_halves_weigh_as_said(
    made: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    _, taught, embedding = made
    look = torch.cat([embedding[:, MOTION:], torch.ones(len(embedding), 1)], dim=1)
    centred = taught - taught.mean(dim=0)
    told = look @ torch.linalg.lstsq(look, centred).solution
    assert 1 - (centred - told).square().sum() / centred.square().sum() > 0.5
    sizes = [part.square().sum(dim=1).mean() for part in (embedding[:, :MOTION], embedding[:, MOTION:])]
    assert (sizes[1] / sum(sizes)).item() == pytest.approx(LOOK_SHARE, abs=0.01)


def test_the_model_that_ships_has_such_a_readout() -> None:
    model = from_pretrained(GENERAL)
    assert model.arch.readout_dim == MOTION + LOOK and model.head.readout.out_features == MOTION + LOOK
