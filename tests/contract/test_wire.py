"""Contracts and protobuf messages have the same fields, and bytes of earlier versions stay readable."""

from __future__ import annotations

import random
from enum import IntEnum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from pydantic import BaseModel

from cepo.errors import WireError
from cepo.messages import groups as contracts
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Contract,
    EvidencedGroup,
    Given,
    GroupFailed,
    PolicyRef,
    PromptTask,
    RolloutGroup,
    ScoredGroup,
)
from cepo.messages.wire import STAGE_MESSAGES, from_bytes, from_proto, proto_type, to_bytes, to_proto
from cepo.pb.cepo.v1 import group_pb2, policy_pb2
from tests.helpers.factories import (
    POLICY,
    make_completion,
    make_evidenced,
    make_failed,
    make_group,
    make_scored,
    make_task,
    make_verdict,
)

CONTRACTS = [
    value
    for value in vars(contracts).values()
    if isinstance(value, type) and issubclass(value, Contract) and value is not Contract
]
TWINS = {
    value.__name__: value
    for value in vars(contracts).values()
    if isinstance(value, type) and issubclass(value, IntEnum) and value is not IntEnum
}
MESSAGES = {**group_pb2.DESCRIPTOR.message_types_by_name, **policy_pb2.DESCRIPTOR.message_types_by_name}
ENUMS = {**group_pb2.DESCRIPTOR.enum_types_by_name, **policy_pb2.DESCRIPTOR.enum_types_by_name}
F = FieldDescriptor
SCALARS = {
    str: {F.TYPE_STRING},
    bool: {F.TYPE_BOOL},
    int: {F.TYPE_INT32, F.TYPE_INT64},
    float: {F.TYPE_FLOAT, F.TYPE_DOUBLE},
    Int32Array: {F.TYPE_BYTES},
    Float32Array: {F.TYPE_BYTES},
}
EXAMPLES: list[Contract] = [make_task(), make_group(), make_scored(), make_evidenced(), make_failed()]
GOLDEN = {
    "PromptTask": (
        "0a0372756e20012a110a0475736572120933202b2034203d203f3a01374a1754686520616e73776572206973207b616e7377"
        "65727d2e50025a1409000000000000f03f11000000000000f03f201060016a04080210016a08080310011801200170017a03"
        "0102038201008a0100"
    ),
    "RolloutGroup": (
        "0a6d0a0372756e20012a110a0475736572120933202b2034203d203f3a01374a1754686520616e73776572206973207b616e"
        "737765727d2e50025a1409000000000000f03f11000000000000f03f201060016a04080210016a0808031001180120017001"
        "7a030102038201008a01002a0801000000020000001a29320c0a0000000b0000000c000000120c000080be000000bf000040"
        "bf1a095c626f7865647b377d20011a3132100a0000000b0000000c0000000d0000001210000080be000000bf000040bf0000"
        "80bf1a095c626f7865647b377d200122540a00100419000000000000f8bf2240303030303030303030303030303030303030"
        "303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030302a03746f"
        "79"
    ),
    "ScoredGroup": (
        "0aad020a6d0a0372756e20012a110a0475736572120933202b2034203d203f3a01374a1754686520616e7377657220697320"
        "7b616e737765727d2e50025a1409000000000000f03f11000000000000f03f201060016a04080210016a0808031001180120"
        "0170017a030102038201008a01002a0801000000020000001a29320c0a0000000b0000000c000000120c000080be000000bf"
        "000040bf1a095c626f7865647b377d20011a3132100a0000000b0000000c0000000d0000001210000080be000000bf000040"
        "bf000080bf1a095c626f7865647b357d200122540a00100419000000000000f8bf2240303030303030303030303030303030"
        "303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030302a"
        "03746f79121a080111000000000000f03f19000000000000f03f2201372a0137120808022201352a0135"
    ),
    "EvidencedGroup": (
        "0ad6020aad020a6d0a0372756e20012a110a0475736572120933202b2034203d203f3a01374a1754686520616e7377657220"
        "6973207b616e737765727d2e50025a1409000000000000f03f11000000000000f03f201060016a04080210016a0808031001"
        "1801200170017a030102038201008a01002a0801000000020000001a29320c0a0000000b0000000c000000120c000080be00"
        "0000bf000040bf1a095c626f7865647b377d20011a3132100a0000000b0000000c0000000d0000001210000080be000000bf"
        "000040bf000080bf1a095c626f7865647b357d200122540a00100419000000000000f8bf2240303030303030303030303030"
        "3030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030"
        "30302a03746f79121a080111000000000000f03f19000000000000f03f2201372a0137120808022201352a0135123c0a0408"
        "02100112170a0c000000bf000040bf000080bf1001180220012a0137121b0a10000000bf000040bf000080bf0000a0bf1001"
        "180220012a013712400a08080310011801200112170a0c000020bf000060bf000090bf1001180320012a0137121b0a100000"
        "20bf000060bf000090bf0000b0bf1001180320012a01371a540a00100419000000000000f8bf224030303030303030303030"
        "3030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030"
        "303030302a03746f7921000000000000e03f"
    ),
    "GroupFailed": (
        "0a6d0a0372756e20012a110a0475736572120933202b2034203d203f3a01374a1754686520616e73776572206973207b616e"
        "737765727d2e50025a1409000000000000f03f11000000000000f03f201060016a04080210016a0808031001180120017001"
        "7a030102038201008a010010021a0869742062726f6b652005"
    ),
}


