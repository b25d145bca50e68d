"""SLURM jobs, offline bundles, a shared store of models, and the collecting of results."""
