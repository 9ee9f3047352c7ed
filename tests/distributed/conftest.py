"""The ranks that the tests here share."""

from __future__ import annotations

import pytest
from pool import Pool


@pytest.fixture(scope="session")
def pool():
    ranks = Pool()
    yield ranks
    ranks.close()
