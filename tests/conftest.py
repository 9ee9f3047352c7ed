"""What every test relies on: small tensors need one thread, and nobody inherits another test's random numbers."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def numbers_of_64_bits():
    """torch keeps NAdam's product of momenta in the default dtype, we in the parameter's."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
