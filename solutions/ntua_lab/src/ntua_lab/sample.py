"""A generated sample: synthesised music of several genres, run through `extract` into the official layout.

Every genre has its tempo, drums, chords and timbre, so that spectra, beats and pitch classes all tell something; the
emotion values of the multitask clips are functions of what was played. Deterministic: a seed gives the same bytes.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kit_audio import SAMPLE_RATE
from kit_core.atomic import atomic_dir, write_json
from kit_io.tables import read_csv, write_csv
from ntua_lab.config import AXES
from ntua_lab.data import COLUMNS, lab_mapping
from ntua_lab.extract import ANSWER_FORMAT, KNOWN_COLUMNS, extract_folder

CLIP_SECONDS = 6.0  # short, so that the sample is made in seconds; the lab's clips have 30
TRUTH = "multitask_test_truth.txt"
Wave = NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """How a genre is played. Loudness 0..1, tempo in beats per minute, steps are sixteenths of a bar of four beats."""

    tempo: tuple[float, float]
    lead: str  # saw, square, string or soft
    notes: tuple[int, ...]  # steps on which a chord or one of its notes sounds
    arpeggio: bool
    octave: int
    kick: tuple[int, ...] = ()
    snare: tuple[int, ...] = ()
    hat: tuple[int, ...] = ()
    bass: float = 0.3
    drums: float = 0.5
    drive: float = 1.0


EIGHTHS, QUARTERS = tuple(range(0, 16, 2)), tuple(range(0, 16, 4))
STYLES = {
    "Rock": Style((112, 134), "saw", EIGHTHS, False, 3, (0, 8), (4, 12), EIGHTHS, 0.4, 0.6, 4.0),
    "Psych-Rock": Style((96, 112), "saw", QUARTERS, False, 3, (0, 6, 8), (4, 12), EIGHTHS, 0.4, 0.5, 3.0),
    "Electronic": Style((122, 134), "saw", (2, 6, 10, 14), False, 4, QUARTERS, (4, 12), (2, 6, 10, 14), 0.5, 0.8),
    "Chiptune": Style((128, 150), "square", tuple(range(16)), True, 5, QUARTERS, (4, 12), (), 0.3, 0.3),
    "Classical": Style((60, 84), "soft", EIGHTHS, True, 4, bass=0.2, drums=0.0),
    "Hip-Hop": Style((80, 96), "soft", (0, 7), False, 3, (0, 5, 10), (4, 12), (3, 7, 11, 15), 0.9, 0.9),
    "Folk": Style((88, 112), "string", EIGHTHS, True, 4, bass=0.1, drums=0.0),
    "Old-Time": Style((100, 120), "string", QUARTERS, False, 4, bass=0.0, drums=0.0),
}
SEMITONES = {"major": (0, 4, 7), "minor": (0, 3, 7)}
PROGRESSIONS = ((0, 5, 7, 0), (0, 9, 5, 7), (0, 7, 9, 5))


def write_sample(out: Path, clips: int = 72, seed: int = 0, workers: int = 1) -> str:
    """Synthesise `clips` pieces, two thirds for genre and one third for emotion, and extract them into `out`.

    A quarter of each is the test part; the emotion answers of the test part lie in `multitask_test_truth.txt`, and a
    piece of each class in `songs`, for `predict`.

    Raises:
        ConfigError: `out` exists and is not empty.
    """
    rng = np.random.default_rng(seed)
    genres = sorted(STYLES)
    n_genre = max(len(genres) * 2, clips * 2 // 3)
    n_emotion = max(8, clips - n_genre)
    with atomic_dir(out) as folder, tempfile.TemporaryDirectory(prefix="ntua-lab-") as scratch:
        audio = Path(scratch, "audio")
        audio.mkdir()
        rows, hidden = [], {}
        for number in range(n_genre + n_emotion):
            genre = genres[number % len(genres)]
            style, mode = STYLES[genre], str(rng.choice(["major", "minor"]))
            emotion: tuple[float, ...] | None = None
            if number >= n_genre:
                style, emotion = _feeling(style, mode, rng)
            tempo = float(rng.uniform(*style.tempo))
            wave = play(style, tempo, mode, int(rng.integers(12)), rng)
            split = "test" if number % 4 == 3 - (number // 8) % 4 else "train"  # moves on, so that no genre is left out
            name = f"{number:03d}.flac" if number % 5 else f"{number:03d}.wav"
            soundfile.write(audio / name, wave, SAMPLE_RATE)
            values: tuple[str, ...] = ("", "", "")
            if emotion is not None:
                values = tuple(map(ANSWER_FORMAT.format, emotion))
                hidden[name] = values
                if split == "test":
                    values = ("", "", "")
            rows.append((name, split, genre if emotion is None else "", *values, f"artist {number // 2}"))
        labels = Path(scratch, "labels.csv")
        write_csv(labels, KNOWN_COLUMNS, rows)
        said = extract_folder(audio, folder, labels=labels, clip_seconds=CLIP_SECONDS, workers=workers)
        (folder / "songs").mkdir()
        for number, genre in enumerate(genres):
            wave = play(
                STYLES[genre], float(np.mean(STYLES[genre].tempo)), "minor", number, np.random.default_rng(seed)
            )
            soundfile.write(folder / "songs" / f"{genre.lower()}.flac", wave, SAMPLE_RATE)
        mapping = {raw: name for raw, name in lab_mapping().items() if raw in STYLES}
        # Without a mapping of its own, the classes that are not played would count as 0.
        write_json(folder / "class_mapping.json", mapping)
        table = read_csv(folder / "clips.csv", None, _header(folder / "clips.csv"))
        answers = [
            (id_, *hidden[file])
            for id_, set_, split, file in zip(table["id"], table["set"], table["split"], table["track"], strict=True)
            if set_ == "emotion" and split == "test"
        ]
        write_csv(folder / TRUTH, COLUMNS["emotion"], answers)
    return f"{out}{said.removeprefix(str(folder))}"


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().split(",")


def _feeling(style: Style, mode: str, rng: np.random.Generator) -> tuple[Style, tuple[float, ...]]:
    """Vary a style and say what it feels like: valence, energy and danceability in 0..1."""
    drums, drive = float(rng.uniform(0.0, 1.0)), float(rng.uniform(0.6, 5.0))
    tempo = float(rng.uniform(70, 150))
    changed = replace(style, drums=drums, drive=drive, tempo=(tempo, tempo), kick=QUARTERS, snare=(4, 12), hat=EIGHTHS)
    bright = (drive - 0.6) / 4.4
    noise = rng.normal(0.0, 0.04, len(AXES))
    valence = 0.15 + 0.45 * (mode == "major") + 0.3 * (tempo - 70) / 80
    energy = 0.1 + 0.5 * drums + 0.35 * bright
    danceability = 0.15 + 0.6 * drums + 0.25 * (1 - abs(tempo - 120) / 50)
    values = np.clip(np.array([valence, energy, danceability]) + noise, 0.0, 1.0)
    return changed, tuple(values.tolist())


def play(style: Style, tempo: float, mode: str, key: int, rng: np.random.Generator) -> Wave:
    """Return a piece of music as long as a clip, float64[samples] in −1..1."""
    samples = round(CLIP_SECONDS * SAMPLE_RATE)
    step = 60.0 / tempo / 4.0
    melody, low, drums = np.zeros(samples), np.zeros(samples), np.zeros(samples)
    progression = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))]
    for number in range(int(CLIP_SECONDS / step) + 1):
        bar, place = divmod(number, 16)
        root = 12 * (style.octave + 1) + key + progression[bar % 4]
        chord = [root + interval for interval in SEMITONES[mode]]
        late = rng.normal(0.0, 0.004)  # nobody plays exactly
        at = max(0, round((number * step + late) * SAMPLE_RATE))
        if place in style.notes:
            sounding = [chord[int(rng.integers(3))] + 12 * int(rng.integers(2))] if style.arpeggio else chord
            length = step * (1.8 if style.arpeggio else 3.0)
            for pitch in sounding:
                _add(melody, at, VOICES[style.lead](_hertz(pitch), length) * rng.uniform(0.8, 1.0))
        if place % 8 == 0 and style.bass:
            _add(low, at, _soft(_hertz(root - 24), 6 * step))
        for steps, voice in ((style.kick, _kick), (style.snare, _snare), (style.hat, _hat)):
            if place in steps and style.drums:
                _add(drums, at, voice(rng))
    melody = np.tanh(style.drive * melody / max(1e-9, np.abs(melody).max()))
    mix = 0.6 * melody + style.bass * low / max(1e-9, np.abs(low).max())
    mix = mix + style.drums * drums / max(1e-9, np.abs(drums).max())
    mix = mix + 0.001 * rng.standard_normal(samples)
    return 0.8 * mix / np.abs(mix).max()


def _add(track: Wave, at: int, wave: Wave) -> None:
    stop = min(len(track), at + len(wave))
    if stop > at:
        track[at:stop] += wave[: stop - at]


def _hertz(pitch: float) -> float:
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def _time(seconds: float) -> Wave:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _partials(hertz: float, seconds: float, strengths: list[float]) -> Wave:
    time = _time(seconds)
    sound = np.zeros(len(time))
    for number, strength in enumerate(strengths, start=1):
        if number * hertz < 0.45 * SAMPLE_RATE:
            sound += strength * np.sin(2 * np.pi * number * hertz * time)
    return sound


def _fade(wave: Wave, rise: float) -> Wave:
    time = np.arange(len(wave)) / SAMPLE_RATE
    return wave * np.minimum(1.0, time / rise) * np.minimum(1.0, time[::-1] / 0.02)


def _saw(hertz: float, seconds: float) -> Wave:
    return _fade(_partials(hertz, seconds, [1 / k for k in range(1, 13)]), 0.005)


def _square(hertz: float, seconds: float) -> Wave:
    return _fade(_partials(hertz, seconds, [1 / k if k % 2 else 0.0 for k in range(1, 16)]), 0.002)


def _string(hertz: float, seconds: float) -> Wave:
    wave = _partials(hertz, seconds, [0.9**k / k for k in range(1, 9)])
    return _fade(wave * np.exp(-5.0 * _time(seconds)), 0.002)


def _soft(hertz: float, seconds: float) -> Wave:
    return _fade(_partials(hertz, seconds, [1.0, 0.2, 0.05]), 0.06)


def _kick(rng: np.random.Generator) -> Wave:
    time = _time(0.25)
    return np.sin(2 * np.pi * (50 * time + 30 * (1 - np.exp(-30 * time)) / 30)) * np.exp(-14 * time)


def _snare(rng: np.random.Generator) -> Wave:
    time = _time(0.18)
    return (0.7 * rng.standard_normal(len(time)) + 0.4 * np.sin(2 * np.pi * 190 * time)) * np.exp(-22 * time)


def _hat(rng: np.random.Generator) -> Wave:
    time = _time(0.06)
    noise = rng.standard_normal(len(time) + 1)
    return 0.35 * np.diff(noise) * np.exp(-70 * time)


VOICES: dict[str, Callable[[float, float], Wave]] = {"saw": _saw, "square": _square, "string": _string, "soft": _soft}
