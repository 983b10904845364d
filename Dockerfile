# The environment of a GPU node: everything pinned, the extension and its CUDA kernels built.
#
#     docker build --tag ovlt .                    # --build-arg FLASH=1 compiles flash-attn too
#     docker run --gpus all --ipc host --ulimit memlock=-1 \
#       --volume "$PWD/models:/ovlt/models" --volume "$PWD/data:/ovlt/data" \
#       --volume "$PWD/runs:/ovlt/runs" ovlt recipes/node.sh
#
# 13.0 is the CUDA of torch 2.13 (requirements/lock-gpu.txt). devel has nvcc, for csrc/*.cu, for
# flash-attn if it is asked for, and what vLLM compiles when it starts. Ubuntu 24.04 has Python 3.12.
FROM nvidia/cuda:13.0.3-devel-ubuntu24.04

# python3-dev and g++: Triton compiles its launchers when it runs. Not pinned: Ubuntu keeps only the
# newest version of a package within a release.
# hadolint ignore=DL3008
RUN apt-get update \
  && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    cmake g++ git make python3-dev python3-venv \
  && rm -rf /var/lib/apt/lists/*

WORKDIR /ovlt
# Copy only what the environment is made of, so that a change elsewhere does not build it again. The
# README is a part of the package's metadata alone: an empty one does until `COPY . .`.
COPY Makefile CMakeLists.txt pyproject.toml setup.py LICENSE ./
COPY requirements requirements
COPY csrc csrc
COPY kernels kernels
COPY ovlt ovlt
# KIND: no GPU is seen while an image is built. The architectures: A100 and H100, as in CMakeLists.txt.
ENV FLASH_ATTN_CUDA_ARCHS="80;90" PIP_NO_CACHE_DIR=1
RUN touch README.md
ARG FLASH=0
RUN make install KIND=gpu FLASH=${FLASH}
COPY . .
ENV PATH="/ovlt/.venv/bin:$PATH"
CMD ["recipes/node.sh", "--dry-run"]
