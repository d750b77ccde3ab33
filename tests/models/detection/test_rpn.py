"""Region proposals: the head, its losses against sums by hand, and what it proposes against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost
from mtl_jax.models.detection.anchors import anchors
from mtl_jax.models.detection.matching import AnchorTargets, anchor_targets
from mtl_jax.models.detection.rpn import RPNHead, losses, propose
from tests.models.detection import reference

SIZES = [(6, 5), (3, 3)]
ANCHORS = anchors(SIZES)
COUNTS = [len(of_level) for of_level in ANCHORS]


def shapes_of(head, levels, channels):
    maps = [jnp.zeros((1, 4, 4, channels))] * levels
    return jax.eval_shape(lambda: head.init(jax.random.key(0), maps, False))


def test_as_many_parameters_as_published():
    shapes = shapes_of(RPNHead(), 5, 256)
    assert cost.parameters(shapes["params"]) == 1_189_135
    norms = [f"norm{i}_level{level}" for i in (0, 1) for level in range(3, 8)]
    assert sorted(shapes["params"]) == sorted(["conv0", "conv1", "scores", "deltas", *norms])
    assert sorted(shapes["batch_stats"]) == sorted(norms)


def test_outputs_are_in_the_order_of_the_anchors():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, *size, 8)).astype(np.float32) for size in SIZES]
    head = RPNHead(convs=0)
    variables = head.init(jax.random.key(0), maps, False)
    scores, deltas = head.apply(variables, maps, False)
    assert [x.shape for x in scores] == [(2, count) for count in COUNTS]
    kernels = {name: np.asarray(variables["params"][name]["kernel"][0, 0]) for name in ("scores", "deltas")}
    for level, (height, width) in enumerate(SIZES):
        for y, x, a in [(0, 0, 0), (2, 1, 2), (height - 1, width - 1, 1)]:
            place = (y * width + x) * 3 + a
            cell = maps[level][1, y, x]
            assert scores[level][1, place] == pytest.approx(cell @ kernels["scores"][:, a], abs=1e-6)
            np.testing.assert_allclose(
                deltas[level][1, place], cell @ kernels["deltas"][:, 4 * a : 4 * a + 4], atol=1e-6
            )
            # And so are the anchors.
            centre = (ANCHORS[level][place, :2] + ANCHORS[level][place, 2:]) / 2 / 2 ** (3 + level)
            np.testing.assert_allclose(centre, [y + 0.5, x + 0.5], rtol=1e-6)


def test_levels_share_all_but_their_norms(random_variables):
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(3, 1, 1, 6)).astype(np.float32) for _ in range(2)]
    head = RPNHead(anchors=2, features=8)
    variables = random_variables(head, maps, False)
    scores, deltas = jax.jit(lambda v: head.apply(v, maps, False))(variables)
    params, stats = variables["params"], variables["batch_stats"]
    for level, x, ours in zip((3, 4), maps, zip(scores, deltas, strict=True), strict=True):
        x = np.float64(x[:, 0, 0])
        for i in (0, 1):  # of a single pixel, a kernel sees it with its middle alone
            x = x @ params[f"conv{i}"]["kernel"][1, 1] + params[f"conv{i}"]["bias"]
            (norm,) = params[f"norm{i}_level{level}"].values()
            (running,) = stats[f"norm{i}_level{level}"].values()
            x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
            x = np.maximum(x, 0)
        for name, found in zip(("scores", "deltas"), ours, strict=True):
            expected = x @ params[name]["kernel"][0, 0] + params[name]["bias"]
            np.testing.assert_allclose(found.reshape(3, -1), expected, atol=1e-4)


def test_outputs_are_float32():
    maps = [jnp.zeros((1, 2, 2, 4), jnp.bfloat16)]
    head = RPNHead(features=4, dtype=jnp.bfloat16)
    (scores, deltas), variables = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), maps, True))
    assert scores[0].dtype == deltas[0].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def make_targets(positive, sampled, deltas=None):
    positive, sampled = np.array(positive, bool), np.array(sampled, bool)
    deltas = np.zeros((*positive.shape, 4), np.float32) if deltas is None else deltas
    return AnchorTargets(positive, sampled, deltas)


def test_score_loss_by_hand():
    logits = [np.float32([[2, -1]]), np.float32([[0.5, 3]])]
    targets = make_targets([[1, 0, 0, 0]], [[1, 1, 0, 1]])
    deltas = [np.zeros((1, 2, 4), np.float32)] * 2
    score_loss, box_loss = losses(logits, deltas, targets, np.array([True]))
    assert score_loss == pytest.approx(3.488777 / 256, abs=1e-6)
    assert box_loss == 0


def test_losses_are_sums_by_hand():
    rng = np.random.default_rng(2)
    counts, batch = (12, 5, 4), 3
    scores = [rng.normal(size=(batch, n)).astype(np.float32) for n in counts]
    deltas = [rng.normal(scale=0.2, size=(batch, n, 4)).astype(np.float32) for n in counts]
    targets = make_targets(
        rng.random((batch, 21)) < 0.4,
        rng.random((batch, 21)) < 0.6,
        rng.normal(scale=0.2, size=(batch, 21, 4)).astype(np.float32),
    )
    targets.positive[:, 17:] = False  # none on the last level
    known = np.array([True, False, True])
    all_scores, all_deltas = np.concatenate(scores, 1), np.concatenate(deltas, 1)
    entropy, errors = 0, {0: [], 1: [], 2: []}
    for b in (0, 2):
        for n in range(21):
            if targets.sampled[b, n]:
                sign = 1 if targets.positive[b, n] else -1
                entropy += np.log1p(np.exp(-sign * np.float64(all_scores[b, n])))
            if targets.positive[b, n]:
                level = 0 if n < 12 else 1 if n < 17 else 2
                errors[level].extend(
                    reference.huber(np.float64(all_deltas[b, n]) - targets.deltas[b, n], 1 / 9)
                )
    score_loss, box_loss = losses(scores, deltas, targets, known, samples=10)
    assert score_loss == pytest.approx(entropy / 20, rel=1e-5)
    assert box_loss == pytest.approx(np.mean(errors[0]) + np.mean(errors[1]), rel=1e-5)
    unknown = losses(scores, deltas, targets, np.zeros(3, bool), samples=10)
    assert unknown == (0, 0)


def test_an_image_without_boxes_teaches_the_scores_alone():
    rng = np.random.default_rng(3)
    pred = (
        [rng.normal(size=(2, n)).astype(np.float32) for n in COUNTS],
        [rng.normal(size=(2, n, 4)).astype(np.float32) for n in COUNTS],
    )
    rows = np.tile(np.float32([0, 0, 0, 0, -1, 0]), (2, 5, 1))
    references = np.concatenate(ANCHORS)

    def loss(pred):
        run = functools.partial(anchor_targets, samples=32)
        targets = jax.vmap(run, (0, None, 0))(jax.random.split(jax.random.key(0), 2), references, rows)
        score_loss, box_loss = losses(*pred, targets, jnp.ones(2, bool), samples=32)
        return score_loss + box_loss, (score_loss, box_loss)

    gradient, (score_loss, box_loss) = jax.jit(jax.grad(loss, has_aux=True))(pred)
    to_scores, to_deltas = gradient
    assert box_loss == 0 and score_loss > 0
    assert sum(np.count_nonzero(g) for g in to_scores) == 64
    assert all(np.all(g >= 0) for g in to_scores)  # down with all of them
    assert not any(np.any(g) for g in to_deltas)


@pytest.mark.parametrize("before,after", [(2000, 1000), (40, 25)])
def test_proposals_are_those_of_a_loop(before, after):
    rng = np.random.default_rng(4)
    scores = [rng.normal(size=n).astype(np.float32) for n in COUNTS]
    deltas = [rng.normal(scale=0.4, size=(n, 4)).astype(np.float32) for n in COUNTS]
    deltas[0][::7] += np.float32([9, 0, 0, 0])  # out of the image
    size = (44, 38)
    run = jax.jit(functools.partial(propose, anchors=ANCHORS, size=size, before=before, after=after))
    boxes, valid = map(np.asarray, run(scores, deltas))

    found = []
    for logits, moves, references in zip(scores, deltas, ANCHORS, strict=True):
        decoded = [
            reference.clip(reference.decode(d, a), size) for d, a in zip(moves, references, strict=True)
        ]
        there = [reference.area(box) > 0 for box in decoded]
        kept = reference.nms(decoded, logits, there, 0.7, before, after)
        found += [(logits[k], decoded[k]) for k in kept]
    found = sorted(found, key=lambda pair: -pair[0])[:after]
    assert len(boxes) == min(after, sum(min(n, before) for n in COUNTS))
    assert valid.sum() == len(found) < sum(COUNTS)
    np.testing.assert_allclose(boxes[: len(found)], [box for _, box in found], atol=1e-3)
    assert np.all(valid[: len(found)]) and not np.any(boxes[len(found) :])


def test_nothing_flows_back_through_proposals():
    scores, deltas = [np.zeros(n, np.float32) for n in COUNTS], [np.zeros((n, 4), np.float32) for n in COUNTS]
    run = jax.jit(jax.grad(lambda deltas: jnp.sum(propose(scores, deltas, ANCHORS, (44, 38))[0])))
    assert not any(np.any(g) for g in run(deltas))
