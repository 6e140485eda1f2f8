"""Immutable arrays of numbers that keep the bytes they have on the wire.

A group has a number per token in several fields, and most stages pass most of them on unread. An array is therefore
its bytes (4 for each number, little-endian), and becomes Python numbers only where it is read, like a tuple:

    >>> ids = Int32Array.of([11, 12, 13])
    >>> ids.data
    b'\\x0b\\x00\\x00\\x00\\x0c\\x00\\x00\\x00\\r\\x00\\x00\\x00'
    >>> len(ids), ids[0], ids[1:], ids == (11, 12, 13)
    (3, 11, (12, 13), True)

A field of a message takes an array, its bytes, or any iterable of numbers, and is written to JSON as a list.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, overload

from pydantic_core import CoreSchema, core_schema

N = TypeVar("N", int, float)
ITEM_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Array(Sequence[N]):
    data: bytes = b""

    FORMAT: ClassVar[str]
    """Type code of an item, for `array` and `memoryview`."""

    def __post_init__(self) -> None:
        if len(self.data) % ITEM_BYTES:
            raise ValueError(f"{len(self.data)} bytes are not a whole number of items of {ITEM_BYTES} bytes")

    @classmethod
    def of(cls, numbers: Iterable[N]) -> Self:
        """The array of these numbers; floats are rounded to single precision.

        Raises:
            ValueError: an item is not a number, or does not fit in 4 bytes.
        """
        try:
            return cls(array(cls.FORMAT, numbers).tobytes())
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from error

    @property
    def _view(self) -> memoryview[N]:
        return memoryview(self.data).cast(self.FORMAT)  # type: ignore[call-overload]

    def __len__(self) -> int:
        return len(self.data) // ITEM_BYTES

    @overload
    def __getitem__(self, at: int) -> N: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[N, ...]: ...
    def __getitem__(self, at: int | slice) -> N | tuple[N, ...]:
        return tuple(self._view[at].tolist()) if isinstance(at, slice) else self._view[at]

    def __iter__(self) -> Iterator[N]:
        return iter(self._view.tolist())

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, _Array | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))  # that of an equal tuple

    def __repr__(self) -> str:
        return f"{type(self).__name__}.of({list(self)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.plain_serializer_function_ser_schema(tuple)
        )

    @classmethod
    def _validated(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        return cls(value) if isinstance(value, bytes) else cls.of(value)


class Int32Array(_Array[int]):
    """Token ids, such as those of a response."""

    __slots__ = ()
    FORMAT = "i"


class Float32Array(_Array[float]):
    """Log-probs or other measurements, such as one for each token of a response."""

    __slots__ = ()
    FORMAT = "f"

    @property
    def finite(self) -> bool:
        """Whether no item is NaN or infinite."""
        highest = self.data[ITEM_BYTES - 1 :: ITEM_BYTES]  # the sign and seven of the eight bits of the exponent
        if 0x7F not in highest and 0xFF not in highest:
            return (
                True  # a group has tens of thousands of items, and reading each of them takes a third of its decoding
            )
        return all(map(math.isfinite, self))
