"""The request and the reply of `POST /v1/credit`, shared by the teacher, the client and the CLI.

A request holds a prompt, responses from any source and the two answers to contrast; the reply holds the credit that
training would give every token (arXiv:2605.19436, Eqs 4, 5 and 7).

    {"messages": [{"role": "user", "content": "23 + 45 - 17 = ?"}],
     "responses": [{"text": "23+45=68, 68-17=51", "reward": 1.0}],
     "positive": "51", "negative": "41", "method": {"name": "cepo", "lam": 0.5, "eps_w": 0.5}}

The module itself can be called, which scores in this process and needs no service:

    import cepo
    cepo.credit("23 + 45 - 17 = ?", ["23+45=68, 68-17=51", "23+45=68, 68-17=41"], "51")
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from cepo.credit.reply import CreditReply, Grade, Negative, ResponseCredit, Token
from cepo.credit.request import (
    MAX_ANSWER_CHARACTERS,
    MAX_BATCH,
    MAX_RESPONSES,
    MAX_TEXT_CHARACTERS,
    MAX_TOKENS,
    MAX_VARIANTS,
    METHODS,
    Answer,
    AnyMethod,
    AnyResponse,
    CreditRequest,
    Method,
    MethodName,
    Response,
    Scalar,
    Text,
    TokenIds,
    Variant,
)

__all__ = [
    "MAX_ANSWER_CHARACTERS",
    "MAX_BATCH",
    "MAX_RESPONSES",
    "MAX_TEXT_CHARACTERS",
    "MAX_TOKENS",
    "MAX_VARIANTS",
    "METHODS",
    "Answer",
    "AnyMethod",
    "AnyResponse",
    "CreditReply",
    "CreditRequest",
    "Grade",
    "Method",
    "MethodName",
    "Negative",
    "Response",
    "ResponseCredit",
    "Scalar",
    "Text",
    "Token",
    "TokenIds",
    "Variant",
]


class CreditModule(ModuleType):
    """This module, which can be called."""

    def __call__(
        self,
        question: str | Sequence[Mapping[str, Any]],
        responses: str | Sequence[str | Mapping[str, Any]],
        answer: str,
        *,
        model: str | None = None,
        adapter: str | Path | None = None,
        **fields: Any,
    ) -> CreditReply:
        """Scores responses in this process; the model stays loaded for the next call.

        Args:
            question: a text, or the turns of a chat.
            responses: texts, or objects such as {"text": "...", "reward": 1.0}; one text stands for a list of it.
            answer: the right answer, r+.
            model: a Hugging Face name or a model folder; the tiny model that ships with the project if left out.
            adapter: the folder of a LoRA adapter, such as RUN_DIR/adapters/v000020.
            fields: other fields of a `CreditRequest`, such as negative="41" or method="rlsd".

        Raises:
            UserError: a field of the request, the model or the adapter does not fit.
        """
        turns = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        given = [responses] if isinstance(responses, str) else list(responses)
        sent = {"messages": turns, "responses": given, "positive": answer, **fields}
        # the room of the CLI stands above this one, so it is imported by name, as `cepo.cli` imports its commands
        local: Any = import_module("cepo.cli.scoring")
        reply: CreditReply = local.credit(sent, model, adapter)
        return reply


sys.modules[__name__].__class__ = CreditModule
