"""The promises about files that CONTRIBUTING.md makes: sizes, names, declarations, links."""

import ast
import csv
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

LARGEST_BYTES = 1_000_000
MOST_MAKE_TARGETS = 12
RESULTS_COLUMNS = [
    "preset",
    "data",
    "folds",
    "group_by",
    "metric",
    "score",
    "low",
    "high",
    "n",
    "seconds",
    "threads",
    "parameters",
    "revision",
    "remarks",
]

# Put together from halves, so that this file does not contain what it forbids.
MACHINE_PATHS = re.compile("|".join(rf"(?<![\w.])/{name}/\w" for name in ("home", "root", "Users", "work", "mnt")))
REGISTRY_HOSTS = re.compile(
    "|".join(["pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.(org|com)", "conda" + r"\.io"])
)
REMINDERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
SILENCERS = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?P<codes>[^#]*)(?P<reason>.*)")
MARKDOWN_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Beside the repository, of the tools, and inside a run folder.
MADE_ON_DEMAND = {
    "..", "runs", "report", ".venv", ".tools", "checkpoints", "members", "plots", "state", "tensorboard", "vectors",
}  # fmt: skip
PATH_IN_PROSE = re.compile(r"`((?:[\w.-]+/)+[\w.*-]*)`")


def text_of(path: Path) -> str | None:
    """Return the text of a file, or None where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def matches(files: list[Path], pattern: re.Pattern[str], root: Path) -> list[str]:
    """Return `file:line: text` of every line where the pattern occurs."""
    found = []
    for path in files:
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:120]}")
    return found


def root_pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


# --- Files --------------------------------------------------------------------------------------------------------


def test_no_file_is_large(repo_files: list[Path], repo_root: Path) -> None:
    large = {str(p.relative_to(repo_root)): p.stat().st_size for p in repo_files if p.stat().st_size > LARGEST_BYTES}
    assert not large


def test_no_file_names_a_machine(repo_files: list[Path], repo_root: Path) -> None:
    assert not matches(repo_files, MACHINE_PATHS, repo_root)


def test_no_file_names_a_registry(repo_files: list[Path], repo_root: Path) -> None:
    assert not matches(repo_files, REGISTRY_HOSTS, repo_root)


def test_nothing_is_left_for_later_in_comments(repo_files: list[Path], repo_root: Path) -> None:
    sources = [path for path in repo_files if path.suffix in {".py", ".sh", ".toml", ".md"} or path.name == "Makefile"]
    assert not matches(sources, REMINDERS, repo_root)


def test_every_silenced_warning_has_its_reason_on_its_line(repo_files: list[Path], repo_root: Path) -> None:
    bare = []
    for path in repo_files:
        if path.suffix != ".py" or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found = SILENCERS.search(line)
            if found is None:
                continue
            after_codes = re.sub(r"^\s*(\[[\w, -]*\]|:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*)?", "", found["codes"])
            if len(f"{after_codes}{found['reason']}".strip(" #-–:")) < 8:
                bare.append(f"{path.relative_to(repo_root)}:{number}: {line.strip()}")
    assert not bare


def test_modules_have_names_that_say_something(repo_files: list[Path], repo_root: Path) -> None:
    vague = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}
    assert not [str(path.relative_to(repo_root)) for path in repo_files if path.name in vague]


def test_names_of_test_files_are_unique(repo_files: list[Path]) -> None:
    counts = Counter(path.name for path in repo_files if path.name.startswith("test_") and path.suffix == ".py")
    assert not [name for name, count in counts.items() if count > 1]


def test_make_has_few_targets_and_each_is_explained(repo_root: Path) -> None:
    lines = (repo_root / "Makefile").read_text(encoding="utf-8").splitlines()
    targets = [line for line in lines if re.match(r"[a-z][a-z-]*:", line)]
    assert len(targets) <= MOST_MAKE_TARGETS
    assert all(" ## " in line for line in targets)
    phony = next(line for line in lines if line.startswith(".PHONY:")).split()[1:]
    assert phony == [line.split(":")[0] for line in targets]


# --- Members ------------------------------------------------------------------------------------------------------


def test_a_member_is_complete(member: Any) -> None:
    assert (member.source / "__init__.py").exists()
    assert (member.source / "py.typed").exists()
    assert list((member.folder / "tests").glob("test_*.py")), "a member has tests of its own"
    readme = (member.folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {member.project}\n")
    example = "```console\n" if member.is_solution else "```python\n"
    assert example in readme, "commands for a solution; for a package an example, which a test of the package runs"


def test_a_member_is_named_after_its_place(member: Any) -> None:
    folder = member.folder.name
    assert member.project == (folder.replace("_", "-") if member.is_solution else f"kit-{folder}")


def test_a_member_agrees_with_the_root_on_python_and_license(member: Any, repo_root: Path) -> None:
    ours, root = member.pyproject["project"], root_pyproject(repo_root)["project"]
    assert (ours["requires-python"], ours["license"]) == (root["requires-python"], root["license"])


def test_a_member_can_be_installed_from_its_own_folder(member: Any) -> None:
    """Poetry finds the packages of this repository that a member needs by the paths in its group `local`."""
    needed = {name for name in map(str, member.pyproject["project"].get("dependencies", [])) if name.startswith("kit-")}
    local = member.pyproject["tool"]["poetry"].get("group", {}).get("local", {}).get("dependencies", {})
    assert set(local) == needed
    for name, entry in local.items():
        target = (member.folder / entry["path"] / "pyproject.toml").resolve()
        assert tomllib.loads(target.read_text(encoding="utf-8"))["project"]["name"] == name


def test_the_root_installs_every_member(member: Any, repo_root: Path) -> None:
    poetry = root_pyproject(repo_root)["tool"]["poetry"]
    group = poetry["group"][member.project] if member.is_solution else poetry
    assert group["dependencies"][member.project] == {"path": member.label, "develop": True}


def test_the_import_rules_know_every_member(member: Any, repo_root: Path) -> None:
    words = (repo_root / ".importlinter").read_text(encoding="utf-8").split()
    assert words.count(member.module) >= 2, "as a root package and in the layers"
    if member.is_solution:
        assert f"{member.module}.config" in words
        assert f"{member.module}.infer" in words


def test_names_of_scripts_are_unique(repo_root: Path) -> None:
    names: Counter[str] = Counter()
    for path in repo_root.glob("*/*/pyproject.toml"):
        names.update(tomllib.loads(path.read_text(encoding="utf-8"))["project"].get("scripts", {}).keys())
    assert names, "at least one solution has a command"
    assert not [name for name, count in names.items() if count > 1], (
        "of two equal ones one would silently overwrite the other"
    )


def test_the_lock_knows_every_member(member: Any, repo_root: Path) -> None:
    lock = tomllib.loads((repo_root / "poetry.lock").read_text(encoding="utf-8"))
    assert member.project in {package["name"] for package in lock["package"]}


def test_the_lock_holds_one_version_of_each_package(repo_root: Path) -> None:
    lock = tomllib.loads((repo_root / "poetry.lock").read_text(encoding="utf-8"))
    counts = Counter(package["name"] for package in lock["package"])
    assert not [name for name, count in counts.items() if count > 1]


# --- Solutions ----------------------------------------------------------------------------------------------------


def test_a_solution_has_the_modules_that_every_reader_looks_for(solution: Any) -> None:
    expected = {"cli", "compare", "config", "data", "sample", "train", "infer", "predict"}
    present = {path.stem for path in solution.source.iterdir()}
    assert expected <= present


def test_a_preset_opens_with_what_it_is_and_how_to_run_it(solution: Any) -> None:
    assert solution.presets
    for preset in solution.presets:
        text = (solution.folder / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
        header = [line for line in text.splitlines() if line.startswith("#")]
        assert text.startswith("# "), f"{preset}.toml opens with a comment"
        assert f"{solution.project} train {preset} " in " ".join(header), f"{preset}.toml states its command"


def test_results_are_well_formed(solution: Any) -> None:
    path = solution.folder / "RESULTS.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert list(rows[0]) == RESULTS_COLUMNS
    for row in rows:
        assert None not in row, f"a comma without quotes: {row}"
        assert row["preset"] in solution.presets, row
        assert float(row["low"]) <= float(row["score"]) <= float(row["high"]), row
        assert int(row["n"]) > 0, row
        assert float(row["seconds"]) >= 0, row
        assert row["data"], row
        assert int(row["parameters"]) >= 0, row
        assert re.fullmatch(r"[0-9a-f]{7}", row["revision"]), "measured from files in no commit"
        assert int(row["threads"]) > 0, row


def test_the_demo_covers_every_solution(solution: Any, repo_root: Path) -> None:
    assert f'program="{solution.project}"' in (repo_root / "scripts" / "demo.py").read_text(encoding="utf-8")


def test_the_root_introduces_every_solution(solution: Any, repo_root: Path) -> None:
    assert f"({solution.label}/README.md)" in (repo_root / "README.md").read_text(encoding="utf-8")
    assert f"`{solution.project}`" in (repo_root / "CHANGELOG.md").read_text(encoding="utf-8")
    overrides = root_pyproject(repo_root)["tool"]["mypy"]["overrides"]
    assert any(f"{solution.module}.*" in entry["module"] and entry.get("disallow_untyped_defs") for entry in overrides)


# --- Prose --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def documents(repo_files: list[Path]) -> list[Path]:
    found = [path for path in repo_files if path.suffix == ".md"]
    assert found
    return found


def test_links_in_documents_resolve(documents: list[Path], repo_root: Path) -> None:
    broken = []
    for path in documents:
        for target in MARKDOWN_LINK.findall(path.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue  # another site: nothing that a test may ask for
            name, _, anchor = target.partition("#")
            linked = (path.parent / name).resolve() if name else path
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                broken.append(f"{path.relative_to(repo_root)}: {target}")
    assert not broken


def anchors(document: Path) -> set[str]:
    """Return the anchors that the headings of a Markdown file make."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_paths_named_in_documents_exist(documents: list[Path], repo_root: Path) -> None:
    members = [path.parent for path in repo_root.glob("*/*/pyproject.toml")]
    absent = []
    for path in documents:
        for name in PATH_IN_PROSE.findall(path.read_text(encoding="utf-8")):
            parts = name.rstrip("/").split("/")
            if parts[0] in MADE_ON_DEMAND or any(re.fullmatch(r"[A-Z_]+", part) for part in parts):
                continue
            if not any(list(base.glob("/".join(parts))) for base in (path.parent, repo_root, *members)):
                absent.append(f"{path.relative_to(repo_root)}: {name}")
    assert not absent


def imported_modules(path: Path, module: str) -> set[str]:
    """Return the modules of the same member that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == module:
            names = {alias.name for alias in node.names}
            found |= (
                {name for name in names if (path.parent / f"{name}.py").exists()} if node.module == module else set()
            )
            found |= {node.module.split(".")[1]} if "." in node.module else set()
    return found


def test_no_module_imports_itself_through_others(member: Any) -> None:
    imports = {path.stem: imported_modules(path, member.module) for path in member.source.glob("*.py")}
    imports.pop("__init__", None)
    imports.pop("__main__", None)
    while free := [name for name, needed in imports.items() if not needed & imports.keys()]:
        for name in free:
            del imports[name]
    assert not imports, f"import cycle: {imports}"
