"""Fixtures that every test may use: tiny models, real data or a skip, no network, a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads these once
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose more to a second thread than they win
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # vLLM asks the network for its own address otherwise

import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.testing import tiny_models

CHECKOUT = Path(__file__).resolve().parents[1]
BUNDLED_STUDENT = "smollm2-135m"


class NetworkBlocked(OSError):
    """A test tried to leave this machine."""


def _is_local(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # AF_UNIX and its like never leave the machine
    host = str(address[0])
    return host in ("localhost", "::1", "0.0.0.0", "::", "") or host.startswith("127.")


# Of the contract of every method (`tinyllm_bench.testing.methods`), which takes no marks of ours: what trains for long.
LONG = (
    "test_training_lowers_the_loss_and_moves_every_parameter",
    "test_sharing_prompts_changes_neither_loss_nor_gradient",
    "test_micro_batches_do_not_change_the_gradient",
)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", None) in LONG:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and name look-up that is not for this machine."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if not _is_local(self.family, address):
                raise NetworkBlocked(f"tests must not use the network: {address!r}")
            return original(self, address)

        return call

    def local_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and name != socket.gethostname() and not _is_local(socket.AF_INET, (name,)):
            raise NetworkBlocked(f"tests must not use the network: {name!r}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", local_look_up)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every test, whatever ran before it; libraries nobody imported stay unloaded."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def tiny_llama() -> tuple[Any, Any]:
    """`(model, tokenizer)`: a fresh random two-layer Llama; the same weights in every test."""
    return tiny_models.tiny_llama()


@pytest.fixture
def tiny_t5() -> tuple[Any, Any]:
    """`(model, tokenizer)`: a fresh random T5 (2 + 2 layers); the same weights in every test."""
    return tiny_models.tiny_t5()


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` as a saved folder. Read only: it is shared by the session."""
    return tiny_models.saved(tiny_models.tiny_llama(), tmp_path_factory.mktemp("models") / "tiny_llama")


@pytest.fixture(scope="session")
def tiny_t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_t5` as a saved folder. Read only: it is shared by the session."""
    return tiny_models.saved(tiny_models.tiny_t5(), tmp_path_factory.mktemp("models") / "tiny_t5")


@pytest.fixture(scope="session")
def release() -> Path:
    """The release folder: `TINYLLM_BENCH_DATA`, else `../shared/data/tinyllm_release` beside the checkout."""
    named = os.environ.get("TINYLLM_BENCH_DATA")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data" / "tinyllm_release"
    if not folder.is_dir():
        pytest.skip("needs the release folder: set TINYLLM_BENCH_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def bundled_smollm() -> Iterator[Path]:
    """The fetched SmolLM2-135M folder in the user's own cache."""
    from tinyllm_bench.models.bundled import bundled_folder, is_fetched

    if not is_fetched(BUNDLED_STUDENT):
        pytest.skip(f"needs the bundled model: tinyllm-bench fetch {BUNDLED_STUDENT}")
    yield bundled_folder(BUNDLED_STUDENT)
