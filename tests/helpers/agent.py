"""An agent on the official OpenAI SDK. Only its headers and the call at its end name the session."""

from __future__ import annotations

from typing import Any

import openai

AGAIN = "That is wrong. Try again."
TURNS = 2


async def solve(client: openai.AsyncOpenAI, session: str, group: str, question: str, answer: str) -> dict[str, Any]:
    """Asks a question, asks again after a wrong reply, and finishes its session; returns the reply to that."""
    headers = {"X-CEPO-Session": session, "X-CEPO-Group": group}
    messages: list[Any] = [{"role": "user", "content": question}]
    reward = 0.0
    for turn in range(TURNS):
        try:
            reply = await client.chat.completions.create(model="policy", messages=messages, extra_headers=headers)
        except openai.BadRequestError:  # the response is as long as it may be
            break
        said = reply.choices[0].message.content or ""
        if f"\\boxed{{{answer}}}" in said:
            reward = 1 / (1 + turn)
            break
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": AGAIN}]
    body = {"reward": reward, "answer": answer}
    finished: dict[str, Any] = await client.post(f"/sessions/{session}/finish", body=body, cast_to=dict[str, Any])
    return finished
