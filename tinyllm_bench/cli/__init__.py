"""The command line: reads arguments, calls the packages below, prints; nothing heavy is imported at the start."""

import sys


def main() -> None:
    """Entry point of `tinyllm-bench`. Exit status: 0 done, 1 a cell failed, 2 the request was wrong, 3 interrupted."""
    from tinyllm_bench.cli.app import run_app

    sys.exit(run_app())
