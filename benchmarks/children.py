"""Measurements that need a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["call"]

ROOT = Path(__file__).parent.parent


def call(module: str, *arguments: str, **environment: str) -> Any:
    """What `python -m module arguments` prints, as JSON, on its last line.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed with {result.returncode}:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])
