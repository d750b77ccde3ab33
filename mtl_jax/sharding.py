"""The device mesh, and how batches and parameters lie on it."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices of all hosts along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def this_host() -> tuple[int, int]:
    """(k, n): this process is the k-th of n, and reads the k-th part of every batch."""
    return jax.process_index(), jax.process_count()


def check_batch_size(key: str, size: int, mesh: Mesh) -> None:
    """Raises UserError unless a global batch of `size` splits evenly over the mesh."""
    devices = mesh.shape["data"]
    if size % devices:
        below = size - size % devices
        raise UserError(
            f"{key}={size} does not divide over {devices} devices: "
            f"use {f'{below} or ' if below else ''}{below + devices}"
        )
