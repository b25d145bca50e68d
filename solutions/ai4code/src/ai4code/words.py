"""Where words come from: the house splitting, or a tokenizer trained by `ai4code tokenizer train`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ai4code.text import Words, WordSource, analyze
from ai4code.tokenizer import load_tokenizer, token_analyzer


def word_source(tokenizer: Path | None) -> WordSource:
    """Return the function from texts to words that a configuration asks for.

    Raises:
        DataError: the tokenizer's file is missing, damaged or not ours.
    """
    if tokenizer is None:
        return analyze
    trained, _ = load_tokenizer(tokenizer)
    return lambda texts: _tokens(trained, texts)


def _tokens(tokenizer: Tokenizer, texts: pa.Array) -> Words:
    codes, offsets = token_analyzer(tokenizer)(texts.to_pylist())
    names = [tokenizer.id_to_token(code) for code in range(tokenizer.get_vocab_size())]
    return Words(codes.astype(np.int64), offsets, pa.array(names, pa.string()))