def kind(annotation: Any) -> tuple[type, bool]:
    """The type of an annotation, and whether it is a tuple of that type."""
    if get_origin(annotation) is tuple:
        return kind(get_args(annotation)[0])[0], True
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = (part for part in get_args(annotation) if part is not NoneType)
        return kind(inner)
    return annotation, False


def screaming(name: str) -> str:
    return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


def random_of(annotation: Any, rng: random.Random, name: str) -> Any:
    """A random value of the type of a field, which may break invariants."""
    inner, many = kind(annotation)
    if many:
        return tuple(random_of(inner, rng, name) for _ in range(rng.randrange(3)))
    if NoneType in get_args(annotation) and rng.random() < 0.5:
        return None
    if issubclass(inner, IntEnum):
        return rng.choice(list(inner))
    if issubclass(inner, BaseModel):
        return random_instance(inner, rng)
    if inner is bool:
        return rng.random() < 0.5
    if inner is int:
        return rng.randrange(2**31)
    if inner is float:
        return rng.randrange(-64, 64) / 8
    if inner in (Int32Array, Float32Array):
        return inner(rng.randbytes(4 * rng.randrange(3)))
    return "".join(rng.choice("abc \u00e4\u4e2d\U0001f600\x00") for _ in range(rng.randrange(6)))


def random_instance(contract: type[BaseModel], rng: random.Random) -> Any:
    fields = {name: random_of(info.annotation, rng, name) for name, info in contract.model_fields.items()}
    return contract.model_construct(**fields)


def test_every_message_has_a_contract_and_the_other_way_round() -> None:
    assert {contract.__name__ for contract in CONTRACTS} == set(MESSAGES)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
def test_fields_have_the_same_names_types_and_cardinality(contract: type[Contract]) -> None:
    fields = MESSAGES[contract.__name__].fields_by_name
    assert list(contract.model_fields) == list(fields)
    for name, info in contract.model_fields.items():
        inner, many = kind(info.annotation)
        field = fields[name]
        assert field.is_repeated == many, name
        if issubclass(inner, IntEnum):
            assert field.enum_type is not None
            assert field.enum_type.name == inner.__name__
        elif issubclass(inner, BaseModel):
            assert field.message_type is not None
            assert field.message_type.name == inner.__name__
        else:
            assert field.type in SCALARS[inner], name


def test_enums_have_the_same_members_and_numbers() -> None:
    assert set(TWINS) == set(ENUMS)
    for name, enum in TWINS.items():
        prefix = screaming(name) + "_"
        ours = {prefix + member.name: member.value for member in enum} | {prefix + "UNSPECIFIED": 0}
        module = group_pb2 if hasattr(group_pb2, name) else policy_pb2
        wrapper: EnumTypeWrapper = getattr(module, name)
        assert dict(wrapper.items()) == ours


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda h: type(h).__name__)
def test_every_message_survives_the_wire(message: Contract) -> None:
    assert from_bytes(type(message), to_bytes(message)) == message
    assert STAGE_MESSAGES[type(message).__name__] is type(message)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
def test_random_instances_lose_nothing_as_protobuf(contract: type[Contract]) -> None:
    rng = random.Random(contract.__name__)
    for _ in range(30):
        message = to_proto(random_instance(contract, rng))
        again = proto_type(contract)()
        again.ParseFromString(message.SerializeToString())
        assert again == message


def test_random_groups_survive_the_wire() -> None:
    rng = random.Random(7)
    for index in range(50):
        task = make_task(
            index=index,
            samples=rng.randint(1, 5),
            seed=rng.randrange(2**63),
            policy=rng.choice([POLICY, contracts.BASE_POLICY]),
            reference_answer=rng.choice(["", "7", "\u221a2 \u4e2d\n"]),
            teach_when=rng.choice(list(contracts.TeachWhen)),
        )
        group = make_evidenced([float(rng.randrange(2)) for _ in range(task.samples)], task)
        assert from_bytes(EvidencedGroup, to_bytes(group)) == group


