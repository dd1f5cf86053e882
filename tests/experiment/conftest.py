"""The pipeline's tests keep annotations in a cache of their own and use one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)  # no longer: later tests look for the bundled model in the real one
def _own_cache(cache: Path) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLLM_BENCH_CACHE", str(cache))
        yield
    torch.set_num_threads(before)
