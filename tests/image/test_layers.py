"""What lies in the image's layers: no secret, little that nobody sees, and no more than the budget."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import botocore
import certifi
import pytest

from tests.containers import IMAGE, Engine
from tests.image.layers import Layer, read_layer, read_layers, wasted

pytestmark = pytest.mark.image

# The CUDA image was 6.8 GB when this was written, 5.8 of it torch with its CUDA libraries.
BUDGET_BYTES = 7_000_000_000
OURS_BYTES = 3_000_000
LEAST_EFFICIENCY = 0.99
# Real keys: the words alone stand in every library that reads keys. Amazon's documents use keys that end in EXAMPLE.
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n(?:[A-Za-z0-9+/=]{40,}\r?\n){3}")
# Keys that the makers of these packages publish, for their tests.
PUBLISHED_KEYS = re.compile(r"/gevent/tests/|/future/backports/test/|/libgnutls\.so")
ACCESS_KEY = re.compile(rb"(?<![A-Z0-9])A[KS]IA[0-9A-Z]{16}(?![A-Z0-9])")


def build_secrets(known: str) -> list[bytes]:
    """Words that only the secrets of `make image` hold, from the variables that it reads; `known` are public CAs."""
    words = []
    bundle = next((os.environ[name] for name in ("CA_BUNDLE", "PIP_CERT", "SSL_CERT_FILE") if os.environ.get(name)), "")
    if bundle:
        certificates = re.findall(r"-----BEGIN CERTIFICATE-----\n(.+?)-----END", Path(bundle).read_text(), re.DOTALL)
        words += [lines.splitlines()[2] for lines in certificates if lines.splitlines()[2] not in known]
    if config := os.environ.get("PIP_CONFIG_FILE"):
        words += [line.partition("=")[2].strip() for line in Path(config).read_text().splitlines() if "://" in line]
    return [word.encode() for word in words]


class Search:
    """Looks for secrets in every file, and counts files so that a search that saw nothing is noticed."""

    def __init__(self, secrets: list[bytes]) -> None:
        self.secrets = secrets
        self.found: set[str] = set()
        self.saw_torch = False

    def look(self, path: str, content: bytes) -> None:
        self.saw_torch = self.saw_torch or b"_ZN3c10" in content
        keys = b"PRIVATE KEY-----" in content and PRIVATE_KEY.search(content) and not PUBLISHED_KEYS.search(path)
        # Found first by plain search: a pattern takes minutes for 7 GB.
        likely = b"AKIA" in content or b"ASIA" in content
        access = likely and any(not key.endswith(b"EXAMPLE") for key in ACCESS_KEY.findall(content))
        if keys or access or any(secret in content for secret in self.secrets):
            self.found.add(path)


def test_the_image_stays_within_its_budget(engine: Engine) -> None:
    assert int(engine("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout) < BUDGET_BYTES


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_layers_hold_no_secret_and_little_that_is_never_seen(
    engine: Engine, record_property: Callable[[str, object], None]
) -> None:
    known = engine.run("cat", "/etc/ssl/certs/ca-certificates.crt").stdout + certifi.contents()
    known += Path(botocore.__file__).with_name("cacert.pem").read_text()
    search = Search(build_secrets(known))
    layers = read_layers(engine.command, IMAGE, search.look)
    assert search.saw_torch, "the search did not read the layers"
    assert sorted(search.found) == []
    total = sum(layer.size for layer in layers)
    efficiency = 1 - wasted(layers) / total
    record_property("shown", f"image: {total / 1e9:.2f} GB in {len(layers)} layers, efficiency {efficiency:.2%}")
    assert efficiency > LEAST_EFFICIENCY
    # A change of our code pushes the layers above torch and the packages alone.
    ours = [layer for layer in layers if any(path.startswith("/opt/kennel/") for path in layer.files)]
    assert sum(layer.size for layer in ours) < OURS_BYTES


def test_history_and_environment_hold_no_secret(engine: Engine) -> None:
    history = engine("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE).stdout
    environment = json.loads(engine("image", "inspect", "--format", "{{json .Config.Env}}", IMAGE).stdout)
    assert not re.search(r"BEGIN CERTIFICATE|index-url|://[^/\s]*:[^/\s]*@", history)
    assert [line for line in environment if re.match(r"(PIP|AWS|HTTPS?_PROXY|.*(TOKEN|SECRET|PASSWORD))", line)] == []


def _layer(files: dict[str, bytes], search: Search) -> Layer:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return read_layer(buffer, search.look)


def test_planted_secrets_are_found_and_waste_is_counted() -> None:
    search = Search([b"https://user:word@index"])
    key = b"-----BEGIN RSA PRIVATE KEY-----\n" + (b"A" * 64 + b"\n") * 4
    low = _layer(
        {
            "etc/pip.conf": b"index-url = https://user:word@index/simple",
            "root/id_rsa": key,
            "opt/aws": b"id=AKIA" + b"Z" * 16,
            "usr/lib/ssl.py": b'"-----BEGIN PRIVATE KEY-----\\n"',
            "usr/doc": b"AKIAIOSFODNN7EXAMPLE",
            "usr/bin/long": b" " * 5_000_000 + b"https://user:word@index",
        },
        search,
    )
    assert search.found == {"/etc/pip.conf", "/root/id_rsa", "/opt/aws", "/usr/bin/long"}
    high = _layer({"etc/.wh.pip.conf": b"", "usr/.wh.bin": b"", "usr/doc": b"new"}, search)
    assert wasted([low, high]) == low.files["/etc/pip.conf"] + low.files["/usr/bin/long"] + low.files["/usr/doc"]
