"""What a run was made with: the command, the commit of the working directory, and the machine."""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

_SECRETS = ((re.compile(r"://[^@/\s]+@"), "://…@"), (re.compile(r"(?i)(password|secret|token|key)=[^&\s]+"), r"\1=…"))


def made_with() -> dict[str, Any]:
    """`command` without secrets, `commit` (None outside a repository), and `machine`."""
    return {"command": command_line(sys.argv), "commit": _commit(), "machine": _machine()}


def command_line(arguments: Sequence[str]) -> str:
    """The command with the program's name alone; user names and passwords in addresses are left out."""
    text = " ".join([Path(arguments[0]).name, *arguments[1:]])
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "usable_cpu_count": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }
