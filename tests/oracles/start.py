"""What users' labels say about embeddings, one user, label, example and column at a time."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Row = tuple[int, int, int]
"""One example: number of its text, number of its user, number of its label."""


def summaries_oracle(embedded: Array, examples: Sequence[Row], users: int, labels: int) -> Array:
    """Returns (users, (d + 1) (labels - 1)): of each label the covariance with the embedding, then how often.

    Both are shrunk by n / (n + 8), and each of the two blocks is scaled so that its strongest direction has
    variance 1 between users; covariances are taken around everyone's first.
    """
    width = embedded.shape[1]
    middle = [math.fsum(embedded[:, column]) / len(embedded) for column in range(width)]
    taste = np.zeros((users, (labels - 1) * width))
    lean = np.zeros((users, labels - 1))
    for user in range(users):
        own = [(text, label) for text, whose, label in examples if whose == user]
        weight = len(own) / (len(own) + 8)
        for label in range(1, labels):
            everyone = sum(given == label for _, _, given in examples) / len(examples)
            share = sum(given == label for _, given in own) / len(own)
            lean[user, label - 1] = weight * (share - everyone)
            for column in range(width):
                products = [
                    ((given == label) - share) * (embedded[text, column] - middle[column])
                    for text, given in own
                ]
                taste[user, (label - 1) * width + column] = weight * math.fsum(products) / len(own)
    for column in range(taste.shape[1]):
        taste[:, column] -= math.fsum(taste[:, column]) / users
    return np.hstack([_scaled(taste), _scaled(lean)])


def _scaled(block: Array) -> Array:
    """Divides by the root of the mean outer product's largest eigenvalue; no difference stays none."""
    moment = np.zeros((block.shape[1], block.shape[1]))
    for row in block:
        moment += np.outer(row, row) / len(block)
    largest = float(np.linalg.eigvalsh(moment)[-1])
    return block / math.sqrt(largest) if largest > 1e-18 else np.zeros_like(block)
