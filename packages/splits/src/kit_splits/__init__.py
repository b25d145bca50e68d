"""Grouped and multilabel folds, near-duplicate groups, leak checks."""
