"""Packaging; requirements.lock beside this file pins the exact versions that were tested."""

from setuptools import find_packages, setup

setup(
    name="mtl_jax",
    version="0.1.0",
    description="Multi-task dense prediction in JAX and Flax",
    license="Apache-2.0",
    packages=find_packages(include=["mtl_jax", "mtl_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "clu>=0.0.12",
        "flax>=0.12",
        "google-crc32c>=1.5",
        "h5py>=3.11",
        "matplotlib>=3.8",
        "ml-collections>=1.1",
        "numpy>=1.26",
        "opencv-python-headless>=4.11",  # the first with IMREAD_COLOR_RGB
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=10.1",
        "pycocotools>=2.0.8",
        "scikit-image>=0.24",
        "scikit-learn>=1.5",
        "safetensors>=0.4",
        "scipy>=1.13",
        "tensorboard",  # clu's summary writer needs it and does not ask for it
        "tensorflow-datasets>=4.9.9",
        "array-record>=0.8",
        "importlib_resources",  # tensorflow-datasets needs it and does not ask for it
    ],
    extras_require={
        "cpu": ["jax>=0.10,<0.13", "tensorflow-cpu>=2.20"],
        "cuda": ["jax[cuda12]>=0.10,<0.13", "tensorflow-cpu>=2.20"],
        "tpu": ["jax[tpu]>=0.10,<0.13", "tensorflow-cpu>=2.20"],
        "test": ["pytest>=8", "pytest-xdist>=3", "ruff>=0.8"],
        # Networks to compare ours with. PyPI's torch for Linux brings gigabytes of CUDA; for the CPU alone:
        #   pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
        # before `pip install -e .[cpu,test,parity]`. Without them the tests that compare are skipped.
        "parity": ["torch>=2.4", "torchvision>=0.19", "timm>=1.0"],
        "notebooks": ["jupyter", "nbclient"],
    },
)
