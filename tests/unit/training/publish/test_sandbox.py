"""The sandbox of untrusted models, called from a script."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import numpy as np
from training.publish.sandbox import SandboxLimits, run_in_sandbox

print("the script runs")
print(run_in_sandbox(SandboxLimits(2**33, 60), dict, {"answer": np.array(42)}))
"""


def test_the_process_does_not_run_the_script_that_starts_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "the script runs\n{'answer': array(42)}\n"
