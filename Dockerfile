# Image for machines with NVIDIA GPUs; the driver and nvidia-container-toolkit are on the host. Not built by us.
#   docker build -t videomaskfeat .
#   docker run --rm --gpus all --shm-size 16g -v $PWD:/work videomaskfeat doctor
FROM python:3.12-slim

# A C compiler for torch.compile; OpenCV and PyAV bring their libraries.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# PyPI's build for Linux contains CUDA.
RUN pip install --no-cache-dir torch==2.13.0

WORKDIR /source
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY videomaskfeat videomaskfeat
RUN pip install --no-cache-dir -c constraints.txt ".[export]"

WORKDIR /work
ENTRYPOINT ["videomaskfeat"]
