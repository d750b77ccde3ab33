import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.optimize import linear_sum_assignment
from skimage.morphology import thin
from sklearn.metrics import auc

from mtl_jax.metrics import boundary

RADIUS = 2.3


def random_map(rng, shape=(9, 12), share=0.25):
    return rng.random(shape) < share


def least_cost(predicted, annotated, radius):
    """(number of pairs, cost) by dense assignment: everyone may also stay alone, at 100 radii a pair."""
    p, a = np.argwhere(predicted), np.argwhere(annotated)
    distance = np.linalg.norm(p[:, None] - a[None], axis=-1)
    cost = np.full((len(p), len(a) + len(p)), 100 * radius)
    cost[:, : len(a)] = np.where(distance <= radius, distance, 1e9)
    rows, columns = linear_sum_assignment(cost)
    return int(np.sum(columns < len(a))), cost[rows, columns].sum()


@pytest.mark.parametrize("seed", range(20))
def test_matching_is_the_cheapest(seed):
    rng = np.random.default_rng(seed)
    predicted, annotated = random_map(rng, share=0.1 + 0.02 * seed), random_map(rng)
    pairs = boundary._pairs(predicted, annotated, RADIUS)
    rows, columns = boundary._assign(pairs, np.ceil(1e4 * RADIUS))
    number, cost = least_cost(predicted, annotated, RADIUS)
    assert len(rows) == len(set(rows)) == len(set(columns)) == number
    distance = np.linalg.norm(np.argwhere(predicted)[rows] - np.argwhere(annotated)[columns], axis=-1)
    assert distance.max() <= RADIUS
    alone = 100 * RADIUS * (predicted.sum() - number)
    assert distance.sum() + alone == pytest.approx(cost, abs=0.01 * number)  # costs are rounded


def test_matching_marks_the_matched_pixels():
    predicted, annotated = np.zeros((2, 5, 20), bool)
    predicted[2, [3, 9, 15]] = True
    annotated[2, [3, 4, 12]] = True  # on the first; beside it; three pixels from the two others
    found, truth = boundary.match(predicted, annotated, radius=2.9)
    assert np.argwhere(found).tolist() == [[2, 3]] and np.argwhere(truth).tolist() == [[2, 3]]
    found, truth = boundary.match(predicted, annotated, radius=3.0)
    assert found.sum() == truth.sum() == 2
    found, truth = boundary.match(predicted, annotated, radius=5.0)  # all three, though 3-3 must part
    assert np.array_equal(found, predicted) and np.array_equal(truth, annotated)


@pytest.mark.parametrize("empty", ["predicted", "annotated"])
def test_nothing_to_match(empty):
    some, none = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    pair = (none, some) if empty == "predicted" else (some, none)
    assert not np.any(boundary.match(*pair, RADIUS))


def thin_by_definition(image):
    """Lam, Lee and Suen (TPAMI 1992), p. 879: conditions G1 to G3 in two passes, pixel by pixel."""
    image = np.pad(image, 1)
    while True:
        before = image.copy()
        for first in (True, False):
            goes = []
            for y, x in np.argwhere(image):
                # x1 ... x8 counter-clockwise from the east.
                around = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
                n = [bool(image[y + dy, x + dx]) for dy, dx in around] * 2
                crossings = sum(not n[i] and (n[i + 1] or n[i + 2]) for i in (0, 2, 4, 6))
                pairs = min(sum(n[i] or n[i + 1] for i in (k, k + 2, k + 4, k + 6)) for k in (0, 1))
                i = 0 if first else 4
                open_side = not ((n[i + 1] or n[i + 2] or not n[(i + 7) % 8]) and n[i])
                if crossings == 1 and 2 <= pairs <= 3 and open_side:
                    goes.append((y, x))
            for place in goes:
                image[place] = False
        if np.array_equal(image, before):
            return image[1:-1, 1:-1]


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_thinning_is_that_of_the_benchmark(share):
    image = random_map(np.random.default_rng(0), (20, 25), share)
    np.testing.assert_array_equal(thin(image), thin_by_definition(image))


def test_counts_by_hand():
    prob = np.zeros((40, 60))
    prob[10, 10:50] = 0.9  # 40 pixels
    prob[30, 10:50] = 0.5
    annotators = np.zeros((2, 40, 60), bool)
    annotators[0, 11, 10:50] = True  # one pixel off
    annotators[1, 10, 10:30] = annotators[1, 30, 10:30] = True
    max_distance = 1.5 / np.hypot(40, 60)
    counts = boundary.boundary_counts(prob, annotators, np.array([0.5, 0.6, 0.75, 0.95]), max_distance)
    assert counts.tolist() == [[80, 80, 60, 80], [60, 80, 40, 40], [60, 80, 40, 40], [0, 80, 0, 0]]


