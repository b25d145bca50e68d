"""Folders, archives, tables, images and packs of sequences: checked when they are read, whole when they are written."""
