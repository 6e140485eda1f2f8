"""The rank of this process and of its machine, from the variables that torchrun sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cepo.errors import UserError
from cepo.net.environment import variable

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """The rank of a process among several, in the variables of torchrun."""

    rank: int
    local_rank: int
    """The rank among the processes of its machine."""
    size: int

    @classmethod
    def from_environment(cls) -> Self | None:
        """Reads RANK, LOCAL_RANK and WORLD_SIZE; None for a single process, without RANK.

        Raises:
            UserError: a variable is missing or is not a number.
        """
        values = {name: variable(name) or "" for name in _VARIABLES}
        if not values["RANK"]:
            return None
        if wrong := [name for name, value in values.items() if not value.isdecimal()]:
            raise UserError(
                f"RANK is set, and {wrong[0]}={values[wrong[0]]!r} is not a number; start the trainer with torchrun, "
                f"which sets {', '.join(_VARIABLES)}, or unset RANK"
            )
        return cls(*map(int, values.values()))

    def to_environment(self) -> dict[str, str]:
        """The environment variables of a process with this rank."""
        return dict(zip(_VARIABLES, map(str, (self.rank, self.local_rank, self.size)), strict=True))


def node_rank() -> int | None:
    """The rank of this machine if torchrun spans several, from PET_NODE_RANK; None without PET_NNODES.

    Raises:
        UserError: PET_NODE_RANK or PET_MASTER_ADDR is missing or invalid.
    """
    nodes, rank, address = (variable(f"PET_{name}") or "" for name in ("NNODES", "NODE_RANK", "MASTER_ADDR"))
    if not nodes:
        return None
    if not (nodes.isdecimal() and rank.isdecimal() and int(rank) < int(nodes) and address):
        raise UserError(
            f"PET_NNODES={nodes!r}, PET_NODE_RANK={rank!r}, PET_MASTER_ADDR={address!r}: a trainer over several "
            "machines needs their number, the rank of this one (from 0) and the address of rank 0; or unset PET_NNODES"
        )
    return int(rank)
