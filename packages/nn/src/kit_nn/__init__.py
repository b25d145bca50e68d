"""Masked pooling, set and sequence encoders, weight averaging."""
