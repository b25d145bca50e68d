"""Backbones from spectra to a vector, and one network with a head for genre and one for each axis.

Everything takes x float[b, T, rows] and a padding mask bool[b, T], True where there is no frame, and answers the same
for a clip alone and inside a padded batch.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kit_nn.pooling import AttentionPooling, MeanMax, masked_mean, zero_padding
from ntua_lab.config import InputConfig, NetworkConfig

ROWS_OF = {"mel": 128, "chroma": 12, "fused": 140}


class LstmBackbone(nn.Module):
    """A bidirectional LSTM; the last real step of the forward direction beside the first of the backward one.

    It answers what packed sequences would: the forward direction meets padding only after the last real step, and the
    backward one reads every clip turned round within its own length. Packed sequences of unlike lengths have, on a CPU,
    a gradient whose time is quadratic in the steps: PyTorch fills it up to the whole batch for each step anew.
    """

    def __init__(self, rows: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.ahead, self.back = nn.ModuleList(), nn.ModuleList()
        for width in (rows, *[2 * hidden] * (layers - 1)):
            self.ahead.append(nn.LSTM(width, hidden, batch_first=True))
            self.back.append(nn.LSTM(width, hidden, batch_first=True))
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * hidden

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, 2 · hidden]."""
        last = (~padding_mask).sum(dim=1, keepdim=True) - 1
        steps = torch.arange(x.shape[1], device=x.device)
        places = torch.where(padding_mask, steps, last - steps)  # of the clips turned round
        forwards, backwards = self.ahead[0](x)[0], self.back[0](_taken(x, places))[0]
        for ahead, back in zip(self.ahead[1:], self.back[1:], strict=True):
            x = self.dropout(torch.cat([forwards, _taken(backwards, places)], dim=2))
            forwards, backwards = ahead(x)[0], back(_taken(x, places))[0]
        return _taken(torch.cat([forwards, backwards], dim=2), last)[:, 0]


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """The steps of x [b, T, d] at places int64[b, S]: [b, S, d]."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


class ConvBlock(nn.Module):
    """Conv2d → BatchNorm → ReLU → MaxPool by 2, in this order, as the lab asks."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Return [b, after, rows / 2, T / 2] for x [b, before, rows, T]; `real` is 1.0 for frames, [b, 1, 1, T]."""
        y = torch.relu(self.norm(self.convolution(x)))
        pooled: Tensor = self.pool(y * real)  # padding is 0, and no real value is less
        return pooled


class ConvBackbone(nn.Module):
    """Blocks of convolutions over bands and time, then bands × channels pooled over time.

    `channels` has one entry for each block, every one of which halves bands and frames; frames are padded to a
    multiple, so that a clip of five beats passes four blocks too.
    """

    def __init__(self, rows: int, channels: Sequence[int], pooling: str) -> None:
        super().__init__()
        widths = [1, *channels]
        self.blocks = nn.ModuleList(ConvBlock(before, after) for before, after in pairwise(widths))
        self.layout = torch.channels_last  # half the time of the default on a CPU
        self.to(memory_format=self.layout)  # type: ignore[call-overload]  # absent from the stubs of torch
        self.factor = 2 ** len(channels)
        height = -(-rows // self.factor)
        d = height * channels[-1]
        self.pooling: nn.Module | None = None
        if pooling == "mean-max":
            self.pooling = MeanMax()
        elif pooling == "attention":
            self.pooling = AttentionPooling(d, hidden=64)
        self.width = 2 * d if pooling == "mean-max" else d

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, width]."""
        maps, mask = self.maps(x, padding_mask)[-1]
        frames = maps.flatten(1, 2).transpose(1, 2)
        pooled: Tensor = masked_mean(frames, mask) if self.pooling is None else self.pooling(frames, mask)
        return pooled

    def maps(self, x: Tensor, padding_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the input and what every block gives, [b, channels, rows, T], each with its padding mask [b, T]."""
        short = -x.shape[1] % self.factor
        maps = nn.functional.pad(x, (0, 0, 0, short)).transpose(1, 2)[:, None]
        maps = maps.contiguous(memory_format=self.layout)
        mask = nn.functional.pad(padding_mask, (0, short), value=True)
        found = [(maps, mask)]
        for block in self.blocks:
            maps = block(maps, (~mask)[:, None, None].to(maps.dtype))
            mask = mask[:, ::2]  # a pooled frame is real where the first of its two is
            found.append((maps, mask))
        return found


class AstBackbone(nn.Module):
    """A small spectrogram transformer: patches of bands × frames, positions and class token, by timm.

    Source: Gong, Chung and Glass, AST, Interspeech 2021, from random weights and without overlap of patches.
    """

    def __init__(self, chunk: int, rows: int, settings: NetworkConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer  # here, since timm takes seconds to load

        self.transformer = VisionTransformer(
            img_size=(rows, chunk),
            patch_size=settings.patch,
            in_chans=1,
            num_classes=0,
            embed_dim=settings.hidden,
            depth=settings.layers,
            num_heads=settings.heads,
            proj_drop_rate=settings.dropout,
        )
        self.chunk = chunk
        self.width = settings.hidden

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, hidden]; every clip is filled up to one chunk with mean values."""
        image = nn.functional.pad(zero_padding(x, padding_mask), (0, 0, 0, self.chunk - x.shape[1]))
        tokens: Tensor = self.transformer(image.transpose(1, 2)[:, None])
        return tokens


class Network(nn.Module):
    """Standardised spectra → backbone → a head for genre and one for each axis; `heads` names them with their sizes.

    Outputs are logits: of a softmax for genre [b, classes], of a sigmoid for an axis [b].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: nn.Module, rows: int, width: int, heads: dict[str, int], dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(rows))
        self.register_buffer("scale", torch.ones(rows))
        self.backbone = backbone
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in heads.items()})

    def standardise(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return spectra [b, T, rows] with mean 0 and deviation 1 in each row, and the mean, 0, in padded frames."""
        return zero_padding((x - self.mean) / self.scale, padding_mask)

    def forward(self, x: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """Return the logits of every head for standardised spectra [b, T, rows]."""
        hidden = self.dropout(self.backbone(x, padding_mask))
        outputs = {name: head(hidden) for name, head in self.heads.items()}
        return {name: logits if name == "genre" else logits[:, 0] for name, logits in outputs.items()}


def build_network(network: NetworkConfig, input_: InputConfig, heads: dict[str, int]) -> Network:
    """Return a network with random weights."""
    rows = ROWS_OF[input_.features]
    backbone: Any
    if network.kind == "lstm":
        backbone = LstmBackbone(rows, network.hidden, network.layers, network.dropout)
    elif network.kind == "cnn":
        backbone = ConvBackbone(rows, network.channels, network.pooling)
    else:
        backbone = AstBackbone(input_.chunk, rows, network)
    return Network(backbone, rows, backbone.width, heads, network.dropout)
