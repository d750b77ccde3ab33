"""PyTorch's networks as references; tests that need them are skipped where they are not installed."""

import pytest

from tests.weights.reference import import_torchvision

ABSENT = "install the extra `parity` (see setup.py) to compare with PyTorch's networks"


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason=ABSENT)
    torch.set_num_threads(1)  # several tests run at once
    return torch


@pytest.fixture(scope="session")
def torchvision(torch):
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip(ABSENT)


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm", reason=ABSENT)
