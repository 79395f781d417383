"""Run an exported .ort file with nothing but ONNX Runtime: python run.py NAME.ort images.npy"""
# ruff: noqa: T201

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
classes, taken = json.loads(facts["hwnas.classes"]), json.loads(facts["hwnas.input"])
images = np.load(sys.argv[2]).astype(np.float32)  # (n, channels, height, width), pixels 0..255, of the file's size
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
(logits,) = session.run(None, {session.get_inputs()[0].name: images})
for row in logits:
    print(classes[row.argmax()])
