"""Yandex Cup 2023: 256 music tags from track embeddings."""
