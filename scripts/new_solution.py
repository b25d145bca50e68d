"""Begin a sixth solution: a small complete one from the template, registered where machines look for it.

    python scripts/new_solution.py my_task

Makes solutions/my_task from shared/solution_template (it runs at once: sample, prepare, train, infer, check, evaluate,
predict and its tests), and registers the group and the module in pyproject.toml and every rule in .importlinter. What a
person has to say is printed at the end.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from kit_core.atomic import atomic_dir, write_text
from kit_core.errors import ConfigError, KitError

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = Path("shared", "solution_template")
MODULE, PROJECT = "new_solution", "new-solution"  # what the template calls itself
NOT_COPIED = {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}


def generate(root: Path, name: str) -> Path:
    """Write the solution and register it; returns its folder. Nothing is written where anything is wrong.

    Raises:
        ConfigError: the name cannot be one of a module, is taken, or a file to register in is not as expected.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or name.startswith("kit_") or name == MODULE:
        raise ConfigError(f"found the name {name!r}, expected words of small letters with _ between them: my_task")
    target = root / "solutions" / name
    if target.exists():
        raise ConfigError(f"{target}: exists; name another solution")
    project = name.replace("_", "-")
    for path in root.glob("*/*/pyproject.toml"):
        if re.search(rf'^(name = "{project}"|{project} = ".*:main")$', path.read_text(encoding="utf-8"), re.MULTILINE):
            raise ConfigError(f"{path}: has the name {project} already; two equal commands overwrite one another")
    pyproject = in_pyproject((root / "pyproject.toml").read_text(encoding="utf-8"), name)
    rules = in_import_rules((root / ".importlinter").read_text(encoding="utf-8"), name)
    with atomic_dir(target) as folder:
        copy_template(root / TEMPLATE, folder, name)
        tidy(folder, root)
    write_text(root / "pyproject.toml", pyproject)
    write_text(root / ".importlinter", rules)
    return target


def copy_template(template: Path, folder: Path, name: str) -> None:
    """Copy every file of the template, with the new name in paths and contents."""
    project = name.replace("_", "-")
    for path in sorted(template.rglob("*")):
        parts = path.relative_to(template).parts
        if not path.is_file() or NOT_COPIED & set(parts) or path.suffix == ".pyc":
            continue
        target = folder.joinpath(*(part.replace(MODULE, name) for part in parts))
        target = target.with_suffix("") if target.suffix == ".template" else target
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8").replace(MODULE, name).replace(PROJECT, project)
        target.write_text(text, encoding="utf-8")


def tidy(folder: Path, root: Path) -> None:
    """Sort the imports anew, since another name sorts elsewhere; without ruff `make format` does it later."""
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        settings = ["--quiet", "--config", str(root / "pyproject.toml"), str(folder)]
        first_party = f'src = ["{folder}/src", "{root}/packages/*/src"]'
        subprocess.run([ruff, "check", "--fix-only", "--config", first_party, *settings], check=True)
        subprocess.run([ruff, "format", *settings], check=True)


def in_pyproject(text: str, name: str) -> str:
    """Return the root's pyproject.toml with a group for the solution, and its module among those of solutions."""
    project = name.replace("_", "-")
    group = (
        f"[tool.poetry.group.{project}.dependencies]\n"
        f'{project} = {{ path = "solutions/{name}", develop = true }}\n\n'
    )  # fmt: skip
    heads = list(
        re.finditer(r"^\[tool\.poetry\.group\.[\w-]+\.dependencies\]\n[\w-]+ = \{ path = .*\}\n\n", text, re.M)
    )
    modules = re.search(r'^module = \[("[\w.*]+", )*("[\w.*]+")(?=\]\ndisallow_untyped_defs)', text, re.M)
    if not heads or modules is None:
        raise ConfigError("pyproject.toml: found no groups or no mypy override of solutions; register by hand")
    end = heads[-1].end()
    return text[:end] + group + text[end : modules.end()] + f', "{name}.*"' + text[modules.end() :]


def in_import_rules(text: str, name: str) -> str:
    """Return .importlinter with the solution as a root package, in the top layer, and in the three contracts."""
    layers = re.search(r"^layers =\n {4}(\w+)( \| \w+)*$", text, re.M)
    if layers is None:
        raise ConfigError(".importlinter: found no layers; register by hand")
    one = layers.group(1)  # a solution: the new one is put behind it, wherever it stands
    text = text[: layers.start(1)] + f"{one} | {name}" + text[layers.end(1) :]
    text, lines = re.subn(rf"^(    ){one}((?:\.\w+)?)$", rf"\g<0>\n\g<1>{name}\g<2>", text, flags=re.M)
    if lines < 5:
        raise ConfigError(f".importlinter: found {one} on {lines} lines, expected 5 or more; register by hand")
    return text


def main() -> int:
    """Generate what the command line names."""
    parser = argparse.ArgumentParser(description="Begin a solution from the template.")
    parser.add_argument("name", help="its folder and module: my_task")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    options = parser.parse_args()
    try:
        target = generate(options.root.resolve(), options.name)
    except KitError as error:
        print(f"new_solution: {error}", file=sys.stderr)
        return error.exit_code
    project = options.name.replace("_", "-")
    print(f"""{target}: made, with two presets and tests; registered in pyproject.toml and .importlinter.

Next:
  make lock                                      install it; the command is then {project}
  make test ARGS=solutions/{options.name}        its tests; they run as they stand
What only a person knows, and `make test` asks for until it is there:
  README.md          a row among the solutions     CHANGELOG.md       a line with `{project}`
  scripts/demo.py    one Demo(program="{project}", ...)
  shared/report/references.toml    a [[solution]], for the report
  shared/data_cards/{options.name}.md    where the official data comes from
  {(target / "RESULTS.csv").relative_to(options.root.resolve())}    a row for each measurement, by scripts/record.py""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
