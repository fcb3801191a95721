"""What a recipe is: the fields of ``configs/NAME.yaml``, and what is legal.

Below each field stands what it means: the help of the jobs and ``docs/reference/recipes.md`` are made of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, TypeVar

from hiera_video import fields
from hiera_video.errors import RequestError
from hiera_video.fields import Count, CountOrZero, NotNegative, Positive, Rule, Share
from hiera_video.spec import FINETUNE, PRETRAIN, Augment, Views
from hiera_video.training.durations import Duration, duration_of

Precision = Literal["auto", "fp32", "bf16", "fp16"]

FromZero: TypeAlias = Annotated[float, Rule("at least 0 and below 1", lambda value: 0 <= value < 1)]
ToOne: TypeAlias = Annotated[float, Rule("above 0 and at most 1", lambda value: 0 < value <= 1)]
Ratio: TypeAlias = Annotated[float, Rule("above 0 and below 1", lambda value: 0 < value < 1)]
AboveOne: TypeAlias = Annotated[float, Rule("above 1", lambda value: value > 1)]
Betas: TypeAlias = Annotated[tuple[float, float], Rule("at least 0 and below 1", lambda value: 0 <= value < 1)]
Strides: TypeAlias = Annotated[tuple[int, ...], Rule("at least 1", lambda value: value >= 1)]
Weights: TypeAlias = Annotated[tuple[float, float], Rule("at least 0", lambda value: value >= 0)]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Camera-motion clips made during the run, instead of videos."""

    pictures: Count = 1500
    """Textures that are made at the start and looked at by the clips."""
    photographs: str | None = None
    """A folder of more pictures to make textures of, as scripts/general_pictures.py collects them."""
    coded: CountOrZero = 2000
    """Clips that are made once, written as H.264 files and read back."""
    coded_share: Share = 0.5
    """The share of such clips in a step."""
    growing: bool = False
    """Whether the task gets harder during the run: slower motions, more shake, more foreign patches."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The videos that the model learns from, and how clips are cut from them."""

    train: str | None = None
    """The training videos: a dataset card's name, a folder of class folders, or an annotation file."""
    val: str | None = None
    """The validation videos, named likewise; without them, those of the training card, if it has any."""
    hold_out: Share = 0.0
    """The share of each class's training files that validation takes, where neither val nor the card names any."""
    root: str | None = None
    """The folder that the paths of a card or annotation file are relative to; null: that of the annotation file."""
    train_split: str = "train"
    """The split of a card that the training videos are."""
    val_split: str = "val"
    """The split of a card that the validation videos are."""
    fold: Count = 1
    """Which of a dataset's published folds (UCF101, HMDB51)."""
    sampling: Literal["dense", "segments"] = "dense"
    """How a clip's frames are taken: dense, at equal steps of time, or one from each of equal parts of the video."""
    num_frames: Count | None = None
    """Frames of a clip; null: the starting model's."""
    frame_stride: Positive | None = None
    """Frames from one frame of the clip to the next, in a video of target_fps; null: the starting model's."""
    target_fps: Positive | None = None
    """Frames per second that frame_stride counts in, whatever the video's own rate; null: the starting model's."""
    size: Count | None = None
    """Height and width of a clip in pixels; null: the starting model's."""
    resize: Count | None = None
    """Short side of the video in pixels before the centre crop of validation; null: the starting model's."""
    antialias: bool | None = None
    """Whether shrinking filters the picture first; null: as the starting model."""
    pixel_aspect: Literal["display", "stored"] | None = None
    """The proportions in which an anamorphic video is cropped: as players show it (display), or those of its pixels
    (stored); null: as the starting model."""
    repeats: Count = 1
    """How often each decoded video is used in a step: as clips of other times (MAE), or other augmentations."""
    views: Views = "1x1"
    """Clips x crops of each video whose scores are averaged in validation during training."""
    fps: Positive | None = None
    """Frames per second of videos that are folders of pictures."""
    images: bool = False
    """Whether the files are pictures instead of videos."""
    generate: Generate | None = None
    """Camera-motion clips made during the run, instead of train."""
    decode: Literal["exact", "fast"] = "fast"
    """Which frames are read: exactly those asked for, or, faster, perhaps ones beside them."""
    num_workers: CountOrZero = 4
    """Processes that load clips, for each process that trains."""
    time_limit: Positive = 60.0
    """Seconds after which reading a file is given up."""
    max_bad_share: Share = 0.05
    """The share of the training videos that may be unreadable before the run stops."""


