"""The models without training labels: fixed rules, and placing by similarity alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from ai4code.config import TextConfig
from ai4code.decode import Placement
from ai4code.features import View
from ai4code.text import TextModel, fit_text_model


@dataclass(frozen=True)
class Rule:
    """`as-given`: all markdown behind the code, in json order; `middle`: all of it in the middle of the code."""

    kind: Literal["as-given", "middle"]

    @classmethod
    def fit(cls, kind: Literal["as-given", "middle"]) -> Self:
        """Nothing is learned."""
        return cls(kind)

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        placements = []
        for index in view.indices:
            n_code, n_markdown = view.n_code(index), int(view.table.notebooks.n_markdown[index])
            gap = n_code if self.kind == "as-given" else n_code // 2
            placements.append(Placement(np.full(n_markdown, float(gap))))
        return placements

    def save(self, folder: Path) -> None:
        """A rule has nothing to keep."""

    @classmethod
    def load(cls, folder: Path, kind: Literal["as-given", "middle"]) -> Self:
        """Make the rule again."""
        return cls(kind)


@dataclass(frozen=True)
class Similarity:
    """Each markdown cell goes right before the code cell that it resembles most (cosine; the earlier one if equal).

    The cosine of words may be mixed with that of character runs, which see through endings and typing errors.
    """

    characters: TextModel
    character_share: float

    @classmethod
    def fit(cls, view: View, config: TextConfig) -> Self:
        """Fit the document frequencies of character runs; those of words are part of the view."""
        if config.character_share == 0.0:
            return cls(TextModel.empty(), 0.0)
        counts, runs = view.table.characters
        use_idf = config.weighting == "tf-idf"
        characters = fit_text_model(counts, runs, view.rows, use_idf=use_idf, sublinear=use_idf)
        return cls(characters, config.character_share)

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        characters = None
        if self.character_share:
            characters = self.characters.transform(*view.table.characters)
        placements = []
        for index in view.indices:
            cells, n_code = view.table.cell_rows[index], view.n_code(index)
            code, markdown = cells[:n_code], cells[n_code:]
            if n_code == 0:
                placements.append(Placement(np.zeros(len(markdown))))
                continue
            cosine = (view.tfidf[markdown] @ view.tfidf[code].T).toarray()
            if characters is not None:
                of_runs = (characters[markdown] @ characters[code].T).toarray()
                cosine = (1.0 - self.character_share) * cosine + self.character_share * of_runs
            placements.append(Placement(cosine.argmax(axis=1).astype(np.float64)))
        return placements

    def save(self, folder: Path) -> None:
        """Write the frequencies of character runs, if they are used."""
        if self.character_share:
            self.characters.save(folder / "characters.safetensors")

    @classmethod
    def load(cls, folder: Path, config: TextConfig) -> Self:
        """Read what `save` wrote."""
        if config.character_share == 0.0:
            return cls(TextModel.empty(), 0.0)
        return cls(TextModel.load(folder / "characters.safetensors"), config.character_share)
