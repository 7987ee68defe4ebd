"""The gates that a release must pass before it is published.

A gate holds the measured value, the required value, and a sentence when it fails. Gates that are a matter of judgement
can be forced with a reason, which is noted in the audit. The encoder is checked in a sandbox.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from server.core.errors import DamagedRelease
from server.core.release import Release
from server.core.repository.read import read_release
from training.config import PublishSettings
from training.errors import PublishError
from training.publish.model_checks import check_model
from training.publish.sandbox import SandboxLimits, run_in_sandbox

_BASE_MEMORY_BYTES = 8 << 30
_MEMORY_PER_MODEL_BYTE = 6
"""Parsing, optimising and running a model takes several times the size of its file."""


@dataclass(frozen=True, slots=True)
class Gate:
    """`measured` and `required` are texts; `problem` is a sentence, empty when the release passes.

    `figures` go into the audit. `can_be_forced` marks a gate that is a matter of judgement. A failed gate that
    `stands_by` does not stop the release: it is published without traffic.
    """

    name: str
    measured: str
    required: str
    problem: str = ""
    can_be_forced: bool = False
    figures: dict[str, float] | None = None
    stands_by: bool = False


def check_release(directory: Path, settings: PublishSettings) -> tuple[Release, list[Gate]]:
    """Read a release with the server's code and check its model in a sandbox. Raises PublishError."""
    try:
        release = read_release(directory)
    except DamagedRelease as error:
        raise PublishError(f"The release does not pass the server's checks: {error}.") from error
    model = directory / "model.onnx"
    size = model.stat().st_size
    if size > settings.max_model_bytes:
        raise PublishError(
            f"model.onnx has {size:,} bytes, and [publish] max_model_bytes allows {settings.max_model_bytes:,}; make "
            "it smaller with `segrec-train compress`, or allow more."
        )
    manifest = release.manifest
    arguments = (model, manifest.golden, release.preprocessing, manifest.item_count)
    try:
        arrays = run_in_sandbox(limits_of(model, settings), check_model, *arguments)
    except PublishError as error:
        raise PublishError(f"model.onnx of the release does not run: {error}.") from error
    figures = {name: float(value) for name, value in arrays.items()}
    return release, _model_gates(release, size, settings, figures)


def limits_of(model: Path, settings: PublishSettings) -> SandboxLimits:
    """Memory and time limits of a sandbox that runs this model."""
    return SandboxLimits(_BASE_MEMORY_BYTES + _MEMORY_PER_MODEL_BYTE * model.stat().st_size, settings.check_seconds)


def _model_gates(release: Release, size: int, settings: PublishSettings, figures: dict[str, float]) -> list[Gate]:
    """Gates of the model file, from the figures of `check_model`. Raises PublishError for wrong embeddings."""
    tolerance = release.manifest.golden.tolerance
    golden, alone = figures["golden"], figures["alone"]
    if not golden <= tolerance:
        raise PublishError(f"model.onnx gives embeddings that differ by {golden:.1e} from the golden embeddings.")
    if not alone <= tolerance:
        raise PublishError(
            f"model.onnx mixes the histories of a batch: the embedding of one history differs by {alone:.1e} between "
            "a batch of one and a larger batch."
        )
    shape = f"{release.manifest.item_count:,} items, {release.manifest.segment_count} segments"
    return [
        Gate("shapes", shape, "as the manifest says"),
        Gate("encoder's file", f"{size / 1e6:,.1f} MB", f"≤ {settings.max_model_bytes / 1e6:,.0f} MB, whole, ONNX"),
        Gate("random histories", f"{figures['random']:.0f}, off alone by {alone:.1e}", "finite, no mixing"),
        Gate("golden embeddings", f"off by {golden:.1e}", f"≤ {tolerance:.0e}"),
    ]


def vocabulary_gate(release: Release, active: Release, min_share: float) -> Gate:
    """The share of the active release's events, by popularity, whose items the new release knows."""
    shares = np.exp(active.popularity.astype(np.float64))
    known = np.array([item_id in release.vocabulary for item_id in active.item_ids])
    share = float(shares[known].sum() / shares.sum())
    problem = (
        f"The release knows the items of {share:.1%} of the events of release {active.number}, and [publish] "
        f"min_known_popularity requires {min_share:.1%}; check that it was trained on the right log."
    )
    return Gate(
        "catalogue",
        f"items of {share:.1%} of the events of release {active.number} are known",
        f"≥ {min_share:.0%}",
        problem if share < min_share else "",
        can_be_forced=True,
        figures={"known_popularity": share},
    )


def decide(gates: Sequence[Gate], forced: str | None) -> list[str]:
    """The problems of failed gates that the reason `forced` overrides. Raises PublishError for any other problem."""
    failed = [gate for gate in gates if gate.problem]
    stopping = [gate for gate in failed if not gate.stands_by]
    refused = [gate.problem for gate in stopping if forced is None or not gate.can_be_forced]
    if refused:
        hint = ' Publish it nevertheless with --force "why".' if all(gate.can_be_forced for gate in stopping) else ""
        raise PublishError(" ".join(refused) + hint)
    return [gate.problem for gate in failed] if forced is not None else []


def gates_table(gates: Sequence[Gate], forced: bool) -> Table:
    """Gates with their verdicts: passed, forced, stands by or failed."""
    table = Table("gate", "measured", "required", "", title="Gates of the release")
    for gate in gates:
        table.add_row(gate.name, gate.measured, gate.required, _verdict(gate, forced))
    return table


def _verdict(gate: Gate, forced: bool) -> str:
    if not gate.problem:
        return "passed"
    if forced and gate.can_be_forced:
        return "forced"
    return "stands by" if gate.stands_by else "failed"
