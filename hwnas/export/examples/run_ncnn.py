"""Run an exported .ncnn.param file with nothing but ncnn: python run.py NAME.ncnn.param images.npy"""
# ruff: noqa: T201

import json
import sys
from pathlib import Path

import ncnn
import numpy as np

facts = json.loads(Path(sys.argv[1] + ".json").read_text())
classes, taken = facts["classes"], facts["input"]
net = ncnn.Net()
net.load_param(sys.argv[1])
net.load_model(sys.argv[1].removesuffix("param") + "bin")
images = np.load(sys.argv[2]).astype(np.float32)  # (n, channels, height, width), pixels 0..255, of the file's size
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
for image in images:
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(image).clone())
    logits = np.array(extractor.extract(net.output_names()[0])[1])
    print(classes[logits.argmax()])
