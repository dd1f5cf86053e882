"""The worker that reads program texts for the sandbox: a script that `reader` starts under `launch`.

Standard input has one request a line, `[operation, [text, ...]]`; standard output one line of JSON for every text, in
order. A request is read completely before it is answered, so that neither side waits for the other's full pipe.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tinyllm_bench.answers.programs import Prepared, prepare, runnable  # noqa: E402

OPERATIONS = {"prepare": prepare, "runnable": runnable}


def answer(operation: str, text: str) -> str:
    """The line for one text. An unexpected exception is a bug of the source check and must not end the worker."""
    try:
        prepared = OPERATIONS[operation](text)
    except Exception as error:
        prepared = Prepared(None, "rejected_by_gate", f"the source check failed: {type(error).__name__}")
    return json.dumps([prepared.code, prepared.reason, prepared.detail, prepared.degenerate, prepared.line])


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
