"""A linear layer from features and labels at once: discriminants, regressions, and what makes their scores honest."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

#: What the covariance is shrunk by beyond Ledoit and Wolf's estimate, which takes rows for independent: those of one
#: video and its mirror are not. Ours, chosen on four people (docs/results/own_videos.md).
SHRINKAGE = 0.2
#: Steps and learning rate of a head of several labels a video, which has no closed form.
STEPS, LR = 500, 1e-2
#: How strongly a head that knows the classes already is held where it is. Ours (docs/results/own_videos.md).
PULL = 0.03
#: What scores are divided by is looked for among these.
TEMPERATURES = np.geomspace(0.25, 64, 33)

#: Weight [K, C] and bias [K] of a linear layer.
Layer: TypeAlias = tuple[Tensor, Tensor]


def solve(values: Tensor, labels: NDArray[np.generic], num_classes: int, known: Layer | None = None) -> Layer:
    """Fits a linear layer.

    Args:
        values: Features float32 [N, C], not standardised.
        labels: int64 [N]; or float32 [N, num_classes] of zeros and ones, where several may hold.
        num_classes: How many there are.
        known: A layer that knows the classes already, which is then moved no further than the labels ask.

    Returns:
        Its weight and bias: a linear discriminant analysis with shrinkage (Ledoit and Wolf 2004), in which every class
        counts alike, or a logistic regression for each class where several may hold.
    """
    if known is not None:
        return _moved(values, labels, known)
    mean, deviation = values.mean(dim=0), values.std(dim=0, correction=0) + 1e-6
    values = (values - mean) / deviation
    weight, bias = _logistic(values, labels) if labels.ndim == 2 else _discriminants(values, labels, num_classes)
    weight = weight / deviation
    return weight, bias - weight @ mean


def _moved(values: Tensor, labels: NDArray[np.generic], known: Layer) -> Layer:
    """A logistic regression whose weights are drawn to those that are known already."""
    several = labels.ndim == 2
    label = torch.from_numpy(labels.astype(np.float32 if several else np.int64))
    counts = torch.ones(0) if several else torch.bincount(label, minlength=len(known[1])).float()
    moves = [torch.zeros_like(part, requires_grad=True) for part in known]
    optimizer = torch.optim.LBFGS(moves, max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(values, known[0] + moves[0], known[1] + moves[1])
        if several:
            value = F.binary_cross_entropy_with_logits(logits, label)
        else:
            value = F.cross_entropy(logits, label, weight=1 / counts.clamp(min=1))
        value = value + PULL * (moves[0].square().sum() + moves[1].square().sum())
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return known[0] + moves[0].detach(), known[1] + moves[1].detach()


def _discriminants(values: Tensor, labels: NDArray[np.generic], num_classes: int) -> Layer:
    """Linear discriminants of equal priors, their covariance shrunk to a multiple of the identity."""
    from sklearn.covariance import ledoit_wolf

    label = torch.from_numpy(labels.astype(np.int64))
    counts = torch.bincount(label, minlength=num_classes)
    means = torch.zeros(num_classes, values.shape[1]).index_add_(0, label, values) / counts.clamp(min=1).unsqueeze(1)
    covariance, _ = ledoit_wolf((values - means[label]).numpy(), assume_centered=True)
    covariance = (1 - SHRINKAGE) * torch.from_numpy(covariance).double()
    covariance.diagonal().add_(SHRINKAGE * covariance.diagonal().mean() / (1 - SHRINKAGE) + 1e-6)
    weight = torch.linalg.solve(covariance, means.double().T).T
    bias = -0.5 * (means.double() * weight).sum(dim=1)
    bias[counts == 0] = -1e4  # none of its videos can be read
    return weight.float(), bias.float()


def _logistic(values: Tensor, labels: NDArray[np.generic]) -> Layer:
    """A logistic regression for each class, its negatives and positives of equal weight."""
    label = torch.from_numpy(labels.astype(np.float32))
    positives = label.sum(dim=0)
    balance = (len(label) - positives) / positives.clamp(min=1)
    head = nn.Linear(values.shape[1], label.shape[1])
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=1.0)
    with torch.enable_grad():
        for _ in range(STEPS):
            loss = F.binary_cross_entropy_with_logits(head(values), label, pos_weight=balance)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.weight.detach(), head.bias.detach()


def temperature_of(logits: Tensor, labels: Tensor) -> float:
    """What logits are divided by, so that their softmax says how often they are right.

    Args:
        logits: float32 [N, K].
        labels: int64 [N].

    Returns:
        The temperature, one of :data:`TEMPERATURES`.
    """
    losses = [F.cross_entropy(logits / float(value), labels).item() for value in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])