@dataclass(frozen=True, kw_only=True)
class PretrainModel:
    """The masked autoencoder (MAE) that is pre-trained."""

    start: str
    """An architecture's name for new weights, or where to go on from: a checkpoint's name, folder, file or hub id."""
    drop_path_rate: FromZero = 0.0
    """Probability that a block's branch is skipped, at the last block of the encoder; it grows linearly to there."""
    mask_ratio: Ratio | None = None
    """The share of mask units that is hidden; null: the architecture's, 0.9 for video and 0.6 for images."""
    decode_ratio: ToOne = 1.0
    """The share of the hidden mask units that is decoded and counts in the loss."""
    decoder_num_heads: Count | None = None
    """Attention heads of the decoder; null: the starting model's."""
    decoder_depth: Count | None = None
    """Blocks of the decoder; null: the starting model's."""
    decoder_embed_dim: Count | None = None
    """Channels of the decoder; null: the starting model's."""


@dataclass(frozen=True, kw_only=True)
class FinetuneModel:
    """The classifier that is fine-tuned."""

    start: str
    """A checkpoint's name, folder, file or hub id (an MAE gives its encoder), or an architecture's for new weights."""
    drop_path_rate: FromZero = 0.0
    """Probability that a block's branch is skipped, at the last block; it grows linearly to there."""
    head_dropout: FromZero = 0.0
    """Probability that a feature is dropped before the head."""
    head_init_scale: NotNegative = 0.001
    """Factor on the initial weights of a new head."""
    freeze_stages: CountOrZero = 0
    """How many stages, counted from the input and with the patch embedding, do not learn."""
    head: Literal["linear", "attentive", "stages", "best"] | None = None
    """What the logits are made of: linear (the last stage's mean), attentive (what a learned query gathers there),
    stages (statistics of the first stages; fitted, not trained), or the best, by cross-validation, of stages and the
    starting model's embedding of clips as it has them; null: as the starting model, but linear where that has a readout
    and the run trains."""
    head_strides: Strides = (1,)
    """At which speeds a head of stages sees a clip: every frame, every second one, ..."""
    fit_head: bool = False
    """Whether the run begins with a linear head in closed form, fitted to features that are computed once."""
    narrow_init: bool = False
    """Whether new weights are drawn for a narrow model: Xavier-uniform, patch filters of standard deviation 0.1."""
    views: Views | None = None
    """Clips x crops that the finished model averages over by default; null: the starting model's."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: cross-entropy, or binary cross-entropy where a video has several labels."""

    label_smoothing: FromZero = 0.0
    """The share of a label that is spread over all classes."""
    mixup: NotNegative = 0.0
    """Alpha of MixUp, which blends pairs of clips; 0: off."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix, which pastes a box of another clip; 0: off."""
    mix_switch: Share = 0.5
    """Probability of CutMix where both are on."""
    class_weights: Literal["none", "balanced"] = "none"
    """Whether rare classes weigh more: balanced is the mean number of videos of a class over the class's own (where
    videos have several labels, the class's negatives over its positives)."""
    flow_weight: Weights = (1.0, 1.0)
    """Weight of the optical-flow loss at the start and the end of the run; it acts on generated clips alone."""
    teacher: str | None = None
    """A model whose features the trained one imitates beside its task: a name, folder, file or hub id; null: none."""
    teacher_weight: NotNegative = 1.0
    """Weight of the loss on the teacher's features."""


