"""Sound to spectra beside plain librosa calls, an epoch from the pack beside npy.gz files, and the CNN's training step.

    python benchmarks/bench_audio.py

takes about two minutes on an idle machine and prints a Markdown table. The music is synthesised: 30 seconds a clip. The
plain loop computes what the lab's features need by one librosa call each, file by file; ours is `ntua_lab.extract` with
one process, so the gain is that of the work itself, and more workers add to it. Before anything counts, both must agree
within `TOLERANCE` dB or shares in every value. The epoch reads each clip once as float32 [frames, 140]; the files hold
what `extract` wrote, unrounded. The two sides are measured in turn. The training step has no
promise: what bfloat16 gives depends on the processor.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
import soundfile
import torch
from timing import in_turn

from kit_audio import SAMPLE_RATE, decode, lab_spectra
from ntua_lab.config import InputConfig, NetworkConfig
from ntua_lab.data import load, prepare, read_array
from ntua_lab.extract import extract_folder
from ntua_lab.model import build_network

FILES = 4
SECONDS = 30
REPEATS = 3
BATCH = 16
TOLERANCE = 1e-3  # dB of mel, shares of chroma
REQUIRED_EXTRACT = 1.8
REQUIRED_EPOCH = 10.0


def run() -> list[dict[str, Any]]:
    """One row a case: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        songs = root / "songs"
        _write_songs(songs)
        difference = max(_difference(path) for path in sorted(songs.iterdir()))
        assert difference <= TOLERANCE, f"the two differ by up to {difference:.2g}"
        outs = iter([root / f"out {number}" for number in range(REPEATS)])
        rows = [
            in_turn(
                f"extract, {FILES} files of {SECONDS} s, one process (largest difference {difference:.1g})",
                lambda: extract_folder(songs, next(outs), workers=1),
                "plain librosa calls, file by file",
                lambda: _plain_folder(songs, root / "plain"),
                required=REQUIRED_EXTRACT,
                repeats=REPEATS,
            )
        ]
        data = root / "out 0"
        prepare(data, root / "packed")
        clips = load(root / "packed")
        files = sorted((data / "multitask_dataset" / "test").iterdir())
        rows.append(
            in_turn(
                f"an epoch of {len(files)} clips of {SECONDS} s from the pack",
                lambda: [clips.packs["full"].item(i) for i in range(len(files))],
                "gzip and numpy.load at each access",
                lambda: [read_array(path.read_bytes(), path.name) for path in files],
                required=REQUIRED_EPOCH,
                repeats=REPEATS,
            )
        )
    for name, bfloat16 in (("channels_last", False), ("channels_last and bfloat16", True)):
        rows.append(
            in_turn(
                f"training step of the lab's CNN, {BATCH} windows of 3 s, {name}",
                _step(True, bfloat16),
                "the same, eager float32 in the default layout",
                _step(False, False),
                required=None,
                repeats=REPEATS,
            )
        )
    return rows


def _plain(samples: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Both versions of a clip by one librosa call for each quantity."""
    mel = librosa.feature.melspectrogram(y=samples, sr=SAMPLE_RATE)
    chroma = librosa.feature.chroma_cqt(y=samples, sr=SAMPLE_RATE)
    _, percussive = librosa.effects.hpss(samples)
    _, beats = librosa.beat.beat_track(y=percussive, sr=SAMPLE_RATE)
    between = [librosa.util.sync(rows, beats.tolist(), aggregate=np.median) for rows in (mel, chroma)]
    full = np.concatenate([librosa.power_to_db(mel, ref=np.max), chroma])
    return full, np.concatenate([librosa.power_to_db(between[0], ref=np.max), between[1]])


def _plain_folder(songs: Path, out: Path) -> None:
    """What everybody writes; plain .npy files, so that no time goes into compression."""
    out.mkdir(exist_ok=True)
    for path in sorted(songs.iterdir()):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = librosa.resample(samples.mean(axis=1), orig_sr=rate, target_sr=SAMPLE_RATE)
        for name, array in zip(("full", "beat"), _plain(mono), strict=True):
            np.save(out / f"{path.stem}-{name}.npy", array)


def _difference(path: Path) -> float:
    samples = decode(path).samples
    ours = lab_spectra(samples)
    full, beat = _plain(samples)
    return float(max(np.abs(ours.full - full).max(), np.abs(ours.beat - beat).max()))


def _write_songs(folder: Path) -> None:
    """Chords, a beat and noise, in stereo at 44.1 kHz."""
    folder.mkdir()
    time = np.arange(SECONDS * 44_100) / 44_100
    for number in range(FILES):
        rng = np.random.default_rng(number)
        chord = sum(np.sin(2 * np.pi * 220 * 2 ** ((number + step) / 12) * time) for step in (0, 4, 7))
        drum = rng.standard_normal(len(time)) * np.exp(-30 * (time % (60 / (90 + 15 * number))))
        sound = 0.1 * chord + 0.2 * drum
        soundfile.write(folder / f"{number}.wav", np.stack([sound, 0.8 * sound], axis=1), 44_100)


def _step(channels_last: bool, bfloat16: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    settings = NetworkConfig(kind="cnn", pooling="mean-max")
    network = build_network(settings, InputConfig(chunk=129), {"genre": 10}).train()
    blocks = network.backbone
    if not channels_last:
        blocks.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # absent from the stubs of torch
    x, mask = torch.randn(BATCH, 129, 128), torch.zeros(BATCH, 129, dtype=torch.bool)
    optimizer = torch.optim.AdamW(network.parameters())
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def step() -> None:
        blocks.layout = layout  # type: ignore[assignment]  # a plain attribute
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = network(x, mask)["genre"].float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step()
    return step


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
