"""Costs that are counted without computing, against closed forms."""

import torch
from torch import nn

from mindvideo.models.meter import Machine, Work, count_parameters, count_per_item, count_work


def two_layers():
    return nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 5))


def training(batch):
    model, given = two_layers(), torch.randn(batch, 7)
    return lambda: model(given).sum().backward()


def test_products_of_forward_and_backward_are_counted():
    work = count_work(lambda: training(3))
    forward = 2 * 3 * (7 * 11 + 11 * 5)
    backward = forward + 2 * 3 * 11 * 5  # gradients of both matrices, and of the hidden layer, not of the input
    assert work.flops == forward + backward
    once, each = count_per_item(training)
    assert each.flops == (forward + backward) / 3 and once.flops == 0
    assert once.scaled(each, 3).flops == work.flops


def test_peak_is_what_is_alive_at_once():
    def prepare():
        given = torch.randn(1000)

        def call():
            kept = [given + 1.0 for _ in range(5)]
            kept.pop()
            kept.append(given * 2.0)
            view = kept[0].view(10, 100).t()
            return kept, view

        return call

    work = count_work(prepare)
    assert work.peak_bytes == 5 * 4000
    assert work.operations == 6 and work.moved_bytes == 6 * 8000


def test_the_peak_is_counted_near_the_batch_asked_about():
    """First 90 values whatever the batch, then 7 for each item: the peak bends at a batch of 13."""

    def prepare(batch):
        given = torch.randn(batch, 7)

        def call():
            gradients = torch.ones(90)
            del gradients
            return given + 1.0

        return call

    for batch in (2, 4, 24, 61):
        once, each = count_per_item(prepare, batch)
        assert once.scaled(each, batch).peak_bytes == 4 * max(90, 7 * batch)
    once, each = count_per_item(prepare, 30)
    assert each.peak_bytes == 28 and once.scaled(each, 200).peak_bytes == 4 * 7 * 200


def test_nothing_large_is_allocated():
    total, trained = count_parameters(lambda: nn.Linear(300_000, 300_000))  # 360 GB
    assert total == trained == 300_000**2 + 300_000

    def prepare():
        model = nn.Linear(300_000, 300_000)
        return lambda: model(torch.randn(2, 300_000))

    assert count_work(prepare).flops == 2 * 2 * 300_000**2


def test_time_adds_products_memory_and_calls():
    machine = Machine({"fp32": 100.0, "bf16": 400.0}, moved_bytes=50.0, call_s=0.25)
    work = Work(flops=800.0, moved_bytes=100.0, operations=8.0)
    assert machine.seconds(work, "fp32") == 8 + 2 + 2
    assert machine.seconds(work, "bf16") == 2 + 2 + 2
    assert (work + work).flops == 1600 and (work + work).operations == 16
