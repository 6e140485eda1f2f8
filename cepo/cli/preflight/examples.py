"""The first training problem as the model reads it: its prompts in the three contexts, and its images."""

from __future__ import annotations

from dataclasses import dataclass

from cepo.answers.perturb import perturbed
from cepo.cli.preflight.preflight import Preflight
from cepo.data.rows import column, folder_of, read_rows
from cepo.messages.groups import ImageRef, Placement
from cepo.prompts.images import cells, read


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
        """The text before the hint, the hint, and the text after it."""
        text = self.text.rstrip("\n")
        at = text.rfind(self.hint) if self.hint else len(text)
        return text[:at], self.hint, text[at + len(self.hint) :]


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
        hint = data.hint.replace("{answer}", answer)
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


def example_images(run: Preflight) -> list[bytes]:
    """The bytes of the images of the first training problem, as the data set holds them."""
    problem, data = run.train.problems[0], run.config.data
    if not problem.images:
        return []
    row = read_rows(data.train, data.split, "data.train")[problem.row]
    return [read(cell, folder_of(data.train)) for cell in cells(column(row, run.train.columns.images))]
