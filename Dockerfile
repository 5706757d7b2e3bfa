# The image of one user of a JupyterHub, with the lessons: docker build -t coursekit .
# With CUDA (and NVIDIA's container toolkit on the host): docker build -t coursekit --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The version of the hub, and PyTorch with its own index; the rest follows from the wheel.
ARG JUPYTERHUB=6.1.1
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "torch==2.14.*" "torchvision==0.29.*"
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir "jupyterhub==$JUPYTERHUB" "$(echo /dist/*.whl)[course]"
RUN useradd --create-home --uid 1000 reader
USER 1000
WORKDIR /home/reader
EXPOSE 8888
# Hubs choose the command, so the lessons are copied before it. Those that the reader has changed stay as they are.
ENTRYPOINT ["sh", "-c", "coursekit lessons copy lessons; exec \"$@\"", "--"]
CMD ["jupyterhub-singleuser"]
