"""Softmax over classes with an angular margin: ArcFace, and its form with several centres a class.

Everything is computed in fp32 (float64 stays float64), also under autocast.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kit_losses.pairs import unit_rows


class ArcFace(nn.Module):
    """Additive angular margin softmax; with `sub_centers` above 1 the nearest centre of each class counts.

    A class is the direction of its centres, `weight` float[classes · sub_centers, d]. The margin is an attribute, in
    radians, so that a schedule can move it. No one-hot matrix is made: only the target's column is changed.

    Source: Deng et al., ArcFace (CVPR 2019); Deng et al., Sub-center ArcFace (ECCV 2020). Beyond the angle at which the
    margin would wrap around, the target's cosine falls by `margin · sin(margin)`, as in the authors' code and in
    pytorch-metric-learning's ArcFaceLoss (which counts its margin in degrees).
    """

    def __init__(
        self,
        classes: int,
        d: int,
        *,
        scale: float = 30.0,
        margin: float = 0.5,
        sub_centers: int = 1,
        label_smoothing: float = 0.0,
    ) -> None:
        """Make random centres of `classes` classes in `d` dimensions; `margin` in radians, `scale` times the cosine.

        Raises:
            ValueError: fewer than 2 classes, no centre, a margin outside [0, pi / 2), or a scale that is not positive.
        """
        super().__init__()
        if classes < 2 or sub_centers < 1:
            raise ValueError(f"found {classes} classes of {sub_centers} centres, expected 2 or more of 1 or more")
        if not 0 <= margin < math.pi / 2 or scale <= 0:
            raise ValueError(f"found margin {margin} and scale {scale}, expected 0 <= margin < pi / 2 and scale > 0")
        self.classes, self.scale, self.margin = classes, scale, margin
        self.sub_centers, self.label_smoothing = sub_centers, label_smoothing
        self.weight = nn.Parameter(torch.empty(classes * sub_centers, d))
        nn.init.normal_(self.weight, std=d**-0.5)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Similarity of `embeddings` float[n, d] with the nearest centre of every class: float[n, classes]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = unit_rows(embeddings)
            cosines = functional.linear(unit, functional.normalize(self.weight.to(unit.dtype), dim=1))
            if self.sub_centers > 1:
                cosines = cosines.view(len(cosines), self.classes, self.sub_centers).amax(dim=2)
            return cosines

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `embeddings` float[n, d] with class numbers `labels` int64[n].

        Raises:
            ValueError: a label outside 0 .. classes - 1.
        """
        lowest, highest = (int(bound) for bound in torch.aminmax(labels))
        if lowest < 0 or highest >= self.classes:
            raise ValueError(
                f"labels: found {lowest} to {highest}, expected 0 to {self.classes - 1}; number classes without gaps"
            )
        cosines = self.cosines(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            column = labels[:, None]
            target = add_angle(cosines.gather(1, column), self.margin)
            logits = cosines.scatter(1, column, target) * self.scale
            return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """Cosine of the angle plus `margin` radians, kept falling where the sum would pass 180 degrees."""
    sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()  # at 0 the root's slope would be infinite
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine >= -math.cos(margin), moved, cosine - margin * math.sin(margin))
