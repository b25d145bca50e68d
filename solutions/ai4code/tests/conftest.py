"""What several files of tests share: a tiny checkpoint in Hugging Face's format, a sample, and trained runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ai4code.config import Config, DataConfig, NotebookConfig, SamplingConfig, TransformerConfig, TreesConfig
from ai4code.data import Notebooks, load
from ai4code.sample import write_sample
from kit_core.run import RunFolder

TREES = TreesConfig(rounds=10, leaves=7, smallest_leaf=5)
NETWORK = NotebookConfig(width=16, layers=1, heads=2, pair_width=4, epochs=1, order_epochs=1, batch_cells=200)
TEXT_ENCODER = TransformerConfig(
    vocab_size=300, width=16, layers=1, heads=2, markdown_tokens=8, code_tokens=8, contexts=4, shared_tokens=16,
    epochs=1,
)  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated sample of 20 notebooks in the official layout."""
    folder = tmp_path_factory.mktemp("ai4code") / "sample"
    write_sample(folder, notebooks=20)
    return folder


@pytest.fixture(scope="session")
def notebooks(data: Path) -> Notebooks:
    """The train split of `data`."""
    return load(data, "train", workers=1)


@pytest.fixture(scope="session")
def small(request: pytest.FixtureRequest) -> Callable[..., Config]:
    """Make a configuration small: two folds and the same tiny models whatever numbers it names.

    What decides which code runs is kept: members, tokenizer, start of the encoder, kind of vectors, weighting. So
    presets that differ in numbers only become equal.
    """

    def shrink(config: Config, **data: Any) -> Config:
        transformer = replace(
            TEXT_ENCODER,
            start=config.transformer.start,
            tokenizer=config.transformer.tokenizer,
            masked_epochs=min(config.transformer.masked_epochs, 1),
        )
        encoder = replace(config.encoder, tokens=12, precision="float32", folder=None)
        if config.reads_folder or transformer.start == "folder":
            encoder = replace(encoder, folder=request.getfixturevalue("tiny_encoder"))
        return replace(
            config,
            data=DataConfig(**({"folds": 2} | data)),
            text=replace(config.text, components=min(config.text.components, 4)),
            position=TREES,
            ranker=replace(TREES, rounds=9),
            gaps=replace(TREES, rounds=11),
            joint=replace(TREES, rounds=8),
            mlp=replace(config.mlp, epochs=1, width=16, blocks=1),
            encoder=encoder,
            listwise=NETWORK,
            text_listwise=replace(NETWORK, batch_cells=210),
            twin=replace(NETWORK, passes=1, batch_cells=190),
            diffusion=replace(NETWORK, passes=1, batch_cells=180),
            sampling=SamplingConfig(steps=2, samples=3),
            transformer=transformer,
        )

    return shrink


@pytest.fixture(scope="session")
def run_training() -> Callable[..., dict[str, Any]]:
    """Train a configuration into a new or, with `resume`, a stopped run folder; return the summary."""

    def run_training(config: Config, notebooks: Notebooks, path: Path, resume: bool = False) -> dict[str, Any]:
        from ai4code.train import train

        settings = {"preset": "x", "data_hashes": {}, "seed": config.seed}
        with RunFolder.create(path, config=config, resume=resume, **settings) as run:
            return train(config, notebooks, run)

    return run_training


@pytest.fixture(scope="session")
def trained(
    notebooks: Notebooks,
    small: Callable[..., Config],
    run_training: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Train a configuration, made small, once: equal ones share the finished run. Return its folder and summary."""
    runs: dict[Config, tuple[Path, dict[str, Any]]] = {}

    def trained(config: Config, **data: Any) -> tuple[Path, dict[str, Any]]:
        shrunk = small(config, **data)
        if shrunk not in runs:
            path = tmp_path_factory.mktemp("run") / "run"
            runs[shrunk] = path, run_training(shrunk, notebooks, path)
        return runs[shrunk]

    return trained


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers and 16 numbers with random weights, and a WordPiece tokenizer of letters and few words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789_#=().,:'\"[]"
    words = [*marks, *letters, *(f"##{letter}" for letter in letters), "import", "plot", "data", "model", "read"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, sep_token="[SEP]", mask_token="[MASK]")
    fast.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        network = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))
    network.save_pretrained(folder)
    return folder
