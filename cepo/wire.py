"""Contracts to protobuf bytes and back, generic over the descriptors: field names are the mapping.

Enums travel as numbers, absent optional fields as unset ones. Only this file and the gRPC servicers touch `cepo.pb`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import cache
from typing import Any, TypeVar, get_args

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from cepo import contracts
from cepo.contracts import Contract
from cepo.errors import WireError
from cepo.pb.cepo.v1 import group_pb2, policy_pb2

C = TypeVar("C", bound=Contract)


@cache
def proto_type(contract: type[Contract]) -> type[Message]:
    """The generated message of a contract."""
    for module in (group_pb2, policy_pb2):
        if hasattr(module, contract.__name__):
            return getattr(module, contract.__name__)
    raise WireError(f"{contract.__name__} has no protobuf message")


def to_proto(value: Contract) -> Message:
    """The protobuf twin of a contract."""
    message = proto_type(type(value))()
    for name in type(value).model_fields:
        field = getattr(value, name)
        if field is None:
            continue
        if isinstance(field, tuple):
            getattr(message, name).extend(to_proto(x) if isinstance(x, Contract) else x for x in field)
        elif isinstance(field, Contract):
            getattr(message, name).CopyFrom(to_proto(field))
        else:
            setattr(message, name, field)
    return message


def from_proto(contract: type[C], message: Message) -> C:
    """A contract, with its invariants checked.

    Raises:
        WireError: the message breaks an invariant.
    """
    try:
        return contract.model_validate(_plain(contract, message))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or contract.__name__
        raise WireError(f"{contract.__name__}: {where}: {first['msg']}") from error


def to_bytes(value: Contract) -> bytes:
    return to_proto(value).SerializeToString()


def from_bytes(contract: type[C], data: bytes) -> C:
    """A contract from its bytes.

    Raises:
        WireError: the bytes are not this message, or it breaks an invariant.
    """
    message = proto_type(contract)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"{contract.__name__}: {error}") from error
    return from_proto(contract, message)


HOPS: dict[str, type[Contract]] = {hop.__name__: hop for hop in get_args(contracts.Hop)}


def _plain(contract: type[Contract], message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            child = _child(contract, field.name)
            plain[field.name] = (
                [_plain(child, x) for x in value] if isinstance(value, Iterable) else _plain(child, value)
            )
        elif field.is_repeated:
            plain[field.name] = list(value)
        elif field.type != FieldDescriptor.TYPE_ENUM or value:  # an unset enum is absent: the contract's default
            plain[field.name] = value
    return plain


@cache
def _child(contract: type[Contract], name: str) -> type[Contract]:
    pending: list[Any] = [contract.model_fields[name].annotation]
    while pending:
        found = pending.pop()
        if isinstance(found, type) and issubclass(found, Contract):
            return found
        pending.extend(get_args(found))
    raise WireError(f"{contract.__name__}.{name} is not a contract")


def enum_twins() -> dict[str, type[IntEnum]]:
    """Every enum that has a protobuf twin, by name."""
    enums = (value for value in vars(contracts).values() if isinstance(value, type) and issubclass(value, IntEnum))
    return {enum.__name__: enum for enum in enums if enum is not IntEnum}
