"""transformers' classes under the tools of others: threads, replicas, accelerate, compilers, saliency, LoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import create_selective_checkpoint_contexts

transformers = pytest.importorskip("transformers")

from hiera_video import hf  # noqa: E402  # it needs transformers
from hiera_video.errors import RequestError  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BLOCKS: dict[str, Any] = {"embed_dim": 8, "depths": (1, 2, 1, 1), "mlp_ratio": 1.0, "num_labels": 3}
DECODER = {"decoder_hidden_size": 8, "decoder_depth": 2, "decoder_num_heads": 2, "num_query_pool": 2}
VIDEO: dict[str, Any] = BLOCKS | {"image_size": (4, 64, 64)}
IMAGE: dict[str, Any] = BLOCKS | {"image_size": (64, 64)}
SEEN = {"output_hidden_states": True, "output_attentions": True}

KINDS: dict[str, Callable[[], Any]] = {
    "encoder": lambda: hf.HieraModel(hf.HieraConfig(**IMAGE)),
    "encoder in MAE mode": lambda: hf.HieraModel(hf.HieraConfig(**VIDEO), is_mae=True),
    "MAE": lambda: hf.HieraForPreTraining(hf.HieraConfig(**VIDEO, **DECODER)),
    "images": lambda: hf.HieraForImageClassification(hf.HieraConfig(**IMAGE)),
    "video": lambda: hf.HieraForVideoClassification(hf.HieraConfig(**VIDEO)),
    "backbone": lambda: hf.HieraBackbone(hf.HieraConfig(**IMAGE, out_indices=[1, 4])),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, **config: Any) -> Any:
    """A model with weights of which each counts."""
    torch.manual_seed(0)
    model = KINDS[kind]()
    for name, value in config.items():
        setattr(model.config, name, value)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def asked(model: Any, seed: int = 0) -> dict[str, Any]:
    """Arguments of a call that depend on ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    size = model.config.image_size
    shape = (2, 3, *size) if len(size) == 2 else (2, size[0], 3, *size[1:])
    noise = {"noise": torch.rand(2, 8, generator=generator)} if is_mae(model) else {}
    return {"pixel_values": torch.randn(shape, generator=generator), **noise, **SEEN}


def is_mae(model: Any) -> bool:
    return isinstance(model, hf.HieraForPreTraining) or bool(getattr(model, "is_mae", False))


def tensors(output: Any) -> list[Tensor]:
    """All that a model gives, one after another."""
    given = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [one for value in given for one in ([value] if isinstance(value, Tensor) else value)]


def called(model: Any, seed: int = 0) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(**asked(model, seed)))


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    assert [one.shape for one in found] == [one.shape for one in expected]
    return max(
        float((one.detach().float() - other.detach().float()).abs().max())
        for one, other in zip(found, expected, strict=True)
    )


@each_kind
def test_sixty_calls_from_eight_threads_get_what_one_after_another_gets(kind: str) -> None:
    model = made(kind)
    expected = [called(model, seed) for seed in range(6)]

    def wrong(call: int) -> bool:
        return largest_difference(called(model, call % 6), expected[call % 6]) > 0

    with ThreadPoolExecutor(8) as threads:
        assert not any(threads.map(wrong, range(60)))


def replica_of(module: torch.nn.Module) -> torch.nn.Module:
    """As ``DataParallel`` makes one on another device: copies of modules whose parameters are plain tensors."""
    copied = {name: part._replicate_for_data_parallel() for name, part in module.named_modules()}
    for name, part in module.named_modules():
        for key in part._modules:
            copied[name]._modules[key] = copied[f"{name}.{key}" if name else key] if part._modules[key] else None
        for key, parameter in part._parameters.items():
            setattr(copied[name], key, None if parameter is None else parameter.detach().clone())
        for key, buffer in part._buffers.items():
            copied[name]._buffers[key] = None if buffer is None else buffer.clone()
    return copied[""]


