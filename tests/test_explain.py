"""Explanations: where and when the evidence for a class lies, and that the values are what they are said to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, TINY_IMAGE
from PIL import Image
from torch import Tensor

import hiera_video
from hiera_video import Architecture, ClipSpec, Hiera, VideoClassifier, token_evidence
from hiera_video.cli import main
from hiera_video.errors import RequestError
from hiera_video.models.evidence import Method
from hiera_video.models.heads import AttentiveHead

SIDE, FRAMES = 64, 8
#: A model whose last map is 8x8, four times over.
SMALL = Architecture(
    input_size=(FRAMES, SIDE, SIDE),
    embed_dim=32,
    num_classes=4,
    stages=(1, 2),
    q_pool=1,
    mask_unit_size=(1, 2, 2),
    mask_unit_attn=(True, False),
    head_init_scale=1.0,
)
COLOURS = torch.tensor([[0.9, 0.15, 0.1], [0.1, 0.8, 0.2], [0.15, 0.2, 0.95]])


def model_with(head: str = "linear", **fields: object) -> Hiera:
    torch.manual_seed(0)
    model = Hiera(replace(TINY, head=head, **fields), ClipSpec(num_frames=8 if head == "stages" else 4)).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # as far from their start as trained ones
        for name, parameter in model.named_parameters():
            if name.startswith(("norm.", "head.")):
                parameter.add_(torch.randn_like(parameter))
    return model


def image_model() -> Hiera:
    torch.manual_seed(0)
    return Hiera(TINY_IMAGE).eval()


def clip_of(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def scenes(count: int, seed: int, contrast: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Clips of soft noise, without anything (class 3), or with a square of one of three colours in half of the frames;
    labels; where the square is.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, 1, 8, 8, generator=generator) * contrast + 0.5 - contrast / 2
    clips = F.interpolate(noise, size=(1, SIDE, SIDE), mode="trilinear").repeat(1, 1, FRAMES, 1, 1)
    labels = torch.randint(0, 4, (count,), generator=generator)
    places = torch.zeros(count, FRAMES, SIDE, SIDE, dtype=torch.bool)
    for clip, label, place in zip(clips, labels, places, strict=True):
        if label == 3:
            continue
        top, left = torch.randint(0, SIDE - 16, (2,), generator=generator).tolist()
        first = int(torch.randint(0, FRAMES // 2 + 1, (1,), generator=generator))
        part = slice(first, first + FRAMES // 2), slice(top, top + 16), slice(left, left + 16)
        place[part] = True
        clip[(slice(None), *part)] = COLOURS[label][:, None, None, None]
    return (clips - 0.45) / 0.225, labels, places


def share_of_hits(model: Hiera, clips: Tensor, labels: Tensor, places: Tensor, by: Method = "shares") -> float:
    """In how many of the clips with a square the cell with the most evidence touches it."""
    found = []
    for clip, label, place in zip(clips, labels.tolist(), places, strict=True):
        if label < 3:
            (cells,) = token_evidence(model, clip[None], label, by).maps
            peak = F.one_hot(cells.argmax(), cells.numel()).view(1, 1, *cells.shape).float()
            found.append(bool(place[F.interpolate(peak, size=place.shape)[0, 0] > 0].any()))
    return sum(found) / len(found)


# --- the values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["shares", "head_shares"])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_shares_add_up_to_the_logit(kind: str, by: Method) -> None:
    model, size = (model_with(), (4, 64, 96)) if kind == "video" else (image_model(), (64, 96))
    clip = clip_of(*size)
    for index in range(6):
        evidence = token_evidence(model, clip, index, by)
        cells = (2, 2, 3) if by == "head_shares" else (2, 8, 12)
        assert evidence.method == by and evidence.maps.shape == (2, *cells[-len(size) :])
        torch.testing.assert_close(evidence.maps.flatten(1).sum(dim=1), model(clip)[:, index], atol=1e-4, rtol=0)
        torch.testing.assert_close(evidence.logits, model(clip)[:, index], atol=1e-4, rtol=0)
    assert evidence.maps.std() > 1e-4  # and they differ


def test_shares_of_a_linear_head_are_those_of_its_formula() -> None:
    model, clip = model_with(), clip_of(4, 64, 96)
    tokens, norm, head = model.forward_features(clip), model.norm, model.head.projection
    assert isinstance(norm, torch.nn.LayerNorm) and isinstance(head, torch.nn.Linear)
    deviation = (tokens.mean(dim=1).var(dim=-1, correction=0) + norm.eps).sqrt()
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    expected = (centred / deviation[:, None, None] * norm.weight + norm.bias) @ head.weight[3] + head.bias[3]
    found = token_evidence(model, clip, 3, "head_shares").maps.flatten(1)
    torch.testing.assert_close(found, expected / tokens.shape[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["linear", "attentive", "stages", "readout"])
def test_without_biases_nothing_of_the_logit_is_left_to_spread_evenly(head: str) -> None:
    """So the patches' shares are made of the patches, all the way through the trunk, whatever the head."""
    model = model_with(head, head_strides=(1, 2) if head == "stages" else (1,))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        if isinstance(model.head, AttentiveHead):
            model.head.query.zero_()
    clip = clip_of(8 if head == "stages" else 4, 64, 64)
    evidence = token_evidence(model, clip, 2)
    assert evidence.maps.shape == (2, 4 if head == "stages" else 2, 8, 8)
    assert (evidence.biases.abs() < 1e-4 * evidence.maps.abs().flatten(1).sum(dim=1)).all()
    torch.testing.assert_close(evidence.logits, model(clip)[:, 2], atol=1e-4, rtol=1e-4)


