"""A timm backbone under a head for two-level labels, and the loss that knows of the two levels."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import group_parameters
from torch import Tensor, nn

from kit_core.errors import ConfigError
from russian_art.backbones import parts, run_tail
from russian_art.config import StageConfig


class LinearHead(nn.Module):
    """Logits of the labels, linear in the features."""

    def __init__(self, width: int, n_labels: int) -> None:
        super().__init__()
        self.label = nn.Linear(width, n_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features float[n, width] into logits float[n, labels]."""
        logits: Tensor = self.label(features)
        return logits


class FactorisedHead(nn.Module):
    """logit(label) = a(its top) + b(its genre) + c(label).

    Genres repeat under several tops ("portrait" is painted, drawn and carved), so that a rare pair learns from the
    frequent pairs with which it shares a top or a genre. `a` and `b` start at 0: at first the head is its `label` part.

    `top_of` and `genre_of`, int64[labels], name the top and the genre of every label.
    """

    top_of: Tensor
    genre_of: Tensor

    def __init__(self, width: int, top_of: NDArray[np.int64], genre_of: NDArray[np.int64]) -> None:
        super().__init__()
        self.label = nn.Linear(width, len(top_of))
        self.top = nn.Linear(width, int(top_of.max()) + 1)
        self.genre = nn.Linear(width, int(genre_of.max()) + 1)
        for shared in (self.top, self.genre):
            nn.init.zeros_(shared.weight)
            nn.init.zeros_(shared.bias)
        self.register_buffer("top_of", torch.from_numpy(np.array(top_of)), persistent=False)
        self.register_buffer("genre_of", torch.from_numpy(np.array(genre_of)), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features float[n, width] into logits float[n, labels]."""
        top, genre = self.top(features)[:, self.top_of], self.genre(features)[:, self.genre_of]
        logits: Tensor = self.label(features) + top + genre
        return logits


class ArtNetwork(nn.Module):
    """A backbone in two halves and a head: `head(upper(lower(images)))`.

    The lower half holds the first `frozen_parts` parts (stem and blocks), which never learn: their output can be kept.
    Without frozen parts `lower` passes images on, and any timm model will do.

    Raises:
        ConfigError: frozen parts asked of a backbone whose parts are not known, or more of them than it has.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, frozen_parts: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen_parts = frozen_parts
        if frozen_parts:
            known = parts(backbone)
            if frozen_parts >= len(known):
                raise ConfigError(f"network.frozen_parts: found {frozen_parts}, expected less than {len(known)}")
            for part in known[:frozen_parts]:
                part.requires_grad_(False)

    def lower(self, images: Tensor) -> Tensor:
        """Turn images float[n, 3, size, size] into what the upper half takes."""
        if not self.frozen_parts:
            return images
        for part in parts(self.backbone)[: self.frozen_parts]:
            images = part(images)
        return images

    def upper(self, maps: Tensor) -> Tensor:
        """Turn the output of `lower` into features float[n, width]."""
        if not self.frozen_parts:
            last = self.backbone.forward_features(maps)  # type: ignore[operator]  # a method of timm's models
            features: Tensor = self.backbone.forward_head(last, pre_logits=True)  # type: ignore[operator]  # the same
            return features
        for part in parts(self.backbone)[self.frozen_parts :]:
            maps = part(maps)
        return run_tail(self.backbone, maps)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images float[n, 3, size, size] into logits float[n, labels]."""
        logits: Tensor = self.head(self.upper(self.lower(images)))
        return logits

    def start_head(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        """Copy a solved linear classifier into the head: weight [labels, width], bias [labels]."""
        label = self.head.label
        assert isinstance(label, nn.Linear)
        with torch.no_grad():
            label.weight.copy_(torch.from_numpy(weight))
            label.bias.copy_(torch.from_numpy(bias))

    def set_training(self, frozen_norm: bool, trained: str) -> None:
        """Switch to training: dropout on, except in what does not learn; batch statistics only where they may move."""
        self.train()
        if trained == "head":
            self.backbone.eval()
        if self.frozen_parts:
            for part in parts(self.backbone)[: self.frozen_parts]:
                part.eval()
        if frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def parameters_learnt(self, *stages: StageConfig) -> int:
        """Return how many numbers these stages of training learn."""
        layers = list(self.layers())
        everything = any(stage.epochs and stage.trained == "all" for stage in stages)
        return sum(p.numel() for layer in (layers if everything else layers[:1]) for p in layer)

    def layers(self) -> Iterator[list[nn.Parameter]]:
        """Yield what learns, from the head down to the input, one layer at a time."""
        yield [p for p in self.head.parameters() if p.requires_grad]
        levels = self.backbone.group_matcher(coarse=False)  # type: ignore[operator]  # a method of timm's models
        names = group_parameters(self.backbone, levels, reverse=False)
        parameters = dict(self.backbone.named_parameters())
        for layer in sorted(names, reverse=True):
            found = [parameters[name] for name in names[layer] if parameters[name].requires_grad]
            if found:
                yield found


def build_head(kind: str, width: int, top_of: NDArray[np.int64], genre_of: NDArray[np.int64]) -> nn.Module:
    """Return the head called `linear` or `factorised` for features of `width` numbers."""
    return LinearHead(width, len(top_of)) if kind == "linear" else FactorisedHead(width, top_of, genre_of)


def label_loss(
    logits: Tensor, label: Tensor, top_of: Tensor, hierarchy_weight: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the label plus `hierarchy_weight` times that of its top, whose probability sums its labels'.

    Shapes: `logits` [n, labels], `label` [n], `top_of` [labels]; the result is the mean over the rows.

    Source of the sum over children: the hierarchical cross-entropy of Garg et al., "Learning Hierarchy Aware Features"
    (ECCV 2022), without its other terms.
    """
    loss = nn.functional.cross_entropy(logits.float(), label, label_smoothing=smoothing)
    if hierarchy_weight:
        members = nn.functional.one_hot(top_of).bool()  # [labels, tops]
        by_label = logits.float().log_softmax(dim=1)
        spread = by_label[:, :, None].masked_fill(~members[None], -torch.inf)
        loss = loss + hierarchy_weight * nn.functional.nll_loss(spread.logsumexp(dim=1), top_of[label])
    return loss
