"""Simplified graphs: the same outputs as before, bit for bit or but for rounding, from fewer nodes."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from tests.coordinator.personal import Joint
from tests.coordinator.small_graphs import answers, made, operators, simplified

from umbel.coordinator.graphs.reshapes import Reshapes, dims_of

FOLDED = """
g (float[b, s, 4] x, float[4, 4] weight) => (float[b, s, 4] y)
<float[N, 4] flat, float[N, 4] product, float[b, s, 4] folded, float[b, s, 4] sum, float[N, 4] again,
 float[N, 4] second, int64[2] two = {-1, 4}, int64[1] width = {4}, int64[2] target, int64[3] shape>
{
    target = Identity(two)
    shape = Shape(x)
    flat = Reshape(x, target)
    product = MatMul(flat, weight)
    folded = Reshape(product, shape)
    sum = Add(folded, x)
    again = Reshape(sum, two)
    second = MatMul(again, weight)
    y = Reshape(second, shape)
}
"""
"""Two layers with a residual, as torch writes them."""

REDUCED = """
g (float[b, s, 4] x) => (float[b, s, 4] y)
<float[N, 4] flat, float[N, 4] positive, float[b, s, 4] folded, float[b, s, 1] total, float[b, s, 4] shares,
 float[N, 4] again, int64[2] two = {-1, 4}, int64[1] last = {2}, int64[3] shape, float[N, 4] out>
{
    shape = Shape(x)
    flat = Reshape(x, two)
    positive = Exp(flat)
    folded = Reshape(positive, shape)
    total = ReduceSum<keepdims=1>(folded, last)
    shares = Div(folded, total)
    again = Reshape(shares, two)
    out = Log(again)
    y = Reshape(out, shape)
}
"""
"""A sum over the last axis, which has another number on flat rows."""

SPLIT = """
g (float[b, s, 4] x, float[b, 1, 8] bias) => (float[b, s, 4] y)
<float[N, 4] flat, int64[3] shape, int64[3] wide = {1, 5, 1}, float[b, s, 8] expanded, float[b, s, 4] first,
 float[b, s, 4] second, float[N, 4] exp, float[b, s, 4] folded, float[b, s, 4] sum, float[b, s, 4] all,
 int64[2] two = {-1, 4}>
{
    shape = Shape(x)
    flat = Reshape(x, two)
    exp = Exp(flat)
    folded = Reshape(exp, shape)
    expanded = Expand(bias, wide)
    first, second = Split<axis=2, num_outputs=2>(expanded)
    sum = Add(folded, first)
    all = Add(sum, second)
    y = Neg(all)
}
"""
"""What is the same for every token of a text, for two places at once."""

HEADS = """
g (float[b, h, s, 4] q, float[b, h, s, 4] k) => (float[b, h, s, s] scores, float[b, h, 4, 4] other)
<float[M, s, 4] q3, float[M, s, 4] k3, float[M, 4, s] kt, float[M, s, s] product, int64[4] shape,
 int64[3] three, int64[1] open = {-1}, int64[1] two = {2}, int64[1] four = {4}, int64[2] last, int64[2] lead,
 int64[1] zero = {0}, int64[1] n, int64[4] square, int64[1] up = {3}, float[b, h, 4, s] kt4,
 float[b, h, s, s] folded, float[b, h, 4, 4] kq, float[b, h, 4, 4] qk>
{
    shape = Shape(q)
    last = Slice(shape, two, four)
    lead = Slice(shape, zero, two)
    n = Slice(shape, two, up)
    three = Concat<axis=0>(open, last)
    square = Concat<axis=0>(lead, n, n)
    q3 = Reshape(q, three)
    k3 = Reshape(k, three)
    kt = Transpose<perm=[0, 2, 1]>(k3)
    product = MatMul(q3, kt)
    folded = Reshape(product, square)
    scores = Neg(folded)
    kt4 = Transpose<perm=[0, 1, 3, 2]>(k)
    kq = MatMul(kt4, q)
    qk = Transpose<perm=[0, 1, 3, 2]>(kq)
    other = Neg(qk)
}
"""
"""Scores of attention by (batch * heads), and a product that is transposed."""

TRANSPOSED = """
g (float[b, 4] x, float[4, 4] weight) => (float[b, 4] y)
<float[4, 4] turned, float[4, 4] back>
{
    turned = Transpose<perm=[1, 0]>(weight)
    back = Transpose<perm=[1, 0]>(turned)
    y = MatMul(x, back)
}
"""


@pytest.mark.parametrize("text", [FOLDED, REDUCED, SPLIT, HEADS, TRANSPOSED])
def test_what_a_graph_computes_stays_the_same(text: str) -> None:
    """Sums may be taken in another order, so float32 may round otherwise in the last place or two."""
    model = made(text)
    for found, wanted in zip(answers(simplified(model)), answers(model), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_layers_work_on_flat_rows() -> None:
    """One reshape goes in and one comes out; the residual is added in between."""
    assert operators(simplified(made(FOLDED)))["Reshape"] == 2


def test_what_is_split_for_two_places_is_flattened_once() -> None:
    """One reshape more: of what is split."""
    assert operators(simplified(made(SPLIT)))["Reshape"] == 3


def test_a_sum_over_the_last_axis_is_one_on_flat_rows() -> None:
    assert operators(simplified(made(REDUCED)))["Reshape"] == 2


def test_products_of_attention_need_no_reshape() -> None:
    found = operators(simplified(made(HEADS)))
    assert found["Reshape"] == 0
    assert found["Transpose"] == 2  # of k for the scores, of q in place of what k^T q gives


def test_a_weight_that_is_turned_twice_is_read_as_it_is() -> None:
    assert operators(simplified(made(TRANSPOSED))) == {"MatMul": 1}


def test_a_weight_is_never_folded() -> None:
    """What an initializer holds is nobody's business: its bytes lie in a file, and rounds replace some."""
    model = made("g (float[b, 2] x) => (float[b, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] t>"
                 "{ t = Transpose<perm=[1, 0]>(w)  y = MatMul(x, t) }")  # fmt: skip
    smaller = simplified(model)
    assert operators(smaller) == {"Transpose": 1, "MatMul": 1}
    assert [tensor.name for tensor in smaller.graph.initializer] == ["w"]


