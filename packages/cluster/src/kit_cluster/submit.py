"""`train ... --submit slurm`: the same command, handed to SLURM; loads without submitit, for the sake of `--help`."""

import dataclasses
import functools
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from tyro.conf import arg

from kit_cluster.results import copy_results
from kit_core.atomic import write_json
from kit_core.config import did_you_mean
from kit_core.console import say
from kit_core.errors import ConfigError

NOTES = "job.json"  # of the folder RUN.slurm: which jobs were submitted for a run
WISH = ".requeue"  # JOB.requeue: the run saved and may be queued again
REFUSED = ".refused"  # JOB.refused: SLURM would not
OFFLINE = "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1"


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


SUBMIT = "queue the run in a cluster, with what --slurm.* says, in place of training here"
RESULTS = "a folder for RUN.tar: the results, when the run ends or is stopped"
ADDED = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("submit", None, Annotated[Literal["slurm"] | None, arg(help=SUBMIT)]),
        ("slurm", SlurmConfig(), SlurmConfig),
        ("results_dir", None, Annotated[Path | None, arg(help=RESULTS)]),
    )
)


@dataclass(frozen=True)
class Part:
    """One job: what it fits, where to, and the fold that it leaves out (None: what the configuration says)."""

    config: Any
    run: Path
    fold: int | None


def submittable(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb `train(preset, config, data, run, resume, ...)` the flags --submit, --slurm.* and --results-dir.

    Without --submit the verb runs here. With it a job is queued that calls the verb with the same values, resumes what
    an earlier start left, and is queued again when SLURM stops it. When the run ends or is stopped, its results are
    copied into --results-dir.
    """

    @functools.wraps(verb)
    def train(
        *,
        submit: Literal["slurm"] | None = None,
        slurm: SlurmConfig = SlurmConfig(),
        results_dir: Path | None = None,
        **values: Any,
    ) -> None:
        if submit is not None:
            submit_to_slurm(verb, values, slurm, results_dir)
            return
        if slurm != SlurmConfig():
            raise ConfigError("found --slurm flags without --submit slurm; add it, or leave them out")
        with _results_copied(values["run"], results_dir):
            verb(**values)

    theirs = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in inspect.signature(verb).parameters.values()]
    train.__signature__ = inspect.Signature([*theirs, *ADDED])  # type: ignore[attr-defined]  # read by inspect.signature
    train.__annotations__ = get_type_hints(verb, include_extras=True) | {one.name: one.annotation for one in ADDED}
    return train


def submit_to_slurm(
    verb: Callable[..., None], values: Mapping[str, Any], slurm: SlurmConfig, results_dir: Path | None
) -> None:
    """Queue a run, or print the script with `dry_run`.

    Raises:
        ConfigError: several processes for a training in one; SLURM is not here, has no such partition or refuses the
            job; the run folder is in use, or not empty without `resume`; or the folds cannot be told apart.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from kit_cluster.job import TrainJob

    run = values["run"].absolute()
    processes = slurm.nodes * processes_of(slurm, values["config"])
    if processes > 1 and not getattr(verb, "shares_work", False):
        raise ConfigError(
            f"slurm: found {processes} processes ({slurm.nodes} nodes, {slurm.gpus} gpus each), but this solution "
            "trains in one; ask for 1 node and at most 1 gpu, and let folds run beside each other: --slurm.folds-apart"
        )
    if processes > 1:
        check_shared(values["config"], processes)
    parts = split_folds(values["config"], run) if slurm.folds_apart else [Part(values["config"], run, None)]
    folder = notes_folder(run)
    name = f"{verb.__module__}:{verb.__qualname__}"
    where = None if results_dir is None else results_dir.absolute()
    absolute = {key: value.absolute() if isinstance(value, Path) else value for key, value in values.items()}
    jobs = [
        TrainJob(name, absolute | {"config": part.config, "run": part.run, "resume": True}, own_argv(), slurm, where)
        for part in parts
    ]
    if slurm.dry_run:
        print(script_of(folder, slurm, values["config"], len(jobs)))
        return
    check_slurm(slurm)
    _check_place(run, parts, resume=values.get("resume", False))
    executor = executor_of(folder, slurm, values["config"])
    try:
        if len(jobs) > 1:
            with executor.batch():
                queued = [executor.submit(job) for job in jobs]
        else:
            queued = [executor.submit(jobs[0])]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
        raise ConfigError(f"sbatch did not take the job: {error}") from error
    entries: list[dict[str, Any]] = [
        {"id": str(one.job_id), "run": str(part.run), "fold": part.fold}
        for one, part in zip(queued, parts, strict=True)
    ]
    submitted = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / NOTES, {"jobs": entries, "argv": sys.argv, "submitted": submitted})
    program = verb.__module__.partition(".")[0].replace("_", "-")
    say(f"submitted: {', '.join(str(one.job_id) for one in queued)}; logs in {folder}")
    say(f"next: {program} job status --run {values['run']}")


