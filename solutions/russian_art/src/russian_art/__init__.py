"""Russian art: 35 two-level classes from photos (Russian Art ML Challenge 2024)."""
