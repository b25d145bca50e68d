import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from kit_core.errors import ConfigError
from kit_core.seeding import seed_everything


def test_random_is_seeded() -> None:
    seed_everything(7)
    first = random.random()
    seed_everything(8)
    assert random.random() != first
    seed_everything(7)
    assert random.random() == first


def test_numpy_is_seeded_where_imported() -> None:
    np = pytest.importorskip("numpy")
    seed_everything(3)
    first = np.random.rand()
    seed_everything(3)
    assert np.random.rand() == first


def test_torch_is_seeded_where_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(manual_seed=seeds.append))  # the real one loads slowly
    seed_everything(3)
    assert seeds == [3]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 4294967295"):
        seed_everything(seed)


def test_the_package_imports_neither_numpy_nor_torch() -> None:
    code = """
import importlib, pkgutil, sys
import kit_core, kit_core.seeding
modules = [module.name for module in pkgutil.iter_modules(kit_core.__path__, "kit_core.")]
assert len(modules) > 5
for name in modules:
    importlib.import_module(name)
kit_core.seeding.seed_everything(0)
assert not {"numpy", "torch", "pandas"} & set(sys.modules), "imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
