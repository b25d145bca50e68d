"""SLURM's commands, and the script for sbatch; loads without submitit."""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from kit_cluster.config import SlurmConfig
from kit_cluster.run_notes import REFUSED, WISH
from kit_core.config import did_you_mean
from kit_core.errors import ConfigError

OFFLINE = "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1"


def check_slurm(slurm: SlurmConfig) -> None:
    """Look for SLURM and the partition.

    Raises:
        ConfigError: there is none.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "found no sbatch on PATH; submit from a login node of a SLURM cluster (--slurm.dry-run shows the script)"
        )
    known = run_slurm("sinfo", "--noheader", "--format=%R").split()
    if slurm.partition is not None and slurm.partition not in known:
        raise ConfigError(
            f"slurm.partition: found {slurm.partition!r}{did_you_mean(slurm.partition, known)}\n"
            f"  partitions: {', '.join(sorted(set(known))) or 'none'}"
        )


def run_slurm(*command: str) -> str:
    """Run one of SLURM's commands and return what it prints.

    Raises:
        ConfigError: the command is absent or fails; the message holds its output.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise ConfigError(f"found no {command[0]} on PATH; run this on a machine of the SLURM cluster") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{' '.join(command)}: no answer in 60 s; SLURM's controller may be down") from error
    if done.returncode:
        raise ConfigError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def queue() -> dict[str, tuple[str, str]]:
    """Return state and reason of every job that SLURM still knows, by number, or NUMBER_INDEX of an array."""
    states = {}
    for line in run_slurm("squeue", "--noheader", "--array", "--all", "--format=%i|%T|%r").splitlines():
        number, state, reason = [*line.strip().split("|", 2), "", ""][:3]
        states[number] = (state.lower(), "" if reason == "None" else reason)
    return states


def alive(notes: list[dict[str, Any]], states: dict[str, tuple[str, str]]) -> list[str]:
    """Return the numbers of the jobs that are queued or running, by the states that `queue` gave."""
    over = ("completed", "failed", "cancelled", "timeout", "node_fail", "out_of_memory", "preempted")
    return [note["id"] for note in notes if note["id"] in states and states[note["id"]][0] not in over]


def processes_of(slurm: SlurmConfig, config: Any) -> int:
    """Return the processes of each node: as asked for, or one for each GPU, or for each device of the configuration."""
    devices = config.fabric.devices if hasattr(config, "fabric") else 1
    return slurm.processes or max(slurm.gpus, devices)


def script_of(folder: Path, slurm: SlurmConfig, config: Any, n_jobs: int = 1) -> str:
    """Return the script for sbatch."""
    executor = executor_of(folder, slurm, config)
    if n_jobs > 1:
        executor.parameters["map_count"] = n_jobs
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    return text


def executor_of(folder: Path, slurm: SlurmConfig, config: Any) -> Any:
    """Return submitit's executor with everything that a job asks for; SLURM need not be here yet."""
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        """Needs no SLURM: `check_slurm` reports its absence, and a dry run works without it."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    wishes = {
        "job_name": folder.name.removesuffix(".slurm"),
        "partition": slurm.partition,
        "time": slurm.minutes,
        "nodes": slurm.nodes,
        "ntasks_per_node": processes_of(slurm, config),
        "cpus_per_task": slurm.cpus,
        "gpus_per_node": slurm.gpus or None,
        "mem": f"{slurm.memory_gb}GB" if slurm.memory_gb else None,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "signal_delay_s": slurm.signal_seconds,
        "setup": [OFFLINE, *slurm.setup],
        "teardown": queue_again(folder),
        # A rank that fails ends all of them; and srun does not take the number of cores over from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={slurm.cpus}"],
        "additional_parameters": {"requeue": True},
    }
    executor = Executor(folder, python=slurm.python)
    executor.update_parameters(**{name: wish for name, wish in wishes.items() if wish is not None})
    return executor


def queue_again(folder: Path) -> list[str]:
    """Return the end of the script: queue the job again where the run left the wish, and keep SLURM's refusal."""
    return [
        f"cd {shlex.quote(str(folder))}",
        'job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        f'if [ -e "$job{WISH}" ]; then',
        f'    rm "$job{WISH}"',
        f'    scontrol requeue "$job" 2> "$job{REFUSED}"',
        "fi",
    ]
