# docker build -t purejaxppo .                                      on a CPU
# docker build -t purejaxppo:cuda --build-arg EXTRAS=cuda .         on an NVIDIA GPU; run it with --gpus all
# mkdir -p runs && docker run --rm -u $UID -e HOME=/tmp -v "$PWD/runs:/runs" \
#     purejaxppo run --algo trpo --out /runs/first
FROM python:3.13-slim

ARG EXTRAS=render
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

COPY pyproject.toml README.md LICENSE /src/
COPY purejaxppo /src/purejaxppo
RUN pip install "/src[${EXTRAS}]" && rm -r /src

RUN useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["purejaxppo"]
CMD ["--help"]
