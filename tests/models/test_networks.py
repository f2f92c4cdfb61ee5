"""Networks of every method: what is exported is what was trained. Needs ``pip install 'tritloom[train]'``."""

from importlib import import_module

import numpy as np
import onnxruntime
import pytest

import tritloom
from tritloom.errors import UserError
from tritloom.models.data.pictures import load_pictures
from tritloom.models.methods.names import METHODS

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def data():
    return load_pictures("digits")


@pytest.fixture(scope="module")
def network():
    return import_module("tritloom.models.nets.network")


def statistics(net, data):
    """Running figures of the normalisations and grids from some training rows, and gains of both signs."""
    torch = import_module("torch")
    torch.set_num_threads(1)
    with torch.no_grad():
        for block in net.blocks:
            if block.norm is not None:
                block.norm.weight[::3] *= -1
                block.norm.bias.uniform_(-0.3, 0.6)
        for start in range(0, 1000, 50):
            net(torch.from_numpy(data.train_images[start : start + 50]))
    methods = import_module("tritloom.models.methods")
    methods.set_progress(net, 1.0)
    methods.crystallise(net)
    with torch.no_grad():
        return net.eval()(torch.from_numpy(data.test_images)).numpy()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", METHODS)
def test_the_file_computes_what_was_trained(data, network, method, kind):
    torch, recipes = import_module("torch"), import_module("tritloom.models.methods.recipes")
    classifier = import_module("tritloom.models.nets.classifier").classifier
    torch.manual_seed(5)
    layer = network.Layer
    hidden = [layer(48), layer(32)] if kind == "mlp" else [layer(16, True, True), layer(32, True), layer(16)]
    net = network.Network(data.shape, hidden, 10, recipes.recipe(method), input_step=data.step)
    trained = statistics(net, data)
    model = classifier("net", net.stages(), shape=data.shape, metadata={}).SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    exported = session.run(None, {"image": data.test_images})[0]
    differing = np.abs(exported - trained).max(axis=1) > 1e-3 * np.abs(trained).max()
    if method == "drna-reference":
        assert differing.mean() > 0.9, "its soft weights are not those that it exports"
    else:
        assert differing.sum() <= 4, "a code may fall to the other side of a tie, in a row or two"
    found = tritloom.verify(model, on=["golden"], feeds={"image": data.test_images})
    assert found.against("onnx")[0].top1_agreement >= 0.995
    assert found.against("onnx")[0].mismatches <= 40


def test_layers_that_do_not_fit(network):
    recipe = import_module("tritloom.models.methods.recipes").recipe("twn")
    layer = network.Layer
    with pytest.raises(UserError, match=r"^layer 2 is a convolution, but what it gets is no image"):
        network.Network((1, 8, 8), [layer(8), layer(8, True)], 10, recipe, input_step=1.0)
    with pytest.raises(UserError, match=r"^layer 4 pools an image of less than 2 x 2 pixels"):
        network.Network((1, 8, 8), [layer(8, True, True)] * 4, 10, recipe, input_step=1.0)
    with pytest.raises(UserError, match=r"^method must be one of twn, .*, not 'tnw'$"):
        import_module("tritloom.models.methods.recipes").recipe("tnw")
