"""PyTorch's networks as references; tests that need them are skipped where they are not installed."""

import importlib
import sys

import pytest

ABSENT = "install the extra `parity` (see setup.py) to compare with PyTorch's networks"


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason=ABSENT)
    torch.set_num_threads(1)  # several tests run at once
    return torch


@pytest.fixture(scope="session")
def torchvision(torch):
    """Also where torchvision was built for another torch: none of its own operators is used here."""
    try:
        return importlib.import_module("torchvision")
    except ImportError:
        pytest.skip(ABSENT)
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        torchvision.operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            torchvision.operators.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        return importlib.import_module("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm", reason=ABSENT)
