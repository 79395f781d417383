"""What a precision makes of a network's logits, on this machine and without the target's runtime.

fp32 is the module. bf16 is the module with weights and activations of that type, in torch. fp16 and int8 are our ONNX
files in ONNX Runtime: for a target that runs these very files with its kernels, for others as the file says, computed
in float between pairs of QuantizeLinear and DequantizeLinear. TensorRT's int8, and what ncnn computes, is the symmetric
form; LiteRT's is that for CPUs, but for how sums are rounded. What the target's own file gives is checked at export.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from hwnas.export.exporter import Array, Infer
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.onnx_int8 import int8_model
from hwnas.graphs.plain import Graph
from hwprof.target import Target

_SYMMETRIC = {"tensorrt", "onnxruntime-tensorrt", "ncnn"}


def simulated(module: nn.Module, graph: Graph, target: Target) -> Infer:
    """A network's logits in the target's precision, float32 images (n, channels, height, width) -> (n, classes).

    `graph` is the module's, with ranges measured on real images if the precision is int8. The module is in evaluation
    mode and on the CPU.
    """
    if target.precision == "int8":
        symmetric = target.runtime in _SYMMETRIC
        model = int8_model(graph, dynamic_batch=True, symmetric=symmetric)
        return _in_onnxruntime(model, kernels=target.runtime == "onnxruntime")
    if target.precision == "fp16":
        return _in_onnxruntime(onnx_model(graph, "fp16", dynamic_batch=True), kernels=True)
    if target.precision == "bf16":
        return _in_torch(copy.deepcopy(module).to(torch.bfloat16), torch.bfloat16)
    return _in_torch(module, torch.float32)


def _in_torch(module: nn.Module, dtype: torch.dtype) -> Infer:
    def infer(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = module(torch.from_numpy(images).to(dtype)).float().numpy()
        return logits

    return infer


def _in_onnxruntime(model: onnx.ModelProto, *, kernels: bool) -> Infer:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not kernels:  # optimised, pairs would become its int8 kernels, which saturate on some processors
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(images: Array) -> Array:
        return cast(Array, session.run(None, {name: np.ascontiguousarray(images)})[0])

    return infer
