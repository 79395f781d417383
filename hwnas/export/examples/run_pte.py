"""Run an exported .pte file with nothing but ExecuTorch and torch: python run.py NAME.pte images.npy"""
# ruff: noqa: T201

import json
import sys

import numpy as np
import torch
from executorch.runtime import Runtime

program = Runtime.get().load_program(sys.argv[1])
facts = json.loads(program.load_method("hwnas").execute([])[0])
classes, taken = json.loads(facts["hwnas.classes"]), json.loads(facts["hwnas.input"])
images = np.load(sys.argv[2]).astype(np.float32)  # (n, channels, height, width), pixels 0..255, of the file's size
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
forward = program.load_method("forward")
logits = [forward.execute([torch.from_numpy(image[None])])[0] for image in images]
for row in logits:
    print(classes[row.argmax()])
