"""Tracks compared frame by frame: every frame votes for the tracks that hold a frame like it.

    matcher = FrameMatcher.fit(pack, rows)
    neighbours = matcher.rank(pack, rows, k=100)

The mean of a track's frames loses which frames it had. Here a frame of track A looks for its nearest frame in each
candidate track; the cosines, times `sharpness`, go through a softmax over the candidates, so that a frame that is alike
everywhere says nothing and a rare one that two tracks share says much. The votes of A for B are the mean over the
frames of A. The score of a pair is the sum of both logarithms, A for B and B for A. The order of frames is not used.

Candidates come from one vector a track: mean and standard deviation of its whitened frames, whitened once more.
Galleries of up to `candidates` + 1 tracks are compared as a whole. Labels are never used.

Source: Boiman, Shechtman and Irani, In Defense of Nearest-Neighbor Based Image Classification (2008), where descriptors
vote by their nearest; Khattab and Zaharia, ColBERT (2020), for the sum of maxima over two sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from kit_core.errors import DataError
from kit_io.ragged import RaggedPack
from kit_retrieval import Whitening, l2_normalise, top_k

Floats = NDArray[np.float32]
Int64 = NDArray[np.int64]

TRACKS_AT_ONCE = 512
POWER, SHRINKAGE = 0.5, 0.1  # of both whitenings, as in `whitened`
DIMENSIONS = 256  # of a candidate vector
LEAST_VOTE = 1e-6  # below this share two votes count as equal: the logarithm of zero is none
ROWS_AT_ONCE = 512  # of dense scores; of 41,000 tracks 84 MB


@dataclass(frozen=True, eq=False)
class FrameMatcher:
    """Whitening of frames and of candidate vectors, both learnt without labels."""

    frames: Whitening
    tracks: Whitening

    @staticmethod
    def fit(pack: RaggedPack, rows: Int64) -> "FrameMatcher":
        """Learn both whitenings from tracks, items `rows` of the pack."""
        count, total, squares = 0, np.zeros(pack.dim), np.zeros((pack.dim, pack.dim))
        for values, lengths in _batches(pack, rows):
            some = values[_real(lengths, values.shape[1])].astype(np.float64)
            count += len(some)
            total += some.sum(axis=0)
            squares += some.T @ some
        mean = total / count
        variances, directions = np.linalg.eigh(squares / count - np.outer(mean, mean))
        variances = np.maximum(variances, 0) + SHRINKAGE * variances.mean()
        projection = (directions * variances ** (-POWER / 2)) @ directions.T
        frames = Whitening(mean.astype(np.float32), projection.astype(np.float32))
        statistics = _statistics(frames, pack, rows)
        dimensions = min(DIMENSIONS, statistics.shape[1])
        return FrameMatcher(frames, Whitening.fit(statistics, power=POWER, shrinkage=SHRINKAGE, dimensions=dimensions))

    def embed(self, pack: RaggedPack, rows: Int64) -> Floats:
        """Candidate vectors float32[n, d] of tracks, at length 1.

        Raises:
            DataError: the tracks have another number of channels than those that were learnt from.
        """
        if pack.dim != len(self.frames.mean):
            raise DataError(
                f"found tracks of {pack.dim} channels, expected {len(self.frames.mean)} as in training\n"
                "  do: give data made by the same feature extractor, or train on these"
            )
        return l2_normalise(self.tracks.apply(_statistics(self.frames, pack, rows)))

    def rank(
        self,
        pack: RaggedPack,
        rows: Int64,
        k: int = 100,
        *,
        candidates: int = 1000,
        sharpness: float = 8.0,
        weights: Sequence[float] = (1.0,),
        device: str | torch.device = "cpu",
    ) -> Int64:
        """The `k` nearest of each track among these, itself left out, the best first: int64[n, k].

        Args:
            candidates: nearest tracks by vector with which a track is compared; cut to those that there are.
            weights: scores are averaged over a track and its nearest neighbours with these weights, on both sides;
                (1,): not smoothed.
        """
        vectors = self.embed(pack, rows)
        near = top_k(vectors, k=min(candidates, len(rows) - 1), device=device).indices
        pairs = _symmetric(near)
        flat = np.concatenate([self._apply(pack, row) for row in rows])
        votes = frame_votes(flat, pack.lengths[rows], pairs, sharpness, device)
        return nearest_by_scores(pair_scores(votes), k, weights)

    def _apply(self, pack: RaggedPack, row: int) -> Floats:
        return l2_normalise(self.frames.apply(pack.item(int(row))))

    def arrays(self) -> dict[str, Floats]:
        """What `restore` needs."""
        return {
            "frame_mean": self.frames.mean,
            "frame_projection": self.frames.projection,
            "track_mean": self.tracks.mean,
            "track_projection": self.tracks.projection,
        }

    @staticmethod
    def restore(arrays: Mapping[str, Floats]) -> "FrameMatcher":
        """The matcher that `arrays` came from."""
        return FrameMatcher(
            Whitening(arrays["frame_mean"], arrays["frame_projection"]),
            Whitening(arrays["track_mean"], arrays["track_projection"]),
        )


def frame_votes(
    frames: Floats, lengths: Int64, pairs: sparse.csr_array, sharpness: float, device: str | torch.device = "cpu"
) -> sparse.csr_array:
    """Votes of the frames of every track for its candidates, a sparse table [n, n] whose rows have the sum 1.

    Args:
        frames: float32[sum of lengths, d] at length 1, track after track.
        lengths: int64[n], frames of each track.
        pairs: [n, n], whose stored entries say which tracks each is compared with.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    on_device = torch.from_numpy(frames).to(device)
    votes = np.empty(pairs.nnz, dtype=np.float32)
    for i in range(len(lengths)):
        part = slice(pairs.indptr[i], pairs.indptr[i + 1])
        others = pairs.indices[part]
        sizes = lengths[others]
        if not len(others):
            continue
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = torch.from_numpy(np.repeat(starts[others], sizes) + within).to(on_device.device)
        cosines = on_device[places] @ on_device[starts[i] : ends[i]].T
        best = torch.segment_reduce(
            cosines, "max", lengths=torch.from_numpy(sizes).to(on_device.device), axis=0, unsafe=True
        )
        votes[part] = torch.softmax(sharpness * best, dim=0).mean(dim=1).cpu().numpy()
    return sparse.csr_array((votes, pairs.indices, pairs.indptr), shape=pairs.shape)


