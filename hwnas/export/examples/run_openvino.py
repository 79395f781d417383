"""Run an exported .xml file with nothing but OpenVINO: python run.py NAME.xml images.npy"""
# ruff: noqa: T201

import json
import sys

import numpy as np
import openvino

model = openvino.Core().read_model(sys.argv[1])
classes, taken = (json.loads(model.get_rt_info([f"hwnas.{key}"]).astype(str)) for key in ("classes", "input"))
images = np.load(sys.argv[2]).astype(np.float32)  # (n, channels, height, width), pixels 0..255, of the file's size
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
logits = openvino.compile_model(model, "CPU")(images)[0]
for row in logits:
    print(classes[row.argmax()])
