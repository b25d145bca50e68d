"""From frames to frames: encoders of sequences that never let padding touch a real frame.

Everywhere `x` is float [b, T, d] and `padding_mask` bool [b, T], True where there is no frame; the answer is
[b, T, channels] with zeros in padded frames. Convolutions read zeros behind the end as they do before the beginning,
and batch statistics are those of real frames, in training too: a track alone and in a padded batch gives the same.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.models.conformer import ConformerLayer

from kit_nn.pooling import zero_padding


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over real frames only, [b, T, d]; a single frame is normalised by the running statistics."""

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:  # type: ignore[override]  # a mask besides
        """Return [b, T, d] with zeros in padded frames."""
        real = ~padding_mask
        frames = x[real]
        if self.training and len(frames) < 2:
            normalised = functional.batch_norm(
                frames, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        else:
            normalised = super().forward(frames)
        out = torch.zeros(x.shape, dtype=normalised.dtype, device=x.device)
        out[real] = normalised
        return out


class Positions(nn.Module):
    """Add to each frame a vector of its place: sinusoids of the Transformer paper, or learned up to `longest` frames.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, d: int, kind: Literal["sinusoidal", "learned"], longest: int = 512) -> None:
        super().__init__()
        self.d, self.longest = d, longest
        self.table = nn.Parameter(torch.randn(longest, d) * 0.02) if kind == "learned" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [b, T, d]; learned places behind `longest` share the last one."""
        steps = torch.arange(x.shape[1], device=x.device)
        if self.table is not None:
            return x + self.table[steps.clamp_max(self.longest - 1)]
        rates = torch.exp(-math.log(10_000.0) / self.d * torch.arange(0, self.d, 2, device=x.device))
        angles = steps[:, None] * rates
        table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, : self.d]
        return x + table.to(x.dtype)


class TransformerEncoder(nn.Module):
    """torch's Transformer encoder, with padding masked and an optional place for each frame; d channels in and out.

    With `norm_first` a last LayerNorm follows, which that order needs.
    """

    def __init__(
        self,
        d: int,
        layers: int,
        heads: int,
        ff: int,
        dropout: float = 0.1,
        *,
        norm_first: bool = True,
        activation: Literal["gelu", "relu"] = "gelu",
        positions: Literal["sinusoidal", "learned"] | None = None,
    ) -> None:
        super().__init__()
        self.positions = None if positions is None else Positions(d, positions)
        layer = nn.TransformerEncoderLayer(
            d, heads, ff, dropout, activation=activation, batch_first=True, norm_first=norm_first
        )
        # Nested tensors would cut padded frames off in evaluation, so that the answer no longer fits the mask.
        self.encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(d) if norm_first else None, enable_nested_tensor=False
        )
        for parameter in self.encoder.parameters():  # torch copies one layer: without this all begin equal
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, T, d]."""
        x = zero_padding(x, padding_mask)
        if self.positions is not None:
            x = self.positions(x)
        return zero_padding(self.encoder(x, src_key_padding_mask=padding_mask), padding_mask)


class MaskedConformer(nn.Module):
    """Conformer blocks of torchaudio, made exact under padding; d channels in and out.

    Each block is torchaudio's (half feed-forward, self-attention, convolution, half feed-forward, LayerNorm), but its
    convolution reads zeros in padded frames, and its normalisation there is of real frames: over the batch
    (`norm="batch"`) or of each frame alone (`norm="layer"`).

    Raises:
        ValueError: an even `kernel`, in frames.

    Source: Gulati et al. 2020, arXiv:2005.08100.
    """

    def __init__(
        self,
        d: int,
        layers: int,
        heads: int,
        ff: int,
        kernel: int = 31,
        dropout: float = 0.1,
        *,
        norm: Literal["batch", "layer"] = "batch",
        positions: Literal["sinusoidal", "learned"] | None = None,
    ) -> None:
        super().__init__()
        self.positions = None if positions is None else Positions(d, positions)
        self.blocks = nn.ModuleList(_ConformerBlock(d, ff, heads, kernel, dropout, norm) for _ in range(layers))

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, T, d]."""
        x = zero_padding(x, padding_mask)
        if self.positions is not None:
            x = self.positions(x)
        for block in self.blocks:
            x = block(x, padding_mask)
        return zero_padding(x, padding_mask)


