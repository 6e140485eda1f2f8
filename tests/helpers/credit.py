"""A teacher for credit tests: the tiny model or a toy scorer, the real verifier, and the REST application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from cepo.answers.extract import extract
from cepo.answers.notation import normalise
from cepo.credit import CreditRequest
from cepo.messages.groups import Outcome, RolloutGroup, ScoredGroup, Verdict
from cepo.net.settings import Settings
from cepo.service.adapters import AdapterCache
from cepo.service.chassis import Service, rest
from cepo.service.image_cache import no_images
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Scorer
from cepo.testing import ToyScorer
from services.teacher.credit import TokenCredit
from services.teacher.grading import Grader
from services.teacher.images import GivenImages
from services.teacher.rest import application
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from tests.helpers import vision as vision_support
from tests.helpers.scorers import MODEL, RENDERER, no_adapters

CONTEXT_LENGTH = 256
QUESTION = "23 + 45 - 17 = ?"
RIGHT = "23+45=68\n68-17=51\n\\boxed{51}"
WRONG = "23+45=68\n68-17=41\n\\boxed{41}"


def tiny_scorer() -> TransformersScorer:
    """The tiny model, without adapters."""
    settings = Settings(model=MODEL, dtype="float32", threads=1)
    return TransformersScorer(settings, RENDERER, AdapterCache(Path("unused"), no_adapters, keep=2))


async def grade(group: RolloutGroup) -> ScoredGroup:
    """Grades with the verifier in this process. Its workers are not started, so answers must be plain numbers."""
    return await Verifier(GraderPool(workers=1)).verify(group)


async def toy_grade(group: RolloutGroup) -> ScoredGroup:
    """Grades answers of any kind by their normalised texts."""
    verdicts = []
    for completion in group.completions:
        answer = extract(completion.text) or ""
        right = normalise(answer) == normalise(group.task.reference_answer)
        outcome = (Outcome.CORRECT if right else Outcome.WRONG) if answer else Outcome.UNPARSED
        verdicts.append(
            Verdict(outcome=outcome, reward=right, accuracy=right, extracted=answer, normalised=normalise(answer))
        )
    return ScoredGroup(rollout=group, verdicts=tuple(verdicts))


def make_credit(scorer: Scorer | None = None, grader: Grader | None = grade) -> TokenCredit:
    return TokenCredit(scorer or ToyScorer(), RENDERER, CONTEXT_LENGTH, grader, GivenImages(no_images))


def make_vision_credit(folder: Path, images: GivenImages) -> TokenCredit:
    """Credit with the tiny vision-language model; images come from `images` alone."""
    settings = Settings(model=vision_support.MODEL, dtype="float32")
    scorer = TransformersScorer(
        settings, vision_support.RENDERER, AdapterCache(folder, no_adapters, keep=2), images.read
    )
    return TokenCredit(scorer, vision_support.RENDERER, CONTEXT_LENGTH, grade, images)


def make_body(**changes: Any) -> dict[str, Any]:
    """A request with a right and a wrong response to a sum, not graded yet."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "responses": [{"text": RIGHT}, {"text": WRONG}],
        "positive": "51",
    }
    return {key: value for key, value in (body | changes).items() if value is not None}


def make_request(**changes: Any) -> CreditRequest:
    return CreditRequest.model_validate(make_body(**changes))


def web_application(credit: TokenCredit, token: str = "") -> Any:
    """The REST application, as the service serves it."""

    async def work(stop: Any) -> None: ...

    service = Service("teacher", "cepo.v1.TeacherService", lambda server: None, work, application(credit))
    return rest(service, Settings(token=token))


def web(credit: TokenCredit, token: str = "") -> httpx.AsyncClient:
    """A client of that application, without a network."""
    transport = httpx.ASGITransport(web_application(credit, token), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://teacher")
