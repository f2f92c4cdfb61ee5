"""Evolution: integers only, repeatable, scores that never get worse; the ring against a dense matrix written here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.errors import UserError
from tritloom.models.data.digits import load
from tritloom.models.methods import layered, ring


@pytest.fixture(scope="module")
def digits():
    data = load()
    flat = [images.reshape(-1, 64).astype(np.int64) for images in (data.train_images, data.test_images)]
    return flat[0], data.train_labels, flat[1], data.test_labels


def by_hand(net: layered.LayeredNet, sample: list[int]) -> list[int]:
    hidden = []
    for row in net.first.tolist():
        total = sum(w * x for w, x in zip(row, sample, strict=True))
        hidden.append(min(max(total, 0) // 2**net.shift, net.top))
    return [sum(w * x for w, x in zip(row, hidden, strict=True)) for row in net.second.tolist()]


@pytest.mark.parametrize(("inputs", "hidden", "classes", "shift"), [(1, 1, 2, 0), (7, 5, 3, 1), (64, 32, 10, 3)])
def test_layered_forward_by_hand(inputs, hidden, classes, shift):
    net = layered.random_net(inputs, hidden, classes, seed=3, shift=shift, top=5)
    x = np.random.default_rng(1).integers(-9, 17, (20, inputs))
    assert net.logits(x).tolist() == [by_hand(net, sample) for sample in x.tolist()]
    assert net.hidden(x).min() >= 0 and net.hidden(x).max() <= 5


def test_loss_by_hand():
    net = layered.random_net(6, 4, 3, seed=0, shift=0)
    x, labels = np.random.default_rng(2).integers(0, 5, (30, 6)), np.random.default_rng(3).integers(0, 3, 30)
    total = 0
    for logits, label in zip(net.logits(x).tolist(), labels.tolist(), strict=True):
        total += sum(max(0, 10 - (logits[label] - logit)) ** 2 for k, logit in enumerate(logits) if k != label)
    assert layered.loss_of(net, x, labels, 10) == total


def test_evolution_of_layers_learns_and_repeats_itself(digits):
    """What it keeps up from generation to generation is what a new forward pass gives; the loss never rises."""
    x, labels, held_out, wanted = digits
    start = layered.random_net(64, 32, 10, seed=1)
    before = start.first.copy()
    seen = []
    net, losses = layered.evolve(
        start, x, labels, generations=6000, seed=1, progress=lambda generation, loss: seen.append((generation, loss))
    )
    assert np.array_equal(start.first, before)
    assert losses[-1] == layered.loss_of(net, x, labels, 24) and losses == sorted(losses, reverse=True)
    assert [generation for generation, _ in seen] == [4096, 6000] and [loss for _, loss in seen] == losses
    assert set(np.unique(net.first)) == {-1, 0, 1} and net.first.dtype == np.int8
    assert (net.logits(x).argmax(1) == labels).mean() > 0.93 and (net.logits(held_out).argmax(1) == wanted).mean() > 0.80
    few = [layered.evolve(start, x, labels, generations=200, seed=seed)[0] for seed in (5, 5, 6)]
    assert np.array_equal(few[0].first, few[1].first) and np.array_equal(few[0].second, few[1].second)
    assert not np.array_equal(few[0].first, few[2].first)


def test_large_losses_do_not_overflow():
    net = layered.LayeredNet(np.ones((50, 40), np.int8), -np.ones((3, 50), np.int8), 0, 2_000)
    x, labels = np.full((400, 40), 100), np.zeros(400, int)
    assert layered.loss_of(net, x, labels, 100_000) == 400 * 2 * 100_000**2


@pytest.mark.parametrize(
    ("x", "labels", "sentence"),
    [
        (np.zeros((3, 5), int), np.zeros(3, int), "do not fit a network of 4 inputs"),
        (np.zeros((3, 4), int), np.zeros(2, int), "do not fit"),
        (np.zeros((0, 4), int), np.zeros(0, int), "do not fit"),
        (np.zeros((3, 4), int), np.full(3, 2), r"must lie in 0\.\.1, not in 2\.\.2"),
    ],
)
def test_samples_that_do_not_fit(x, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        layered.evolve(layered.random_net(4, 3, 2, seed=0), x, labels, generations=1, seed=0)
    with pytest.raises(UserError, match="sizes of at least 1"):
        layered.random_net(0, 3, 2, seed=0)


@settings(max_examples=150)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_inputs_of_a_ring_neuron(neurons, m, seed):
    """Each other neuron at most once, never the neuron itself; those before it and those behind it without gaps, as many as there are."""
    rng = np.random.default_rng(seed)
    skews = rng.integers(-m, m + 1, neurons)
    weights = rng.integers(-1, 2, (neurons, m)).astype(np.int8)
    found = ring.Ring(weights, skews, np.full(neurons, ring.HIDDEN))
    for neuron in range(neurons):
        low, high, back = found.window(neuron)
        fed = [found.feeder(neuron, weight) for weight in range(low, high)]
        assert high - low == min(m, neurons - 1)
        assert neuron not in fed and len(set(fed)) == len(fed)
        distances = [(other - neuron) % neurons for other in fed]
        backward = back - low
        assert distances == [neurons - step for step in range(backward, 0, -1)] + list(range(1, high - back + 1))
        if skews[neuron] == 0 and m <= neurons - 1:
            assert backward == m // 2
    matrix = found.dense()
    assert not matrix.diagonal().any() and np.abs(matrix).sum() == sum(
        np.abs(weights[neuron, slice(*found.window(neuron)[:2])].astype(int)).sum() for neuron in range(neurons)
    )


def test_the_outer_weight_that_looks_back_is_left_out_first():
    assert ring.random_ring(2, 2, m=4, seed=0).window(0) == (1, 4, 2)
    assert ring.random_ring(2, 2, m=5, seed=0).window(0) == (1, 4, 2)
    assert ring.random_ring(2, 2, m=3, seed=0).window(0) == (0, 3, 1)


def tick_by_hand(found: ring.Ring, bits: list[int], ticks: int) -> list[int]:
    """One sample, neuron by neuron."""
    states = [0] * len(found.roles)
    for position, bit in zip(found.inputs(), bits, strict=True):
        states[position] = bit
    for _ in range(ticks):
        after = []
        for neuron in range(len(states)):
            low, high, _ = found.window(neuron)
            total = sum(int(found.weights[neuron, w]) * states[found.feeder(neuron, w)] for w in range(low, high))
            after.append((total > 0) - (total < 0))
        stop = after == states or all(after[position] for position in found.outputs())
        states = after
        if stop:
            break
    return [states[position] for position in found.outputs()]


@pytest.mark.parametrize("seed", range(4))
def test_ring_against_a_slow_one(seed):
    rng = np.random.default_rng(seed)
    found = ring.random_ring(4, 3, m=6, seed=seed)
    for _ in range(40):
        found = ring.mutate(found, rng, 15)
    bits, _ = ring.addition(2)
    assert found.run(bits, 5).tolist() == [tick_by_hand(found, sample, 5) for sample in bits.tolist()]


def test_mutations_insert_and_delete():
    """A weight beyond 1 copies its feeder behind the neuron; a hidden neuron without weights goes; inputs and outputs stay."""
    rng = np.random.default_rng(0)
    found, sizes, changes = ring.random_ring(3, 2, m=2, seed=0), set(), set()
    for _ in range(600):
        child = ring.mutate(found, rng, 8)
        sizes.add(len(child.roles))
        change = len(child.roles) - len(found.roles)
        changes.add(change)
        assert len(child.roles) <= 8
        if change == 0 and child is not found:
            different = child.weights.astype(int) - found.weights
            assert np.abs(different).sum() == 1 and np.array_equal(child.roles, found.roles)
        elif change == 1:
            where = next(place for place in range(len(child.roles)) if np.array_equal(np.delete(child.roles, place), found.roles)
                         and np.array_equal(np.delete(child.weights, place, 0), found.weights))  # fmt: skip
            assert child.roles[where] == ring.HIDDEN and child.weights[where].tolist() in found.weights.tolist()
        assert len(child.inputs()) == 3 and len(child.outputs()) == 2
        assert child.roles[child.inputs()].tolist() == [0, 1, 2] and child.roles[child.outputs()].tolist() == [-1, -2]
        assert child.weights[child.roles == ring.HIDDEN].any(axis=1).all() or len(child.roles) >= len(found.roles)
        found = child
    assert {6, 7, 8} <= sizes and {-1, 0, 1} == changes


@pytest.mark.parametrize("width", [1, 2, 3])
def test_addition_table(width):
    bits, wanted = ring.addition(width)
    weight = np.array([*2 ** np.arange(width - 1), -(2 ** (width - 1))])
    a, b = (bits[:, :width] > 0) @ weight, (bits[:, width:] > 0) @ weight
    total = (wanted > 0) @ np.array([*2 ** np.arange(width), -(2**width)])
    assert np.array_equal(a + b, total) and len({*zip(a.tolist(), b.tolist(), strict=True)}) == 4**width


def test_evolution_of_a_ring():
    """Monotone, repeatable, and better than chance by far; it does not learn to add."""
    bits, wanted = ring.addition(2)
    start = ring.random_ring(4, 3, m=32, seed=0)
    found, scores = ring.evolve_ring(start, bits, wanted, generations=1200, seed=0)
    assert scores == sorted(scores) and scores[-1] == ring.score(found, bits, wanted, 64)
    assert scores[-1][0] / wanted.size >= 0.65 > scores[0][0] / wanted.size
    again, _ = ring.evolve_ring(start, bits, wanted, generations=1200, seed=0)
    assert np.array_equal(again.weights, found.weights) and np.array_equal(again.roles, found.roles)


def test_wrong_samples_of_a_ring():
    start = ring.random_ring(2, 1, m=3, seed=0)
    for bits, wanted, sentence in (
        (np.ones((2, 3), int), np.ones((2, 1), int), "the ring has 2 inputs and 1 outputs; the samples have 3 and 1"),
        (np.zeros((2, 2), int), np.ones((2, 1), int), "must be -1 or 1 everywhere"),
        (np.ones((2, 2), int), np.ones((1, 1), int), "with at least one sample"),
    ):
        with pytest.raises(UserError, match=sentence):
            ring.evolve_ring(start, bits, wanted, generations=1, seed=0)
    for width in (0, 9):
        with pytest.raises(UserError, match=f"1 to 8 bits, not {width}$"):
            ring.addition(width)
    with pytest.raises(UserError, match="at least one input"):
        ring.random_ring(0, 1, m=1, seed=0)
