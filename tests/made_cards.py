"""A made-up model card, with everything that a card has to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hwnas.card import Ancestor, Card, Layer, TableUsed, Training


def make_layer(number: int, **changes: Any) -> Layer:
    layer = Layer(
        position=f"stage0_{number}",
        key="mbconv:size=16,in_channels=24,out_channels=32,kernel=5,stride=2,mid_channels=72,activation=relu,se=1",
        inputs=((24, 16, 16),),
        output=(32, 8, 8),
        reads=(number - 1,),
        macs=1_234_000,
        params=56_700,
        ms=0.05 * (number + 1),
        share=(number + 1) / 6,
        origin="measured",
    )
    return replace(layer, **changes)


def make_card(**changes: Any) -> Card:
    stem = make_layer(
        0, position="stem", inputs=((3, 32, 32),), output=(24, 16, 16),
        key="conv:size=32,in_channels=3,out_channels=24,kernel=3,stride=2,activation=hardswish",
    )  # fmt: skip
    head = make_layer(2, position="head", key="head:size=8,in_channels=32,hidden=64,num_classes=2", output=(2,))
    card = Card(
        version="0.1.0",
        name="net-0a1b2c",
        run="quickstart",
        created="2025-01-31T14:05:09+00:00",
        space={"name": "mobilenetv3", "kernels": [3, 5]},
        arch="0-1-2",
        choice={"stage0.kernel": 5, "width": 0.5, "activation": "relu"},
        target={"device": "local", "runtime": "onnxruntime", "threads": 1, "cpu": "Example CPU"},
        valid_accuracy_percent=92.25,
        predicted_ms=0.412,
        predicted_interval_ms=(0.39, 0.435),
        predicted_confidence=0.9,
        macs=3_450_000,
        params=61_234,
        data="folder:flowers",
        data_licence="CC BY 4.0",
        classes=("rose", "tulip"),
        input={"shape": ["batch", 3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
        seed=17,
        versions={"hwnas": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"},
        machine={"cpu": "Example CPU", "cores": "2"},
        training=Training(
            epochs=4,
            seconds=125.2,
            train_loss=0.3125,
            test_accuracy_percent=91.75,
            curve=(60.0, 80.5, 90.0, 92.25),
            inherited="stage 0: kernel 3 -> 5",
            lineage=(Ancestor("0-0-2", 90.5, None),),
        ),
        layers=(stem, make_layer(1), head),
        other_ms={"every inference": 0.02, "fused across blocks": -0.01},
        table=TableUsed("example.json", "ab" * 32, 412, 10, 0.019, 0.041, 0.017),
        recipe='name = "quickstart"\n[data]\nsource = "folder:flowers"\n',
        accuracy_percent=91.5,
        max_logit_difference=1e-6,
        measured_ms=0.404,
        measured_interval_ms=(0.398, 0.41),
        measured_confidence=0.95,
        file="net-0a1b2c.onnx",
        size_bytes=251_000,
        sha256="cd" * 32,
    )
    return replace(card, **changes)
