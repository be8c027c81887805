"""Profiles of a release whose private tensors have grown longer: the same person, in the larger release."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from umbel.shared.errors import ProfileError
from umbel.shared.profile import FloatArray, ProfileSpec, TensorSpec, pack_profile, unpack_profile

LOW_LOGIT = -60_000.0
"""A logit whose share of a softmax is zero, and which float16 can hold."""


def grown_profile(
    old: ProfileSpec, new: ProfileSpec, profile: Mapping[str, FloatArray], fill: float | None = None
) -> dict[str, FloatArray]:
    """Returns a profile whose rows are longer and say the same.

    New bits are zeros: what was chosen stays chosen, K values or (with "top:K@Z") more. A row of equal
    values, such as zeros, says nothing about the person, so it goes on with that value. Other rows of numbers
    go on with `fill`.

    Args:
        old: The tensors that the profile has.
        new: The same ones; last axes may be longer.
        profile: name -> (users, *shape), as `unpack_profile` gives it.
        fill: What a new number is; `LOW_LOGIT` for the logits of a softmax. None where only bits may grow.

    Raises:
        ProfileError: `new` is not `old` with longer rows, or numbers would grow and `fill` is None.
    """
    problems = _problems(old, new, fill)
    if problems:
        raise ProfileError("the profile cannot be taken along", problems, "Learn it anew from the examples.")
    grown = zip(old.tensors, new.tensors, strict=True)
    return {was.name: _longer(was, now, profile[was.name], fill or 0.0) for was, now in grown}


def grown_file(
    old: ProfileSpec, new: ProfileSpec, data: bytes, ids: tuple[str, str], fill: float | None = None
) -> bytes:
    """Returns a packed profile as `grown_profile` makes it of another packed one.

    Args:
        old: The tensors of the release that it was learned for.
        new: Those of the larger release.
        data: The packed profile.
        ids: Ids of the two releases.
        fill: As for `grown_profile`.

    Raises:
        ProfileError: The profile is not one of `old`, or cannot be taken along.
    """
    return pack_profile(new, grown_profile(old, new, unpack_profile(old, data, ids[0]), fill), ids[1])


def _longer(was: TensorSpec, now: TensorSpec, values: FloatArray, fill: float) -> FloatArray:
    more = now.shape[-1:] if now.shape else ()
    count = more[0] - was.shape[-1] if more else 0
    if not count:
        return values
    rest = np.zeros((*values.shape[:-1], count), np.float32)
    if not was.top:
        silent = (values == values[..., :1]).all(-1, keepdims=True)
        rest += np.where(silent, values[..., :1], np.float32(fill))
    return np.concatenate([values, rest], axis=-1)


def _problems(old: ProfileSpec, new: ProfileSpec, fill: float | None) -> list[str]:
    names = [[tensor.name for tensor in spec.tensors] for spec in (old, new)]
    if names[0] != names[1]:
        return ["the releases have different private tensors"]
    problems = []
    for was, now in zip(old.tensors, new.tensors, strict=True):
        if was.storage != now.storage:
            problems.append(f"{was.name}: kept as {was.storage}, in the other release as {now.storage}")
        elif was.shape[:-1] != now.shape[:-1] or len(was.shape) != len(now.shape) or was.shape > now.shape:
            problems.append(f"{was.name}: shape is {was.shape}, in the other release {now.shape}")
        elif was.shape != now.shape and not was.top and fill is None:
            problems.append(f"{was.name}: only bits can grow here, and it holds {was.storage}")
    return problems
