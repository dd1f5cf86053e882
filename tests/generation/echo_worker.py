"""A worker that does what each request says, for the tests of `generation.vllm_worker`."""

import os
import sys
import time
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.vllm_worker import serve


def say(request: dict[str, Any]) -> dict[str, Any]:
    print("a library's own words")  # must not reach the answers
    return {"ok": request["text"], "variable": os.environ.get("ECHO_VARIABLE")}


def refuse(request: dict[str, Any]) -> dict[str, Any]:
    raise UserError("that is not available; request something else")


def fail(request: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("the engine broke")


def die(request: dict[str, Any]) -> dict[str, Any]:
    print("last words", file=sys.stderr)
    os._exit(3)


def sleep(request: dict[str, Any]) -> dict[str, Any]:
    time.sleep(60)
    return {"ok": None}


if __name__ == "__main__":
    serve({"say": say, "refuse": refuse, "fail": fail, "die": die, "sleep": sleep})
