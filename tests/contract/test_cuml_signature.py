"""Our calls of cuML against the sources that lie in its wheel: every argument exists and means what we take it for.

cuML itself cannot be imported without a GPU's libraries, so the sources are read, not run. The wheel is fetched by pip
once and kept in the directory for temporary files; where it cannot be fetched the tests are skipped, with the reason.
"""

import ast
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from training.kmeans.cuml_engine import cuml_arguments
from training.kmeans.settings import KMeansSettings

VERSION = "26.10.0"
PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary", ":all:")
SINGLE, MANY, OVER_DASK = "cuml/cluster/kmeans.pyx", "cuml/cluster/kmeans_mg.py", "cuml/dask/cluster/kmeans.py"

ARGUMENTS = cuml_arguments(np.eye(4, dtype=np.float32), 2, KMeansSettings(), None)
"""Those of both KMeans; the one for one GPU gets `output_type` as well."""


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    kept = Path(tempfile.gettempdir()) / f"segrec-cuml-{VERSION}"
    if not list(kept.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "20"]
        command += [*PLATFORM, "--dest", str(kept), f"cuml-cu13=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        if done.returncode:
            pytest.skip(f"the wheel of cuml-cu13 {VERSION} cannot be fetched: {done.stderr.strip()[-300:]}")
    [path] = kept.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def single(wheel: zipfile.ZipFile) -> str:
    """Source of `cuml.cluster.KMeans`, in Cython."""
    return wheel.read(SINGLE).decode()


def function(source: str, name: str, kind: str = "KMeans") -> ast.FunctionDef:
    """A method of a class. Of Cython the signature alone is read: the rest is not Python."""
    if "cimport" not in source:
        [found] = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == kind]
        [method] = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == name]
        return method
    text = source[source.index(f"\nclass {kind}(") :]
    match = re.search(rf"def {name}\(.*?\)[^()]*?:\n", text, re.DOTALL)
    assert match, f"no method {name}"
    [node] = ast.parse(f"{match.group()}    pass").body
    assert isinstance(node, ast.FunctionDef)
    return node


def parameters(method: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in (*method.args.args, *method.args.kwonlyargs)}


def test_every_argument_is_a_parameter(single: str) -> None:
    assert {*ARGUMENTS, "output_type"} <= parameters(function(single, "__init__"))


def test_fit_takes_points_first_and_needs_no_more(single: str) -> None:
    method = function(single, "fit")
    assert [argument.arg for argument in method.args.args[:2]] == ["self", "X"]
    assert len(method.args.defaults) == len(method.args.args) - 2


def test_the_start_is_one_that_it_knows(single: str) -> None:
    """It takes an unknown name without a word, and draws the start from memory that nobody set."""
    known = set(re.findall(r"kmeans\.init == \"([\w|+-]+)\"", single))
    for names in re.findall(r"kmeans\.init in \(([^)]*)\)", single):
        known |= set(ast.literal_eval(f"({names},)"))
    assert {"k-means++", "random"} <= known
    assert ARGUMENTS["init"] in known


def test_given_centroids_are_a_start(single: str) -> None:
    assert "params.init = lib.InitMethod.Array" in single
    assert re.search(r"centers = check_array\(\s*self\.init,", single)


@pytest.mark.parametrize("attribute", ["cluster_centers_", "inertia_", "n_iter_"])
def test_what_we_read_is_set_by_fit(single: str, attribute: str) -> None:
    assert single.count(f"self.{attribute} = ") == 2, "by the fit of one array and by that of parts"


def test_over_dask_the_rest_goes_to_the_worker(wheel: zipfile.ZipFile) -> None:
    source = wheel.read(OVER_DASK).decode()
    constructor, work = function(source, "__init__"), function(source, "_func_fit")
    assert constructor.args.kwarg
    assert parameters(constructor) == {"self", "client", "verbose", "n_clusters"}
    [call] = [
        node
        for node in ast.walk(work)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "KMeansMG"
    ]
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    assert given == {"handle", "output_type"}
    assert given.isdisjoint(ARGUMENTS), "given twice is an error in every worker"
    assert parameters(function(source, "fit")) == {"self", "X", "sample_weight"}


def test_over_dask_the_start_is_allowed(wheel: zipfile.ZipFile) -> None:
    method = function(wheel.read(MANY).decode(), "_validate_fit_params", "KMeansMG")
    [allowed] = [ast.literal_eval(node) for node in ast.walk(method) if isinstance(node, ast.Set)]
    assert ARGUMENTS["init"] in allowed
