"""One network on one fold: a head, then everything, with an exact way back after an interruption.

Start policy: (1) a state file of the same unit, where `--resume` finds one, continues after its last whole epoch; (2)
otherwise the backbone has its given weights, and the head is random or, for `start = "probe"`, a solved logistic
regression, so that epoch 0 scores exactly what the probe scores (LP-FT, Kumar et al., ICLR 2022).

Every epoch draws its order, mirrors, crops and dropout from a seed of its own, so that a resumed run on a CPU has the
same bits as an unbroken one. The validation is never augmented.

Of several processes each computes every n-th row of a batch, with the draws that the row has in one process; dropout
differs between them, and batch normalisation, where it learns, takes the statistics of a process's own rows.
"""

import copy
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kit_core.atomic import write_bytes
from kit_core.console import progress
from kit_core.errors import ConfigError, DataError
from kit_core.interrupt import Interrupted
from kit_metrics import macro_f1
from kit_train.config import FabricConfig
from kit_train.fabric import launch
from kit_train.ranks import (
    Share,
    batches_of_rank,
    gather_rows,
    mean_of_ranks,
    seed_of_rank,
    share_buffers,
    share_of_batch,
    stop_asked,
)
from russian_art.backbones import Normalisation, Weights, autocast, check_size, create, normalisation, placed, to_images
from russian_art.baseline import fit_logistic
from russian_art.config import NetworkConfig, Precision, StageConfig
from russian_art.model import ArtNetwork, build_head, label_loss

EVALUATION_BATCH = 64
Log = Callable[..., None]


class Inputs(Protocol):
    """Where a network's batches come from."""

    def training(self, rows: NDArray[np.int64], generator: torch.Generator, mine: Share | None = None) -> Tensor:
        """Return a batch for training, augmented by draws from the generator; of several ranks' batch the own places.

        The draws are those of the whole batch, so that a row gets the same whatever the number of ranks.
        """
        ...

    def plain(self, rows: NDArray[np.int64], mirrored: bool = False) -> Tensor:
        """Return a batch as it is, or mirrored."""
        ...


@dataclass(frozen=True)
class Images:
    """Batches from pixels uint8[n, h, w, 3]: mirrored and cropped at random in training."""

    pixels: NDArray[np.uint8]
    size: int
    norm: Normalisation
    device: torch.device
    flip: bool
    crop: float

    def training(self, rows: NDArray[np.int64], generator: torch.Generator, mine: Share | None = None) -> Tensor:
        """Return images float32[n, 3, size, size], each mirrored with chance 1/2 and cropped by its own rectangle."""
        places = np.arange(len(rows)) if mine is None else mine.rows
        images = self.plain(rows[places])
        if self.flip:
            chosen = (torch.rand(len(rows), generator=generator) < 0.5)[torch.from_numpy(places)]
            images[chosen.to(images.device)] = images[chosen.to(images.device)].flip(3)
        return random_crops(images, self.crop, generator, len(rows), places) if self.crop < 1 else images

    def plain(self, rows: NDArray[np.int64], mirrored: bool = False) -> Tensor:
        """Return images float32[n, 3, size, size]."""
        return to_images(self.pixels[rows], self.size, self.norm, self.device, mirrored)


@dataclass(frozen=True)
class Maps:
    """Batches from what the frozen lower half made of every image once: float32[views, n, channels, h, w] in memory.

    View 0 is the image, view 1 its mirror image, the others random crops; training draws among the first `trained`.
    """

    maps: list[Tensor]
    trained: int
    device: torch.device

    def training(self, rows: NDArray[np.int64], generator: torch.Generator, mine: Share | None = None) -> Tensor:
        """Return the lower half's output for one random view of each image."""
        view = torch.randint(self.trained, (len(rows),), generator=generator).numpy()
        places = np.arange(len(rows)) if mine is None else mine.rows
        chosen = zip(view[places].tolist(), rows[places].tolist(), strict=True)
        return torch.stack([self.maps[v][row] for v, row in chosen]).to(self.device)

    def plain(self, rows: NDArray[np.int64], mirrored: bool = False) -> Tensor:
        """Return the lower half's output for the images as they are, or mirrored."""
        return self.maps[int(mirrored)][torch.from_numpy(rows)].to(self.device)


