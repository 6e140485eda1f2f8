# Rollout on a GPU, on vLLM's own image.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE}
COPY deploy/requirements/rollout.txt pyproject.toml README.md LICENSE /build/
COPY cepo /build/cepo
COPY services /build/services
RUN pip install --no-cache-dir --no-deps --requirement /build/rollout.txt \
    && pip install --no-cache-dir --no-deps /build \
    && rm -rf /build \
    && ln -sf "$(command -v python3)" /usr/local/bin/python
ENV HF_HOME=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    FLASHINFER_WORKSPACE_BASE=/models/compiled \
    TORCHINDUCTOR_CACHE_DIR=/models/compiled/inductor \
    TRITON_CACHE_DIR=/models/compiled/triton \
    VLLM_CACHE_ROOT=/models/compiled/vllm
RUN useradd --uid 10001 --no-create-home cepo && install -d -o cepo /models /runs
USER 10001
ENTRYPOINT []
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python", "-m", "cepo.healthcheck"]
