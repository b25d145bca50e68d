"""The warm-up without labels: what it must teach, and what it must leave alone."""

import math

import numpy as np
import pytest
import torch

from ntua_lab.config import Config, InputConfig, NetworkConfig, TrainConfig
from ntua_lab.inputs import Inputs, of_arrays
from ntua_lab.model import Network, build_network
from ntua_lab.warmup import warm_up

CLIPS, CHUNK = 16, 16
SETTINGS = TrainConfig(warm_up=12, batch=CLIPS, learning_rate=1e-2, schedule="cosine")


def clips() -> Inputs:
    """Clips that differ in which eight bands are a little louder, beneath noise of the same size."""
    rng = np.random.default_rng(0)
    arrays = []
    for number in range(CLIPS):
        array = rng.standard_normal((140, 90)).astype(np.float32)
        array[8 * number % 128 : 8 * number % 128 + 8] += 1.0
        arrays.append(array)
    return of_arrays(arrays, InputConfig(chunk=CHUNK))


def network() -> Network:
    torch.manual_seed(3)
    settings = NetworkConfig(kind="cnn", channels=(8, 8), pooling="mean-max")
    return build_network(settings, InputConfig(chunk=CHUNK), {"genre": 4, "energy": 1})


def found(net: Network, inputs: Inputs) -> float:
    """The share of windows whose nearest other window is of the same clip."""
    net.eval()
    x, mask, owner = inputs.covering(np.arange(CLIPS))
    with torch.no_grad():
        z = torch.nn.functional.normalize(net.backbone(net.standardise(x, mask), mask))
    similarity = (z @ z.T).fill_diagonal_(-2)
    return float((owner[similarity.argmax(dim=1)] == owner).float().mean())


def test_windows_of_one_clip_come_together_and_heads_stay() -> None:
    inputs, net = clips(), network()
    heads = {key: value.clone() for key, value in net.heads.state_dict().items()}
    before = found(net, inputs)
    losses = warm_up(net, inputs, np.arange(CLIPS), SETTINGS, 128, seed=1)
    assert len(losses) == SETTINGS.warm_up
    # Embeddings that all coincide, the collapse to watch for, have a loss of log(2b − 1); so far down is no collapse.
    assert losses[-1] < 0.5 * math.log(2 * CLIPS - 1)
    assert found(net, inputs) > max(0.9, before)
    for key, value in net.heads.state_dict().items():
        torch.testing.assert_close(value, heads[key], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_bits() -> None:
    one, two, other = network(), network(), network()
    for net, seed in ((one, 1), (two, 1), (other, 2)):
        warm_up(net, clips(), np.arange(CLIPS), TrainConfig(warm_up=1, batch=8), 128, seed=seed)
    states = [net.backbone.state_dict() for net in (one, two, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"train": TrainConfig(warm_up=3)},
        {"train": TrainConfig(warm_up=-1), "input": InputConfig(chunk=32)},
        {"train": TrainConfig(warm_up=3), "input": InputConfig(chunk=32), "transfer": True},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"train\.warm_up"):
        Config(**settings)  # type: ignore[arg-type]  # each value fits its field
