"""Our training loop beside plain ones: the same network, images, batch, epochs and scoring, in turns, in one run.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/training_loop.py --threads 1       # digits at 32 pixels
    python benchmarks/training_loop.py --data npz:cifar10.npz --device cuda --networks resnet18 --train 45000

"torchvision" is a loop in the style of torchvision's reference training: a DataLoader with `--workers` processes whose
transforms work on one image at a time, SGD with momentum, linear warm-up and a cosine per epoch, the loss read at every
step, layouts and optimiser as torch has them by default, on a GPU bfloat16 and cuDNN's fastest kernels. "in memory" is
what one writes by hand for few images: floats on the device, one shift and one mirroring per batch, channels_last,
a fused optimiser. Every loop scores the validation images after every epoch and the test images at last.

A ratio is another loop's seconds over ours in the same round: above 1 ours is faster. All loops take a turn in every
round, in an order that rotates; the first round is not counted. Results: `benchmarks/data/README.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.train.data import ImageData, load_data
from hwnas.train.loop import TrainConfig, train
from hwprof.host import identity, state

SIZE = 32
Loop = Callable[[nn.Module, ImageData, argparse.Namespace], float]  # -> accuracy on the test images in percent


def mobilenetv3(data: ImageData) -> nn.Module:
    """The smallest network of a small space of MobileNetV3."""
    space = MobileNetV3Space(
        num_classes=data.num_classes, in_channels=data.channels, resolutions=(SIZE,), width_mults=(0.5, 1.0),
        depths=(1, 2), kernels=(3, 5), expands=(2, 3), stem_width=16, stem_stride=1, stage_widths=(16, 32),
        stage_strides=(1, 2), se=(False, True), activations=("relu", "hardswish"), head_widths=(64, 64),
    )  # fmt: skip
    return space.build(tuple(space.canonical(np.zeros((1, len(space.slots)), dtype=np.int64))[0].tolist()))


def resnet18(data: ImageData, width: int = 16) -> nn.Module:
    """The blocks of ResNet-18 after a stem for small images; ResNet-18 itself has a width of 64."""
    layers: list[nn.Module] = [nn.Conv2d(data.channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
    channels = width
    for stage in range(4):
        wider, stride = width * 2**stage, 1 if stage == 0 else 2
        down = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
        layers += [BasicBlock(channels, wider, stride, None if stage == 0 else down), BasicBlock(wider, wider)]
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, data.num_classes))


NETWORKS: dict[str, Callable[[ImageData], nn.Module]] = {"mobilenetv3": mobilenetv3, "resnet18": resnet18}


def ours(module: nn.Module, data: ImageData, options: argparse.Namespace) -> float:
    """`hwnas.train.loop.train`."""
    config = TrainConfig(options.epochs, options.batch, augment="crop_flip", learning_rate=0.1)
    return train(module, data, SIZE, config, device=options.device).test_accuracy


class Images(Dataset[tuple[Tensor, int]]):
    """One image at a time through the transforms."""

    def __init__(self, x: Tensor, y: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self._x, self._y, self._transform = x, y.tolist(), transform

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._x[index]), self._y[index]


def torchvision_style(workers: int) -> Loop:
    """The reference's way, with so many processes that load images."""

    def loop(module: nn.Module, data: ImageData, options: argparse.Namespace) -> float:
        device = torch.device(options.device)
        last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
        moves = [v2.RandomCrop(SIZE, padding=SIZE // 8), v2.RandomHorizontalFlip()]
        parts = {
            "train": Images(data.x_train, data.y_train, v2.Compose([*moves, *last])),
            "valid": Images(data.x_valid, data.y_valid, v2.Compose(last)),
            "test": Images(data.x_test, data.y_test, v2.Compose(last)),
        }
        loaders = {
            name: DataLoader(part, options.batch, shuffle=name == "train", num_workers=workers,
                             pin_memory=device.type == "cuda", persistent_workers=workers > 0 and name != "test")
            for name, part in parts.items()
        }  # fmt: skip
        module.to(device)
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, options.epochs - 1))
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [1])
        for _ in range(options.epochs):
            module.train()
            losses = []
            for images, labels in loaders["train"]:
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = criterion(module(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            scheduler.step()
            scored(module, loaders["valid"], device)
        return scored(module, loaders["test"], device)

    return loop


def in_memory(module: nn.Module, data: ImageData, options: argparse.Namespace) -> float:
    """By hand, everything on the device."""
    device = torch.device(options.device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (data.mean, data.std))
    parts = []
    for x, y in ((data.x_train, data.y_train), (data.x_valid, data.y_valid), (data.x_test, data.y_test)):
        images = ((x.to(device).float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        parts.append((images, y.to(device)))
    (x, y), *others = parts
    module.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    steps = options.epochs * -(-len(x) // options.batch)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps + 1, cycle_momentum=False)
    for _ in range(options.epochs):
        module.train()
        for batch in torch.randperm(len(x), device=device).split(options.batch):
            down, right = torch.randint(-SIZE // 8, SIZE // 8 + 1, (2,)).tolist()
            images = x[batch].roll((down, right), (2, 3))
            if torch.rand(()) < 0.5:
                images = images.flip(3)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = cross_entropy(module(images), y[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        scored(module, batches(*others[0], options.batch), device)
    return scored(module, batches(*others[1], options.batch), device)


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The images in batches."""
    return zip(x.split(size), y.split(size), strict=True)


def scored(module: nn.Module, loader: Iterator[tuple[Tensor, Tensor]] | DataLoader, device: torch.device) -> float:
    """Accuracy in percent."""
    module.eval()
    right = total = 0
    with torch.inference_mode():
        for images, labels in loader:
            right += (module(images.to(device)).argmax(1) == labels.to(device)).sum()
            total += len(labels)
    return 100 * int(right) / total


def compared(
    build: Callable[[], nn.Module], data: ImageData, loops: dict[str, Loop], options: argparse.Namespace
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds and accuracies of each loop in every round but the first, which warms up."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in loops}
    for number in range(options.rounds + 1):
        names = list(loops)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            torch.manual_seed(number)
            module = build()
            torch.backends.cudnn.benchmark = name != "ours"
            started = time.perf_counter()
            accuracy = loops[name](module, data, options)
            if number:
                found[name][0].append(time.perf_counter() - started)
                found[name][1].append(accuracy)
    return found


def table(found: dict[str, tuple[list[float], list[float]]], images: int) -> Iterator[str]:
    """A line of Markdown for each loop; `images` are those trained on in a round."""
    yield "| loop | s | images/s | test accuracy % | ratio to ours, median (least to most) |"
    yield "|---|---|---|---|---|"
    own = found["ours"][0]
    for name, (seconds, accuracies) in found.items():
        ratios = [other / mine for other, mine in zip(seconds, own, strict=True)]
        median = statistics.median(seconds)
        yield (
            f"| {name} | {median:.2f} | {images / median:.0f} | {statistics.mean(accuracies):.1f} | "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


def part(data: ImageData, train_images: int, scored_images: int) -> ImageData:
    """The first images of each split, at 32 pixels."""
    counts = {"train": train_images, "valid": scored_images, "test": scored_images}
    return dataclasses.replace(
        data, **{f"{axis}_{name}": getattr(data, f"{axis}_{name}")[:n] for axis in "xy" for name, n in counts.items()}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a source of hwnas.train.data (default %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--train", type=int, default=1000, help="training images (default %(default)s)")
    parser.add_argument("--scored", type=int, default=200, help="validation and test images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    data = part(load_data(options.data, image_size=SIZE), options.train, options.scored)
    loops: dict[str, Loop] = {"ours": ours, "in memory": in_memory}
    loops |= {f"torchvision, {workers} workers": torchvision_style(workers) for workers in options.workers}
    gpu = f", {torch.cuda.get_device_name()}" if options.device.startswith("cuda") else ""
    command = " ".join(["benchmarks/training_loop.py", *(sys.argv[1:] if arguments is None else arguments)])
    print(f"machine: {', '.join(identity().values())}{gpu}, load {state()['load_1min']}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\ncommand: {command}")  # fmt: skip
    for name in options.networks:
        found = compared(lambda name=name: NETWORKS[name](data), data, loops, options)
        print(f"\n{name}, {data.name}, {len(data.x_train)} images, {options.epochs} epochs\n")
        print("\n".join(table(found, options.epochs * len(data.x_train))), flush=True)


if __name__ == "__main__":
    main()
