"""The models API while policy versions are loaded and evicted."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.rollout.models import NEWEST, Policies, add_models

MODEL = "org/model"


def client(resident: dict[str, str]) -> TestClient:
    app = FastAPI()
    add_models(app, Policies(resident), MODEL, 160)
    return TestClient(app)


def test_before_training_policy_is_the_base() -> None:
    listed = client({}).get("/v1/models").json()
    assert [(model["id"], model["root"]) for model in listed["data"]] == [(NEWEST, "base"), ("base", MODEL)]
    assert listed["object"] == "list"


def test_the_list_follows_the_versions_the_engine_holds() -> None:
    resident = {"v000001-aa": "one"}
    served = client(resident)
    assert [m["id"] for m in served.get("/v1/models").json()["data"]] == [NEWEST, "v000001-aa", "base"]
    resident["v000002-bb"] = "two"
    del resident["v000001-aa"]
    listed = served.get("/v1/models").json()["data"]
    assert [(m["id"], m["root"]) for m in listed] == [
        (NEWEST, "v000002-bb"),
        ("v000002-bb", "v000002-bb"),
        ("base", MODEL),
    ]
    assert {m["max_model_len"] for m in listed} == {160}
    assert [m["parent"] for m in listed] == ["base", "base", None]


def test_the_newest_is_the_highest_version_and_of_two_with_its_number_the_one_loaded_last() -> None:
    policies = Policies({"v000007-old": 1, "v000007-new": 2, "v000003-cc": 3})
    assert policies[NEWEST] == policies["v000007-new"] == 2
    assert NEWEST in policies
    assert set(policies) == {"v000007-old", "v000007-new", "v000003-cc", NEWEST}
    assert len(policies) == 4


def test_no_adapter_stands_for_the_base() -> None:
    assert NEWEST not in Policies({})
    assert "v000001-aa" not in Policies({"v000002-bb": 1})
    assert len(Policies({})) == 0


def test_one_model_by_name() -> None:
    served = client({"v000001-aa": "one"})
    assert served.get(f"/v1/models/{NEWEST}").json()["root"] == "v000001-aa"
    assert served.get(f"/v1/models/{MODEL}").json()["id"] == "base"
    missing = served.get("/v1/models/v000009-zz")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == 404
    assert "available models: policy, v000001-aa, base" in missing.json()["error"]["message"]
