"""Decoding, mel, chroma and beat-synchronous spectra of music."""

from kit_audio.decode import SAMPLE_RATE, SUFFIXES, Audio, cut, decode, resample
from kit_audio.spectra import LabSpectra, ensure_compiled, lab_spectra, percussive_part, running_median

__all__ = [
    "SAMPLE_RATE",
    "SUFFIXES",
    "Audio",
    "LabSpectra",
    "cut",
    "decode",
    "ensure_compiled",
    "lab_spectra",
    "percussive_part",
    "resample",
    "running_median",
]