@dataclass(frozen=True, kw_only=True)
class PretrainLoss:
    """What is minimised beside the error of the predicted pixels."""

    teacher: str | None = None
    """A model whose features of the whole clip the encoder tells from what it sees: a name, folder, file or hub id;
    null: none."""
    teacher_weight: NotNegative = 1.0
    """Weight of the loss on the teacher's features."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer, and the course of the learning rate: linear warm-up, then a cosine."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov's momentum."""
    lr: Positive
    """The highest learning rate, for a step of lr_videos videos; it scales linearly with run.videos_per_step."""
    lr_videos: Count
    """Videos in a step for which lr, warmup_lr and end_lr are meant."""
    betas: Betas = (0.9, 0.999)
    """Decay of AdamW's means of the gradient and of its square."""
    momentum: FromZero = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 0.05
    """Weight decay of all weights but biases, norms and position embeddings."""
    layer_decay: ToOne = 1.0
    """Factor on the learning rate from each block to the one before it; 1: all learn alike."""
    warmup: Duration = "0%"
    """How long the learning rate rises from warmup_lr to lr."""
    warmup_lr: NotNegative = 1e-8
    """Learning rate of the first step, for lr_videos videos."""
    end_lr: NotNegative = 1e-6
    """Learning rate of the last step, for lr_videos videos."""
    clip_norm: Positive | None = None
    """Largest L2 norm of all gradients together; longer ones are shortened. null: no limit."""
    ema: FromZero | None = None
    """Decay of a running mean of the weights, which is then what is judged and written; null: none."""
    explosion_factor: AboveOne | None = None
    """The run stops at a loss above this many times the mean of the five before; null: it does not."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long the run is, where it computes, and what it keeps."""

    output: str | None = None
    """The folder of checkpoints, curves and the finished model; null: nothing is kept."""
    duration: Duration
    """How long: 150ep (each repeat counts), 75pass (over the list), 5000st (steps); 0pass: model.fit_head alone."""
    videos_per_step: Count
    """Videos in a step of the optimizer, in all processes together."""
    batch_size: Count
    """Videos that one process computes at once; gradients accumulate until the step is full."""
    precision: Precision = "auto"
    """Numbers that the model computes in; auto: bf16 on a GPU that has it, else fp32."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda or mps."""
    seed: CountOrZero = 0
    """Seed of everything that is drawn."""
    save_every: Duration = "1pass"
    """How often a checkpoint is written."""
    evaluate_every: Duration = "1pass"
    """How often the model is judged on the validation videos."""
    picture_every: Duration = "10pass"
    """How often reconstructions are drawn (pre-training)."""
    log_every: Duration = "10st"
    """How often training figures are written."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay."""
    compile: bool = False
    """Whether the model is compiled (torch.compile)."""
    grad_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory and costs time."""
    shard: bool = False
    """Whether weights, gradients and optimizer state are divided among the processes (FSDP2)."""
    tracker: str | None = None
    """Where figures go too: tensorboard, or another tracker that accelerate knows and that is installed."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A recipe of ``hiera-video pretrain``."""

    job: Literal["pretrain"] = "pretrain"
    """The job that the recipe is for."""
    data: Data = Data()
    augment: Augment = PRETRAIN
    model: PretrainModel
    loss: PretrainLoss = PretrainLoss()
    optim: Optim
    run: Run


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """A recipe of ``hiera-video finetune``."""

    job: Literal["finetune"] = "finetune"
    """The job that the recipe is for."""
    data: Data = Data()
    augment: Augment = FINETUNE
    model: FinetuneModel
    loss: Loss = Loss()
    optim: Optim
    run: Run


