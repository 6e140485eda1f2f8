# Teacher and trainer on a GPU; PyTorch brings its own CUDA libraries.
FROM python:3.11.14-bookworm AS build
RUN python -m venv /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH
COPY deploy/requirements/cpu.txt pyproject.toml README.md LICENSE /build/
COPY cepo /build/cepo
COPY services /build/services
# The lock pins the packages of this image and others, which are not installed. PyTorch's CUDA build requires its own
# version of Triton.
RUN sed -i '/^triton==/d' /build/cpu.txt \
    && pip install --no-cache-dir --constraint /build/cpu.txt torch==2.13.0 "/build[teacher,trainer]"
# Triton compiles FlexAttention and needs a C compiler for one file. This file is compiled here against a stub of the
# driver's library, so that the image needs no compiler.
COPY deploy/docker/cc /opt/cepo/bin/cc
RUN triton=$(python -c "import triton.backends.nvidia as nvidia; print(nvidia.__path__[0])") \
    && python=$(python -c "import sysconfig; print(sysconfig.get_paths()['include'])") \
    && mkdir /opt/cepo/lib/triton && cp "$triton/driver.c" /opt/cepo/lib/triton \
    && /usr/bin/gcc -shared -Wl,-soname,libcuda.so.1 -o /build/libcuda.so.1 -x c /dev/null \
    && /usr/bin/gcc "$triton/driver.c" -O3 -shared -fPIC -Wno-psabi -o /opt/cepo/lib/triton/driver.so \
        -Wl,--no-as-needed -l:libcuda.so.1 -L/build "-I$triton/include" "-I$python"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/cepo /opt/cepo
ENV PATH=/opt/cepo/bin:$PATH \
    CC=/opt/cepo/bin/cc \
    HF_HOME=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    TORCHINDUCTOR_CACHE_DIR=/models/compiled/inductor \
    TRITON_CACHE_DIR=/models/compiled/triton
RUN useradd --uid 10001 --no-create-home cepo && install -d -o cepo /models /runs
USER 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python", "-m", "cepo.healthcheck"]
