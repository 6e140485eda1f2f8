"""The checks before a run, cheapest first: `cepo check` shows them, `cepo train` runs them before it starts anything.

A check yields findings, or raises what blocks the run with its fix in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from cepo.answers.perturb import perturbed
from cepo.cli.preflight import sizes
from cepo.data.problems import Problems
from cepo.messages.groups import ImageRef, Placement
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig

Found = Iterator[tuple[Literal["ok", "note"], str]]


@dataclass(frozen=True)
class Finding:
    """One line of a report; a note is worth reading and blocks nothing."""

    check: str
    state: Literal["ok", "note"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """One context of an example as the model reads it."""

    context: str
    text: str
    hint: str
    tokens: int
    images: tuple[str, ...] = ()
    """What each image is and how many of the tokens it takes."""
    blind: bool = False
    """Whether padding stands in the places of its images."""

    @property
    def title(self) -> str:
        """The context in words."""
        words = {"r+": "r+, the right answer as hint", "r-": "r-, a made-up wrong answer as hint"}
        return words.get(self.context, "plain") + (", without its images" if self.blind else "")

    @property
    def parts(self) -> tuple[str, str, str]:
        """The text before the hint, the hint, and the text after it."""
        text = self.text.rstrip("\n")
        at = text.rfind(self.hint) if self.hint else len(text)
        return text[:at], self.hint, text[at + len(self.hint) :]


@dataclass
class Preflight:
    """A run before it starts; what one check finds out, later ones use."""

    config: RunConfig
    folder: Path
    redis_url: str = ""
    every_row: bool = False
    """Grade all reference answers and not a sample of a large set."""
    starts: Sequence[str] = ()
    """The services that are about to start on this machine."""
    store: ImageStore | None = None
    """Keeps the images of the problems for the run; None: they are checked and not kept."""
    resume: bool = False
    """Whether the run in the folder continues; it leaves out the rows that it left out before, and no others."""
    check: str = ""
    train: Problems = field(init=False)
    held_out: Problems | None = field(init=False, default=None)
    excluded: dict[str, dict[int, str]] = field(default_factory=dict)
    """Rows of train and eval that the verifier cannot grade, with the reason."""

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.config.model.path)

    @cached_property
    def sizes(self) -> sizes.Sizes:
        return sizes.measure(self.config)

    @property
    def sets(self) -> dict[str, Problems]:
        return {"train": self.train} | ({"eval": self.held_out} if self.held_out else {})

    def prompts(self) -> list[Prompt]:
        """The first training problem as the model sees it: plain, with the right answer, with a wrong one."""
        problem, data = self.train.problems[0], self.config.data
        right = problem.solution if self.config.algorithm.shows_solution else problem.answer
        images = problem.images
        blind = bool(images) and self.blind
        found = [self._prompt("plain", self.renderer.prompt_ids(problem.messages, images), "", images)]
        if self.config.algorithm.offline:
            return found
        for context, answer in {"r+": right, "r-": perturbed(problem.answer)}.items():
            placement = Placement[data.placement.upper()]
            ids = self.renderer.hinted_ids(problem.messages, data.hint, answer, placement, images)
            found.append(self._prompt(context, ids, data.hint.replace("{answer}", answer), images, blind=blind))
        return found

    @property
    def blind(self) -> bool:
        """Whether the teacher is shown no image."""
        return any(ask.without_images for ask in self.config.algorithm.asks)

    def _prompt(
        self, context: str, ids: tuple[int, ...], hint: str, images: tuple[ImageRef, ...], *, blind: bool = False
    ) -> Prompt:
        compact = self.renderer.pixels.compact(ids, images) if images else ids
        if blind:
            compact = self.renderer.mask_images(compact)
        shown = tuple(
            f"{image.media_type}, {image.width} x {image.height} pixels, {self.renderer.pixels.tokens(image)} tokens"
            for image in images
        )
        return Prompt(context, str(self.renderer.tokenizer.decode(compact)), hint, len(ids), shown, blind)