def random_crops(
    images: Tensor,
    smallest: float,
    generator: torch.Generator,
    drawn: int | None = None,
    places: NDArray[np.int64] | None = None,
) -> Tensor:
    """Cut a random rectangle of at least `smallest` of the area, sides 3:4 to 4:3, and stretch it.

    Args:
        images: [n, 3, h, w].
        drawn: images that rectangles are drawn for; by default n.
        places: int64[n], those of `images` among them.
    """
    n = len(images)
    own = torch.arange(n) if places is None else torch.from_numpy(places)

    def draw() -> Tensor:
        return torch.rand(drawn or n, generator=generator)[own]

    area = smallest + (1 - smallest) * draw()
    ratio = torch.exp(math.log(4 / 3) * (2 * draw() - 1))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x = (1 - width) * (2 * draw() - 1)
    y = (1 - height) * (2 * draw() - 1)
    zero = torch.zeros(n)
    theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1).to(images.device)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    cropped = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)


def make_network(
    config: NetworkConfig,
    name: str,
    weights: Weights,
    top_of: NDArray[np.int64],
    genre_of: NDArray[np.int64],
    seed: int,
) -> ArtNetwork:
    """Build a network with the given weights; what is random comes from `seed`."""
    torch.manual_seed(seed)
    backbone = create(name, weights, dropout=config.dropout, drop_path=config.drop_path)
    check_size(backbone, config.size)
    probe = torch.zeros(1, 3, config.size, config.size)
    with torch.inference_mode():
        maps = backbone.forward_features(probe)  # type: ignore[operator]  # a method of timm's models
        width = backbone.forward_head(maps, pre_logits=True).shape[1]  # type: ignore[operator]  # the same
    return ArtNetwork(backbone, build_head(config.head, width, top_of, genre_of), config.frozen_parts)


def make_inputs(
    config: NetworkConfig, network: ArtNetwork, pixels: NDArray[np.uint8], seed: int, fabric: Fabric | None = None
) -> Inputs:
    """Return the batches of a network; with frozen parts, run the lower half over every view of every image now.

    The ranks of the `fabric` (by default one) share that work, and each keeps all maps.
    """
    fabric = fabric or launch(FabricConfig())
    device = fabric.device
    norm = normalisation(network.backbone)
    images = Images(pixels, config.size, norm, device, config.flip, config.crop)
    if not config.frozen_parts:
        return images
    network = placed(network, device).eval()
    generator = torch.Generator().manual_seed(seed)
    kept = max(config.views, 2 if config.flip_test else 1)
    maps: list[Tensor] = []
    starts = range(0, len(pixels), EVALUATION_BATCH)
    with torch.inference_mode():
        for view in range(kept):
            made, read = [], []
            for start in progress(starts, label=f"frozen parts, view {view + 1} of {kept}"):
                rows = np.arange(start, min(start + EVALUATION_BATCH, len(pixels)))
                mine = share_of_batch(np.arange(len(rows)), fabric.global_rank, fabric.world_size)
                own = rows[mine.rows]
                batch = images.plain(own, mirrored=view == 1) if view < 2 else images.training(rows, generator, mine)
                if mine.weight:
                    made.append(network.lower(batch).float().cpu())
                    read.append(own)
            whole = torch.cat(made)
            if fabric.world_size > 1:
                gathered = gather_rows(whole.numpy(), np.concatenate(read), len(pixels))
                whole = torch.from_numpy(gathered).contiguous(memory_format=torch.channels_last)
            maps.append(whole)
    return Maps(maps, config.views, device)


