"""One track → the nearest tracks of a gallery, for a person."""

from pathlib import Path

import numpy as np

from kit_core.console import render_table
from kit_core.errors import ConfigError, DataError
from kit_io.ragged import RaggedPack
from kit_retrieval import l2_normalise, top_k
from yandex_artists.data import Tracks, read_track
from yandex_artists.runs import Encoder


def nearest(file: Path, encoder: Encoder, gallery: Tracks, top: int) -> list[tuple[int, float]]:
    """Track id and cosine of the `top` tracks of the gallery that are nearest to a file of features [C, T].

    Nothing but the two vectors decides about a pair: what a submission does with all queries at once (expansion,
    normalisation by a cohort) is left out, so that the same file gets the same answer in any company.

    Raises:
        ConfigError: `top` is below 1 or above the number of tracks.
        DataError: the file is no track, or one of another extractor than the gallery's.
    """
    if not 1 <= top <= len(gallery):
        raise ConfigError(f"top: found {top}, expected 1 .. {len(gallery)}, the tracks of the gallery")
    frames = read_track(file).T
    if frames.shape[1] != gallery.channels:
        hint = "; is it transposed? A file has channels before frames" if len(frames) == gallery.channels else ""
        raise DataError(
            f"{file}: found {frames.shape[1]} channels and {len(frames)} frames{hint}\n"
            f"  expected: {gallery.channels} channels, as in the gallery\n  do: use the same feature extractor"
        )
    one = RaggedPack.from_items([np.ascontiguousarray(frames, dtype=np.float32)])
    query = l2_normalise(encoder.embed(one, np.zeros(1, dtype=np.int64)))
    found = top_k(query, l2_normalise(encoder.embed(gallery.pack, gallery.rows)), top)
    return [(gallery.ids[i], float(s)) for i, s in zip(found.indices[0].tolist(), found.scores[0], strict=True)]


def nearest_text(found: list[tuple[int, float]], gallery: Tracks) -> str:
    """Render the answer as a table, with the artists where the gallery knows them."""
    row_of = {track: row for row, track in enumerate(gallery.ids)}
    rows = []
    for place, (track, similarity) in enumerate(found, start=1):
        row = [str(place), str(track), f"{similarity:.4f}"]
        if gallery.artists is not None and gallery.artist_ids is not None:
            row.append(str(gallery.artist_ids[gallery.artists[row_of[track]]]))
        rows.append(row)
    return render_table(["place", "track", "similarity", "artist"][: len(rows[0])], rows)