def test_grad_cam_is_that_of_its_paper() -> None:
    model, clip = model_with("attentive"), clip_of(4, 64, 64)
    *_, last = model.stages(clip)
    tokens = last.tokens.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.forward_head(tokens)[:, 2].sum(), tokens)
    weights = gradient.flatten(1, 2).mean(dim=1)  # the paper's alpha
    maps = (model.forward_features(clip) * weights[:, None]).sum(dim=-1).relu().view(2, 2, 2, 2)
    torch.testing.assert_close(token_evidence(model, clip, 2, "gradcam").maps, maps, atol=1e-6, rtol=1e-5)


def test_rollout_shares_one_out_and_stays_within_the_windows_of_attention() -> None:
    clip = clip_of(4, 64, 64)
    flow = token_evidence(model_with(), clip, 0, "rollout").maps
    assert flow.shape == (2, 2, 16, 16) and flow.min() > 0
    torch.testing.assert_close(flow.flatten(1).sum(dim=1), torch.ones(2))
    local = model_with(mask_unit_attn=(True,) * 4)  # then every mask unit keeps its share
    units = token_evidence(local, clip, 0, "rollout").maps.unflatten(2, (2, 8)).unflatten(4, (2, 8)).sum(dim=(3, 5))
    torch.testing.assert_close(units, torch.full((2, 2, 2, 2), 1 / 8))
    stages = model_with("stages", head_strides=(1, 2))
    assert token_evidence(stages, clip_of(8, 64, 64), 0, "rollout").maps.shape == (2, 4, 16, 16)


def test_the_model_is_left_as_it_was() -> None:
    model = model_with().train()
    model.blocks[0].eval()
    model.set_grad_checkpointing()
    token_evidence(model, clip_of(4, 64, 64), 0)
    assert model.grad_checkpointing and model.training and not model.blocks[0].training and model.blocks[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_speaks_for_a_class_lights_up_where_it_is() -> None:
    """A head fitted to tell tokens of an object from all others, on a trunk that was never trained."""
    torch.manual_seed(0)
    model, (clips, _, places) = Hiera(SMALL).eval(), scenes(40, seed=1, contrast=0.1)
    with torch.no_grad():
        tokens = model.forward_features(clips).flatten(0, 1)
        covered = F.avg_pool3d(places[:, None].float(), (2, 8, 8)).flatten()
        centred = tokens - tokens.mean(dim=1, keepdim=True)
        model.get_parameter("head.projection.weight").copy_(torch.linalg.lstsq(centred, covered[:, None]).solution.T)
    assert share_of_hits(model, *scenes(20, seed=2, contrast=0.1), by="head_shares") >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "stages"])
def test_the_peak_touches_the_object_in_95_of_100_clips_of_a_trained_model(head: str) -> None:
    torch.manual_seed(0)
    model = Hiera(replace(SMALL, head=head))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, 450)
    for step in range(450):
        clips, labels, _ = scenes(16, seed=1000 + step, contrast=0.3)
        loss = F.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    clips, labels, places = scenes(140, seed=1, contrast=0.3)
    assert (model.eval()(clips).argmax(dim=1) == labels).float().mean() >= 0.97
    assert share_of_hits(model, clips, labels, places) >= 0.95


