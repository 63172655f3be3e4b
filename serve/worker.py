"""A worker of MMS. Started as `python -E -P worker.py`: only the image's own packages can be imported."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Import what every worker needs, then run MMS's loop, which forks one worker from this process for each wanted.

    So the imports cost time and memory once; a network is loaded after the fork, since threads do not survive it.
    """
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    import serve.handler  # noqa: F401
    from container.preprocessing import silence_pillow

    silence_pillow()
    runpy.run_module("mms.model_service_worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
