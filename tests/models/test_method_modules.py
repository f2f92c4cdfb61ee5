"""The PyTorch modules of the training methods: what they compute, and which gradients pass. Needs ``pip install 'tritloom[train]'``."""

import copy
from importlib import import_module

import numpy as np
import pytest

from tritloom.models import methods
from tritloom.models.methods import quest, twn
from tritloom.models.methods.names import METHODS

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def torch():
    torch = import_module("torch")
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def weight(torch):
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)


QUANTISERS = {
    "twn": lambda: methods.TwnWeights(),
    "twn of the tensor": lambda: methods.TwnWeights(per_channel=False),
    "absmean": lambda: methods.AbsMeanWeights(),
    "int4": lambda: methods.IntegerWeights(4),
    "int8": lambda: methods.IntegerWeights(8),
    **{f"quest {bits:g}": lambda bits=bits: methods.QuestWeights(bits) for bits in quest.COEFFICIENTS},
}


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("shape", [(6, 32), (5, 16, 3, 3), (1, 1)])
def test_forward_is_scale_times_codes(torch, name, shape):
    weights = QUANTISERS[name]()
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    codes, scale = weights.codes(w)
    assert codes.shape == w.shape and len(scale) in (1, shape[0])
    assert torch.equal(codes, codes.round())
    torch.testing.assert_close(weights(w), codes * scale.reshape(-1, *[1] * (len(shape) - 1)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["twn", "twn of the tensor", "absmean", "int4"])
def test_gradients_of_straight_through_weights(torch, weight, name):
    """The weight gets the gradient of its quantised form, also outside the grid; the input sees the quantised weights."""
    layer = methods.QuantLinear(32, 6, weights=QUANTISERS[name]())
    with torch.no_grad():
        layer.weight.copy_(weight)
    x = torch.randn(4, 32, requires_grad=True)
    upstream = torch.randn(4, 6)
    layer(x).backward(upstream)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ x.detach())
    torch.testing.assert_close(x.grad, upstream @ layer.weights(layer.weight).detach())


@pytest.mark.parametrize("bits", [1, 1.585, 2, 4])
def test_gradients_of_quest_pass_where_the_grid_is_trusted(torch, bits):
    weight = torch.randn(60, 256, generator=torch.Generator().manual_seed(1), requires_grad=True)
    upstream = torch.randn(60, 256, generator=torch.Generator().manual_seed(3))
    methods.QuestWeights(bits)(weight).backward(upstream)
    rotated = quest.rotate(weight.detach().numpy().astype(np.float64))
    unit = quest.unit_of(np.sqrt((rotated**2).mean(1, keepdims=True)), bits)
    mask = quest.trusted(rotated, quest.quantise(rotated, bits, unit), bits, unit)
    assert 0 < (~mask).sum() < mask.size / 2
    np.testing.assert_allclose(weight.grad.numpy(), quest.rotate(mask * upstream.numpy().astype(np.float64)), atol=1e-5)


def test_quest_product_needs_no_rotation_back(torch):
    """At 8 bits the product of rotated weights and activations is nearly that of the plain ones, dense and as a convolution."""
    x, images = torch.randn(7, 64), torch.randn(2, 32, 5, 5)
    for layer, given in (
        (methods.QuantLinear(64, 9, weights=methods.QuestWeights(8), activations=methods.QuestActivations(8)), x),
        (methods.QuantConv2d(32, 9, weights=methods.QuestWeights(8), activations=methods.QuestActivations(8, axis=1)), images),
    ):
        plain = copy.deepcopy(layer)
        plain.weights = plain.activations = None
        inner = (slice(None), slice(None), *[slice(1, -1)] * (given.dim() - 2))  # no grid of QuEST holds the zeros around an image
        difference = (layer(given) - plain(given))[inner[: given.dim()]]
        assert difference.abs().max() < 0.1 * plain(given).std()


def test_quest_activations_of_each_row(torch):
    x = torch.randn(5, 64) * torch.tensor([[0.01], [1], [10], [100], [0]])
    got = methods.QuestActivations(2)(x).numpy().astype(np.float64)
    rotated = quest.rotate(x.numpy().astype(np.float64))
    unit = quest.unit_of(np.sqrt((rotated**2).mean(1, keepdims=True)) + 1e-8, 2)
    np.testing.assert_allclose(got, quest.quantise(rotated, 2, unit) * unit, rtol=1e-4)


def test_static_absmax_learns_in_training_only(torch):
    x, module = torch.randn(500, 32) * 3, methods.StaticAbsMax()
    module.train()(x)
    first = float(module.step)
    assert first == pytest.approx(float(x.abs().max()) / 127)
    module.eval()(x * 100)
    assert float(module.step) == first
    module.train()(x * 2)
    assert float(module.step) == pytest.approx(first * 1.05, rel=1e-5)