def test_given_spans_survive_the_wire() -> None:
    response = make_completion(length=6).model_copy(
        update={"given": spans((0, 1), (3, 5)), "logps": Float32Array.of([0.0, -1.0, -2.0, 0.0, 0.0, -3.0])}
    )
    again = from_bytes(contracts.Completion, to_bytes(response))
    assert again == response
    assert again.length == 3


def test_an_absent_optional_field_stays_absent() -> None:
    assert from_bytes(EvidencedGroup, to_bytes(EvidencedGroup(scored=make_scored()))).proofs == ()
    assert from_bytes(PromptTask, to_bytes(make_task())).asks[0].otherwise is None


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"not a message", to_bytes(make_group())[:-3]])
def test_garbage_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        from_bytes(RolloutGroup, data)


def test_bytes_of_another_message_are_a_wire_error() -> None:
    with pytest.raises(WireError):
        from_bytes(ScoredGroup, to_bytes(make_task()))


def with_completion(task: PromptTask | None = None, **changes: Any) -> RolloutGroup:
    """A group whose first completion is changed, and its task."""
    group = make_group()
    first = group.completions[0].model_copy(update=changes)
    return group.model_copy(update={"completions": (first, *group.completions[1:]), "task": task or group.task})


def spans(*edges: tuple[int, int]) -> tuple[Given, ...]:
    """Given spans, of any edges."""
    return tuple(Given.model_construct(start=start, end=end) for start, end in edges)


def with_given_evidence() -> EvidencedGroup:
    """A group of responses whose token 1 was given, with evidence of that token."""
    group = make_evidenced()
    completions = tuple(
        c.model_copy(update={"given": spans((1, 2)), "logps": Float32Array.of([c.logps[0], 0.0, *c.logps[2:]])})
        for c in group.scored.rollout.completions
    )
    rollout = group.scored.rollout.model_copy(update={"completions": completions})
    return group.model_copy(update={"scored": group.scored.model_copy(update={"rollout": rollout})})


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (make_task().model_copy(update={"run": "a/b"}), "run"),
        (make_task().model_copy(update={"hint": "no place for it"}), "answer"),
        (make_task().model_copy(update={"purpose": 0}), "purpose"),
        (make_task().model_copy(update={"policy": PolicyRef.model_construct(version=1, sha256="")}), "sha256"),
        (make_completion().model_copy(update={"step_ends": (1, 2)}), "steps that end at .1, 2. in a response of 3"),
        (make_completion().model_copy(update={"step_ends": (3, 2, 3)}), "steps that end at .3, 2, 3."),
        (make_completion().model_copy(update={"given": spans((1, 4))}), "given tokens up to 4 in a response of 3"),
        (make_completion().model_copy(update={"given": spans((2, 2))}), "from 2 to 2: the end must be larger"),
        (make_completion(length=9).model_copy(update={"given": spans((1, 4), (4, 6))}), "up to 4 and from 4 must be"),
        (make_completion().model_copy(update={"given": spans((1, 2))}), "a log-prob of a token from 1 to 2, which was"),
        (
            with_completion(logps=Float32Array.of([0.0, -1.0]), given=spans((0, 2)), task=make_task(prefix=(10,))),
            "given tokens within the task's prefix of 1 tokens",
        ),
        (with_given_evidence(), "a log-prob of a token from 1 to 2, which was given, not sampled"),
        (with_completion(logps=Float32Array()), "3 sampled token ids but 0 log-probs"),
        (
            with_completion(logps=Float32Array.of([-1.0]), task=make_task(prefix=(10,))),
            "2 sampled token ids but 1 log-probs",
        ),
        (with_completion(task=make_task(prefix=(9,))), "does not start with the task's prefix of 1 tokens"),
        (make_group().model_copy(update={"completions": ()}), "0 completions for 2 samples"),
        (make_scored().model_copy(update={"verdicts": (make_verdict(),)}), "1 verdicts for 2"),
        (make_verdict().model_copy(update={"reward": float("nan")}), "reward"),
    ],
)
def test_a_broken_invariant_is_a_wire_error_that_names_it(broken: Contract, says: str) -> None:
    with pytest.raises(WireError, match=says):
        from_proto(type(broken), to_proto(broken))


def test_an_enum_number_we_do_not_know_is_a_wire_error() -> None:
    message = to_proto(make_verdict())
    message.outcome = 77
    with pytest.raises(WireError, match="outcome"):
        from_proto(contracts.Verdict, message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda h: type(h).__name__)
def test_bytes_written_by_an_earlier_version_are_read(message: Contract) -> None:
    """If this fails, a field was renumbered or retyped: give new fields new numbers and a default instead."""
    assert from_bytes(type(message), bytes.fromhex(GOLDEN[type(message).__name__])) == message


def test_a_failed_group_keeps_its_task() -> None:
    assert from_bytes(GroupFailed, to_bytes(make_failed())).task == make_task()
