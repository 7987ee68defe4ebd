"""What a release has to pass before it is published: its encoder in a process apart, and beside the active release.

Each gate says what was measured and what is asked; one that fails has a sentence. Those that are a matter of
judgement can be forced with a reason, which the audit keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from server.core.errors import DamagedRelease
from server.core.release import Release
from server.core.repository.read import read_release
from training.config import PublishSettings
from training.errors import PublishError
from training.publish.model_checks import prove
from training.publish.sandbox import SandboxLimits, confined

_BASE_MEMORY = 8 << 30
_MEMORY_OF_MODEL = 6
"""A model takes several times the size of its file while it is parsed, optimised and run."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What was measured and what is asked, in words; `problem` is a sentence, empty where the release passes.

    `figures` go into the audit. `can_be_forced` gates are a matter of judgement.
    """

    name: str
    measured: str
    asked: str
    problem: str = ""
    can_be_forced: bool = False
    figures: dict[str, float] | None = None


def check_release(directory: Path, settings: PublishSettings) -> tuple[Release, list[Gate]]:
    """Read a release back through the server's code and let its model prove itself. Raises PublishError."""
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
        found = confined(limits_of(model, settings), prove, *arguments)
    except PublishError as error:
        raise PublishError(f"model.onnx of the release does not run: {error}.") from error
    numbers = {name: float(value) for name, value in found.items()}
    return release, _model_gates(release, size, settings, numbers)


def limits_of(model: Path, settings: PublishSettings) -> SandboxLimits:
    """What a process may take that runs this model."""
    return SandboxLimits(_BASE_MEMORY + _MEMORY_OF_MODEL * model.stat().st_size, settings.check_seconds)


def _model_gates(release: Release, size: int, settings: PublishSettings, found: dict[str, float]) -> list[Gate]:
    """Raises PublishError where embeddings are not what they must be."""
    tolerance = release.manifest.golden.tolerance
    if not found["golden"] <= tolerance:
        raise PublishError(f"model.onnx gives embeddings that differ by {found['golden']:.1e} from the golden ones.")
    if not found["alone"] <= tolerance:
        raise PublishError(
            f"model.onnx gives a history alone an embedding that differs by {found['alone']:.1e} from the one that it "
            "has among others; an encoder must not mix the histories of a batch."
        )
    shape = f"{release.manifest.item_count:,} items, {release.manifest.segment_count} segments"
    return [
        Gate("shapes", shape, "as the manifest says"),
        Gate("encoder's file", f"{size / 1e6:,.1f} MB", f"≤ {settings.max_model_bytes / 1e6:,.0f} MB, whole, ONNX"),
        Gate("random histories", f"{found['random']:.0f}, off alone by {found['alone']:.1e}", "finite, no mixing"),
        Gate("golden embeddings", f"off by {found['golden']:.1e}", f"≤ {tolerance:.0e}"),
    ]


def vocabulary_gate(release: Release, active: Release, least: float) -> Gate:
    """How much of what the active release's users take the new one still knows, by popularity."""
    shares = np.exp(active.popularity.astype(np.float64))
    known = np.array([item_id in release.vocabulary for item_id in active.item_ids])
    share = float(shares[known].sum() / shares.sum())
    problem = (
        f"The release knows the items of {share:.1%} of what is taken in release {active.number}, and [publish] "
        f"min_known_popularity asks for {least:.1%}; was it trained on the right log?"
    )
    return Gate(
        "catalogue",
        f"{share:.1%} of what is taken in release {active.number} is known",
        f"≥ {least:.0%}",
        problem if share < least else "",
        can_be_forced=True,
        figures={"known_popularity": share},
    )


def decide(gates: Sequence[Gate], forced: str | None) -> list[str]:
    """The problems that are forced past. Raises PublishError for any that is not."""
    problems = [gate for gate in gates if gate.problem]
    final = [gate.problem for gate in problems if forced is None or not gate.can_be_forced]
    if final:
        hint = ' Publish it nevertheless with --force "why".' if all(gate.can_be_forced for gate in problems) else ""
        raise PublishError(" ".join(final) + hint)
    return [gate.problem for gate in problems]


def gates_table(gates: Sequence[Gate], forced: bool) -> Table:
    """For rich to print."""
    table = Table("gate", "measured", "asked", "", title="What the release had to pass")
    for gate in gates:
        verdict = "passed" if not gate.problem else "forced" if forced and gate.can_be_forced else "failed"
        table.add_row(gate.name, escape(gate.measured), escape(gate.asked), verdict)
    return table
