"""What the image says of what it is made of: the SBOM and the licences that its labels name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.containers import IMAGE, Engine

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def labels(engine: Engine) -> dict[str, str]:
    return dict(json.loads(engine("image", "inspect", "--format", "{{json .Config.Labels}}", IMAGE).stdout))


@pytest.fixture(scope="module")
def sbom(engine: Engine, labels: dict[str, str]) -> dict[str, Any]:
    return dict(json.loads(engine.run("cat", labels["kennel.sbom"]).stdout))


def listed(sbom: dict[str, Any], kind: str) -> set[tuple[str, str]]:
    """Name and version ("" where none is known) of the components of one kind of package."""
    components = [one for one in sbom["components"] if one.get("purl", "").startswith(f"pkg:{kind}/")]
    return {(normal(one["name"]), one.get("version", "")) for one in components}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_sbom_lists_every_python_package_of_the_image(engine: Engine, sbom: dict[str, Any]) -> None:
    script = "import importlib.metadata as m; print(*(f'{d.name} {d.version}' for d in m.distributions()), sep='\\n')"
    installed = engine.run("python3", "-c", script).stdout.splitlines()
    packages = {(normal(name), version) for name, version in map(str.split, installed)}
    assert {name for name, _ in packages} >= {"torch", "onnxruntime", "multi-model-server", "kennel"}
    assert {package for package in packages if package[0] != "kennel"} <= listed(sbom, "pypi")


def test_the_sbom_lists_every_debian_package_of_the_image(engine: Engine, sbom: dict[str, Any]) -> None:
    installed = engine.run("dpkg-query", "--show", "--showformat", "${Package} ${Version}\\n").stdout.splitlines()
    packages = {(normal(name), version) for name, version in map(str.split, installed)}
    assert "haproxy" in {name for name, _ in packages}
    assert packages <= listed(sbom, "deb")


def test_the_sbom_describes_the_image_and_nothing_of_its_build(sbom: dict[str, Any]) -> None:
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "kennel")
    assert listed(sbom, "golang") == set(), "syft itself is written in Go"
    assert ("netty-codec-http", "4.1.91.Final") in listed(sbom, "maven"), "it lies in multi-model-server's jar"
    unknown = {name for name, version in listed(sbom, "maven") if not version}
    assert unknown == {"log4j-core", "gson", "commons-io", "commons-cli", "disruptor"}
    assert sbom["metadata"]["tools"]["components"][0]["name"] == "syft"


def test_the_licences_of_all_that_ships_are_named_or_pointed_to(
    engine: Engine, sbom: dict[str, Any], labels: dict[str, str]
) -> None:
    lines = [line.split("\t") for line in engine.run("cat", labels["kennel.licences"]).stdout.splitlines()]
    assert lines[0] == ["component", "version", "licences", "text"]
    rows = {(normal(name), version): (licences, text) for name, version, licences, text in lines[1:]}
    assert set(rows) >= listed(sbom, "pypi") | listed(sbom, "deb")
    assert all(licences for licences, _ in rows.values())
    assert "BSD-3-Clause" in rows["torch", "2.14.1"][0]
    texts = sorted({text for _, text in rows.values()})
    there = engine.run("bash", "-c", 'for text in "$@"; do [ -s "$text" ] || echo "$text"; done', "bash", *texts)
    assert (there.returncode, there.stdout) == (0, "")
