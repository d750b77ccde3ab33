"""The boundary benchmark of BSDS500 in NumPy and SciPy: thinning, one-to-one matching, ODS-F, OIS-F, AP.

Source: Martin, Fowlkes, Malik, "Learning to detect natural image boundaries" (TPAMI 2004), Arbelaez,
Maire, Fowlkes, Malik, "Contour detection and hierarchical image segmentation" (TPAMI 2011) and the
benchmark code released with BSDS500, whose choices (thinning, costs, interpolation) are kept:

* the soft map is cut at each threshold (>=) and thinned; the annotations are taken as they are;
* predicted and annotated pixels are matched one to one within `max_distance` x image diagonal at the
  least cost, where one pair less costs 100 times the greatest distance: in practice as many pairs as
  possible, and of these matchings one with the least sum of distances;
* recall counts the matched pixels of every annotator, precision the predicted pixels that are matched
  to at least one annotator.

The benchmark joins unmatched pixels through a random graph, which loses a few pairs; here the assignment
is exact, and recall comes out higher by 0.0002 to 0.0005. Which of equally cheap matchings is found
decides precision to about 0.0005 on the benchmark's own example, to 0.005 on a very noisy image.

This module imports neither JAX nor TensorFlow, because its worker processes import it.
"""

import dataclasses
import functools
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from typing import ClassVar

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from skimage.morphology import thin

OUTLIER_COST = 100  # of an unmatched pixel, in greatest distances
COST_SCALE = 100  # costs are whole hundredths of a pixel
WORKERS = min(os.cpu_count() or 1, 16)
PENDING = 4 * WORKERS  # images under way: bounds the memory, and the wait if the program is stopped


def nms(prob: np.ndarray) -> np.ndarray:
    """Keeps the ridges of a soft boundary map: non-maximum suppression across the boundary.

    The recipe with which edge detectors are scored (Dollar and Zitnick, "Fast edge detection using
    structured forests", TPAMI 2015): orientation from second derivatives of the map smoothed by a
    triangle of radius 4; a pixel goes if 1.01 times its value is less than the map one pixel away on
    either side; the outermost 5 pixels fade to 0.

    Args:
      prob: f[H,W].

    Returns:
      f64[H,W]: `prob` or 0, faded at the image's border.
    """
    prob = np.asarray(prob, np.float64)
    angle = _normal_angle(prob)
    y, x = np.indices(prob.shape, sparse=True)
    keep = np.ones(prob.shape, bool)
    for side in (-1, 1):
        across = [y + side * np.sin(angle), x + side * np.cos(angle)]
        beside = ndimage.map_coordinates(prob, across, order=1, mode="nearest")
        keep &= 1.01 * prob >= beside
    return prob * keep * _fade(prob.shape[0])[:, None] * _fade(prob.shape[1])


def _normal_angle(prob: np.ndarray, radius: int = 4) -> np.ndarray:
    """f64[H,W]: direction across the boundary in radians, x right and y down."""
    ramp = np.arange(1.0, radius + 1)
    triangle = np.concatenate([ramp, [radius + 1], ramp[::-1]]) / (radius + 1) ** 2
    smooth = ndimage.convolve1d(ndimage.convolve1d(prob, triangle, 0), triangle, 1)
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dyy, dxy = np.gradient(dy)
    # The original takes sign(-dxy), which is 0 on exactly horizontal boundaries and then turns them upright.
    return np.arctan(dyy * np.where(dxy > 0, -1, 1) / (dxx + 1e-5))


