# The command line on a CPU:  docker build -t paretune .  and  docker run --rm -v "$PWD:/work" paretune compare
# On a GPU, with the wheels of torch that hold CUDA:
#   docker build --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg TORCH_INDEX=https://pypi.org/simple -t paretune .
#   docker run --rm --gpus all -v "$PWD:/work" paretune selftest --gpu
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/paretune
ENV PATH=/opt/paretune/bin:$PATH

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} torch torchvision

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir ".[quickstart]"

WORKDIR /work
ENTRYPOINT ["paretune"]
CMD ["--help"]
