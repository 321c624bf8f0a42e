"""Memory that is counted without computing, against closed forms."""

import torch
from torch import nn

from mindvideo.models.meter import count_parameters, count_peak, count_per_item


def test_peak_is_what_is_alive_at_once():
    def prepare():
        given = torch.randn(1000)

        def call():
            kept = [given + 1.0 for _ in range(5)]
            kept.pop()
            kept.append(given * 2.0)
            view = kept[0].view(10, 100).t()
            kept[1].add_(1.0)
            return kept, view

        return call

    assert count_peak(prepare) == 5 * 4000


def test_a_step_of_training_keeps_activations_and_gradients():
    def prepare(batch):
        model, given = nn.Linear(700, 11, bias=False), torch.randn(batch, 700)
        return lambda: model(given).square().sum().backward()

    once, each = count_per_item(prepare, 6)
    assert 4 * 700 * 11 <= once < 4 * 700 * 11 + 200  # the weights' gradient, and a number or two
    assert 4 * 11 <= each <= 4 * 4 * 11  # the output and its gradient


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
        assert once + batch * each == 4 * max(90, 7 * batch)
    once, each = count_per_item(prepare, 30)
    assert each == 28 and once + 200 * each == 4 * 7 * 200


def test_nothing_large_is_allocated():
    total, trained = count_parameters(lambda: nn.Linear(300_000, 300_000))  # 360 GB
    assert total == trained == 300_000**2 + 300_000

    def prepare():
        model, given = nn.Linear(300_000, 300_000), torch.randn(2, 300_000)
        return lambda: model(given)

    assert count_peak(prepare) == 2 * 300_000 * 4
