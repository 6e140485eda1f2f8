# Rollout, teacher and trainer without a GPU, from the lock that the tests run on.
FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
COPY deploy/requirements/cpu.txt /build/
RUN pip install --no-cache-dir --no-deps --requirement /build/cpu.txt
COPY pyproject.toml README.md LICENSE /build/
COPY cepo /build/cepo
COPY services /build/services
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/cepo /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH \
    HF_HOME=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    TORCHINDUCTOR_CACHE_DIR=/models/compiled/inductor \
    TRITON_CACHE_DIR=/models/compiled/triton \
    VLLM_CACHE_ROOT=/models/compiled/vllm
RUN useradd --uid 10001 --no-create-home cepo && install -d -o cepo /models /runs
USER 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python", "-m", "cepo.healthcheck"]
