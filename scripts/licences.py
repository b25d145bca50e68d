"""List the licence of every installed package, as its own metadata state it, and refuse what this project cannot use.

    python scripts/licences.py

Exits with 1 where a package states no licence, or one that is neither permissive nor of weak copyleft by file, and is
not named in EXCEPTIONS with a reason. The aim: anybody may use this project under the MIT licence, also in a product.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions

from kit_core.console import render_table

ACCEPTED = frozenset(
    (
        "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
        "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0",
        "Unlicense", "Zlib",
    )
)  # fmt: skip
# How metadata from before SPDX expressions name them.
OTHER_NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 3": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
CUDA = "CUDA libraries that PyTorch's wheels need on Linux; fetched from the index by the user, never passed on by us"
EXCEPTIONS = {  # a regular expression for the name -> why it may stay
    r"nvidia-.*|cuda-toolkit": CUDA,
    r"soxr": "LGPL-2.1-or-later: an unchanged library loaded at run time by librosa, which the user may replace",
}


@dataclass(frozen=True)
class Row:
    """One package; `fault` is empty where nothing speaks against it."""

    name: str
    version: str
    licence: str
    fault: str


def licence_of(package: Distribution) -> str:
    """Return what the metadata state: an expression, else the classifiers, else the first line of the free text."""
    fields = package.metadata
    expression = fields.get_all("License-Expression")
    if expression:
        return str(expression[0])
    classifiers = [text.rpartition("::")[2].strip() for text in fields.get_all("Classifier") or []
                   if text.startswith("License ::") and not text.endswith("OSI Approved")]  # fmt: skip
    first_line = (fields.get_all("License") or [""])[0].strip().partition("\n")[0].strip()
    return " AND ".join(classifiers) or first_line or "unknown"


def is_accepted(licence: str) -> bool:
    """Whether an expression leaves a choice that is accepted: of parts joined by AND all, of those by OR one."""
    licence = licence.strip()
    if licence.startswith("(") and licence.endswith(")") and _closes_at_the_end(licence):
        return is_accepted(licence[1:-1])
    for word, enough in ((" AND ", all), (" OR ", any)):
        parts = _split(licence, word)
        if len(parts) > 1:
            return enough(is_accepted(part) for part in parts)
    return OTHER_NAMES.get(licence, licence) in ACCEPTED


def _closes_at_the_end(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place == len(text) - 1
    return False


def _split(text: str, word: str) -> list[str]:
    """Split where the word stands outside of brackets."""
    parts, begin, depth = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and text.startswith(word, place):
            parts.append(text[begin:place])
            begin = place + len(word)
    return [*parts, text[begin:]]


def rows_of(packages: Iterable[Distribution]) -> list[Row]:
    """Return one row for each package, by name."""
    rows = []
    for package in packages:
        name, licence = str(package.metadata["Name"]), licence_of(package)
        reason = next((why for pattern, why in EXCEPTIONS.items() if re.fullmatch(pattern, name)), "")
        fault = "" if is_accepted(licence) or reason else f"{licence}: not among the accepted licences"
        rows.append(Row(name, package.version, licence + (" (see EXCEPTIONS)" if reason else ""), fault))
    return sorted(rows, key=lambda row: (row.name.lower(), row.version))


def main() -> int:
    """Print the table; return 1 when a package is refused."""
    rows = rows_of(distributions())
    print(render_table(["package", "version", "licence"], [[row.name, row.version, row.licence] for row in rows]))
    faults = [row for row in rows if row.fault]
    for row in faults:
        print(f"licences: {row.name} {row.version}: {row.fault}", file=sys.stderr)
    if faults:
        print("licences: replace these packages, or name them in EXCEPTIONS of scripts/licences.py with the reason",
              file=sys.stderr)  # fmt: skip
    else:
        print(f"licences: {len(rows)} packages, all accepted")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
