"""Run an exported .tflite file with nothing but LiteRT: python run.py NAME.tflite images.npy"""
# ruff: noqa: T201

import json
import sys
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter

facts = json.loads(zipfile.ZipFile(sys.argv[1]).read("hwnas.json"))
classes, taken = json.loads(facts["hwnas.classes"]), json.loads(facts["hwnas.input"])
images = np.load(sys.argv[2]).astype(np.float32)  # (n, channels, height, width), pixels 0..255, of the file's size
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
images = images.transpose(0, 2, 3, 1)  # channels last
interpreter = Interpreter(sys.argv[1])
interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], images.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
for row in logits:
    print(classes[row.argmax()])
