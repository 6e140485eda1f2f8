"""CEPO trains language and vision-language models with a credit for every token (arXiv:2605.19436).

The top of this package holds what users import: `credit` (the models of `POST /v1/credit`), `client` (the HTTP client
for it), `testing` (toy engines and an in-memory bus), `errors`, `names`, and `healthcheck`, which containers run.
Everything else is in a room, a subpackage with one subject; `docs/architecture.md` shows the rooms from bottom to top.
"""