class _ConformerBlock(nn.Module):
    def __init__(self, d: int, ff: int, heads: int, kernel: int, dropout: float, norm: str) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: found {kernel}, expected an odd number of frames")
        block = ConformerLayer(d, ff, heads, kernel, dropout)
        convolution = block.conv_module
        expand, gate, depthwise, _, activation, project, drop = convolution.sequential
        self.first, self.second = block.ffn1, block.ffn2
        self.attention_norm, self.attention = block.self_attn_layer_norm, block.self_attn
        self.attention.batch_first = True  # torchaudio keeps time first
        self.attention_dropout, self.final_norm = block.self_attn_dropout, block.final_layer_norm
        self.convolution_norm = convolution.layer_norm
        self.expand, self.depthwise, self.project = nn.Sequential(expand, gate), depthwise, project
        self.norm: nn.Module = MaskedBatchNorm(d) if norm == "batch" else nn.LayerNorm(d)
        self.activation, self.dropout = activation, drop

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        normed = self.attention_norm(x)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=padding_mask, need_weights=False)
        x = x + self.attention_dropout(attended)
        x = x + self._convolve(x, padding_mask)
        x = x + 0.5 * self.second(x)
        normalised: Tensor = self.final_norm(x)
        return normalised

    def _convolve(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        hidden = self.expand(self.convolution_norm(x).transpose(1, 2)).transpose(1, 2)
        hidden = self.depthwise(zero_padding(hidden, padding_mask).transpose(1, 2)).transpose(1, 2)
        hidden = self.norm(hidden, padding_mask) if isinstance(self.norm, MaskedBatchNorm) else self.norm(hidden)
        convolved: Tensor = self.dropout(self.project(self.activation(hidden).transpose(1, 2))).transpose(1, 2)
        return convolved


class ResNet1d(nn.Module):
    """Residual blocks of three convolutions over time with masked batch normalisation; `channels[-1]` channels out.

    One block for each entry of `channels`; a convolution of width 1 carries x past a block that changes the channels.

    Raises:
        ValueError: an even number among `kernels`, in frames.

    Source: Wang, Yan and Oates 2017, arXiv:1611.06455 (time series classification).
    """

    def __init__(
        self, d: int, channels: Sequence[int], kernels: Sequence[int] = (9, 5, 3), dropout: float = 0.0
    ) -> None:
        super().__init__()
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels: found {list(kernels)}, expected odd numbers of frames")
        widths = [d, *channels]
        self.blocks = nn.ModuleList(_ResidualBlock(a, b, kernels, dropout) for a, b in itertools.pairwise(widths))
        self.channels = widths[-1]

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, T, channels]."""
        x = zero_padding(x, padding_mask)
        for block in self.blocks:
            x = block(x, padding_mask)
        return x


class _ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, kernels: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = [before] + [after] * len(kernels)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel, padding=kernel // 2, bias=False)  # the normalisation behind it has a bias
            for a, b, kernel in zip(widths, widths[1:], kernels, strict=False)
        )
        self.norms = nn.ModuleList(MaskedBatchNorm(after) for _ in kernels)
        self.carry = nn.Conv1d(before, after, 1, bias=False) if before != after else None
        self.carry_norm = MaskedBatchNorm(after) if before != after else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        carried = x
        if self.carry is not None and self.carry_norm is not None:
            carried = self.carry_norm(self.carry(x.transpose(1, 2)).transpose(1, 2), padding_mask)
        for place, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x.transpose(1, 2)).transpose(1, 2), padding_mask)  # zeros again in padded frames
            if place + 1 < len(self.norms):
                x = self.dropout(torch.relu(x))
        return torch.relu(x + carried)


class CrossAttention(nn.Module):
    """Learned queries that read the frames, layer by layer (attention, feed-forward, each pre-normed): [b, queries, d].

    `ff` is the width of the feed-forward part; 0 leaves it out. With one query for each label this is the decoder of
    ML-Decoder and of Query2Label without attention among queries.

    Source: Ridnik et al. 2021, arXiv:2111.12933; Liu et al. 2021, arXiv:2107.10834.
    """

    def __init__(self, d: int, queries: int, heads: int, layers: int = 1, ff: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, d) * d**-0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(layers))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(d, heads, dropout, batch_first=True) for _ in range(layers)
        )
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(d), nn.Linear(d, ff), nn.GELU(), nn.Dropout(dropout), nn.Linear(ff, d), nn.Dropout(dropout)
            )
            for _ in range(layers if ff else 0)
        )
        self.dropout = nn.Dropout(dropout)
        self.final_norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, queries, d]."""
        return self.attend(x, padding_mask)[0]

    def attend(self, x: Tensor, padding_mask: Tensor, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return [b, queries, d] and, if asked for, the last layer's weights, [b, queries, T], 0 for padding."""
        x = zero_padding(x, padding_mask)
        state = self.queries.expand(len(x), -1, -1)
        weights = None
        for place, (norm, attention) in enumerate(zip(self.norms, self.attentions, strict=True)):
            read, weights = attention(norm(state), x, x, key_padding_mask=padding_mask, need_weights=need_weights)
            state = state + self.dropout(read)
            if len(self.feed_forwards):
                state = state + self.feed_forwards[place](state)
        return self.final_norm(state), weights