def _fade(length: int, width: int = 5) -> np.ndarray:
    """f64[length]: 0 at both ends, rising to 1 within `width` pixels."""
    width = max(min(width, length // 2), 1)
    place = np.arange(length)
    return np.minimum(np.minimum(place, place[::-1]) / width, 1.0)


@functools.cache
def _disc(radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets y, x within `radius`, and their lengths."""
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    length = np.hypot(y, x)
    inside = y * y + x * x <= radius * radius
    return y[inside], x[inside], length[inside]


def match(predicted: np.ndarray, annotated: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Matches two sets of pixels one to one at the least cost.

    A pair costs its distance, and each predicted pixel that is left alone 100 `radius`.

    Args:
      predicted: bool[H,W].
      annotated: bool[H,W].
      radius: greatest distance of a pair, in pixels.

    Returns:
      bool[H,W] matched pixels of `predicted`, bool[H,W] matched pixels of `annotated`; equally many.
    """
    found, truth = np.zeros(predicted.shape, bool), np.zeros(annotated.shape, bool)
    pairs = _pairs(predicted, annotated, radius)
    if pairs.nnz:
        rows, columns = _assign(pairs, np.ceil(OUTLIER_COST * COST_SCALE * radius))
        found.flat[np.flatnonzero(predicted)[rows]] = True
        truth.flat[np.flatnonzero(annotated)[columns]] = True
    return found, truth


def _pairs(predicted: np.ndarray, annotated: np.ndarray, radius: float) -> sparse.csr_array:
    """Cost of each pair within `radius`: sparse [number predicted, number annotated].

    Costs have 1 added, because SciPy takes a stored 0 for no pair; so has the cost in `_assign`.
    """
    dy, dx, length = _disc(radius)
    reach = int(radius)
    number = np.full(np.add(annotated.shape, 2 * reach), -1, np.int32)
    inner = number[reach : reach + annotated.shape[0], reach : reach + annotated.shape[1]]
    columns = np.count_nonzero(annotated)
    inner[annotated] = np.arange(columns)
    y, x = np.nonzero(predicted)
    width = number.shape[1]
    neighbour = number.ravel()[((y + reach) * width + x + reach)[:, None] + dy * width + dx]
    near = neighbour >= 0
    starts = np.concatenate([[0], np.cumsum(near.sum(1))]).astype(np.int32)
    cost = np.broadcast_to(1 + np.rint(COST_SCALE * length), near.shape)[near]
    return sparse.csr_array((cost, neighbour[near], starts), shape=(len(y), columns))


def _assign(pairs: sparse.csr_array, outlier: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cheapest matching in which each row left alone costs `outlier`.

    Each row gets a column of its own as its way out, which makes it a full matching of the rows. Whole
    numbers and the ways out keep SciPy's solver fast: without them it, and `maximum_bipartite_matching`
    too, took seconds to minutes on some boundary maps.
    """
    rows = np.flatnonzero(np.diff(pairs.indptr))
    ends = pairs.indptr[rows + 1]
    own = pairs.shape[1] + np.arange(len(rows))
    graph = sparse.csr_array(
        (
            np.insert(pairs.data, ends, 1 + outlier),
            np.insert(pairs.indices, ends, own),
            np.concatenate([[0], ends + np.arange(1, len(rows) + 1)]),
        ),
        shape=(len(rows), pairs.shape[1] + len(rows)),
    )
    row, column = min_weight_full_bipartite_matching(graph)
    matched = column < pairs.shape[1]
    return rows[row[matched]], column[matched]


def threshold_values(number: int = 99) -> np.ndarray:
    """f64[number]: 1/(number+1), ..., number/(number+1), as the benchmark computes them."""
    return np.linspace(1 / (number + 1), 1 - 1 / (number + 1), number)


def boundary_counts(
    prob: np.ndarray, annotators: np.ndarray, thresholds: np.ndarray, max_distance: float = 0.0075
) -> np.ndarray:
    """Counts of one image at each threshold.

    Args:
      prob: f[H,W], soft boundary map.
      annotators: bool[A,H,W], boundaries of each annotator.
      thresholds: f[T], rising.
      max_distance: greatest distance of a match, as a share of the image's diagonal.

    Returns:
      i64[T,4]: matched annotated pixels and annotated pixels (both summed over the annotators),
      predicted pixels matched to any annotator, and predicted pixels.
    """
    radius = max_distance * np.hypot(*prob.shape)
    counts = np.zeros((len(thresholds), 4), np.int64)
    before = -1
    for t, threshold in enumerate(thresholds):
        strong = prob >= threshold
        size = np.count_nonzero(strong)
        # The sets shrink as the threshold rises: one of equal size is the same set.
        counts[t] = counts[t - 1] if size == before else _counts_at(thin(strong), annotators, radius)
        before = size
    return counts


def _counts_at(predicted: np.ndarray, annotators: np.ndarray, radius: float) -> list[int]:
    matched = np.zeros(predicted.shape, bool)
    recalled = 0
    for annotated in annotators:
        found, truth = match(predicted, annotated, radius)
        matched |= found
        recalled += np.count_nonzero(truth)
    return [recalled, np.count_nonzero(annotators), np.count_nonzero(matched), np.count_nonzero(predicted)]


def recall_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision f64[...] of counts i64[...,4]; 0 where there is nothing to divide by."""
    matched_truth, truth, matched, predicted = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return matched_truth / np.maximum(truth, 1), matched / np.maximum(predicted, 1)


def f_measure(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    total = recall + precision
    return 2 * recall * precision / np.where(total == 0, 1, total)


def best_f(recall: np.ndarray, precision: np.ndarray) -> float:
    """Greatest F on the curve through f64[T] points, at 100 places between each two neighbours."""
    weight = np.linspace(0, 1, 100)[:, None]
    between = [weight * v[1:] + (1 - weight) * v[:-1] for v in (recall, precision)]
    return float(max(f_measure(recall, precision).max(), f_measure(*between).max(initial=0)))


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the precision at recall 0, 0.01, ..., 1; 0 outside the recalls that occur."""
    recall, first = np.unique(recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    grid = np.linspace(0, 1, 101)
    return float(np.interp(grid, recall, precision[first], left=0, right=0).sum() * 0.01)


def summarize(counts: np.ndarray) -> dict[str, float]:
    """Results of a split from the counts i64[N,T,4] of its N images.

    Returns:
      odsF: greatest F at one threshold for the whole split (interpolated between thresholds).
      oisF: F of the counts that are summed over the images, each at its own best threshold.
      AP: average precision of the split's curve.
    """
    curve = recall_precision(counts.sum(0))
    best = f_measure(*recall_precision(counts)).argmax(1)
    own = recall_precision(counts[np.arange(len(counts)), best].sum(0))
    return {"odsF": best_f(*curve), "oisF": float(f_measure(*own)), "AP": average_precision(*curve)}


def _evaluate(
    prob: np.ndarray, annotators: np.ndarray, thresholds: np.ndarray, max_distance: float, suppress: bool
) -> np.ndarray:
    return boundary_counts(nms(prob) if suppress else prob, annotators, thresholds, max_distance)


def _inside(valid: np.ndarray) -> tuple[slice, slice]:
    """The bounding box of valid[H,W] > 0: the image without its padding."""
    return tuple(slice(np.flatnonzero(v)[0], np.flatnonzero(v)[-1] + 1) for v in (valid.any(1), valid.any(0)))


@dataclasses.dataclass(frozen=True)
class BoundaryBenchmark:
    """Boundary benchmark of a split, exact whatever the batches; worker processes match in the background.

    Attributes:
      max_distance: greatest distance of a match, as a share of the image's diagonal.
      suppress: thins the predictions by `nms` first.
      thresholds: number of thresholds.
      pool: the worker processes; they end with `compute`.
      pending: counts of the images so far.
    """

    on_host: ClassVar[bool] = True

    max_distance: float
    suppress: bool
    thresholds: int
    pool: ProcessPoolExecutor
    pending: tuple[Future, ...] = ()

    @classmethod
    def empty(
        cls, max_distance: float = 0.0075, suppress: bool = False, thresholds: int = 99
    ) -> "BoundaryBenchmark":
        # Forked children of a process that runs JAX can deadlock: spawn. Workers start when work arrives.
        pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"))
        return cls(max_distance, suppress, thresholds, pool)

    def update(self, pred: np.ndarray, label: np.ndarray, valid: np.ndarray) -> "BoundaryBenchmark":
        """Adds a batch, and returns before it is evaluated unless the workers lag far behind.

        Args:
          pred: f32[B,H,W,1], probability of a boundary.
          label: [B,H,W,A], 1 on the boundaries of each annotator, 255 throughout if there is none.
          valid: f32[B,H,W,1]; its bounding box is the image, what it leaves out within is no boundary.
        """
        pending = self.pending
        for prob, annotators, inside in zip(pred, label, np.asarray(valid) > 0, strict=True):
            if inside.any():
                pending += (self._submit(prob[..., 0], annotators, inside[..., 0]),)
            if len(pending) > PENDING:
                pending[-PENDING].result()
        return dataclasses.replace(self, pending=pending)

    def _submit(self, prob: np.ndarray, label: np.ndarray, valid: np.ndarray) -> Future:
        box = _inside(valid)
        prob, valid = prob[box] * valid[box], valid[box]
        annotators = (np.moveaxis(label[box], -1, 0) == 1) & valid
        annotators = annotators[annotators.any((1, 2))]  # those without boundaries count for nothing
        return self.pool.submit(
            _evaluate, prob, annotators, threshold_values(self.thresholds), self.max_distance, self.suppress
        )

    def compute(self) -> dict[str, float]:
        """Waits for the workers and ends them: "odsF", "oisF" and "AP" (see `summarize`), in 0..1."""
        counts = [p.result() for p in self.pending]
        self.pool.shutdown()
        return summarize(np.stack(counts)) if counts else dict.fromkeys(("odsF", "oisF", "AP"), float("nan"))
