"""`train ... --submit slurm`: the same command, handed to SLURM; loads without submitit, for the sake of `--help`."""

import dataclasses
import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from tyro.conf import arg

from kit_cluster.config import SlurmConfig
from kit_cluster.job import TrainJob
from kit_cluster.results import copy_results
from kit_cluster.run_notes import NOTES, notes_folder, read_notes
from kit_cluster.slurm import alive, check_slurm, executor_of, processes_of, queue, script_of
from kit_core.atomic import write_json
from kit_core.console import say
from kit_core.errors import ConfigError

DEFAULTS = SlurmConfig()
SUBMIT = "queue the run in a cluster, with what --slurm.* says, in place of training here"
RESULTS = "a folder for RUN.tar: the results, when the run ends or is stopped"
ADDED = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("submit", None, Annotated[Literal["slurm"] | None, arg(help=SUBMIT)]),
        ("slurm", DEFAULTS, SlurmConfig),
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
        slurm: SlurmConfig = DEFAULTS,
        results_dir: Path | None = None,
        **values: Any,
    ) -> None:
        if submit is not None:
            submit_to_slurm(verb, values, slurm, results_dir)
            return
        if slurm != DEFAULTS:
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
