"""The state of a preflight. Each check reads it; what one check loads, later checks and the caller use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cepo.cli.preflight import sizes
from cepo.data.problems import Problems
from cepo.prompts.images import ImageSink
from cepo.prompts.renderer import Renderer

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

State = Literal["ok", "note"]
"""A note deserves attention and does not block the run."""
Findings = Iterator[tuple[State, str]]
"""What a check yields: for example `("ok", "embedded")`."""


@dataclass(frozen=True)
class CheckFinding:
    """One line of a report."""

    check: str
    state: State
    text: str


@dataclass
class Preflight:
    """A run before it starts."""

    config: RunConfig
    folder: Path
    redis_url: str = ""
    """Empty: an embedded Redis."""
    every_row: bool = False
    """Grade every reference answer, not a sample of a large set."""
    starts: Sequence[str] = ()
    """The services that are about to start on this machine."""
    store: ImageSink | None = None
    """Takes the images of the problems; None: they are only checked."""
    resume: bool = False
    """Resume the run in the folder: it leaves out the rows that it left out before, and no others."""
    engine: bool = False
    """Also start vLLM for one prompt."""
    check: str = ""
    """The name of the current check."""
    train: Problems = field(init=False)
    held_out: Problems | None = field(init=False, default=None)
    excluded: dict[str, dict[int, str]] = field(default_factory=dict)
    """For "train" and "eval": the rows that the verifier cannot grade, with the reason."""

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.config.model.path, self.config.data.template)

    @cached_property
    def sizes(self) -> sizes.Sizes:
        return sizes.measure(self.config)

    @property
    def sets(self) -> dict[str, Problems]:
        """The data sets that are loaded, by "train" and "eval"."""
        return {"train": self.train} | ({"eval": self.held_out} if self.held_out else {})

    @property
    def blind(self) -> bool:
        """Whether the teacher scores without the images (`algorithm.images = "drop"`)."""
        return any(ask.without_images for ask in self.config.algorithm.asks)
