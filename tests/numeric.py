"""What the parity tests share: how close two tensors are, relative to their size."""

from typing import Any

import numpy as np
import numpy.typing as npt


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Returns ||actual - expected|| / ||expected|| in L2; 0 where they are equal, even if both are zero."""
    found, wanted = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    difference, size = float(np.linalg.norm(found - wanted)), float(np.linalg.norm(wanted))
    if difference == 0.0:
        return 0.0
    return difference / size if size else float("inf")


def assert_close_relative(
    name: str, actual: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float = 1e-5
) -> None:
    """Asserts that two tensors have one shape, are finite and differ by at most `tolerance` in relative L2.

    The norm is taken over the whole tensor: an entry that is the small difference of large terms carries
    their rounding, so entry by entry no float32 program agrees with another, however right both are.
    """
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), f"{name}: holds values that are not finite"
    assert np.isfinite(expected).all(), f"{name}: the expectation is not finite"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative L2 error {error:.2e}, at most {tolerance:.0e} is allowed"
