"""What to ask SLURM for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SlurmConfig:
    """What to ask SLURM for; `--submit slurm` uses it."""

    partition: str | None = None
    """None: the cluster's own choice."""
    minutes: int = 60
    """Time limit of one start; a run that needs longer is requeued and goes on."""
    nodes: int = 1
    gpus: int = 0
    """Of each node."""
    processes: int = 0
    """Ranks of each node; 0: one for each GPU, or for each of `fabric.devices`."""
    cpus: int = 2
    """Of each process."""
    memory_gb: int = 0
    """Of each node; 0: the partition's default."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that a node must have, in SLURM's words."""
    folds_apart: bool = False
    """Each fold is a job of its own, all of them one array; needs `data.fold` 'all', writes RUN/fold0, ..."""
    signal_seconds: int = 120
    """How long before the time limit the run is asked to save and stop."""
    requeues: int = 20
    """How often a stopped run is queued again."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run, such as 'module load cuda'."""
    python: str | None = None
    """What starts Python in the job, such as 'apptainer exec image.sif python'; None: this environment's."""
    submission: Path | None = None
    """Where to write the submission for --data when the training is done."""
    keep: int = 0
    """When the run is done: keep the weights of so many best runs beside it, and of the last one; 0: of all."""
    dry_run: bool = False
    """Print the script for sbatch and submit nothing."""

    def __post_init__(self) -> None:
        for name in ("minutes", "nodes", "cpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"slurm.{name}: found {getattr(self, name)}, expected 1 or more")
        for name in ("gpus", "processes", "memory_gb", "requeues", "keep", "signal_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"slurm.{name}: found {getattr(self, name)}, expected 0 or more")
        if self.signal_seconds >= 60 * self.minutes:
            raise ValueError(
                f"slurm.signal_seconds: found {self.signal_seconds}, expected less than the {self.minutes} minutes "
                "of the job"
            )
        if self.submission is not None and self.folds_apart:
            raise ValueError("slurm.submission: folds apart are several runs; give them to `infer` when all are done")
