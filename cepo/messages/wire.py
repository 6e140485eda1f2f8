"""Converts contracts to protobuf bytes and back.

The conversion is generic: a field of a contract is the field of the same name of the protobuf message. Enums are
numbers, and an optional field that is None is unset. Only this module and the gRPC servicers use `cepo.pb`.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import cache
from typing import Any, TypeVar, get_args

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from cepo.errors import WireError, first_mistake
from cepo.messages import groups as contracts
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Contract
from cepo.pb.cepo.v1 import group_pb2, policy_pb2

C = TypeVar("C", bound=Contract)
LENGTH_DELIMITED = 2
"""Protobuf's wire type of a nested message."""


@cache
def proto_type(contract: type[Contract]) -> type[Message]:
    """The generated protobuf class of a contract."""
    for module in (group_pb2, policy_pb2):
        if hasattr(module, contract.__name__):
            return getattr(module, contract.__name__)
    raise WireError(f"{contract.__name__} has no protobuf message")


def to_proto(value: Contract) -> Message:
    """The protobuf message of a contract."""
    message = proto_type(type(value))()
    _fill(message, value)
    return message


def from_proto(contract: type[C], message: Message) -> C:
    """The contract of a protobuf message, with its invariants checked.

    Raises:
        WireError: the message breaks an invariant.
    """
    try:
        return contract.model_validate(_read(contract, message))
    except ValidationError as error:
        mistake = first_mistake(error.errors(), unnamed="the message")
        raise WireError(f"{contract.__name__}: {mistake}") from error


def to_bytes(value: Contract) -> bytes:
    return to_proto(value).SerializeToString()


def around(inner: Contract, value: Contract) -> tuple[bytes, bytes]:
    """Splits a message into the message that it contains and the rest, for a receiver that has `inner` already.

    Returns:
        The bytes of `value` without the field that holds `inner`, and the tag of that field. Protobuf accepts fields in
        any order, so `tag + varint(len(inner_bytes)) + inner_bytes + rest` is the whole message. If no field is this
        very object, the tag is empty and the bytes are the whole message.
    """
    message = proto_type(type(value))()
    held = next((name for name in type(value).model_fields if getattr(value, name) is inner), "")
    _fill(message, value, without=held)
    tag = bytes([message.DESCRIPTOR.fields_by_name[held].number << 3 | LENGTH_DELIMITED]) if held else b""
    return message.SerializeToString(), tag


def from_bytes(contract: type[C], data: bytes) -> C:
    """Decodes a contract.

    Raises:
        WireError: the bytes are not this message, or it breaks an invariant.
    """
    message = proto_type(contract)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"{contract.__name__}: {error}") from error
    return from_proto(contract, message)


STAGE_MESSAGES: dict[str, type[Contract]] = {message.__name__: message for message in get_args(contracts.StageMessage)}


def _fill(message: Message, value: Contract, *, without: str = "") -> None:
    """Writes the fields of a contract, and of those nested in it, into a message, but for the field `without`."""
    for name in type(value).model_fields:
        field = getattr(value, name)
        if name == without:
            continue
        if isinstance(field, Contract):
            child = getattr(message, name)
            child.SetInParent()  # also one that has only defaults
            _fill(child, field)
        elif isinstance(field, tuple) and field and isinstance(field[0], Contract):
            children = getattr(message, name)
            for each in field:
                _fill(children.add(), each)
        elif isinstance(field, Int32Array | Float32Array):
            setattr(message, name, field.data)
        elif isinstance(field, tuple):
            getattr(message, name).extend(field)
        elif field is not None:
            setattr(message, name, field)


def _read(contract: type[Contract], message: Message) -> dict[str, Any]:
    """The fields of a message as plain data, which pydantic checks as a whole."""
    plain: dict[str, Any] = {}
    for name, kind in _fields(contract):
        if kind is _Kind.SCALARS:
            plain[name] = getattr(message, name)[:]
        elif kind is _Kind.MESSAGES:
            plain[name] = [_read(_child(contract, name), each) for each in getattr(message, name)]
        elif kind is _Kind.VALUE or (kind is _Kind.ENUM and getattr(message, name)):
            plain[name] = getattr(message, name)  # an unset enum is absent: the contract's default
        elif kind is _Kind.MESSAGE and message.HasField(name):
            plain[name] = _read(_child(contract, name), getattr(message, name))
    return plain


class _Kind(Enum):
    VALUE = auto()
    ENUM = auto()
    MESSAGE = auto()
    SCALARS = auto()
    MESSAGES = auto()


@cache
def _fields(contract: type[Contract]) -> tuple[tuple[str, _Kind], ...]:
    """Names and kinds of the fields of a message, cached because descriptors are slow."""

    def kind(field: FieldDescriptor) -> _Kind:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return _Kind.MESSAGES if field.is_repeated else _Kind.MESSAGE
        if field.is_repeated:
            return _Kind.SCALARS
        return _Kind.ENUM if field.type == FieldDescriptor.TYPE_ENUM else _Kind.VALUE

    return tuple((field.name, kind(field)) for field in proto_type(contract).DESCRIPTOR.fields)


@cache
def _child(contract: type[Contract], name: str) -> type[Contract]:
    pending: list[Any] = [contract.model_fields[name].annotation]
    while pending:
        found = pending.pop()
        if isinstance(found, type) and issubclass(found, Contract):
            return found
        pending.extend(get_args(found))
    raise WireError(f"{contract.__name__}.{name} is not a contract")
