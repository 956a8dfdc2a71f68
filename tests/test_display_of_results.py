"""What the records of the library say of themselves: numbers, and nothing inside a trace."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel.display import Table, cell_text

X = np.asarray([[3.0, 1.0], [-2.0, 1.0], [1.0, -4.0]], np.float32)
Y = np.asarray([1.0, -1.0, 1.0], np.float32)
KERNEL = pk.TwoLayerNTK()


def _trained():
    return pk.fit(KERNEL, X, Y, loss="squared", dynamics=pk.GradientFlow(np.inf))


def _network():
    network = pk.linearize(lambda p, x: (x @ p["w"]) ** 2, {"w": jnp.asarray([1.0, 2.0])})
    return network.at({"w": jnp.asarray([4.0, 6.0])})


SAID = {
    "flips": (lambda: pk.certified_flips(_trained(), X), "decisions 3, training labels 3"),
    "smoother": (lambda: pk.smoother(_trained()), "degrees of freedom 3, leverage [1, 1, 1]"),
    "split": (lambda: pk.split(_trained(), X), "own |gradient| [0, 0, 0]"),
    "features": (lambda: pk.kernel_features(KERNEL, X, Y), "points 3, features 3, eigenvalues ["),
    "certified": (lambda: pk.certified_size(_trained(), X, Y), "norm l2, points 3, above 0 3"),
    "process": (lambda: pk.gaussian_process(KERNEL, X, Y, noise=0.5), "outputs 1, noise 0.5"),
    "linearized": (_network, "parameters 2, |params - origin| 5)"),
}


@pytest.mark.parametrize("name", SAID)
def test_records_print_their_numbers(name):
    make, said = SAID[name]
    record = make()
    assert said in repr(record) and str(record) == repr(record)
    assert repr(record).startswith(f"{type(record).__name__}(")
    assert record._repr_html_().startswith(f"<table><tr><th>{type(record).__name__}</th>")


@pytest.mark.parametrize("name", ("process", "linearized", "smoother"))
def test_inside_a_trace_there_are_no_numbers(name):
    make, _ = SAID[name]
    said = []

    @eqx.filter_jit
    def look(record):
        said.append(repr(record))

    look(make())
    assert "object at" in said[0]


def test_shares_line_up_whatever_the_class():
    table = Table({"accuracy of 3": [0.5, 1.0], "accuracy": [0.25, 1.0]})
    assert str(table).splitlines()[1].split() == ["0.500", "0.250"]
    assert cell_text("norm of x", 0.5) == "0.5"
