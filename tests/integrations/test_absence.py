"""Whoever does without these packages does not notice them."""

from __future__ import annotations

import subprocess
import sys

PACKAGES = ["accelerate", "lightning", "tensorboard", "transformers"]


def test_gdtuo_imports_none_of_the_packages_that_it_integrates():
    absent = "; ".join(f"sys.modules[{name!r}] = None" for name in PACKAGES)  # importing them would raise
    code = f"import sys; {absent}; import gdtuo, gdtuo.integrations; gdtuo.SGD(optimizer=gdtuo.Adam())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
