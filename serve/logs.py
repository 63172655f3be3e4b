"""One JSON object a line on stdout: what CloudWatch, docker logs and people with jq can all read."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any


def log(source: str, message: str, **fields: Any) -> None:
    """Write one line; `source` is who speaks (serve, worker), `fields` are figures worth searching for."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": time, "source": source, "message": message, **fields}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