@dataclass(frozen=True, kw_only=True)
class EvaluateData:
    """The videos that the model is judged on."""

    source: str | None = None
    """A dataset card's name, a folder of class folders, or an annotation file; it must be given."""
    root: str | None = None
    """The folder that the paths of a card or annotation file are relative to; null: that of the annotation file."""
    split: str = "val"
    """The split of a card."""
    fold: Count = 1
    """Which of a dataset's published folds (UCF101, HMDB51)."""
    sampling: Literal["dense", "segments"] | None = None
    """How frames are taken: dense, or one from each of equal parts of the video; null: the card's way, else dense."""
    views: Views | None = None
    """Clips x crops of each video whose scores are averaged; null: the card's, else the model's."""
    pixel_aspect: Literal["display", "stored"] | None = None
    """The proportions in which an anamorphic video is cropped: as players show it (display), or those of its pixels
    (stored); null: as the model."""
    fps: Positive | None = None
    """Frames per second of videos that are folders of pictures."""
    images: bool = False
    """Whether the files are pictures instead of videos."""
    decode: Literal["exact", "fast"] = "exact"
    """Which frames are read: exactly those asked for, or, faster, perhaps ones beside them."""
    num_workers: CountOrZero = 4
    """Processes that load clips, for each process that computes."""
    time_limit: Positive = 60.0
    """Seconds after which reading a file is given up."""


@dataclass(frozen=True, kw_only=True)
class EvaluateModel:
    """The classifier that is judged."""

    start: str | None = None
    """A checkpoint's name, folder, file or hub id; null: the built-in model."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """Where it computes, and what it keeps."""

    output: str | None = None
    """The folder of scores, figures and the confusion matrix; null: nothing is kept."""
    batch_size: Count = 8
    """Clips that one process computes at once."""
    precision: Precision = "auto"
    """Numbers that the model computes in; auto: bf16 on a GPU that has it or a CPU that is faster in it, else fp32."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda or mps."""
    compile: bool = False
    """Whether the model is compiled first (torch.compile), which takes a minute or more."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A recipe of ``hiera-video evaluate``."""

    job: Literal["evaluate"] = "evaluate"
    """The job that the recipe is for."""
    data: EvaluateData = EvaluateData()
    model: EvaluateModel = EvaluateModel()
    run: EvaluateRun = EvaluateRun()


Recipe = Pretraining | Finetuning | Evaluation
R = TypeVar("R", Pretraining, Finetuning, Evaluation)


def check(recipe: Recipe) -> None:
    """Refuses a recipe that cannot be run.

    Args:
        recipe: However it was made.

    Raises:
        RequestError: It names the first field with a value that is not legal, or that contradicts another.
    """
    values = fields.flatten(dataclasses.asdict(recipe))
    for name, field in fields.fields_of(type(recipe)).items():
        if name in values:
            fields.convert(field.hint, values[name], name)
    if isinstance(recipe, Evaluation):
        if recipe.data.source is None:
            raise RequestError("there is nothing to evaluate on: name a card, folder or file as data.source (--val)")
        return
    length, unit = duration_of(recipe.run.duration)
    if unit == "%":
        raise RequestError(f"run.duration is {recipe.run.duration!r}, but must say how long the run is: 10pass, 5000st")
    _check_head(recipe, length > 0)
    if recipe.data.train is None and recipe.data.generate is None:
        raise RequestError("there is nothing to learn from: name a card, folder or file as data.train (--train)")
    if recipe.data.train is not None and recipe.data.generate is not None:
        raise RequestError("data.train and data.generate are both given: learn from videos, or from generated clips")


def _check_head(recipe: Pretraining | Finetuning, trains: bool) -> None:
    fits, head = (recipe.model.fit_head, recipe.model.head) if isinstance(recipe, Finetuning) else (False, None)
    if not trains and not fits:
        raise RequestError(f"run.duration is {recipe.run.duration!r}, but only model.fit_head leaves a model then")
    if head in ("stages", "best") and (trains or not fits):
        raise RequestError(f"model.head {head} is fitted, not trained: set model.fit_head and run.duration 0pass")
    if head == "attentive" and fits:
        raise RequestError("model.head attentive has no closed form: leave model.fit_head out")
