"""Settings that must precede the first import of jax or tensorflow."""

import os
import sys

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests compile far longer than they compute: without LLVM's optimisation in half the time.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
# Small programs are compiled over and over by the tests: keep them all.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Each module's compiled programs go with it: all of them together take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, by the path's last part."""
    from matplotlib.figure import Figure  # slow to import, and few tests need it

    saved = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: saved.update({str(path).split("/")[-1]: self})
    )
    return saved
