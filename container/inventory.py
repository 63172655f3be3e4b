"""Used by the Dockerfile alone: make syft's list of the image's packages fit to ship.

`python inventory.py FOUND FOLDER` reads what syft found (CycloneDX) and writes

    FOLDER/sbom.cdx.json   the same, the image named as what it describes; licences, and Netty, that syft did not see
    FOLDER/licences.txt    a line for each component: name, version, licences, and where their text lies in the image
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

_ROOT = Path("/")
# Beginnings of sentences, which syft takes for names of licences in free-form copyright files.
_NO_NAMES = frozenset(("By", "Permission", "Redistribution", "The", "This"))
_NO_TEXT = (".exe", ".jar", ".0")


def main(found: Path, folder: Path) -> None:
    bom = json.loads(found.read_text(encoding="utf-8"))
    bom["metadata"]["component"] = {
        "type": "container",
        "name": "kennel",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    jars = {location for one in bom["components"] if (location := _location(one)).suffix == ".jar"}
    bom["components"] += [component for jar in sorted(jars) for component in _netty(jar)]
    components = [component for component in bom["components"] if component["type"] == "library"]
    for component in components:
        if not component.get("licenses"):
            names = _classified(_location(component))
            component["licenses"] = [{"license": {"name": name}} for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sbom.cdx.json").write_text(json.dumps(bom), encoding="utf-8")
    lines = sorted({_line(component) for component in components}, key=str.lower)
    head = "component\tversion\tlicences\ttext\n"
    (folder / "licences.txt").write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def _line(component: dict[str, Any]) -> str:
    names = [
        entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]
        for entry in component["licenses"]
    ]
    text = _text(component)
    unnamed = "see the text" if text.suffix not in _NO_TEXT else "as what it is part of"
    licences = ", ".join(sorted({name.splitlines()[0] for name in names} - _NO_NAMES)) or unnamed
    return "\t".join((component["name"], component.get("version", ""), licences, str(text)))


def _text(component: dict[str, Any]) -> Path:
    """The file with the licence's words; where there is none, the file that was found."""
    location = _location(component)
    if location.name == "METADATA":
        names = ("**/LICEN[CS]E*", "**/COPYING*", "licenses/**/*")
        texts: Iterator[Path] = (
            path for name in names for path in sorted(location.parent.glob(name)) if path.is_file()
        )
        return next(texts, location)
    return location


def _location(component: dict[str, Any]) -> Path:
    """The file by which syft knew the component; of a Debian package its copyright."""
    properties = component.get("properties", [])
    paths = {entry["name"]: entry["value"] for entry in properties if entry["name"].endswith(":path")}
    found: list[Path] = [_ROOT / path.lstrip("/") for path in paths.values()]
    return next((path for path in found if path.name == "copyright"), found[0] if found else _ROOT)


def _netty(jar: Path) -> list[dict[str, Any]]:
    """Netty's parts in a jar that holds other people's classes without their names, as multi-model-server's does."""
    with zipfile.ZipFile(jar) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith("io.netty.versions.properties")]
        text = "".join(archive.read(entry).decode() for entry in entries)
    return [
        {
            "bom-ref": f"pkg:maven/io.netty/{name}@{version}",
            "type": "library",
            "group": "io.netty",
            "name": name,
            "version": version,
            "purl": f"pkg:maven/io.netty/{name}@{version}",
            "licenses": [{"license": {"id": "Apache-2.0"}}],
            "properties": [{"name": "kennel:location:path", "value": str(jar)}],
        }
        for name, version in sorted(set(re.findall(r"^(netty-[\w-]+)\.version=(\S+)", text, re.MULTILINE)))
    ]


def _classified(metadata: Path) -> list[str]:
    """Licences that a Python package's classifiers name."""
    if metadata.name != "METADATA":
        return []
    headers = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
    classifiers = headers.get_all("Classifier", [])
    return [name.rpartition(" :: ")[2] for name in classifiers if name.startswith("License :: ")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
