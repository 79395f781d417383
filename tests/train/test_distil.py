"""Distillation: the loss, what is frozen, and trainings that resume."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import _net as net
from torch import Tensor, nn

from hwnas.errors import RecipeError
from hwnas.train.data import ImageData, load_data
from hwnas.train.distil import Distil, Lesson, distillation_loss, training_mode
from hwnas.train.loop import TrainConfig, TrainResult, train

SHORT = TrainConfig(epochs=4, batch_size=16)
BODY = ("0.weight", "1.weight", "1.bias")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    parts = {f"{a}_{s}": getattr(digits, f"{a}_{s}")[:n] for a in "xy" for s, n in (("train", 97), ("valid", 40))}
    return dataclasses.replace(digits, **parts)


@pytest.fixture(scope="module")
def teacher(digits: ImageData) -> nn.Module:
    torch.manual_seed(3)
    module = net(width=16)
    train(module, digits, 8, TrainConfig(epochs=8))
    return module


def trained(
    data: ImageData, distil: Distil | None, config: TrainConfig = SHORT, **options
) -> tuple[nn.Module, TrainResult]:
    module = net(dropout=0.2)
    result = train(module, data, 8, config, distil=distil, **options)
    return module, result


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_the_loss_by_hand():
    logits, taught = torch.tensor([[2.0, 0.0], [1.0, -1.0]]), torch.tensor([[0.0, 1.0], [1.0, -1.0]])
    temperature = 4.0
    expected = 0.0
    for student, teaching in zip(logits.tolist(), taught.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) / sum(math.exp(w / temperature) for w in values) for v in values]
                for values in (teaching, student))  # fmt: skip
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * temperature**2 / 2
    assert float(distillation_loss(logits, taught, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(taught, taught, temperature)) == pytest.approx(0, abs=1e-7)


def test_the_gradient_is_the_papers():
    """(q - p) / T (eq. 2 of arXiv 1503.02531) times T squared; for large T, (z - v) / classes (eq. 4)."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    taught = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    distillation_loss(logits, taught, 3.0).backward()
    expected = 3.0 * ((logits.detach() / 3).softmax(1) - (taught / 3).softmax(1)) / 3
    torch.testing.assert_close(logits.grad, expected)
    logits.grad = None
    distillation_loss(logits, taught, 1000.0).backward()
    v, z = taught - taught.mean(1, keepdim=True), logits.detach() - logits.detach().mean(1, keepdim=True)
    torch.testing.assert_close(logits.grad, (z - v) / 5 / 3, rtol=0.02, atol=1e-3)


def test_a_student_comes_to_agree_with_its_teacher(digits, teacher):
    """More than with one that sees the labels alone; here without any label."""
    config = TrainConfig(epochs=6)
    taught, result = trained(digits, Distil(teacher, weight=1.0, temperature=2.0), config)
    alone, _ = trained(digits, None, config)
    images = digits.x_test.float() / 255
    images = (images - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        p = teacher.eval()(images).softmax(1)
        far = [
            float((p * (p.log() - module.eval()(images).log_softmax(1))).sum(1).mean()) for module in (taught, alone)
        ]
    assert far[0] < far[1]
    assert result.test_accuracy > 60  # chance is 10


def test_the_teacher_stays_as_it_is(few, teacher):
    before, training = copy.deepcopy(teacher.state_dict()), teacher.training
    seen: list[bool] = []
    hook = teacher.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    trained(few, Distil(teacher))
    hook.remove()
    assert teacher.training == training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert set(seen) == {False}  # hooks are copied with the teacher


def test_the_teacher_sees_the_students_batches(few, teacher):
    """The same images, moved the same way."""
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    hook = teacher.register_forward_pre_hook(lambda _, inputs: seen["teacher"].append(inputs[0].clone()))
    module = net()
    module.register_forward_pre_hook(lambda m, i: seen["student"].append(i[0].clone()) if m.training else None)
    train(module, few, 8, SHORT, distil=Distil(teacher))
    hook.remove()
    assert len(seen["teacher"]) == len(seen["student"]) == 4 * 7
    assert all(torch.equal(a, b) for a, b in zip(seen["teacher"], seen["student"], strict=True))


def test_without_weight_it_is_a_training_without_a_teacher(few, teacher):
    alone, result = trained(few, None)
    idle, other = trained(few, Distil(teacher, weight=0.0))
    taught, _ = trained(few, Distil(teacher, weight=0.5))
    assert same(alone, idle)
    assert not same(alone, taught)
    assert result.valid_accuracy == other.valid_accuracy


def test_what_is_untouched_is_frozen_at_first(few, teacher):
    """Weights, and running statistics too."""
    module = net()
    start = copy.deepcopy(module.state_dict())
    stands: list[dict[str, Tensor]] = []
    train(module, few, 8, SHORT, distil=Distil(teacher, frozen_epochs=2, untouched=BODY),
          progress=lambda *_: stands.append(copy.deepcopy(module.state_dict())))  # fmt: skip
    statistics = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    for key in (*BODY, *statistics):
        assert torch.equal(stands[1][key], start[key])
        assert not torch.equal(stands[3][key], start[key])
    for key in ("3.weight", "4.bias", "4.running_mean", "9.weight"):
        assert not torch.equal(stands[0][key], start[key])
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())