def test_a_reshape_that_a_graph_cannot_say_is_left_alone() -> None:
    graph = ir.serde.deserialize_model(made(FOLDED)).graph
    reshapes = Reshapes(graph)
    assert reshapes.can(("N", 4), ("b", "s", 4))
    assert reshapes.can(("N", 4), ("b", "other", 4))
    assert not reshapes.can(("N", 4), ("some", "other", 4))
    assert reshapes.can(("some", "N"), ("some", "other", 4))
    with pytest.raises(ValueError, match="no target for a reshape"):
        reshapes.target(("N", 4), ("some", "other", 4), graph[-1])


def test_sizes_that_are_not_known_are_none() -> None:
    assert dims_of(None) is None
    assert dims_of(ir.Value(name="x")) is None
    assert dims_of(ir.Value(name="x", shape=ir.Shape([None, 2]))) is None
    assert dims_of(ir.Value(name="x", shape=ir.Shape(["b", 2]))) == ("b", 2)


def test_nothing_is_done_twice_in_a_joint_graph(tiny_joint: Joint) -> None:
    nodes = tiny_joint.proto.graph.node
    kinds = {output: node.op_type for node in nodes for output in node.output}
    chained = [
        node.op_type
        for node in nodes
        if node.op_type == "Reshape" and kinds.get(node.input[0]) == node.op_type
    ]
    assert chained == []
    assert not {"Constant", "Identity"} & set(kinds.values())
    same = Counter((n.op_type, *n.input, *(a.SerializeToString() for a in n.attribute)) for n in nodes)
    assert {key: count for key, count in same.items() if count > 1} == {}
