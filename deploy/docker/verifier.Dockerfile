# The verifier: no PyTorch, no GPU.
FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH
COPY deploy/requirements/cpu.txt pyproject.toml README.md LICENSE /build/
COPY cepo /build/cepo
COPY services /build/services
# The lock pins the packages of this image and others, which are not installed.
RUN pip install --no-cache-dir --constraint /build/cpu.txt "/build[verifier]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/cepo /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH \
    HF_HOME=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home cepo
USER 10001
CMD ["python", "-m", "services.verifier"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python", "-m", "cepo.healthcheck"]
