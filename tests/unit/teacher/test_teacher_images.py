"""The teacher sees: every context of a group holds the figure, and the scorer measures what it was shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cepo.adapters import AdapterCache
from cepo.contracts import BASE_POLICY, ImageRef, PolicyRef, RolloutGroup, ScoredGroup
from cepo.errors import UserError
from cepo.forward import response_logps
from cepo.rendering import HINT, with_hint
from cepo.settings import Settings
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair, make_handler
from tests.factories import make_completion, make_proof, make_task, make_verdict
from tests.vision_support import BLANK, MODEL, RENDERER, TURN, Picture, held_out, ids_of, model

torch.set_num_threads(1)
((FIGURE, IMAGE), (_, OTHER)) = held_out(2)


def make_scorer(folder: Path, *images: Picture) -> TransformersScorer:
    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        raise LookupError(policy)

    async def read(image: ImageRef) -> bytes:
        found = {each.ref: each.data for each in images}
        if image not in found:
            raise UserError(f"image {image.sha256[:12]} is missing")
        return found[image]

    return TransformersScorer(
        Settings(model=MODEL, dtype="float32"), RENDERER, AdapterCache(folder, fetch, keep=2), read
    )


def scored(image: Picture, texts: tuple[str, ...]) -> ScoredGroup:
    """A right and a wrong response to one figure."""
    answer = str(FIGURE.problem.answer)
    task = make_task(messages=TURN, images=(image.ref,), reference_answer=answer, hint=HINT, samples=len(texts))
    ids = [tuple(ids_of(text)) for text in texts]
    completions = [
        make_completion(text).model_copy(update={"token_ids": row, "logps": (0.0,) * len(row)})
        for text, row in zip(texts, ids, strict=True)
    ]
    rollout = RolloutGroup(
        task=task,
        prompt_token_ids=RENDERER.prompt_ids(TURN, [image.ref]),
        completions=tuple(completions),
        proof=make_proof(BASE_POLICY),
    )
    verdicts = (make_verdict(1.0, answer), make_verdict(0.0, "12"))
    return ScoredGroup(rollout=rollout, verdicts=verdicts)


async def test_right_and_rejected_contexts_hold_the_figure(tmp_path: Path) -> None:
    texts = (f"\\boxed{{{FIGURE.problem.answer}}}", "\\boxed{12}")
    handler = make_handler(make_scorer(tmp_path, IMAGE, BLANK), RENDERER, 200)
    seen, unseen = [await handler(scored(image, texts)) for image in (IMAGE, BLANK)]
    for with_figure, without in zip(seen.evidence, unseen.evidence, strict=True):
        for at, (row, blind) in enumerate(zip(with_figure.rows, without.rows, strict=True)):
            turn = TURN if not row.answer else with_hint(TURN, HINT, row.answer)
            prompt = RENDERER.prompt_ids(turn, [IMAGE.ref])
            with torch.no_grad():
                wanted = response_logps(model(), [prompt], [ids_of(texts[at])], 1.0, [[IMAGE.patches]])[0]
            assert row.logps == pytest.approx(wanted.tolist(), abs=1e-5)
            assert row.logps != pytest.approx(blind.logps, abs=1e-2)


async def test_log_probs_depend_on_neither_company_nor_order(tmp_path: Path) -> None:
    scorer = make_scorer(tmp_path, IMAGE, OTHER)
    prompt = RENDERER.prompt_ids(TURN, [IMAGE.ref])
    pairs = [Pair(prompt, tuple(ids_of("1+1=2")), (image.ref,)) for image in (IMAGE, OTHER)]
    pairs += [Pair(prompt, tuple(ids_of("13-5=8\n")), (IMAGE.ref,)), Pair((5, 6, 7), (8, 9))]
    together = await scorer.score(pairs, 1.0, BASE_POLICY)
    assert together[0] != pytest.approx(together[1], abs=1e-2)
    for pair, row in zip(pairs, together, strict=True):
        assert (await scorer.score([pair], 1.0, BASE_POLICY))[0] == pytest.approx(row, abs=1e-5)


async def test_a_missing_image_fails_its_group_in_one_line(tmp_path: Path) -> None:
    handler = make_handler(make_scorer(tmp_path), RENDERER, 200)
    with pytest.raises(UserError, match=f"image {IMAGE.ref.sha256[:12]} is missing"):
        await handler(scored(IMAGE, ("\\boxed{1}", "\\boxed{12}")))
