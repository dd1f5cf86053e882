"""The cache and the one thread of tests/run."""

from tests.experiment.conftest import _own_cache as _own_cache
from tests.experiment.conftest import cache as cache
