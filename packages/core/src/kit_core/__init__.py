"""Errors, run folders, manifests, seeding, console, presets and command-line glue."""
