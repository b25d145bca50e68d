"""AI4Code: the order of notebook cells (Kaggle 2022)."""
