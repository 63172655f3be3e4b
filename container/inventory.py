"""Used by the Dockerfile alone: make syft's list of the image's packages fit to ship.

`python inventory.py FOUND FOLDER` reads what syft found (CycloneDX) and writes

    FOLDER/sbom.cdx.json   the same, the image named as what it describes; licences, and what syft did not see in jars
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
# Java libraries under Apache-2.0 that leave nothing but their classes in a jar: group and name by the classes' folder.
_SHADED = {
    "org/apache/logging/log4j/core/": ("org.apache.logging.log4j", "log4j-core"),
    "com/google/gson/": ("com.google.code.gson", "gson"),
    "org/apache/commons/io/": ("commons-io", "commons-io"),
    "org/apache/commons/cli/": ("commons-cli", "commons-cli"),
    "com/lmax/disruptor/": ("com.lmax", "disruptor"),
}


def main(found: Path, folder: Path) -> None:
    bom = json.loads(found.read_text(encoding="utf-8"))
    bom["metadata"]["component"] = {
        "type": "container",
        "name": "kennel",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    jars = {location for one in bom["components"] if (location := _location(one)).suffix == ".jar"}
    bom["components"] += [component for jar in sorted(jars) for component in _within(jar)]
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


def _within(jar: Path) -> list[dict[str, Any]]:
    """The libraries whose classes a jar holds without their names, as multi-model-server's does."""
    with zipfile.ZipFile(jar) as archive:
        names = archive.namelist()
        # Each of Netty's parts has a file of this name: the entries are read, since a name would find the last alone.
        versions = [entry for entry in archive.infolist() if entry.filename.endswith("io.netty.versions.properties")]
        text = "".join(archive.read(entry).decode() for entry in versions)
    netty = sorted(set(re.findall(r"^(netty-[\w-]+)\.version=(\S+)", text, re.MULTILINE)))
    others = [library for folder, library in _SHADED.items() if any(name.startswith(folder) for name in names)]
    found = [("io.netty", *one) for one in netty] + [(*library, "") for library in others]
    return [_shaded(jar, *library) for library in found]


def _shaded(jar: Path, group: str, name: str, version: str) -> dict[str, Any]:
    url = f"pkg:maven/{group}/{name}" + (f"@{version}" if version else "")
    component = {"bom-ref": url, "type": "library", "group": group, "name": name, "purl": url}
    return component | {
        **({"version": version} if version else {}),
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "properties": [{"name": "kennel:location:path", "value": str(jar)}],
    }


def _classified(metadata: Path) -> list[str]:
    """Licences that a Python package's classifiers name."""
    if metadata.name != "METADATA":
        return []
    headers = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
    classifiers = headers.get_all("Classifier", [])
    return [name.rpartition(" :: ")[2] for name in classifiers if name.startswith("License :: ")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
