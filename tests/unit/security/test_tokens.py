"""Several tokens, changed while a service runs; what a service asks for before it listens; OpenAPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cepo.errors import UserError
from cepo.net.auth import Tokens, call_metadata
from cepo.net.connections import check_exposure
from cepo.net.environment import child_environment
from cepo.net.settings import Settings
from tests.unit.security.conftest import Certificates
from tests.unit.security.support import UNAUTHENTICATED, served, verify

ROOT = Path(__file__).parents[3]
OLD, NEW = "the-old-token", "the-new-token"


async def statuses(service: Settings, token: str) -> tuple[int, str]:
    """What REST and gRPC say to a token."""
    async with httpx.AsyncClient(headers=dict(call_metadata(token))) as web:
        reply = await web.post(f"http://127.0.0.1:{service.http_port}/echo", content=b"")
    return reply.status_code, (await verify(service, Settings(token=token))).name


async def test_a_token_is_changed_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{OLD}\n")
    in_, out = (200, "OK"), (401, UNAUTHENTICATED.name)
    async with served(token_file=str(file)) as service:
        assert await statuses(service, OLD) == in_
        assert await statuses(service, NEW) == out
        file.write_text(f"{OLD}\n{NEW}\n")
        assert await statuses(service, OLD) == await statuses(service, NEW) == in_
        file.write_text(f"{NEW}\n")
        assert await statuses(service, OLD) == out
        assert await statuses(service, NEW) == in_


@pytest.mark.parametrize("content", ["", "\n \n", None])
async def test_a_file_that_is_emptied_or_removed_lets_nobody_in(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "tokens"
    file.write_text(OLD)
    async with served(token_file=str(file)) as service:
        file.unlink() if content is None else file.write_text(content)
        for token in (OLD, ""):
            assert await statuses(service, token) == (401, UNAUTHENTICATED.name)


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes does: another file takes the name, of the same length and age."""
    file, other = tmp_path / "tokens", tmp_path / "other"
    for path, token in ((file, OLD), (other, NEW)):
        path.write_text(token)
        os.utime(path, ns=(1, 1))
    tokens = Tokens(file=str(file))
    assert tokens.metadata() == [("authorization", f"Bearer {OLD}")]
    other.rename(file)
    assert tokens.current() == (NEW,)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", OLD, f"bearer {OLD}", f"Bearer {OLD} ", "Bearer \xff"])
def test_only_the_whole_token_opens(header: str) -> None:
    assert Tokens(OLD).allow(f"Bearer {OLD}")
    assert not Tokens(OLD).allow(header)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gpu-1"])
def test_beyond_loopback_a_service_asks_for_a_token_and_certificates(host: str, certificates: Certificates) -> None:
    with pytest.raises(UserError, match=f"^CEPO_HOST={host} .*without a token; set CEPO_TOKEN"):
        check_exposure(Settings(host=host, certificates=str(certificates.service)))
    with pytest.raises(UserError, match=f"^CEPO_HOST={host} .*token unencrypted; set CEPO_CERTIFICATES"):
        check_exposure(Settings(host=host, token=OLD))
    with pytest.raises(UserError, match="without a token"):
        check_exposure(Settings(host=host, exposure="cleartext"))
    check_exposure(Settings(host=host, token=OLD, certificates=str(certificates.service)))
    check_exposure(Settings(host=host, token=OLD, exposure="cleartext"))
    check_exposure(Settings(host=host, exposure="open"))
    with pytest.raises(UserError, match=r"holds no ca\.crt"):
        check_exposure(Settings(host=host, token=OLD, certificates="/nowhere"))


def test_a_service_that_lacks_something_ends_with_one_line_and_exit_2() -> None:
    variables = child_environment({"CEPO_HOST": "0.0.0.0", "CEPO_REDIS_URL": "redis://127.0.0.1:1/0"})
    command = [sys.executable, "-m", "services.verifier"]
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cepo verifier: CEPO_HOST=0.0.0.0 lets other machines call without a token")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_nothing_is_asked_for(host: str) -> None:
    check_exposure(Settings(host=host))


def test_an_empty_token_file_and_two_sources_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("\n")
    with pytest.raises(UserError, match="holds no token"):
        check_exposure(Settings(token_file=str(tmp_path / "tokens")))
    with pytest.raises(UserError, match="give one of them"):
        check_exposure(Settings(token_file=str(tmp_path / "tokens"), token=OLD))


async def test_openapi_says_how_to_authenticate() -> None:
    async with served(token=OLD) as service, httpx.AsyncClient() as web:
        address = f"http://127.0.0.1:{service.http_port}/openapi.json"
        assert (await web.get(address)).status_code == 401
        schema = (await web.get(address, headers={"Authorization": f"Bearer {OLD}"})).json()
    assert schema["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert schema["security"] == [{"token": []}]
    assert "security" not in schema["paths"]["/echo"]["post"]
    assert schema["paths"]["/healthz"]["get"]["security"] == []
