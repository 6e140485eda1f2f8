"""The first training problem as the model reads it: its prompts in the three contexts, and its images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cepo.answers.perturb import perturbed
from cepo.cli.preflight.preflight import Preflight
from cepo.messages.groups import ImageRef, Placement
from cepo.messages.hints import hint_line

KEPT_BYTES = 2**28
"""Enough for the images of the first problem, unless the data set begins with many bad rows."""


@dataclass(frozen=True)
class ExamplePrompt:
    """The prompt of one context."""

    context: str
    """"plain", "r+" (the right answer as hint) or "r-" (a wrong answer as hint)."""
    text: str
    hint: str
    tokens: int
    images: tuple[str, ...] = ()
    """A description of each image: type, pixels, tokens."""
    blind: bool = False
    """Whether padding tokens replace the images."""

    @property
    def title(self) -> str:
        """The context in words."""
        words = {"r+": "r+, the right answer as hint", "r-": "r-, a made-up wrong answer as hint"}
        return words.get(self.context, "plain") + (", without its images" if self.blind else "")

    @property
    def parts(self) -> tuple[str, str, str]:
        """The text before the hint, the hint, and the text after it; all is before it if the text has no such hint.

        The renderer refuses a template that drops a hint, so only its spelling can differ, as of trimmed blanks.
        """
        text = self.text.rstrip("\n")
        before, hint, after = text.rpartition(self.hint.strip()) if self.hint.strip() else ("", "", text)
        return (before, hint, after) if hint else (text, "", "")


def example_prompts(run: Preflight) -> list[ExamplePrompt]:
    """The prompts of the first training problem: plain, with the right answer and with a wrong one.

    A run that learns from pairs has the plain prompt alone.
    """
    problem, data = run.train.problems[0], run.config.data
    right = problem.solution if run.config.algorithm.shows_solution else problem.answer
    images = problem.images
    prompts = [_prompt(run, "plain", run.renderer.prompt_ids(problem.messages, images), "", images, blind=False)]
    if run.config.algorithm.offline:
        return prompts
    for context, answer in {"r+": right, "r-": perturbed(problem.answer)}.items():
        placement = Placement[data.placement.upper()]
        ids = run.renderer.hinted_ids(problem.messages, data.hint, answer, placement, images)
        hint = hint_line(data.hint, answer).lstrip(".\n ")  # the words of the hint
        prompts.append(_prompt(run, context, ids, hint, images, blind=bool(images) and run.blind))
    return prompts


def _prompt(
    run: Preflight, context: str, ids: tuple[int, ...], hint: str, images: tuple[ImageRef, ...], *, blind: bool
) -> ExamplePrompt:
    compact = run.renderer.pixels.compact(ids, images) if images else ids
    if blind:
        compact = run.renderer.mask_images(compact)
    descriptions = tuple(
        f"{image.media_type}, {image.width} x {image.height} pixels, {run.renderer.pixels.tokens(image)} tokens"
        for image in images
    )
    text = str(run.renderer.tokenizer.decode(compact))
    return ExamplePrompt(context, text, hint, len(ids), descriptions, blind)


class FirstImages:
    """Keeps the first images of a data set in memory while its rows are read."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._free_bytes = max_bytes
        self._images: dict[str, bytes] = {}

    def put(self, data: bytes) -> None:
        """Keeps an image if there is room for it."""
        if len(data) <= self._free_bytes:
            self._free_bytes -= len(data)
            self._images[hashlib.sha256(data).hexdigest()] = data

    def of(self, run: Preflight) -> list[bytes]:
        """The images of the first training problem, as the data set holds them; empty if one was not kept."""
        images = [self._images.get(image.sha256) for image in run.train.problems[0].images]
        kept = [data for data in images if data is not None]
        return kept if len(kept) == len(images) else []