def test_what_cannot_be_explained_is_said() -> None:
    model, clip = model_with(), clip_of(4, 64, 64)
    with pytest.raises(RequestError, match="there is no class 6: the model has 6, from 0 on"):
        token_evidence(model, clip, 6)
    with pytest.raises(RequestError, match="by is 'lime', but is one of shares, head_shares, gradcam, rollout"):
        token_evidence(model, clip, 0, "lime")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no classes"):
        token_evidence(model_with(num_classes=0), clip, 0)


# --- of files ---------------------------------------------------------------------------------------------------------


def test_the_clip_in_which_the_label_speaks_most_is_explained(tiny_model: Path, videos: Path) -> None:
    classifier = VideoClassifier.from_pretrained(tiny_model)
    file = videos / "a.mp4"
    views = hiera_video.load_views(file, classifier.model.spec, 3, 3)
    clips = torch.stack([views.clip(view) for view in (1, 4, 7)])
    scores, chosen = classifier.scores(clips), set()
    spec = classifier.model.spec
    for index, label in enumerate("abcdef"):
        why = hiera_video.explain(classifier, file, label=label, views="3x3")
        best = int(scores[:, index].argmax())
        chosen.add(best)
        with torch.no_grad():
            logit = float(classifier.model(spec.model_input(spec.normalize(clips[best, None])))[0, index])
        assert why.logit == pytest.approx(logit, abs=1e-5)
        assert why.evidence.sum() == pytest.approx(logit, abs=1e-4)
        assert why.frames.shape[0] == 4 and min(why.frames.shape[1:3]) > 32  # the file's own resolution
        small = F.interpolate(torch.from_numpy(why.frames).permute(0, 3, 1, 2).float(), size=(32, 32), mode="area")
        assert (small - clips[best].permute(1, 0, 2, 3)).abs().mean() < 6  # of the same frames
        np.testing.assert_array_equal(why.times, views.times[3 * best + 1])
        assert why.over_frames().shape == why.frames.shape[:3]
    assert len(chosen) > 1  # not always the middle one
    best_answer = classifier(file, views="3x3").predictions[0]
    why = hiera_video.explain(classifier, file, views="3x3")
    assert why.label == best_answer.label and why.score == pytest.approx(best_answer.score)


def test_the_command_draws_all_inputs_and_goes_on_behind_a_bad_one(
    tiny_model: Path,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="hiera_video")
    words = [
        "classify",
        str(videos / "a.mp4"),
        "missing.mp4",
        str(videos / "b" / "vp9.webm"),
        "--model",
        str(tiny_model),
    ]
    picture = tmp_path / "why.png"
    assert main([*words, "--explain", str(picture), "--format", "jsonl"]) == 1
    output = capsys.readouterr()
    assert output.out.count("\n") == 3 and "missing.mp4 cannot be read" in output.out
    assert f"{picture} shows where the evidence lies: shares of the patches in the logit" in caplog.text
    with Image.open(picture) as image:
        assert image.width > 800 and np.array(image.convert("RGB")).std() > 20
    film = tmp_path / "why.mp4"
    assert main([*words[:2], *words[4:], "--explain", str(film), "--explain-by", "rollout"]) == 0
    assert "attention rollout" in caplog.text
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 4 and frames[0].width == 2 * frames[0].height >= 384


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain", "why.gif"], "explain is 'why.gif', but names a .png or, for one input, an .mp4"),
        (["other.mp4", "--explain", "why.mp4"], "why.mp4 can show one input: name a .png for several"),
        (["--explain", "no/folder/why.png"], "no/folder"),
        (["--explain", "why.png", "--explain-label", "q"], "the model has no class 'q'; its nearest is"),
        (
            ["--explain", "why.png", "--explain-by", "lime"],
            "--explain-by is 'lime', but must be one of shares, head_shares,",
        ),
        (["--explain-label", "a"], "explain_label and explain_by are of an explanation: name its file (--explain)"),
        (["--explain", "why.png", "--timeline", "t"], "leave out views, picture and explain"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(
    options: list[str], message: str, tiny_model: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(videos / "a.mp4"), "--model", str(tiny_model), *options]) == 2
    assert message in capsys.readouterr().err
