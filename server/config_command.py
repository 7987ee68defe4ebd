"""`segrec-serve config`: a file of settings to start from, and the reference of all settings."""

import argparse
from collections.abc import Sequence

from server.core.settings_reference import commented_toml, markdown, sections_of
from server.settings import Settings

_PAGE = """\
## segrec-serve

Each setting is a flag, an environment variable, and a key of the TOML file that `--config` names. Flags override
environment variables, which override the file, which overrides the defaults.

{settings}"""

_FILE = """\
# Settings of segrec-serve, for --config. Every key stands here with its default; take away the `#` to change one.
# `segrec-serve config --reference` says when to.

{settings}"""


def reference_page() -> str:
    """All settings as Markdown, with flag, variable and key, type, range, default, meaning, and when to change them."""
    names = "`--{flag}`<br>`SEGREC_{variable}`<br>`{key}`"
    return _PAGE.format(settings=markdown(sections_of(Settings), "flag, variable, key", names))


def starting_file() -> str:
    """A TOML file of comments, with every setting and its default."""
    return _FILE.format(settings=commented_toml(sections_of(Settings)))


def config_command(arguments: Sequence[str]) -> None:
    """Print the file, or with --reference the page. Wrong flags and --help end the process, as in argparse."""
    parser = argparse.ArgumentParser(
        prog="segrec-serve config", description="Print a TOML file of all settings with their defaults, for --config."
    )
    parser.add_argument(
        "--reference", action="store_true", help="print what each key means and when to change it, as Markdown"
    )
    print(reference_page() if parser.parse_args(arguments).reference else starting_file(), end="")
