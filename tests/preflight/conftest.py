"""The cache and the single thread of tests/experiment."""

from tests.experiment.conftest import _own_cache as _own_cache
from tests.experiment.conftest import cache as cache
