"""NTUA Pattern Recognition lab 3: music genre and emotion from spectrograms."""
