"""The licences of what is installed, and the rule that judges them."""

import importlib.util
import sys
from email.message import Message
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def licences(repo_root: Path) -> ModuleType:
    """The module of scripts/licences.py."""
    spec = importlib.util.spec_from_file_location("scripts_licences", repo_root / "scripts" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def package(name: str, **fields: str | list[str]) -> SimpleNamespace:
    """What importlib.metadata gives for a package."""
    message = Message()
    message["Name"] = name
    for field, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[field.replace("_", "-")] = value
    return SimpleNamespace(metadata=message, version="1.0")


@pytest.mark.parametrize(
    ("licence", "accepted"),
    [
        ("MIT", True),
        ("BSD License", True),
        ("GPL-3.0-only", False),
        ("unknown", False),
        ("MIT AND Apache-2.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MPL-2.0 AND (GPL-2.0-only OR MIT)", True),
        ("(MIT AND GPL-3.0-only) OR (GPL-2.0-only AND MIT)", False),
        ("(MIT OR GPL-3.0-only) AND (BSD-3-Clause OR GPL-2.0-only)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("LicenseRef-NVIDIA-Proprietary", False),
    ],
)
def test_expressions(licences: ModuleType, licence: str, accepted: bool) -> None:
    assert licences.is_accepted(licence) is accepted


def test_where_a_licence_is_found(licences: ModuleType) -> None:
    classifiers = ["License :: OSI Approved", "License :: OSI Approved :: MIT License", "Topic :: x"]
    found = {
        "expression": package("a", License_Expression="ISC", Classifier=classifiers),
        "classifier": package("b", Classifier=classifiers, License="see file"),
        "text": package("c", License="BSD 3\nall of the text"),
        "nothing": package("d"),
    }
    texts = {name: licences.licence_of(one) for name, one in found.items()}
    assert texts == {"expression": "ISC", "classifier": "MIT License", "text": "BSD 3", "nothing": "unknown"}


def test_what_is_refused_and_what_is_excepted(licences: ModuleType) -> None:
    packages = [package("soxr", License="LGPL"), package("a", License="GPL-3.0-only"), package("b", License="MIT")]
    faults = {row.name: row.fault for row in licences.rows_of(packages)}
    assert faults == {"a": "GPL-3.0-only: not among the accepted licences", "b": "", "soxr": ""}


def test_every_installed_package_may_be_used(licences: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main() == 0, capsys.readouterr().err
    assert "torch" in capsys.readouterr().out
