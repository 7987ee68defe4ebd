"""What `run`, `publish` and `items add` say about publishing."""

from pathlib import Path
from typing import TYPE_CHECKING

from training.cli.console import TrainConsole
from training.cli.options import signing_key
from training.config import PublishSettings
from training.errors import ConfigError

if TYPE_CHECKING:
    from training.publish.publish import Push


def push_of(
    console: TrainConsole, settings: PublishSettings, force: str | None, by: str | None, sign: Path | None
) -> "Push":
    """The options of publishing; the gates are printed as a table. Raises ConfigError for an empty --force."""
    from segrec.traffic import user_at_host

    from training.publish.gates import gates_table
    from training.publish.publish import Push

    if force is not None and not force.strip():
        raise ConfigError("--force needs a reason, which is noted in the audit.")
    return Push(
        who=by or user_at_host(),
        settings=settings,
        forced=force,
        key=signing_key(sign),
        show_gates=lambda gates: console.print(gates_table(gates, force is not None)),
    )