def check_shared(config: Any, processes: int) -> None:
    """Ask the configuration whether it knows what several processes would share, before a queue is waited for.

    Raises:
        ConfigError: it does not, in its own words.
    """
    try:
        dataclasses.replace(config, fabric=dataclasses.replace(config.fabric, devices=processes))
    except ValueError as error:
        raise ConfigError(f"slurm: found {processes} processes, but this preset trains in one: {error}") from error


def split_folds(config: Any, run: Path) -> list[Part]:
    """Return one part for each fold of a configuration that asks for all of them.

    Raises:
        ConfigError: it does not ask for all folds, or refuses to fit one alone.
    """
    data = config.data
    n_folds = getattr(data, "n_folds", None) or data.folds
    if data.fold != "all":
        raise ConfigError(f"slurm.folds_apart: found data.fold {data.fold!r}, expected 'all'")
    try:
        return [
            Part(dataclasses.replace(config, data=dataclasses.replace(data, fold=fold)), run / f"fold{fold}", fold)
            for fold in range(n_folds)
        ]
    except ValueError as error:
        raise ConfigError(f"slurm.folds_apart: this preset does not fit one fold alone: {error}") from error


def notes_folder(run: Path) -> Path:
    """Return RUN.slurm: logs of the jobs of a run, and what was submitted."""
    return run.absolute().with_name(f"{run.name}.slurm")


def executor_of(folder: Path, slurm: SlurmConfig, config: Any) -> Any:
    """Return submitit's executor with everything that a job asks for; SLURM need not be here yet."""
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        """SLURM's absence is told by `check_slurm`, in our words, and does not matter to a dry run."""

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
        ConfigError: the command is absent or fails; its words are told.
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


def own_argv() -> list[str]:
    """Return this process's command without the flags of submission: what the job is, said as a local command."""
    words, dropping = [], False
    for word in sys.argv:
        if word.startswith("--"):
            dropping = word.partition("=")[0] == "--submit" or word.startswith("--slurm.")
        if not dropping:
            words.append(word)
    return words


def _check_place(run: Path, parts: list[Part], *, resume: bool) -> None:
    from kit_cluster.jobs import alive, queue, read_notes

    if (notes_folder(run) / NOTES).exists() and (running := alive(read_notes(run), queue())):
        raise ConfigError(f"{run}: job {', '.join(running)} works on it already; wait, or `job cancel --run {run}`")
    for part in parts:
        if part.run.exists() and not part.run.is_dir():
            raise ConfigError(f"{part.run}: is a file; name another --run")
        if not resume and part.run.exists() and any(path.name != ".lock" for path in part.run.iterdir()):
            raise ConfigError(
                f"{part.run}: is not empty; add --resume to go on with the run in it, or name another --run"
            )
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{run}: its folder cannot be made: {error.strerror}") from error
    if not os.access(run.parent, os.W_OK):
        raise ConfigError(f"{run}: the folder {run.parent} cannot be written; name another --run")


@contextmanager
def _results_copied(run: Path, results_dir: Path | None) -> Iterator[None]:
    """Copy the results when the block ends, also by an error; ranks above 0 leave that to rank 0."""
    try:
        yield
    finally:
        if results_dir is not None and os.environ.get("RANK", "0") == "0" and run.exists():
            copy_results(run, results_dir)


def read_json(path: Path) -> Any:
    """Read a file that this package wrote.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged: {error}; remove it") from error
