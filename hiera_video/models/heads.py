"""What turns a trunk's tokens into logits: a linear layer, an attentive probe, or the statistics of stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiera_video.models.layers import Mlp
from hiera_video.models.unroll import StageTokens, reroll

#: By what ``Architecture.head`` names: what a linear layer sees of a clip.
HEADS = {
    "linear": "the normalised mean of the last stage's tokens",
    "attentive": "what a learned query gathers from the last stage's normalised tokens",
    "stages": "mean, deviation and maximum of the first stages' tokens, and of their differences in time",
    "readout": "a fitted projection of these statistics and of the last stage's mean",
}

#: Heads that see earlier stages, so that tokens of the last one alone are not enough.
SEE_STAGES = ("stages", "readout")


class Head(nn.Module):
    """Dropout and a linear layer; logits come out, in training and in evaluation alike (no classes: the embedding).

    Args:
        dim: Channels of the embedding.
        num_classes: Logits; 0 for none.
        dropout: Probability that a channel is dropped.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, embedding: Tensor) -> Tensor:
        return self.projection(self.dropout(embedding))


class AttentiveHead(Head):
    """An attentive probe (V-JEPA, arXiv 2404.08471, section 4): one learned query, one block of cross-attention.

    Args:
        dim: Channels of the tokens.
        num_heads: Attention heads.
        num_classes: Logits; 0 for none.
        dropout: Probability that a channel is dropped before the linear layer.
    """

    def __init__(self, dim: int, num_heads: int, num_classes: int, dropout: float) -> None:
        super().__init__(dim, num_classes, dropout)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, "gelu")

    def pool(self, tokens: Tensor) -> Tensor:
        """The query's answer.

        Args:
            tokens: Normalised, [B, N, C].

        Returns:
            [B, C].
        """
        query = self.query.expand(len(tokens), -1, -1)
        gathered = query + self.attention(query, tokens, tokens, need_weights=False)[0]
        return (gathered + self.mlp(self.mlp_norm(gathered)))[:, 0]


class ReadoutHead(Head):
    """A head on a projection of what stages say: the embedding that features are.

    Args:
        seen_dim: Channels of the statistics and of the last stage's mean together.
        dim: Channels of the embedding.
        num_classes: Logits; 0 for none.
        dropout: Probability that a channel of the embedding is dropped.
    """

    def __init__(self, seen_dim: int, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__(dim, num_classes, dropout)
        self.readout = nn.Linear(seen_dim, dim)


def token_statistics(stage: StageTokens) -> Tensor:
    """Mean, standard deviation and maximum over all places and times, then those of the differences in time.

    Args:
        stage: What a stage leaves.

    Returns:
        float32 [B, 6 * C], of an image, which has no differences, [B, 3 * C].
    """
    tokens, grid, strides = stage
    parts = [tokens.float()]
    if len(grid) == 3:
        # Where nothing is pooled over time, mask units are sorted by time first: no need to put tokens in order.
        sorted_by_time = all(stride[0] == 1 for stride in strides)
        by_time = tokens.unflatten(1, (grid[0], -1)) if sorted_by_time else reroll(*stage)
        later = by_time[:, 1:] if grid[0] > 1 else by_time  # of a single time the differences are zero
        parts.append((later - by_time[:, : later.shape[1]]).float())
    values = []
    for part in parts:
        places = part.flatten(1, -2)
        mean = places.mean(dim=1, keepdim=True)
        variance = (places - mean).square_().mean(dim=1)  # torch.var_mean takes six times as long (CPU)
        values += [mean[:, 0], variance.sqrt(), places.amax(dim=1)]
    return torch.cat(values, dim=-1)