def fit_network(
    config: NetworkConfig,
    network: ArtNetwork,
    inputs: Inputs,
    label: NDArray[np.int64],
    tops: NDArray[np.int64],
    fitted: NDArray[np.int64],
    held: NDArray[np.int64],
    *,
    C: float,
    seed: int,
    state_path: Path,
    weights_path: Path,
    log: Log,
    fabric: Fabric | None = None,
) -> NDArray[np.float64]:
    """Train on the rows `fitted`, keep the weights, and return the logits float64[held, labels] of the rows `held`.

    `label` int64[n] names the label of every row, `tops` int64[labels] the top of every label. `C`
    is that of the probe which starts the head. `state_path` is read where it exists and removed in the end.
    The ranks of the `fabric` (by default one) share the batches, and each gets all logits.

    Raises:
        ConfigError: batches too small for the number of ranks.
        Interrupted: somebody asked to stop.
    """
    fabric = fabric or launch(FabricConfig())
    device, alone = fabric.device, fabric.world_size == 1
    least = 2 * fabric.world_size
    if not (alone or config.frozen_norm) and min(config.batch, len(fitted)) < least:
        raise ConfigError(
            f"network.batch: found {config.batch} of {len(fitted)} pictures, expected {least} or more: batch "
            f"normalisation takes the statistics of two pictures on each of {fabric.world_size} ranks"
        )
    network = placed(network, device)
    top_of = torch.from_numpy(np.array(tops)).to(device)
    target = torch.from_numpy(label).to(device)
    n_labels = len(top_of)
    stages = (config.first, config.second)

    torch.manual_seed(seed)
    if config.start == "probe":
        features = _features(network, inputs, fitted, fabric)
        solved: Any = fit_logistic(features, label[fitted], n_labels, C).plain() if fabric.global_rank == 0 else None
        network.start_head(*fabric.broadcast(solved))
    running = copy.deepcopy(network) if config.ema else None  # the mean of the weights
    judged = running if running is not None else network
    forward = torch.compile(_trained_forward) if config.compile else _trained_forward

    position, step, best = (0, 0), 0, -1.0
    optimizer: torch.optim.Optimizer | None = None
    if state_path.exists():
        state = _load_state(state_path, device)
        network.load_state_dict(state["network"])
        if running is not None:
            running.load_state_dict(state["running"])
        position, step, best = tuple(state["position"]), state["step"], state["best"]
        if state["optimizer"] is not None:
            optimizer = _optimizer(stages[position[0]], network)
            optimizer.load_state_dict(state["optimizer"])
    else:
        best = _validate(config, judged, inputs, target, held, top_of, log, fabric, stage=0, epoch=0)
        _keep(judged, weights_path)

    for number, stage in enumerate(stages):
        if number < position[0]:
            continue
        first_epoch = position[1] if number == position[0] else 0
        if first_epoch == 0:
            optimizer, step = _optimizer(stage, network), 0
        assert optimizer is not None
        steps = stage.epochs * max(1, len(fitted) // config.batch)
        trained: Callable[[Tensor], Tensor] = partial(forward, network, head_only=stage.trained == "head")
        if not alone and first_epoch < stage.epochs:
            learning = network.head if stage.trained == "head" else network
            trained = fabric.setup_module(_Trained(learning, trained), move_to_device=False)
        for epoch in range(first_epoch, stage.epochs):
            epoch_seed = _mixed(seed, number, epoch)
            torch.manual_seed(epoch_seed)
            generator = torch.Generator().manual_seed(epoch_seed)
            order = fitted[torch.randperm(len(fitted), generator=generator).numpy()]
            network.set_training(config.frozen_norm, stage.trained)
            predicted, seen, losses = [], [], []
            starts = range(
                0, max(1, len(order) - config.batch + 1), config.batch
            )  # a smaller one at the end is left out
            for start in progress(starts, label=f"stage {number + 1}, epoch {epoch + 1} of {stage.epochs}"):
                rows = order[start : start + config.batch]
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * _schedule(stage, step, steps)
                part = share_of_batch(np.arange(len(rows)), fabric.global_rank, fabric.world_size)
                own = rows[part.rows]
                seed_of_rank(fabric, _mixed(epoch_seed, start))
                batch = inputs.training(rows, generator, part)
                with autocast(device, config.precision):
                    logits = trained(batch)
                wanted = target[torch.from_numpy(own).to(device)]
                loss = label_loss(logits, wanted, top_of, config.hierarchy_weight, config.label_smoothing)
                loss = loss * part.weight
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                if config.clip:
                    nn.utils.clip_grad_norm_(network.parameters(), config.clip)
                optimizer.step()
                step += 1
                if running is not None:
                    _follow(running, network, min(config.ema, (1 + step) / (10 + step)))
                losses.append(float(loss.detach()))
                if part.weight:
                    predicted.append(logits.detach().argmax(dim=1).cpu().numpy())
                    seen.append(start + part.rows)
            share_buffers(fabric, network, *([] if running is None else [running]))
            learnt = order[: starts[-1] + config.batch]
            guessed = _gathered(predicted, seen, len(learnt))
            score = _validate(
                config, judged, inputs, target, held, top_of, log, fabric,
                stage=number + 1, epoch=epoch + 1, train_loss=mean_of_ranks(fabric, float(np.mean(losses))),
                train_macro_f1=macro_f1(label[learnt], guessed, n_labels),
            )  # fmt: skip
            if config.keep == "last" or score > best:
                _keep(judged, weights_path)
            best = max(best, score)
            after = (number, epoch + 1) if epoch + 1 < stage.epochs else (number + 1, 0)
            state = {
                "position": list(after),
                "step": step,
                "best": best,
                "network": network.state_dict(),
                "running": running.state_dict() if running is not None else None,
                "optimizer": optimizer.state_dict() if after[0] == number else None,
            }
            _save_state(state, state_path)
            if stop_asked(fabric, 0):
                raise Interrupted(f"{state_path}: stopped after epoch {epoch + 1}; continue with --resume")

    network.load_state_dict(load_file(weights_path, device=str(device)))
    said = score_rows(network, inputs, held, config.flip_test, config.precision, fabric)
    state_path.unlink(missing_ok=True)
    return said


class _Trained(nn.Module):
    """What a stage trains, as the module whose gradients the ranks share, and how it answers a batch."""

    def __init__(self, learning: nn.Module, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.learning = learning  # the head, or everything: DDP waits for every parameter that it knows
        self.answer = answer

    def forward(self, batch: Tensor) -> Tensor:
        return self.answer(batch)


def score_rows(
    network: ArtNetwork,
    inputs: Inputs,
    rows: NDArray[np.int64],
    flip_test: bool,
    precision: Precision = "float32",
    fabric: Fabric | None = None,
) -> NDArray[np.float64]:
    """Return the logits float64[rows, labels], averaged with those of the mirror images for `flip_test`.

    The ranks of the `fabric` share the batches, and each gets all answers.
    """
    network.eval()
    out = []
    mine = _evaluation_batches(len(rows), fabric)
    with torch.inference_mode(), autocast(next(network.parameters()).device, precision):
        for places in mine:
            some = rows[places]
            found = [
                network.head(network.upper(_lower(network, inputs, some, mirrored)))
                for mirrored in ((False, True) if flip_test else (False,))
            ]
            out.append(torch.stack(found).double().mean(dim=0).cpu().numpy())
    return _gathered(out, mine, len(rows))


def _evaluation_batches(n: int, fabric: Fabric | None) -> list[NDArray[np.int64]]:
    """The places that this rank evaluates, among n."""
    batches = [np.arange(start, min(start + EVALUATION_BATCH, n)) for start in range(0, n, EVALUATION_BATCH)]
    return batches if fabric is None else batches_of_rank(batches, fabric.global_rank, fabric.world_size)


def _gathered(parts: Sequence[NDArray[Any]], places: Sequence[NDArray[np.int64]], n: int) -> NDArray[Any]:
    """What all ranks found for their batches, in order."""
    values = np.concatenate(parts) if parts else np.zeros((0, 0))
    return gather_rows(values, np.concatenate([*places, np.zeros(0, np.int64)]), n)


def _lower(network: ArtNetwork, inputs: Inputs, rows: NDArray[np.int64], mirrored: bool = False) -> Tensor:
    batch = inputs.plain(rows, mirrored)
    return batch if isinstance(inputs, Maps) else network.lower(batch)


def _features(network: ArtNetwork, inputs: Inputs, rows: NDArray[np.int64], fabric: Fabric) -> NDArray[np.float32]:
    """What the head sees of images as they are, float32[rows, width]."""
    network.eval()
    mine = _evaluation_batches(len(rows), fabric)
    with torch.inference_mode():
        found = [network.upper(_lower(network, inputs, rows[places])).float().cpu().numpy() for places in mine]
    return _gathered(found, mine, len(rows))


def _trained_forward(network: ArtNetwork, batch: Tensor, head_only: bool) -> Tensor:
    """Logits in training; `batch` is the output of the frozen parts, which for none of them are the images."""
    if head_only:
        with torch.no_grad():
            features = network.upper(batch)
        logits: Tensor = network.head(features)
        return logits
    logits = network.head(network.upper(batch))
    return logits


def _validate(
    config: NetworkConfig,
    network: ArtNetwork,
    inputs: Inputs,
    target: Tensor,
    held: NDArray[np.int64],
    top_of: Tensor,
    log: Log,
    fabric: Fabric,
    **facts: Any,
) -> float:
    """Log the loss and macro F1 of the rows held out, not augmented, and return the latter."""
    logits = torch.from_numpy(score_rows(network, inputs, held, False, config.precision, fabric))
    wanted = target[torch.from_numpy(held).to(target.device)].cpu()
    loss = float(label_loss(logits, wanted, top_of.cpu(), config.hierarchy_weight, config.label_smoothing))
    score = macro_f1(wanted.numpy(), logits.argmax(dim=1).numpy(), len(top_of))
    log(**facts, valid_loss=loss, valid_macro_f1=score)
    return score


def _optimizer(stage: StageConfig, network: ArtNetwork) -> torch.optim.Optimizer:
    """AdamW or SGD over the head, or over every layer with rates that fall towards the input."""
    groups = []
    for depth, layer in enumerate(network.layers()):
        if depth and stage.trained == "head":
            break
        rate = stage.learning_rate * stage.layer_decay**depth
        for decay, chosen in (
            (stage.weight_decay, [p for p in layer if p.ndim > 1]),
            (0.0, [p for p in layer if p.ndim <= 1]),  # biases and norms are not decayed
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=stage.momentum)
    return torch.optim.AdamW(groups, lr=stage.learning_rate)


def _schedule(stage: StageConfig, step: int, steps: int) -> float:
    """The rate of a step as a share of the peak."""
    warm = stage.warmup_share * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if stage.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, steps - warm))))


def _follow(running: ArtNetwork, network: ArtNetwork, decay: float) -> None:
    """Move the running mean of the weights towards the weights; counters and other integers are copied."""
    with torch.no_grad():
        for mean, value in zip(running.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def _keep(network: ArtNetwork, path: Path) -> None:
    write_bytes(path, save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}))


def _save_state(state: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def _load_state(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read what `_save_state` wrote, without running code from the file.

    Raises:
        DataError: it was damaged since.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, but does not look at them when it reads
            torn = archive.testzip()
        if torn is not None:
            raise zipfile.BadZipFile(torn)
        state: dict[str, Any] = torch.load(io.BytesIO(path.read_bytes()), device, weights_only=True)
    except Exception as error:  # torch raises whatever the damaged place leads to
        raise DataError(
            f"{path}: cannot be read as a saved state ({type(error).__name__}); expected a whole file that training "
            "wrote; train again into another --run"
        ) from error
    return state


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, so that neighbouring epochs draw nothing alike."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
