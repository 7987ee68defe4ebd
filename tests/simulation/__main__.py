"""Play many histories: `python -m tests.simulation --histories 100000`, or one again: `--seed 17`."""

import argparse
import sys
import time

from tests.simulation.many import played
from tests.simulation.planted import PLANTED
from tests.simulation.rules import Violation
from tests.simulation.world import run_history


def main() -> int:
    """Print each broken rule with its seed; the exit code is 1 when there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, help="how many (default 1,000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="play this one alone and print what happened")
    parser.add_argument("--planted", choices=sorted(PLANTED), default="", help="put this fault into the product")
    options = parser.parse_args()
    if options.seed is not None:
        try:
            print("\n".join(run_history(options.seed)))
        except Violation as violation:
            print("\n".join([*getattr(violation, "__notes__", ()), str(violation)]))
            return 1
        return 0
    begun, broken = time.monotonic(), 0
    seeds = range(options.first, options.first + options.histories)
    for problem in played(seeds, options.planted):
        if problem:
            broken += 1
            print(problem, flush=True)
    print(f"{len(seeds):,} histories in {time.monotonic() - begun:.0f} s; {broken} broke a rule")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
