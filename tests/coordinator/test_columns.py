"""Attention by columns: the same products, of matrices that onnxruntime transposes quickly."""

import numpy as np
import pytest
from tests.coordinator.personal import Joint
from tests.coordinator.small_graphs import Array, answers, made, operators, simplified

from umbel.shared.rng import generator

HEADS, WIDTH = 2, 3
ATTENTION = """
g (float[b, s, 6] q, float[b, s, 6] k, float[b, s, 6] v, float[b, s, 6] g)
  => (float[b, s, 6] mixed, float[b, s, 6] dq, float[b, s, 6] dk, float[b, s, 6] dv)
<int64[4] apart = {0, 0, 2, 3}, int64[3] beside = {0, 0, 6},
 float[b, s, 2, 3] q4, float[b, s, 2, 3] k4, float[b, s, 2, 3] v4, float[b, s, 2, 3] g4,
 float[b, 2, s, 3] Q, float[b, 2, s, 3] K, float[b, 2, s, 3] V, float[b, 2, s, 3] G,
 float[b, 2, 3, s] kt, float[b, 2, 3, s] vt, float[b, 2, s, s] scores, float[b, 2, s, s] P,
 float[b, 2, s, s] pt, float[b, 2, s, s] S, float[b, 2, s, s] st,
 float[b, 2, s, 3] PV, float[b, 2, s, 3] SK, float[b, 2, s, 3] SQ, float[b, 2, s, 3] PG,
 float[b, s, 2, 3] pv, float[b, s, 2, 3] sk, float[b, s, 2, 3] sq, float[b, s, 2, 3] pg>
{
    q4 = Reshape(q, apart)
    k4 = Reshape(k, apart)
    v4 = Reshape(v, apart)
    g4 = Reshape(g, apart)
    Q = Transpose<perm=[0, 2, 1, 3]>(q4)
    K = Transpose<perm=[0, 2, 1, 3]>(k4)
    V = Transpose<perm=[0, 2, 1, 3]>(v4)
    G = Transpose<perm=[0, 2, 1, 3]>(g4)
    kt = Transpose<perm=[0, 1, 3, 2]>(K)
    scores = MatMul(Q, kt)
    P = Softmax(scores)
    PV = MatMul(P, V)
    pv = Transpose<perm=[0, 2, 1, 3]>(PV)
    mixed = Reshape(pv, beside)
    vt = Transpose<perm=[0, 1, 3, 2]>(V)
    S = MatMul(G, vt)
    SK = MatMul(S, K)
    sk = Transpose<perm=[0, 2, 1, 3]>(SK)
    dq = Reshape(sk, beside)
    st = Transpose<perm=[0, 1, 3, 2]>(S)
    SQ = MatMul(st, Q)
    sq = Transpose<perm=[0, 2, 1, 3]>(SQ)
    dk = Reshape(sq, beside)
    pt = Transpose<perm=[0, 1, 3, 2]>(P)
    PG = MatMul(pt, G)
    pg = Transpose<perm=[0, 2, 1, 3]>(PG)
    dv = Reshape(pg, beside)
}
"""
"""All six products of attention, there and back, without what softmax's derivative adds to S."""

GIVEN_AWAY = """
g (float[b, s, 6] q, float[b, 2, s, s] P) => (float[b, 2, s, 3] mixed, float[b, s, 2, 3] rows)
<int64[4] apart = {0, 0, 2, 3}, float[b, s, 2, 3] q4, float[b, 2, s, 3] Q, float[b, 2, s, 3] twice>
{
    q4 = Reshape(q, apart)
    Q = Transpose<perm=[0, 2, 1, 3]>(q4)
    mixed = MatMul(P, Q)
    twice = MatMul(P, mixed)
    rows = Transpose<perm=[0, 2, 1, 3]>(twice)
}
"""
"""Products that the graph gives away."""


def by_hand(inputs: dict[str, Array]) -> list[Array]:
    """One text and one head at a time."""
    found = [np.zeros_like(inputs["q"]) for _ in range(4)]
    for text in range(len(inputs["q"])):
        for head in range(HEADS):
            own = slice(head * WIDTH, (head + 1) * WIDTH)
            q, k, v, g = (inputs[name][text, :, own].astype(np.float64) for name in "qkvg")
            shares = np.exp(q @ k.T)
            shares /= shares.sum(1, keepdims=True)
            back = g @ v.T
            for place, value in zip(found, (shares @ v, back @ k, back.T @ q, shares.T @ g), strict=True):
                place[text, :, own] = value
    return found


@pytest.mark.parametrize(("texts", "tokens"), [(1, 1), (1, 4), (3, 1), (3, 5), (2, 3), (4, 2)])
def test_attention_is_what_it_is_by_hand(texts: int, tokens: int) -> None:
    """Sizes that are one, and those of a head; float32 sums of a few numbers."""
    rng = generator(0, texts, "", f"columns {tokens}")
    given = {name: rng.normal(size=(texts, tokens, 6)).astype(np.float32) for name in "qkvg"}
    model = made(ATTENTION)
    for found, before, wanted in zip(
        answers(simplified(model), given), answers(model, given), by_hand(given), strict=True
    ):
        np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def orders(text: str) -> list[list[int]]:
    nodes = simplified(made(text)).graph.node
    return sorted(list(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose")


def test_nothing_is_moved_by_head() -> None:
    """Eight matrices are turned, and four times a product reads one transposed."""
    assert orders(ATTENTION) == [[0, 1, 3, 2]] * 4 + [[0, 2, 1]] * 8
    assert operators(simplified(made(ATTENTION)))["MatMul"] == 6


def test_what_a_graph_gives_away_it_still_gives() -> None:
    model = made(GIVEN_AWAY)
    for found, wanted in zip(answers(simplified(model)), answers(model), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_joint_graph_moves_nothing_by_head(tiny_joint: Joint) -> None:
    perms = [list(n.attribute[0].ints) for n in tiny_joint.proto.graph.node if n.op_type == "Transpose"]
    assert [0, 2, 1, 3] not in perms
    # Of each layer q, k, v, what they give, and the way back through all four, but for the first keys'.
    assert perms.count([0, 2, 1]) == 2 * 8 - 1
