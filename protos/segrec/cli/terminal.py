"""Prints the lines of the command line; texts of files and of the server are data, whatever they hold."""

import sys

from segrec.visible import visible


def say(*lines: str) -> None:
    """Print lines on stdout, with escapes in place of control characters."""
    for line in lines:
        print(visible(line))


def complain(*lines: str) -> None:
    """Print lines on stderr, with escapes in place of control characters."""
    for line in lines:
        print(visible(line), file=sys.stderr)
