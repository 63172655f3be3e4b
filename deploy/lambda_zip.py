"""The Lambda function's zip: the same bytes from the same files, named by their sha256.

    python -m deploy.lambda_zip [--pillow] [--output FOLDER]

prints the path of the zip, and its sha256 is the name to upload it under.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parent.parent / "lambda"
HANDLER: Final = "classify.handler"
# What the zip is built for, and what the template must name. Pillow's wheels need a newer C library than Lambda's
# Python 3.11 stands on (Amazon Linux 2); 3.12 and later stand on Amazon Linux 2023.
RUNTIME: Final = "python3.13"
ARCHITECTURE: Final = "arm64"

# Shown on a laptop alone: `make page`.
_NOT_SHIPPED: Final = "local.py"
_REQUIREMENTS: Final = "requirements.txt"
# Wheels that run on Amazon Linux 2023, by Lambda's names of architectures.
_PLATFORMS: Final = {"arm64": "manylinux_2_28_aarch64", "x86_64": "manylinux_2_28_x86_64"}
# The earliest time that a zip can hold.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class LambdaZip:
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def write_to(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"lambda-{self.sha256}.zip"
        path.write_bytes(self.data)
        return path


def build(*, with_pillow: bool = False, architecture: str = ARCHITECTURE) -> LambdaZip:
    """Zip the function flat; with Pillow, photos over the endpoint's limit are scaled down instead of refused.

    Raises subprocess.CalledProcessError where pip cannot get Pillow.
    """
    paths = [path for path in SOURCE.iterdir() if path.suffix in (".py", ".html") and path.name != _NOT_SHIPPED]
    files = {path.name: path.read_bytes() for path in paths}
    if with_pillow:
        files.update(_packages(architecture))
    return LambdaZip(_zipped(files))


def _packages(architecture: str) -> dict[str, bytes]:
    """Locked packages, for Lambda's platform rather than for this machine's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        platform = ("--platform", _PLATFORMS[architecture], "--python-version", RUNTIME.removeprefix("python"))
        wheels = ("--only-binary=:all:", "--no-deps", "--no-compile", "--quiet", "--disable-pip-version-check")
        command = (sys.executable, "-m", "pip", "install", *platform, *wheels, "--target", name)
        subprocess.run((*command, "--require-hashes", "-r", SOURCE / _REQUIREMENTS), check=True)
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix: else the system that builds would show in the bytes.
            entry.external_attr = 0o644 << 16  # Lambda's user is another than the files' owner.
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the Lambda function's zip and print its path.")
    parser.add_argument(
        "--pillow", action="store_true", help="package Pillow: photos that are too large are scaled down"
    )
    parser.add_argument("--architecture", choices=_PLATFORMS, default=ARCHITECTURE)
    parser.add_argument("--output", type=Path, default=Path("build"), metavar="FOLDER")
    arguments = parser.parse_args()
    print(build(with_pillow=arguments.pillow, architecture=arguments.architecture).write_to(arguments.output))


if __name__ == "__main__":
    main()
