# Teacher and trainer on a GPU; PyTorch brings its own CUDA libraries.
FROM python:3.11.14-slim-bookworm AS build
RUN python -m venv /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH
COPY deploy/requirements/cpu.txt pyproject.toml README.md /build/
COPY cepo /build/cepo
COPY services /build/services
# The lock pins what this image needs; what it does not need is not installed. PyTorch's CUDA build asks for a triton of
# its own.
RUN sed -i '/^triton==/d' /build/cpu.txt \
    && pip install --no-cache-dir --constraint /build/cpu.txt torch==2.13.0 "/build[teacher,trainer]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/cepo /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH \
    HF_HOME=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home cepo && install -d -o cepo /models /runs
USER 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python", "-m", "cepo.healthcheck"]