def test_what_the_caller_froze_stays_frozen(few, teacher):
    module = net()
    module[9].weight.requires_grad_(False)
    kept = module[9].weight.clone()
    train(module, few, 8, SHORT, distil=Distil(teacher, frozen_epochs=1, untouched=(*BODY, "9.weight")))
    assert torch.equal(module[9].weight, kept)
    assert not module[9].weight.requires_grad
    assert module[0].weight.requires_grad


def test_training_mode_is_left_even_by_an_error():
    module = net().eval()
    with contextlib.suppress(ZeroDivisionError), training_mode(module, BODY):
        assert [part.training for part in (module[0], module[1], module[4])] == [True, False, True]
        assert [p.requires_grad for name, p in module.named_parameters() if name in BODY] == [False] * 3
        raise ZeroDivisionError
    assert all(p.requires_grad for p in module.parameters())
    with training_mode(module, ("1.weight",)):  # only a part of it: its statistics go on
        assert module[1].training


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_ends_the_same(few, teacher, tmp_path: Path, stop, optimizer):
    """Stopped while frozen, at the change, and after it."""
    config = dataclasses.replace(SHORT, optimizer=optimizer)
    distil = Distil(teacher, weight=0.7, frozen_epochs=2, untouched=BODY)
    whole, result = trained(few, distil, config)

    def interrupt(done: int, *_: object) -> None:
        if done == stop:
            raise KeyboardInterrupt

    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(few, distil, config, checkpoint=path, progress=interrupt)
    done: list[int] = []
    resumed, other = trained(few, distil, config, checkpoint=path, progress=lambda epoch, *_: done.append(epoch))
    assert done == list(range(stop, 5))  # the epoch that it goes on from is told again
    assert same(whole, resumed)
    assert dataclasses.replace(result, seconds=0) == dataclasses.replace(other, seconds=0)


def test_another_teacher_is_another_training(few, teacher, tmp_path, caplog):
    path = tmp_path / "training.pt"
    trained(few, Distil(teacher), checkpoint=path)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    changed = [
        Distil(other), Distil(teacher, weight=0.4), Distil(teacher, temperature=3), Distil(teacher, frozen_epochs=1),
        Distil(teacher, untouched=BODY),
    ]  # fmt: skip
    assert len({distil.identity for distil in (Distil(teacher), *changed)}) == 6
    assert Distil(teacher).identity == Distil(copy.deepcopy(teacher)).identity
    for distil in (None, changed[0]):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trained(few, distil, checkpoint=path)
        assert "another network, data set or setting" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.1}, r"weight must be in \[0, 1\], got 1.1"),
        ({"weight": math.nan}, "weight must be"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"frozen_epochs": -1}, "frozen_epochs must be 0 or above"),
    ],
)
def test_bad_settings_are_named(teacher, settings, message):
    with pytest.raises(RecipeError, match=message):
        Distil(teacher, **settings)


def test_names_that_do_not_fit_the_student(few, teacher):
    with pytest.raises(RecipeError, match="untouched names 'zzz', no parameter of the network: 0"):
        trained(few, Distil(teacher, untouched=("zzz",)))


def test_where_nothing_was_touched_everything_learns(few, teacher):
    names = tuple(name for name, _ in net().named_parameters())
    free, _ = trained(few, Distil(teacher))
    all_untouched, _ = trained(few, Distil(teacher, frozen_epochs=4, untouched=names))
    assert same(free, all_untouched)


def test_a_lesson_blends(teacher):
    lesson = Lesson(Distil(teacher, weight=0.25, temperature=1.0), net(), torch.device("cpu"))
    images, logits = torch.randn(4, 1, 8, 8), torch.randn(4, 10)
    with torch.no_grad():
        taught = teacher.eval()(images)
    expected = 0.75 * 2.0 + 0.25 * float(distillation_loss(logits, taught, 1.0))
    assert float(lesson.blended(torch.tensor(2.0), logits, images)) == pytest.approx(expected)
    assert np.isfinite(expected)
