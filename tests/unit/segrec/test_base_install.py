"""An installation of the client alone: it needs grpcio, protobuf and Google's messages, and nothing else."""

import subprocess
import sys

_PROGRAM = """
import sys

ALLOWED = {*sys.stdlib_module_names, "grpc", "google", "segrec", "typing_extensions"}


class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED:
            raise ImportError(f"{name} is no dependency of the client")


sys.meta_path.insert(0, Only())
import segrec, segrec.cli.main, segrec.errors, segrec.cli.files.input_tables

try:
    segrec.cli.files.input_tables.polars()
except segrec.SegrecError as error:
    print(error)
outside = {name.split(".")[0] for name in sys.modules} - ALLOWED - {"__main__", "_distutils_hack", "_virtualenv"}
print(sorted(name for name in outside if not name.startswith("__editable__")))
print("grpc_status" in sys.modules)
"""


def test_the_client_imports_nothing_but_grpc_and_protobuf() -> None:
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert lines[0].startswith("Parquet needs Polars, which is not installed: `pip install polars`")
    assert "polars" not in lines[1]
    assert lines[2] == "False"
