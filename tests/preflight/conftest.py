"""The cache and the one thread of tests/run."""

from tests.run.conftest import _own_cache as _own_cache
from tests.run.conftest import cache as cache
