"""Yandex Cup 2022: tracks of the same artist by metric learning."""
