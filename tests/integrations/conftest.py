"""Nothing here may ask the network for anything."""

from __future__ import annotations

import os
import socket

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when Hugging Face's packages are imported


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a test connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
