"""Networks that are made when these tests are collected have the same weights in every run."""

import torch

torch.manual_seed(0)
