"""What `segrec-train config` prints, made of the fields of the settings."""

from server.core.settings_reference import commented_toml, markdown, sections_of
from training.config.config import Config
from training.config.contract import Contract

_PAGE = """\
## segrec-train

`--config FILE` reads these settings from a TOML file. A key that is left out has its default; a key that is not known
is refused with the nearest known one. `segrec-train config > segrec.toml` writes a file with every key as a comment.

{config}
## A contract of segrec-train

`--contract FILE` gives limits for the log of a night, in a TOML file of its own; docs/LOGS.md has an example. A limit
that is left out limits nothing.

{contract}"""

_FILE = """\
# Settings of segrec-train, for --config. Every key stands here with its default; take away the `#` to change one.
# `segrec-train config --reference` says when to.

{settings}"""


def reference_page() -> str:
    """All settings as Markdown, with type, range, default, meaning, and when to change them."""
    return _PAGE.format(config=markdown(sections_of(Config)), contract=markdown(sections_of(Contract)))


def starting_file() -> str:
    """A TOML file of comments, with every setting of a run and its default."""
    return _FILE.format(settings=commented_toml(sections_of(Config)))
