"""Counts what torch computes: floating-point operations of products, and bytes that all of it moves."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_VIEWS = ("t", "view", "expand", "transpose", "permute", "slice", "select", "squeeze", "detach", "alias")


@final
class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what each operation reads and writes; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.strip("_")
        if name not in _VIEWS and not name.endswith(_VIEWS[1:]):
            self.found += sum(_size(value) for value in tree_leaves((args, kwargs, out)))
        return out


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


@final
class Counted:
    """While it is entered, counts: `flop` of matrix products and attention, forward and backward; `bytes`."""

    def __init__(self) -> None:
        self._flop = FlopCounterMode(display=False)
        self._bytes = _Bytes()

    def __enter__(self) -> Self:
        self._flop.__enter__()  # type: ignore[no-untyped-call]
        self._bytes.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bytes.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._flop.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    @property
    def flop(self) -> int:
        """Floating-point operations, a multiplication and an addition being two."""
        return int(self._flop.get_total_flops())

    @property
    def bytes(self) -> int:
        """Bytes that operations read and wrote, as if nothing stayed in a cache."""
        return self._bytes.found
