"""GELU and its derivative of one erf, with the numbers beside products given to them."""

import math

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from tests.coordinator.personal import Joint, random_batch, random_profile
from tests.coordinator.small_graphs import Array, answers, made, operators, rewritten
from tests.numeric import assert_close_relative

from umbel.coordinator.graphs.gelu import share_erf
from umbel.coordinator.graphs.parity import open_session
from umbel.shared.rng import generator

LAYER = """
g (float[N, 3] a, float[3, 5] first, float[5] bias, float[5, 3] second, float[3] ends, float[N, 3] g)
  => (float[N, 3] out, float[N, 3] da)
<float[N, 5] x, float[N, 5] y, float[3, 5] secondt, float[5, 3] firstt, float[N, 5] back, float[N, 5] s,
 float[N, 5] e, float[N, 5] u, float[N, 5] phi, float[N, 5] square, float[N, 5] power, float[N, 5] bell,
 float[N, 5] density, float[N, 5] along, float[N, 5] d, float[N, 5] dx, float[N, 3] sum, float[N, 3] dsum,
 float root = {0.70710678}, float one = {1.0}, float half = {0.5}, float low = {-0.5}, float k = {0.39894228}>
{
    x = Gemm(a, first, bias)
    y = Gelu(x)
    sum = Gemm(y, second, ends)
    out = Neg(sum)
    secondt = Transpose<perm=[1, 0]>(second)
    firstt = Transpose<perm=[1, 0]>(first)
    back = MatMul(g, secondt)
    s = Mul(x, root)
    e = Erf(s)
    u = Add(e, one)
    phi = Mul(u, half)
    square = Mul(x, x)
    power = Mul(square, low)
    bell = Exp(power)
    density = Mul(bell, k)
    along = Mul(x, density)
    d = Add(phi, along)
    dx = Mul(back, d)
    dsum = MatMul(dx, firstt)
    da = Neg(dsum)
}
"""
"""A feed-forward block and its way back, as torch's exporter writes them."""

OPEN = LAYER.replace("x = Gemm(a, first, bias)", "w = MatMul(a, first) x = Add(w, bias)").replace(
    "<float[N, 5] x,", "<float[N, 5] w, float[N, 5] x,"
)
"""One where no product alone makes x."""

READ_TWICE = LAYER.replace("out = Neg(sum)", "also = MatMul(y, second) out = Sub(also, sum)").replace(
    "<float[N, 5] x,", "<float[N, 3] also, float[N, 5] x,"
)
"""One where something else than a Gemm reads GELU, too."""


def shared(model: onnx.ModelProto) -> onnx.ModelProto:
    return rewritten(model, share_erf)


def gelu(x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns GELU and its derivative by their definition, one number at a time."""
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x.ravel()]).reshape(x.shape)
    return x * below, below + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def by_hand(given: dict[str, Array]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a, first, bias, second, ends, g = (
        given[name].astype(np.float64) for name in ("a", "first", "bias", "second", "ends", "g")
    )
    y, slope = gelu(a @ first + bias)
    return -(y @ second + ends), -((g @ second.T) * slope) @ first.T


def inputs(seed: int, rows: int, size: float) -> dict[str, Array]:
    rng = generator(seed, 0, "", "gelu")
    shapes = {"a": (rows, 3), "first": (3, 5), "bias": (5,), "second": (5, 3), "ends": (3,), "g": (rows, 3)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, "a": (found["a"] * size).astype(np.float32)}


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 10.0, 1e4, 1e18]),
)
def test_it_is_gelu_and_its_derivative(seed: int, rows: int, size: float) -> None:
    """Beside the largest of a tensor, float32's rounding: of sums that cancel little is left otherwise."""
    given = inputs(seed, rows, size)
    for found, wanted in zip(answers(shared(made(LAYER)), given), by_hand(given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * max(1e-3, np.abs(wanted).max()))


@pytest.mark.parametrize("text", [LAYER, OPEN, READ_TWICE])
def test_what_a_graph_computes_stays_the_same(text: str) -> None:
    model, given = made(text), inputs(0, 6, 1.0)
    for found, wanted in zip(answers(shared(model), given), answers(model, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_one_erf_is_left_and_products_have_the_numbers() -> None:
    """Left are s^2, s u, s exp(c - s^2) and g gelu'; a bias is scaled, and what a MatMul reads."""
    found = shared(made(LAYER))
    assert operators(found) == {
        **{"Gemm": 2, "MatMul": 2, "Transpose": 2, "Neg": 2, "Erf": 1, "Exp": 1},
        **{"Mul": 6, "Add": 2, "Sub": 1},
    }
    alphas = [a.f for node in found.graph.node for a in node.attribute if a.name == "alpha"]
    assert [round(alpha, 6) for alpha in alphas] == [0.707107, 0.707107]


def test_where_no_product_makes_x_its_number_stays() -> None:
    found = shared(made(OPEN))
    assert operators(found)["Mul"] == 6  # s in place of the bias


def test_what_no_gemm_reads_is_multiplied() -> None:
    found = shared(made(READ_TWICE))
    assert operators(found)["Mul"] == 7
    assert operators(found)["Gemm"] == 2


def test_without_its_derivative_gelu_stays_as_it_is() -> None:
    model = made("g (float[N, 3] x) => (float[N, 3] y) { y = Gelu(x) }")
    assert operators(shared(model)) == {"Gelu": 1}


def test_the_approximation_by_tanh_is_another_function() -> None:
    model = made(LAYER.replace("Gelu(x)", 'Gelu<approximate="tanh">(x)'))
    assert operators(shared(model)) == operators(model)


def test_learning_has_one_erf_a_layer_and_predicting_gelu(tiny_joint: Joint) -> None:
    found = {name: operators(onnx.load_from_string(data)) for name, data in tiny_joint.graphs()[0].items()}
    assert (found["predict"]["Gelu"], found["predict"]["Erf"]) == (2, 0)
    for name in ("learn", "contribute"):
        assert (found[name]["Gelu"], found[name]["Erf"], found[name]["Exp"]) == (
            0,
            2,
            2 + 1,
        )  # the loss has one


def test_what_a_release_learns_by_stays_the_same(tiny_joint: Joint) -> None:
    """Of rows of several lengths and people; float32 rounds otherwise in the last place or two."""
    (plain, files), (short, _) = tiny_joint.cut(), tiny_joint.graphs()
    assert plain["predict"] == short["predict"]
    weights = {name: array for data in files.values() for name, array in load(data).items()}
    batch = random_batch(3, 4, 7, 2, tiny_joint.backbone.shape.vocabulary)
    names = ("input_ids", "attention_mask", "labels", "weights", "owner")
    feed = {name: getattr(batch, name) for name in names}
    feed |= random_profile(3, 2, tiny_joint.model.profile_spec())
    for graph in ("learn", "contribute"):
        before, after = (open_session(graph, data[graph], weights) for data in (plain, short))
        outputs = [value.name for value in before.get_outputs()]
        for name, found, wanted in zip(
            outputs, after.run(outputs, feed), before.run(outputs, feed), strict=True
        ):
            assert_close_relative(name, found, wanted)
