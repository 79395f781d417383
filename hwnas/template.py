"""A commented recipe to start from: what `hwnas new` writes."""

from __future__ import annotations

import re
from pathlib import Path

TEMPLATE = """\
# A recipe: what to profile, search, train and export. Run it with
#     hwnas run {path}
# Lines that begin with # show other choices; every key may be left out.

name = "{name}"        # the run's folder is runs/{name}
seed = 0               # same seed, same table: same front

[target]               # what the networks are for
device = "local"       # this machine; or "ssh:user@board", "adb" (a phone), or a list of devices of one kind
runtime = "onnxruntime"   # hwnas devices lists what there is: litert, ncnn, openvino, tensorrt, torch-cuda, ...
precision = "fp32"     # or fp16, bf16, int8; or ["fp32", "int8"]: each is profiled, int8 offered where it is faster
batch = 1              # images of one inference
threads = 1            # of one inference

[data]                 # images and labels
source = "digits"      # scikit-learn's digits: real images that need no download
# source = "torchvision:CIFAR10"     # any classification data set of torchvision, kept in root
# source = "folder:path/to/images"   # train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png
# source = "npz:path/to/arrays.npz"  # x_train, y_train, x_test, y_test
root = "data"
# licence = "CC BY 4.0"   # of the images, for the cards of networks trained on them

[space]                # the networks to choose from; classes and channels come from the data
name = "mobilenetv3"   # hwnas spaces lists them, with their arguments
resolutions = [16, 24, 32]
depths = [1, 2, 3]
stem_width = 16
stem_stride = 1
stage_widths = [16, 24, 40, 48, 64]
stage_strides = [2, 2, 2, 1, 1]
head_widths = [256, 256]

[profile]              # measuring the target: the latency table
tables = "latency_tables"
networks = 10          # random networks to profile; 0: every block of the space is measured (slower, more exact)
# table = "latency_tables/some-device/table.json"   # use this table, measured elsewhere, and profile nothing

[search]
# latency = "1 ms"     # a hard limit: nothing predicted above it is trained
# confidence = 0.95    # the limit holds for the prediction's upper bound: measurements keep it so often
score = "combined"     # how untrained networks are ranked; or a score by name, or a list: hwnas score --help
evaluations = 120      # networks to score
score_batch = 16       # images to score each on
score_draws = 4        # of initial weights; scores are means over them
sampler = "surrogate"  # or "lemonade", "evolution", "local", "random", or any sampler of Optuna, e.g. "TPESampler"
trainings = 5          # networks to train
# executor = "processes"   # train several at once, on the cores or GPUs of this machine; or on a cluster: "ray"
# workers = 4          # in so many processes
# gpus = 0.5           # the share of a GPU that each has
# storage = "postgresql://user@host/database"   # trials in a database, for many machines
# macs = "20 M"        # other hard limits; also params = "400 k", size = "2 MB"

[train]
epochs = 12
batch_size = 64
threads = 1            # of torch; small networks train no faster on more
# stopper = "curve_ranking"   # ends trainings early that will not come out best; or "successive_halving", "hyperband"
# device = "cpu"       # "auto" takes an NVIDIA GPU if there is one
# augment = "crop_flip"   # or "none", "crop", "random_resized_crop", "randaugment", "trivialaugment", "autoaugment"
# mix = "mixup"        # images of two classes in one; or "cutmix", "mixup_cutmix"
# ema = 0.999          # the network is an average over its weights in training
# log = true           # for TensorBoard: tensorboard --logdir runs/{name}/logs


[quantise]
# max_drop = 1.0       # points of accuracy that int8 may cost; beyond, sensitive blocks stay in float

[supernet]             # one training for all networks, instead of one for each
# method = "sandwich"  # or "progressive" (Once-for-All), or "proxyless" with epochs and targets = ["1 ms", "2 ms"]
minutes = 20           # that it is trained for; or epochs = 40
# trained = "runs/other"   # the supernet of another run, for this target
"""


def new_recipe(path: Path) -> str:
    """The text of a commented recipe, named after its file."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100] or "recipe"
    return TEMPLATE.format(path=path, name=name)
