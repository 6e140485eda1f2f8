"""Contracts with long lists of numbers, which stay as they came off the wire until somebody reads them.

A verifier reads texts, a teacher token ids: unpacking what a stage only hands on would be most of its time. Nothing of
this shows: a packed contract has the fields, the equality and the copies of any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from google.protobuf.message import Message as ProtoMessage
from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

PACKED = "packed"
"""Context of a validation before the numbers are there."""


class Packed(BaseModel):
    """Mixed into a contract that names its lists of numbers."""

    model_config = ConfigDict(frozen=True)
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    """Fields with a number for every token."""
    _message: ProtoMessage | None = PrivateAttr(default=None)

    @property
    def message(self) -> ProtoMessage | None:
        """The protobuf message it was read from, which is still all of it."""
        private = self.__pydantic_private__  # not by `_message`: pydantic's way there takes many times longer
        return private["_message"] if private else None

    def packed(self, message: ProtoMessage) -> Self:
        """This contract, whose numbers were left empty, with those of its message."""
        self._message = message
        for name in self.NUMBERS:
            del self.__dict__[name]
        self.check()
        return self

    def check(self) -> None:
        """The invariants that need the numbers' counts.

        Raises:
            ValueError: one does not hold.
        """

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> Self:
        if info.context != PACKED:
            self.check()
        return self

    def count(self, name: str) -> int:
        """How many numbers a field has, without unpacking them."""
        message = self.message
        return len(getattr(self if message is None else message, name))

    def unpacked(self) -> Self:
        """This contract, with every field read."""
        for name in self.NUMBERS:
            getattr(self, name)
        return self

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in type(self).NUMBERS and self.message is not None:
                value = tuple(getattr(self.message, name)[:])  # a slice is a list, made faster than by list()
                self.__dict__[name] = value
                return value
            return super().__getattr__(name)

    def model_copy(self, **options: Any) -> Self:
        copy = super(Packed, self.unpacked()).model_copy(**options)
        copy._message = None  # it may have been changed
        return copy

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).model_fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in type(self).model_fields))

    @model_serializer(mode="wrap")
    def _whole(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(self.unpacked())
