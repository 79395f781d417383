"""Run an exported .pt2 file with nothing but torch: python run.py NAME.pt2 images.npy"""
# ruff: noqa: T201

import json
import sys

import numpy as np
import torch

package = torch._inductor.aoti_load_package(sys.argv[1])
facts = package.loader.get_metadata()
classes, taken = json.loads(facts["hwnas.classes"]), json.loads(facts["hwnas.input"])
images = np.load(sys.argv[2]).astype(np.float32)  # (n, channels, height, width), pixels 0..255, of the file's size
if taken["normalise"] == "outside":
    mean, std = (np.array(taken[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images / 255 - mean) / std
logits = package(torch.from_numpy(images))
for row in logits:
    print(classes[row.argmax()])