def test_static_quest_activations(torch):
    """One unit and one mean a feature, learned in training only; in evaluation these decide, whatever the batch."""
    x = torch.randn(4000, 32, generator=torch.Generator().manual_seed(1)) * 3 + 7
    module = methods.QuestActivations(2, static=32)
    module.train()(x)
    unit, centre = float(module.unit), module.centre.clone()
    rotated = quest.rotate(x.numpy().astype(np.float64))
    np.testing.assert_allclose(centre.numpy(), rotated.mean(0), atol=1e-3)
    assert unit == pytest.approx(quest.unit_of(3.0, 2), rel=0.02)
    other = quest.rotate(x[:50] * 2).double().numpy() - centre.numpy()
    got = module.eval()(x[:50] * 2).numpy()
    np.testing.assert_allclose(got, quest.quantise(other, 2, unit) * unit, rtol=1e-5)
    assert float(module.unit) == unit and torch.equal(module.centre, centre)
    module.train()(x + 100)
    np.testing.assert_allclose(module.centre.numpy(), quest.rotate((x + 5).numpy().astype(np.float64)).mean(0), atol=1e-2)
    images = torch.randn(6, 16, 5, 5) + 1
    along = methods.QuestActivations(1, axis=1, static=16).train()
    assert set(np.sign(along(images).numpy()).ravel().tolist()) == {-1, 1}
    np.testing.assert_allclose(along.centre.numpy(), quest.rotate(images.numpy(), 1).mean((0, 2, 3)), atol=1e-5)


def test_static_grid_rounds_half_to_even_and_stops_gradients_outside(torch):
    x = torch.tensor([-1.0, 0.49, 0.5, 1.5, 2.5, 14.6, 15.4, 500.0]) * 0.25
    x.requires_grad_(True)
    y = methods.StaticGrid(0.25, 0, 15)(x)
    assert (y.detach() / 0.25).tolist() == [0, 0, 0, 2, 2, 15, 15, 15]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_absmax_tokens_pass_every_gradient(torch):
    x = torch.tensor([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    y = methods.AbsMaxTokens()(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[32.0, -127.0, 64.0], [0, 0, 0]]) * 2 / 127)
    y.sum().backward()
    assert (x.grad == 1).all()


def test_sub_layer_norm(torch):
    norm = methods.SubLayerNorm(4)
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[1.0, -2.0, 3.0, -4.0], [2.0, 0.0, 0.0, 0.0]]), rtol=1e-5, atol=1e-5)


def test_published_drna_never_trains_its_weights(torch):
    """After a backward pass of the task the ternary weights have no gradient at all; the bias has one. Only the regulariser reaches them."""
    layer = methods.QuantLinear(16, 3, weights=methods.PublishedDrnaWeights())
    methods.set_progress(layer, 0.5)
    layer(torch.randn(8, 16)).square().sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
    layer.weights.penalty(layer.weight).backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().max() < 0.1


def test_repaired_drna_has_a_true_gradient(torch):
    """Of the staircase itself, by finite differences, with mean and scale held constant as the method says."""
    weights = methods.RepairedDrnaWeights().double()
    w = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, dtype=torch.float64)
    for progress in (0.0, 0.3, 0.6, 0.84):
        weights.progress = progress
        w.grad = None
        weights(w).backward(upstream)
        from tritloom.models.methods import drna

        mean = w.detach().abs().mean()
        alpha = drna.fitted_scale(w.detach(), drna.staircase(w.detach() / mean, drna.steepness(progress)))
        share = drna.blend(progress, 0.1, 0.85)

        def value(at, mean=mean, alpha=alpha, share=share, progress=progress):
            return (1 - share) * at + share * alpha * drna.staircase(at / mean, drna.steepness(progress))

        difference = (value(w.detach() + 1e-6) - value(w.detach() - 1e-6)) / 2e-6
        torch.testing.assert_close(w.grad, difference * upstream, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(weights(w), value(w))


def test_crystals(torch):
    """Crystallised weights are those of TWN with one scale, get no gradient, survive a state dict, and may melt again."""
    net = torch.nn.Sequential(methods.QuantLinear(40, 20, weights=methods.RepairedDrnaWeights()))
    layer = net[0]
    start = methods.weight_codes(net)
    methods.set_progress(net, 0.9)
    methods.crystallise(net)
    trits, scale = twn.ternarise(layer.weight.detach(), per_channel=False)
    torch.testing.assert_close(layer.weights(layer.weight), trits * scale)
    assert methods.flips(start, methods.weight_codes(net)) == 0
    net(torch.randn(3, 40)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
    other = torch.nn.Sequential(methods.QuantLinear(40, 20, weights=methods.RepairedDrnaWeights()))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other[0].weights(other[0].weight), layer.weights(layer.weight))
    fixed = methods.weight_codes(net)
    methods.recrystallise(net, torch.Generator().manual_seed(0))
    methods.set_progress(net, 0.2)
    assert 0 < methods.flips(fixed, methods.weight_codes(net)) < 0.2
    assert layer.weights(layer.weight).requires_grad


def test_flips_count_all_layers(torch):
    before = {"a": torch.tensor([1, 0, -1, 0]), "b": torch.tensor([1])}
    after = {"a": torch.tensor([1, 1, -1, 0]), "b": torch.tensor([-1])}
    assert methods.flips(before, after) == pytest.approx(2 / 5)


def test_every_name_of_the_package_is_there():
    assert set(methods.__all__) == set(methods._MODULES)
    for name in methods.__all__:
        assert getattr(methods, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Absent'"):
        _ = methods.Absent


def test_recipes_and_names_are_the_same_list():
    assert tuple(import_module("tritloom.models.methods.recipes").RECIPES) == METHODS