def test_thick_predictions_are_thinned():
    prob = np.zeros((30, 60))
    prob[10:17, 5:55] = 0.8
    line = np.zeros((1, 30, 60), bool)
    line[0, 13, 8:52] = True
    counts = boundary.boundary_counts(prob, line, np.array([0.5]), 2 / np.hypot(30, 60))
    assert counts[0, 3] <= 50 and counts[0, 0] == 44


def test_maps_of_equal_thresholds_are_each_counted_right():
    rng = np.random.default_rng(3)
    prob, annotators = np.round(rng.random((20, 20)), 1), rng.random((2, 20, 20)) < 0.2
    thresholds = boundary.threshold_values(19)
    together = boundary.boundary_counts(prob, annotators, thresholds, 0.05)
    alone = [boundary.boundary_counts(prob, annotators, np.array([t]), 0.05)[0] for t in thresholds]
    np.testing.assert_array_equal(together, alone)


def test_best_f_lies_between_thresholds():
    recall, precision = np.array([0.9, 0.3]), np.array([0.4, 0.8])
    fine = np.linspace(0, 1, 100001)
    r, p = (v[0] + fine * (v[1] - v[0]) for v in (recall, precision))
    assert boundary.best_f(recall, precision) == pytest.approx((2 * r * p / (r + p)).max(), abs=1e-4)
    assert boundary.best_f(recall, precision) > boundary.f_measure(recall, precision).max() + 0.005
    assert boundary.best_f(np.zeros(3), np.zeros(3)) == 0


def test_average_precision_is_the_area_under_the_curve():
    recall, precision = np.array([1.0, 0.8, 0.35, 0.0]), np.array([0.3, 0.5, 0.9, 1.0])
    grid = np.linspace(0, 1, 101)
    riemann = np.interp(grid, recall[::-1], precision[::-1]).sum() / 100
    assert boundary.average_precision(recall, precision) == pytest.approx(riemann, abs=1e-9)
    assert riemann == pytest.approx(auc(recall, precision), abs=0.01)
    # Recalls that do not occur count as precision 0.
    part = boundary.average_precision(recall[1:3], precision[1:3])
    assert part == pytest.approx(0.7 * 0.45, abs=0.015)
    assert boundary.average_precision(np.array([0.5, 0.5]), np.array([1.0, 0.9])) == 0


def test_summary_by_hand():
    # Image 1 is best at the first threshold, image 2 at the second.
    counts = np.array([[[8, 10, 8, 10], [2, 10, 2, 2]], [[9, 10, 9, 90], [6, 10, 6, 6]]])
    result = boundary.summarize(counts)
    assert result["oisF"] == pytest.approx(2 * 0.7 * 0.875 / (0.7 + 0.875))  # 14/20 and 14/16
    curve = np.array([[17 / 20, 17 / 100], [8 / 20, 8 / 8]])
    t = np.linspace(0, 1, 100)[:, None]
    r, p = (curve[0] * (1 - t) + curve[1] * t).T
    assert result["odsF"] == pytest.approx((2 * r * p / (r + p)).max())


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 120])
def test_nms_keeps_the_ridge(angle):
    y, x = np.mgrid[:61, :61] - 30.0
    a = np.deg2rad(angle)
    across = y * np.cos(a) - x * np.sin(a)  # the boundary runs at `angle`
    prob = np.exp(-0.5 * (across / 3) ** 2)
    kept = boundary.nms(prob) > 0
    middle = np.hypot(y, x) < 20
    assert (np.abs(across[kept & middle]) <= 0.8).all()
    assert kept[middle & (np.abs(across) < 0.4)].all()
    np.testing.assert_array_equal(boundary.nms(prob)[kept & middle], prob[kept & middle])


def test_nms_fades_the_border_and_keeps_plateaus():
    kept = boundary.nms(np.full((20, 30), 0.5))
    np.testing.assert_allclose(kept[10, :6], 0.1 * np.arange(6))
    np.testing.assert_allclose(
        kept[:, 12], 0.1 * np.minimum(np.minimum(np.arange(20), np.arange(20)[::-1]), 5)
    )


def test_benchmark_of_batches_with_padding():
    """Two images of different size on one canvas, split over batches, beside the counts of each alone.

    Pixels two apart match within 4.7 % of the canvas's diagonal, but not of the images'.
    """
    rng = np.random.default_rng(0)
    images = [
        (rng.random((24, 31)).astype(np.float32), rng.random((2, 24, 31)) < 0.1),
        (rng.random((30, 20)).astype(np.float32), rng.random((1, 30, 20)) < 0.1),
    ]
    metric = boundary.BoundaryBenchmark.empty(max_distance=0.047, thresholds=4)
    expected = []
    for prob, annotators in images:
        n, h, w = annotators.shape
        pred = np.ones((2, 32, 32, 1), np.float32)  # the second row only fills the batch up
        label, valid = np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32, 1), np.float32)
        pred[0, :h, :w, 0] = prob
        label[0, :h, :w, :n] = annotators.transpose(1, 2, 0)
        label[0, :h, :w, n:] = 255
        valid[0, :h, :w] = 1
        valid[0, 4:7, 4:7] = 0  # a hole is no boundary for anyone
        metric = metric.update(pred, label, valid)
        prob, annotators = prob.copy(), annotators.copy()
        prob[4:7, 4:7] = annotators[:, 4:7, 4:7] = 0
        expected.append(boundary.boundary_counts(prob, annotators, boundary.threshold_values(4), 0.047))
    result = metric.compute()
    assert result == pytest.approx(boundary.summarize(np.stack(expected)))
    assert 0 < result["odsF"] < 1 and all(type(v) is float for v in result.values())


