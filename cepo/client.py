"""A Python client of `POST /v1/credit` on the teacher. It needs no torch.

with Client("http://127.0.0.1:8053") as client:
    reply = client.credit({"messages": [...], "responses": ["23+45=68"], "positive": "51", "method": "cepo"})
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

import httpx
from pydantic import ValidationError

from cepo.credit import CreditReply, CreditRequest
from cepo.errors import CepoError, PolicyError, Unreachable, UserError, first_mistake
from cepo.net.auth import call_metadata
from cepo.net.rest import Refusal

PATH = "/v1/credit"
TIMEOUT_SECONDS = 300.0
Asked = CreditRequest | Mapping[str, Any]
"""A request, or its fields as a dict."""
_LINES = {"Accept": "application/x-ndjson"}
_PAGE = {"Accept": "text/html"}
_ERRORS: dict[int, type[CepoError]] = {409: PolicyError, 503: Unreachable}


class Client:
    """Requests token credit from a teacher. Use it as a context manager, or call `close`.

    Every call raises:
        UserError: a field of the request is wrong; the message names it.
        PolicyError: the teacher cannot load the policy.
        Unreachable: the teacher does not answer, or a service that it needs does not.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Makes a client; the first call opens the connection.

        Args:
            url: the teacher's HTTP address, such as "http://127.0.0.1:8053".
            token: the teacher's CEPO_TOKEN.
            timeout: seconds that a connection, a write or a read may take.
            tls: the trusted and the own certificates, from `cepo.net.tls.client_tls`, for a teacher with TLS.
            transport: an httpx transport to use instead of the network.
        """
        headers = dict(call_metadata(token))
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, verify=tls or True, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def credit(self, request: Asked) -> CreditReply:
        """Returns the credit of every token of one request."""
        return CreditReply.model_validate_json(self._post(request, {}))

    def credit_many(self, requests: Sequence[Asked]) -> Iterator[CreditReply | Refusal]:
        """Yields the reply or the error of each request, in order, as soon as the teacher sends it."""
        try:
            with self._http.stream("POST", PATH, json=[_sent(each) for each in requests], headers=_LINES) as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                for line in response.iter_lines():
                    yield _line(line)
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error

    def heat_map(self, request: Asked) -> str:
        """Returns the credit of one request as a self-contained HTML document."""
        return self._post(request, _PAGE).decode()

    def _post(self, request: Asked, headers: dict[str, str]) -> bytes:
        try:
            response = self._http.post(PATH, json=_sent(request), headers=headers)
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        if response.is_error:
            raise _error(response)
        return response.content


class AsyncClient:
    """The asyncio version of `Client`."""

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Takes the arguments of `Client`."""
        headers = dict(call_metadata(token))
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, verify=tls or True, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def credit(self, request: Asked) -> CreditReply:
        """Returns the credit of every token of one request."""
        return CreditReply.model_validate_json(await self._post(request, {}))

    async def credit_many(self, requests: Sequence[Asked]) -> AsyncIterator[CreditReply | Refusal]:
        """Yields the reply or the error of each request, in order, as soon as the teacher sends it."""
        sent = [_sent(each) for each in requests]
        try:
            async with self._http.stream("POST", PATH, json=sent, headers=_LINES) as response:
                if response.is_error:
                    await response.aread()
                    raise _error(response)
                async for line in response.aiter_lines():
                    yield _line(line)
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error

    async def heat_map(self, request: Asked) -> str:
        """Returns the credit of one request as a self-contained HTML document."""
        return (await self._post(request, _PAGE)).decode()

    async def _post(self, request: Asked, headers: dict[str, str]) -> bytes:
        try:
            response = await self._http.post(PATH, json=_sent(request), headers=headers)
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        if response.is_error:
            raise _error(response)
        return response.content


def _sent(request: Asked) -> dict[str, object]:
    if not isinstance(request, CreditRequest):
        try:
            request = CreditRequest.model_validate(dict(request))
        except ValidationError as error:
            raise UserError(first_mistake(error.errors(), unnamed="the request")) from error
    return request.model_dump(mode="json", exclude_unset=True)


def _line(line: str) -> CreditReply | Refusal:
    reply = json.loads(line)
    return Refusal.model_validate(reply) if "detail" in reply else CreditReply.model_validate(reply)


def _error(response: httpx.Response) -> CepoError:
    try:
        detail = Refusal.model_validate_json(response.content).detail
    except ValidationError:
        detail = f"{response.status_code} {response.reason_phrase}"
    return _ERRORS.get(response.status_code, UserError if response.is_client_error else Unreachable)(detail)


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> Unreachable:
    return Unreachable(f"the teacher at {url} does not answer ({error or type(error).__name__})")