@each_kind
def test_replicas_in_threads_as_data_parallel_makes_them(kind: str) -> None:
    model = made(kind)
    expected = [called(model, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda seed: called(replica_of(model), seed), range(4))
    assert [largest_difference(one, other) for one, other in zip(found, expected, strict=True)] == [0.0] * 4


@each_kind
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
def test_weights_on_the_host_and_on_disk_give_equal_outputs(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    expected, size = called(model), sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    on_host = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert all(parameter.is_meta for parameter in on_host.parameters())
    assert largest_difference(called(on_host), expected) == 0
    mae = {"is_mae": True} if kind == "encoder in MAE mode" else {}
    parts = type(model).from_pretrained(
        tmp_path / "saved",
        device_map="auto",
        max_memory={"cpu": size * 9 // 10},
        offload_folder=str(tmp_path / "disk"),
        **mae,
    )
    assert any(parameter.is_meta for parameter in parts.parameters())
    assert largest_difference(called(parts), expected) < 1e-6


@pytest.mark.parametrize("kind", ["images", "video"])
def test_gradients_reach_hidden_states_and_attentions(kind: str) -> None:
    model = made(kind)
    output = model(**asked(model))
    for seen in (*output.hidden_states, *output.attentions):
        (gradient,) = torch.autograd.grad(output.logits.sum(), seen, retain_graph=True)
        assert gradient.abs().max() > 0
    # Grad-CAM: the channels of the last map, each by its mean gradient.
    (gradient,) = torch.autograd.grad(output.logits[:, 1].sum(), output.hidden_states[-2], retain_graph=True)
    heat = (output.hidden_states[-2] * gradient.mean(dim=1, keepdim=True)).sum(-1).relu()
    assert heat.shape == output.hidden_states[-2].shape[:2] and heat.max() > 0


def test_answers_do_not_depend_on_what_is_looked_at_nor_on_the_way_of_attention() -> None:
    model, eager = made("video"), made("video", _attn_implementation="eager")
    asked_for = asked(model)
    plain = model(asked_for["pixel_values"]).logits
    torch.testing.assert_close(model(**asked_for).logits, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(eager(asked_for["pixel_values"]).logits, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_ways_of_attention_are_taken_by_name(way: str, tmp_path: Path) -> None:
    made("images").save_pretrained(tmp_path)
    model = hf.HieraForImageClassification.from_pretrained(tmp_path, attn_implementation=way)
    assert model.config._attn_implementation == way
    with pytest.raises(ValueError, match="does not support Flash Attention 2"):
        hf.HieraForImageClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every_n_layers": 2},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {
            "gradient_checkpointing_kwargs": {
                "use_reentrant": False,
                "context_fn": partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default]),
            }
        },
    ],
    ids=["default", "every second", "reentrant", "selective"],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_checkpointing_honours_its_options(options: dict[str, Any]) -> None:
    gradients, runs = [], []
    for recompute in (False, True):
        model = made("video").train()
        if recompute:
            model.gradient_checkpointing_enable(**options)
        ran: list[int] = []
        for index, block in enumerate(model.hiera.trunk.blocks):
            block.norm1.register_forward_hook(lambda *_, index=index, ran=ran: ran.append(index))
        model(asked(model)["pixel_values"], labels=torch.tensor([2, 1])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        runs.append(sorted(ran))
    torch.testing.assert_close(*gradients)
    again = range(0, 5, options.get("every_n_layers", 1))
    assert (runs[0], runs[1]) == ([0, 1, 2, 3, 4], sorted([0, 1, 2, 3, 4, *again]))


@pytest.mark.slow
@each_kind
def test_all_compile_into_one_graph_and_export(kind: str) -> None:
    model = made(kind)
    expected = called(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert largest_difference(tensors(compiled(**asked(model))), expected) < 1e-4
    exported = torch.export.export(model, (), asked(model)).module()
    assert largest_difference(tensors(exported(**asked(model))), expected) < 1e-4


@pytest.mark.parametrize("look", [{}, SEEN], ids=["answer", "all"])
def test_a_classifier_is_one_graph(look: dict[str, bool]) -> None:
    model = made("video")
    pixel_values = asked(model)["pixel_values"]
    torch.compiler.reset()
    found = torch.compile(model, fullgraph=True, backend="eager")(pixel_values, **look)
    torch.testing.assert_close(found.logits, model(pixel_values).logits, rtol=0, atol=1e-6)


def test_an_image_classifier_is_saved_with_its_processor(tmp_path: Path) -> None:
    made("images").save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.crop_size == {"height": 64, "width": 64} and processor.size == {"shortest_edge": 73}
    answers = transformers.pipeline("image-classification", model=str(tmp_path))(Image.new("RGB", (90, 80), "red"))
    assert {answer["label"] for answer in answers} == {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_what_is_hooked_there_is_here() -> None:
    """The table of docs/guides/coming_from.md: what each place gives equals a field of the output."""
    model = made("images")
    given: dict[str, Tensor] = {}
    trunk = model.hiera.trunk
    for name, place in {"patches": trunk.patch_embed, "stage 2": trunk.blocks[2], "norm": trunk.norm}.items():
        place.register_forward_hook(lambda _, args, output, name=name: given.update({name: output}))
    output = model(asked(model)["pixel_values"], output_hidden_states=True)
    assert torch.equal(given["stage 2"].transpose(1, 2).flatten(1, 2), output.hidden_states[2])
    assert given["patches"].shape == (2, 256, 8)
    torch.testing.assert_close(model.classifier(given["norm"]), output.logits)
    with pytest.raises(RequestError, match="pixel_values"):
        model()


def test_a_trunk_without_watch_is_what_it_is_in_our_own_form() -> None:
    model = made("MAE")
    trunk, clip, keep = model.hiera.trunk, torch.randn(1, 3, 4, 64, 64), torch.arange(8)[None] < 2
    masked, restored = trunk.reconstruct(clip, keep)
    assert masked.shape == restored.shape == (1, 3, 2, 64, 64)
    assert made("video").hiera.trunk(clip).shape == (1, 64)