def pair_scores(votes: sparse.csr_array) -> sparse.csr_array:
    """Scores [n, n] of pairs, symmetric and above 0: the logarithms of both votes, above the lowest of all pairs."""
    logs = votes.copy()
    logs.data = np.log(np.maximum(logs.data, LEAST_VOTE)) - np.log(LEAST_VOTE)
    scores = (logs + logs.T).tocsr()
    if scores.nnz:
        scores.data -= scores.data.min() - np.float32(1e-6)
    return scores


def nearest_by_scores(scores: sparse.csr_array, k: int, weights: Sequence[float] = (1.0,)) -> Int64:
    """The `k` best of every row, itself left out, equal scores by index: int64[n, k].

    With several `weights` rows and columns are first averaged over a track (its score with itself is that with its
    nearest) and its nearest neighbours, as `kit_retrieval.smooth` does with vectors.
    """
    n = scores.shape[0]
    near = _best(scores.tocsr(), min(len(weights) - 1, n - 1) if len(weights) > 1 else 1, sparse.eye_array(n).tocsr())
    shares = np.asarray(weights[: near.shape[1] + 1] if len(weights) > 1 else weights, dtype=np.float32)
    shares = shares / shares.sum()
    columns = np.concatenate([np.arange(n)[:, None], near], axis=1)[:, : len(shares)]
    mixing = sparse.csr_array(
        (np.tile(shares, n), columns.reshape(-1), np.arange(0, n * len(shares) + 1, len(shares))), shape=(n, n)
    )
    own = scores.max(axis=1).toarray().reshape(-1)
    return _best((scores + sparse.diags_array(own)).tocsr(), k, mixing)


def _best(scores: sparse.csr_array, k: int, mixing: sparse.csr_array) -> Int64:
    """The `k` best columns of every row of mixing @ scores @ mixing.T, the row itself left out."""
    n = scores.shape[0]
    out = np.empty((n, k), dtype=np.int64)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, n))
        half = (mixing[rows] @ scores).toarray()
        dense = np.ascontiguousarray((mixing @ half.T).T)
        dense[np.arange(len(rows)), rows] = -np.inf
        out[rows] = np.argsort(-dense, axis=1, kind="stable")[:, :k]
    return out


def _symmetric(near: Int64) -> sparse.csr_array:
    """The pairs [n, n] of which at least one is among the neighbours int64[n, k] of the other."""
    n, k = near.shape
    one = sparse.csr_array(
        (np.ones(n * k, dtype=np.float32), near.reshape(-1), np.arange(0, n * k + 1, k)), shape=(n, n)
    )
    pairs = (one + one.T).tocsr()
    pairs.sort_indices()
    return pairs


def _statistics(frames: Whitening, pack: RaggedPack, rows: Int64) -> Floats:
    """Mean and standard deviation, float32[n, 2 channels], of whitened frames at length 1."""
    parts = []
    for values, lengths in _batches(pack, rows):
        real = _real(lengths, values.shape[1])
        unit = np.zeros(values.shape, dtype=np.float32)
        unit[real] = l2_normalise(frames.apply(values[real]))
        mean = unit.sum(axis=1, dtype=np.float64) / lengths[:, None]
        squares = np.square(unit).sum(axis=1, dtype=np.float64) / lengths[:, None]
        parts.append(np.concatenate([mean, np.sqrt(np.maximum(squares - mean**2, 0))], axis=1).astype(np.float32))
    return np.concatenate(parts)


def _batches(pack: RaggedPack, rows: Int64) -> Iterator[tuple[Floats, Int64]]:
    for start in range(0, len(rows), TRACKS_AT_ONCE):
        yield pack.gather(rows[start : start + TRACKS_AT_ONCE])


def _real(lengths: Int64, longest: int) -> NDArray[np.bool_]:
    real: NDArray[np.bool_] = np.arange(longest) < np.asarray(lengths)[:, None]
    return real
