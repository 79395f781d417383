"""Run an exported .engine file with TensorRT and cuda-python: python run.py NAME.engine images.npy"""
# ruff: noqa: T201

import json
import sys
from pathlib import Path

import numpy as np
import tensorrt
from cuda.bindings import runtime as cuda

facts = json.loads(Path(sys.argv[1] + ".json").read_text())
classes, taken = facts["classes"], facts["input"]
images = np.load(sys.argv[2]).astype(np.float32)  # at most 32 (n, channels, height, width), pixels 0..255
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
arrays = {"images": images, "logits": np.empty((len(images), len(classes)), np.float32)}
runtime = tensorrt.Runtime(tensorrt.Logger())
context = runtime.deserialize_cuda_engine(Path(sys.argv[1]).read_bytes()).create_execution_context()
context.set_input_shape("images", images.shape)
addresses = {name: cuda.cudaMalloc(array.nbytes)[1] for name, array in arrays.items()}
for name, address in addresses.items():
    context.set_tensor_address(name, address)
cuda.cudaMemcpy(addresses["images"], images.ctypes.data, images.nbytes, cuda.cudaMemcpyKind(1))
context.execute_async_v3(cuda.cudaStreamCreate()[1])
cuda.cudaDeviceSynchronize()
cuda.cudaMemcpy(arrays["logits"].ctypes.data, addresses["logits"], arrays["logits"].nbytes, cuda.cudaMemcpyKind(2))
print("\n".join(classes[row.argmax()] for row in arrays["logits"]))