def test_more_images_than_may_be_under_way(monkeypatch):
    monkeypatch.setattr(boundary, "PENDING", 2)
    rng = np.random.default_rng(1)
    prob, lines = rng.random((5, 12, 12, 1)), np.float32(rng.random((5, 12, 12, 1)) < 0.1)
    result = (
        boundary.BoundaryBenchmark.empty(0.1, thresholds=3).update(prob, lines, np.ones_like(lines)).compute()
    )
    thresholds = boundary.threshold_values(3)
    pairs = zip(prob[..., 0], lines[..., 0] == 1, strict=True)
    counts = [boundary.boundary_counts(p, line[None], thresholds, 0.1) for p, line in pairs]
    assert result == pytest.approx(boundary.summarize(np.stack(counts)))


def test_benchmark_suppresses_if_asked():
    # Two ridges with a shallow valley between them: thinning alone merges them into one line.
    y = np.arange(30)[:, None] * np.ones((1, 40))
    prob = sum(np.exp(-0.5 * ((y - ridge) / 2.2) ** 2) for ridge in (12, 18)) / 1.1
    lines = np.isin(y, (12, 18))[None, ..., None].astype(np.float32)
    results = {}
    for suppress in (False, True):
        metric = boundary.BoundaryBenchmark.empty(0.5 / np.hypot(30, 40), suppress, thresholds=1)
        pred = prob[None, ..., None].astype(np.float32)
        results[suppress] = metric.update(pred, lines, np.ones_like(lines)).compute()["odsF"]
    recall = 34 / 40  # the border fades
    assert results[True] == pytest.approx(2 * recall / (1 + recall)) and results[False] < 0.2


def test_nothing_valid_is_nan():
    metric = boundary.BoundaryBenchmark.empty()
    nothing = np.zeros((1, 8, 8, 1), np.float32)
    assert np.isnan(list(metric.update(nothing, nothing, nothing).compute().values())).all()


# The benchmark's own example: five test images at five thresholds. Its results differ among themselves
# by 0.0004, as it draws random numbers.
BENCH = Path(os.environ.get("MTL_JAX_DATA", "")) / "BSDS500/bench/data"


@pytest.fixture(scope="module")
def bench_counts():
    counts = []
    for path in sorted((BENCH / "png").glob("*.png"), key=lambda p: int(p.stem)):
        cells = scipy.io.loadmat(BENCH / "groundTruth" / f"{path.stem}.mat")["groundTruth"].ravel()
        annotators = np.stack([cell["Boundaries"][0, 0] > 0 for cell in cells])
        prob = np.asarray(Image.open(path)) / 255
        counts.append(boundary.boundary_counts(prob, annotators, boundary.threshold_values(5)))
    return np.stack(counts)


@pytest.mark.skipif("MTL_JAX_DATA" not in os.environ or not BENCH.is_dir(), reason="needs BSDS500/bench/data")
@pytest.mark.parametrize("test", [1, 2, 3, 4])  # ucm, png, regions, regions: all of the same boundaries
def test_reference_results(bench_counts, test):
    results = BENCH / f"test_{test}"
    recall, precision = boundary.recall_precision(bench_counts.sum(0))
    np.testing.assert_allclose(
        np.stack([recall, precision]).T, np.loadtxt(results / "eval_bdry_thr.txt")[:, 1:3], atol=1e-3
    )
    _, _, _, ods, _, _, ois, ap = np.loadtxt(results / "eval_bdry.txt")
    summary = boundary.summarize(bench_counts)
    assert summary == pytest.approx({"odsF": ods, "oisF": ois, "AP": ap}, abs=4e-4)
    images = np.loadtxt(results / "eval_bdry_img.txt")
    best = [boundary.best_f(*boundary.recall_precision(c)) for c in bench_counts]
    np.testing.assert_allclose(best, images[:, 4], atol=1.5e-3)
    # Precision times the number of predicted pixels is a whole number: thinning agrees to the pixel.
    thresholds = np.loadtxt(results / "eval_bdry_thr.txt")[:, 0]
    at = np.abs(thresholds - images[:, 1, None]).argmin(1)
    matched = images[:, 3] * bench_counts[np.arange(5), at, 3]
    np.testing.assert_allclose(matched, np.rint(matched), atol=0.01)
