"""What is printed when a request is done."""

from pathlib import Path

import pytest

from tests.cli.watched import cell
from tests.report.fakes import fake_record
from tinyllm_bench.cli.progress import Progress, Row
from tinyllm_bench.cli.summary import summarise
from tinyllm_bench.pipeline.matrix import Matrix
from tinyllm_bench.pipeline.run import Outcome
