"""Run by the interpreter of .venv-sam: the SAM transform of the template on standard input, as JSON."""

from __future__ import annotations

import json
import sys

from samtranslator.translator.transform import transform  # type: ignore[import-not-found]  # lives in .venv-sam


class _NoManagedPolicies:
    """The transform asks for AWS's managed policies by name; the templates use none."""

    def load(self) -> dict[str, str]:
        return {}


document = json.load(sys.stdin)
values = {name: str(entry.get("Default", "x")) for name, entry in document["Parameters"].items()}
print(json.dumps(transform(document, {**values, "CodeKey": "functions/x.zip"}, _NoManagedPolicies())))
