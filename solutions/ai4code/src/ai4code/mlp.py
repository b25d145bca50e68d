"""The neural ranker as a member: its training loop, its answers, its file.

The start is always fresh weights: a fold takes minutes, so a resumed run repeats an unfinished fold from its seed,
which gives the same bits as a run that was never stopped.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from ai4code.config import MlpConfig
from ai4code.decode import Placement
from ai4code.features import View
from ai4code.model import PositionMlp, build_model
from kit_core.atomic import write_bytes

FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Mlp:
    """Least absolute deviation of the relative place, weighted by the number of code cells, as in `Position`."""

    network: PositionMlp
    config: MlpConfig

    @classmethod
    def fit(cls, view: View, config: MlpConfig, seed: int, log: Callable[..., None] = lambda **values: None) -> Self:
        """Learn from the markdown cells of the view; `log(epoch=, loss=)` is called after each epoch."""
        n_code = np.repeat(view.table.notebooks.n_code[view.indices], np.diff(view.offsets))
        rows = view.is_markdown & (n_code > 0)
        features = torch.from_numpy(view.markdown_features[rows[view.is_markdown]])
        target = torch.from_numpy((view.true_gap[rows] / n_code[rows]).astype(np.float32))
        weight = torch.from_numpy((n_code[rows] / n_code[rows].mean()).astype(np.float32))

        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # weights and dropout draw from the global state, which is given back
            torch.manual_seed(seed)
            network = build_model(config, features.shape[1])
            network.standardise.fit(features)
            optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
            steps_per_epoch = -(-len(features) // config.batch)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, config.learning_rate, total_steps=config.epochs * steps_per_epoch, pct_start=0.1
            )
            network.train()
            for epoch in range(config.epochs):
                total = 0.0
                for batch in torch.randperm(len(features), generator=generator).split(config.batch):
                    error = (network(features[batch]) - target[batch]).abs()
                    loss = (weight[batch] * error).sum() / weight[batch].sum()
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    total += loss.item() * len(batch)
                log(epoch=epoch, loss=total / len(features))
        return cls(network.eval(), config)

    @torch.inference_mode()
    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        share = np.zeros(len(view.rows))
        share[view.is_markdown] = self.network(torch.from_numpy(view.markdown_features)).numpy()
        placements = []
        for index, start, stop in zip(view.indices, view.offsets[:-1], view.offsets[1:], strict=True):
            n_code = view.n_code(index)
            placements.append(Placement(share[start + n_code : stop] * n_code))
        return placements

    def save(self, folder: Path) -> None:
        """Write the weights; the header of the file holds what rebuilds the network."""
        header = {
            "format_version": FORMAT_VERSION,
            "config": asdict(self.config),
            "n_features": len(self.network.standardise.mean),
        }
        # One entry alone: safetensors writes several in a random order, and equal runs are to give equal files.
        metadata = {"ai4code": json.dumps(header)}
        write_bytes(folder / "mlp.safetensors", save(self.network.state_dict(), metadata=metadata))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is of another version of the program.
        """
        with safe_open(folder / "mlp.safetensors", framework="pt") as file:
            header = json.loads(file.metadata()["ai4code"])
            if header["format_version"] != FORMAT_VERSION:
                raise ValueError(
                    f"mlp.safetensors: found format_version {header['format_version']!r}, expected {FORMAT_VERSION!r}"
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        config = MlpConfig(**header["config"])
        network = build_model(config, header["n_features"])
        network.load_state_dict(weights)
        return cls(network.eval(), config)
