"""The derivative of layer normalisation, written shortly, is the derivative."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.personal import Joint
from tests.coordinator.small_graphs import WIDTH, Array, answers, made, operators, simplified

from umbel.shared.rng import generator

NORM = """
g (float[b, s, 4] x, float[b, s, 4] g, float[4] weight, float[4] bias)
  => (float[b, s, 4] y, float[b, s, 4] dx)
<float[b, s, 1] mean, float[b, s, 1] r, float[b, s, 4] c, float[b, s, 4] n, float[b, s, 4] h,
 float[b, s, 4] wide, float[b, s, 1] total, float[b, s, 4] hn, float[b, s, 1] across, float[b, s, 4] along,
 float[b, s, 4] plain, float[b, s, 4] inner, float[b, s, 1] share,
 float four = {4.0}, float size = {4.0}, int64[1] last = {-1}, int64[1] axis = {-1}>
{
    y, mean, r = LayerNormalization<axis=-1, epsilon=1e-5>(x, weight, bias)
    c = Sub(x, mean)
    n = Mul(c, r)
    h = Mul(g, weight)
    wide = Mul(h, four)
    total = ReduceSum<keepdims=1>(h, last)
    hn = Mul(h, n)
    across = ReduceSum<keepdims=1>(hn, axis)
    along = Mul(n, across)
    plain = Sub(wide, total)
    inner = Sub(plain, along)
    share = Div(r, size)
    dx = Mul(share, inner)
}
"""
"""As torch's exporter writes it."""


def derivative(x: Array, g: Array, weight: Array, step: float = 1e-6) -> npt.NDArray[np.float64]:
    """Moves each number of a row of x by itself and looks how <g, y> moves."""

    def value(row: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> float:
        normal = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
        return float((own * normal * weight).sum())

    found = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        row, own = x[place[:-1]].astype(np.float64), g[place[:-1]].astype(np.float64)
        move = np.zeros(WIDTH)
        move[place[-1]] = step
        found[place] = (value(row + move, own) - value(row - move, own)) / (2 * step)
    return found


@given(seed=st.integers(0, 2**32), texts=st.integers(1, 3), tokens=st.integers(1, 3))
def test_it_is_how_the_norm_moves(seed: int, texts: int, tokens: int) -> None:
    """Differences of float64 are good to about 1e-6 here, float32's sums of four numbers too."""
    rng = generator(seed, 0, "", "norms")
    inputs = {name: rng.normal(0, 2, (texts, tokens, WIDTH)).astype(np.float32) for name in "xg"}
    inputs["weight"] = rng.normal(1, 0.5, WIDTH).astype(np.float32)
    found = answers(simplified(made(NORM)), inputs)[1]
    wanted = derivative(inputs["x"], inputs["g"], inputs["weight"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4 * max(1.0, np.abs(wanted).max()))


def test_what_a_graph_computes_stays_the_same() -> None:
    model = made(NORM)
    for found, wanted in zip(answers(simplified(model)), answers(model), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_width_is_no_factor_any_more() -> None:
    found = operators(simplified(made(NORM)))
    assert found == {"LayerNormalization": 1, "Sub": 3, "Mul": 6, "ReduceMean": 2}


@pytest.mark.parametrize("change", [("size = {4.0}", "size = {3.0}"), ("axis = {-1}", "axis = {1}")])
def test_what_only_looks_like_it_is_left_alone(change: tuple[str, str]) -> None:
    """Another divisor, or a sum over another axis, is another function."""
    model = made(NORM.replace(*change))
    smaller = simplified(model)
    assert operators(smaller)["ReduceMean"] == 0
    for found, wanted in zip(answers(smaller), answers(model), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_joint_graph_has_every_derivative_so(tiny_joint: Joint) -> None:
    """Two for each of two layers; what comes before the first layer moves by nothing that is learned."""
    assert operators(tiny_joint.proto)["ReduceMean"] == 2 * 4
