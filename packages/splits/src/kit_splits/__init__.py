"""Grouped folds and leak checks."""
