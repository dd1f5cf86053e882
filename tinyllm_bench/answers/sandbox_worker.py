"""The worker that reads program texts for the sandbox; run as a script under `sandbox_launch`, by `sandbox_reader`.

One request a line on standard input, `[operation, [text, ...]]`; one line of JSON for every text on standard output, in
order. A request is read whole before it is answered, so that neither side ever waits for the other's full pipe.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tinyllm_bench.answers.program_source import Prepared, prepare, runnable  # noqa: E402

OPERATIONS = {"prepare": prepare, "runnable": runnable}


def answer(operation: str, text: str) -> str:
    """One line for one text. Only a fault of ours gives an unexpected exception, and it must not end the worker."""
    try:
        done = OPERATIONS[operation](text)
    except Exception as error:
        done = Prepared(None, "rejected_by_gate", f"the source check failed: {type(error).__name__}")
    return json.dumps([done.code, done.reason, done.detail, done.degenerate, done.line])


def main() -> None:
    """Serve until the input ends."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for request in sys.stdin.buffer:
        operation, texts = json.loads(request)
        for text in texts:
            sys.stdout.write(answer(operation, text) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
