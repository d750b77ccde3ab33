import pytest

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.metrics.delta import delta_m, gains

TASKS = tasks.build(
    {"semseg": {}, "depth": {}, "normals": {}}, {"semseg": {"num_classes": 13}, "depth": {}, "normals": {}}
)


def row(semseg, depth, normals):
    return {"semseg": semseg, "depth": depth, "normals": normals}


# Published rows (mIoU, depth error, normal error; Delta_m) against the published reference.
@pytest.mark.parametrize(
    ("reference", "ours", "published", "tolerance"),
    [
        # Nishi et al., CVPR 2024, Table 1: MTPSL, JTR and Direct Map on NYU-v2, "onelabel"
        (row(25.75, 0.6511, 33.73), row(30.40, 0.5926, 31.68), 11.04, 0.006),
        (row(25.75, 0.6511, 33.73), row(31.96, 0.5919, 30.80), 13.97, 0.006),
        (row(25.75, 0.6511, 33.73), row(19.98, 0.6960, 37.56), -13.55, 0.006),
        # Yang et al., AAAI 2023: NYUD-v2, recomputed from the rounded entries
        (row(39.803, 0.617, 19.896), row(41.275, 0.592, 20.178), 2.111, 5e-4),
    ],
)
def test_published_rows(reference, ours, published, tolerance):
    assert delta_m(ours, reference, TASKS) == pytest.approx(published, abs=tolerance)


def test_gains_of_the_tasks():
    gain = gains(row(30, 0.5, 22), row(40, 1.0, 20), TASKS)
    assert gain == pytest.approx({"semseg": -25, "depth": 50, "normals": -10})


@pytest.mark.parametrize("role", ["results", "reference"])
def test_a_missing_task_is_named(role):
    whole, part = row(1, 1, 1), {"semseg": 1, "depth": 1}
    args = (part, whole) if role == "results" else (whole, part)
    with pytest.raises(UserError, match=f"'normals', which the {role} lack"):
        delta_m(*args, TASKS)


def test_a_zero_reference_is_named():
    with pytest.raises(UserError, match="'depth': its reference rmse is 0"):
        delta_m(row(1, 1, 1), row(1, 0, 1), TASKS)
