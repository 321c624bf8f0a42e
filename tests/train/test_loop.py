"""The training loop against closed forms, and its checkpoints."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from mindvideo.config import Optimise
from mindvideo.errors import SettingError, TrainingError
from mindvideo.files import beside_folder
from mindvideo.train.checkpoint import load_checkpoint, save_checkpoint
from mindvideo.train.loop import Draw, learning_rate_factor, named_trainable, parameter_groups, step_seed, train


class Line:
    """Fit y = x W with dropout, so that torch's generator matters too; ``breaks_at`` gives a non-finite loss."""

    def __init__(self, breaks_at=None):
        torch.manual_seed(3)
        self.model, self.breaks_at, self.seen = nn.Linear(5, 2), breaks_at, []

    def parameters(self):
        return named_trainable(self.model)

    def sample(self, draw):
        x = torch.from_numpy(draw.rng.standard_normal((7, 5)).astype(np.float32))
        self.seen.append((draw.step, draw.number, float(x[0, 0])))
        return {"x": x, "step": np.full(7, draw.step)}

    def losses(self, batch):
        error = nn.functional.dropout(self.model(batch["x"]), 0.3) - batch["x"][:, :2]
        scale = float("nan") if batch["step"][0] == self.breaks_at else 1.0
        return error.square().mean(dim=1) * scale, {"figure": float(batch["step"][0])}


def settings(**changes):
    values = {"steps": 12, "lr": 0.05, "checkpoint_every": 4, "log_every": 1, "precision": "fp32", "batch_size": 7}
    return Optimise(**(values | changes))


@pytest.mark.parametrize("warmup", [0, 4])
def test_learning_rate_is_linear_warmup_then_half_a_cosine(warmup):
    chosen = settings(steps=20, warmup_steps=warmup)
    for step in range(20):
        expected = (
            (step + 1) / warmup if step < warmup else math.cos(math.pi * (step - warmup) / (20 - warmup) / 2) ** 2
        )
        assert learning_rate_factor(chosen, step) == pytest.approx(expected)
    assert learning_rate_factor(settings(schedule="constant", warmup_steps=warmup), 11) == 1.0


def test_only_matrices_decay_and_rates_follow_names():
    model = nn.Linear(5, 2)
    groups = parameter_groups(dict(model.named_parameters()), settings(weight_decay=0.1), lambda name: len(name) * 1.0)
    found = {tuple(group["params"][0].shape): (group["weight_decay"], group["lr"]) for group in groups}
    assert found == {(2, 5): (0.1, 6.0), (2,): (0.0, 4.0)}


def test_averaged_weights_follow_the_closed_form(tmp_path):
    decay = 0.6
    path, weights = [], Line()
    first = weights.model.weight.detach().clone()
    train(
        weights, settings(ema_decay=decay, checkpoint_every=1), tmp_path / "plain", seed=5,
        validate=lambda step: path.append(weights.model.weight.detach().clone()) or {},
    )  # fmt: skip
    plain, raw = Line(), []
    train(
        plain, settings(checkpoint_every=1), tmp_path / "raw", seed=5,
        validate=lambda step: raw.append(plain.model.weight.detach().clone()) or {},
    )  # fmt: skip
    used = [min(decay, (1 + step) / (10 + step)) for step in range(12)]
    for last in range(12):
        # unrolled: share of the start, and of every step's weights
        expected = first * np.prod(used[: last + 1])
        for step in range(last + 1):
            expected = expected + raw[step] * (1 - used[step]) * np.prod(used[step + 1 : last + 1])
        torch.testing.assert_close(path[last], expected)
    torch.testing.assert_close(weights.model.weight.detach(), path[-1], rtol=0, atol=0)


def test_a_resumed_run_has_the_same_bits_and_the_same_log(tmp_path):
    chosen = settings(ema_decay=0.9, accumulate=2)
    whole, broken, resumed = Line(), Line(breaks_at=9), Line()
    expected = train(whole, chosen, tmp_path / "a", seed=8)
    with pytest.raises(TrainingError, match="finite"):
        train(broken, chosen, tmp_path / "b", seed=8)
    assert load_checkpoint(tmp_path / "b" / "state")[1] == {"step": 8}
    found = train(resumed, chosen, tmp_path / "b", seed=8)
    assert resumed.seen == whole.seen[16:]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in "ab"]
    assert [row["step"] for row in rows[1]] == list(range(12))
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_a_loss_that_is_not_finite_leaves_the_weights(tmp_path):
    kept = []
    task = Line(breaks_at=3)
    with pytest.raises(TrainingError, match=r"nan at step 3 .* of stem"):
        train(
            task, settings(), tmp_path / "stem", seed=1,
            progress=lambda *_: kept.append(task.model.weight.detach().clone()),
        )  # fmt: skip
    assert torch.equal(task.model.weight, kept[-1]) and len(kept) == 3


@pytest.mark.parametrize("clip_grad", [None, 0.8])
def test_a_gradient_that_is_not_finite_leaves_the_weights_though_the_loss_is_finite(tmp_path, clip_grad):
    class Root:
        def __init__(self):
            self.weight = nn.Parameter(torch.zeros(3))

        def parameters(self):
            return {"weight": self.weight}

        def sample(self, draw):
            return {"index": np.arange(2)}

        def losses(self, batch):
            return self.weight.abs().sqrt().sum().expand(2), {}

    task = Root()
    with pytest.raises(TrainingError, match="finite gradients"):
        train(task, settings(clip_grad=clip_grad), tmp_path / "root", seed=1)
    assert task.weight.tolist() == [0, 0, 0]


def test_a_batch_of_fewer_rows_than_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mindvideo.distributed.world_size", lambda: 3)
    with pytest.raises(SettingError, match=r"batch_size of at least 3, .* found 2 in stem"):
        train(Line(), settings(batch_size=2), tmp_path / "stem", seed=1)
    assert not (tmp_path / "stem").exists()


def test_accumulated_micro_batches_equal_their_mean_gradient(tmp_path):
    task, reference = Line(), Line()
    train(task, settings(steps=1, accumulate=3, clip_grad=None, weight_decay=0.0), tmp_path / "s", seed=4)
    losses = []
    for micro in range(3):
        torch.manual_seed(step_seed(4, 0, micro))
        drawn = reference.sample(Draw(np.random.default_rng(step_seed(4, 0, micro)), 7, 0, micro, 4))
        losses.append(reference.losses(drawn)[0].mean())
    torch.stack(losses).mean().backward()
    # AdamW's first step moves every weight by the learning rate against its gradient's sign
    moved = reference.model.weight.detach() - 0.05 * reference.model.weight.grad.sign()
    torch.testing.assert_close(task.model.weight.detach(), moved, rtol=0, atol=1e-5)


def draw(number, size=4, seed=9):
    return Draw(np.random.default_rng(0), size, number, number, seed)


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    first, second = (
        np.stack([draw(number).rows(12) for number in range(3 * epoch, 3 * epoch + 3)]) for epoch in (0, 1)
    )
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(12))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.stack([draw(number, seed=8).rows(12) for number in range(3)]))


def test_what_is_left_over_makes_no_batch_and_is_other_samples_in_the_next_epoch():
    epochs = [np.concatenate([draw(2 * epoch + place).rows(11) for place in range(2)]) for epoch in range(30)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert set(np.concatenate(epochs)) == set(range(11))


def test_a_batch_of_more_than_there_is_is_refused():
    assert sorted(draw(5).rows(4)) == [0, 1, 2, 3]
    with pytest.raises(SettingError, match=r"batch_size of at most 3, .* found 4; lower it"):
        draw(0).rows(3)


def test_a_loss_that_is_not_finite_names_the_samples_whose_values_are_not(tmp_path):
    class Coupled(Line):
        """Every row's loss holds all rows' values, as in a contrastive loss."""

        def sample(self, draw):
            x = super().sample(draw)["x"]
            x[2, 3] = float("inf") if draw.step == 1 else 0.0
            return {"x": x, "index": 10 * np.arange(7)}

        def losses(self, batch):
            return self.model(batch["x"]).sum().expand(7), {}

    with pytest.raises(TrainingError, match=r"micro-batch 0\) of stem, sample 20; the weights"):
        train(Coupled(), settings(), tmp_path / "stem", seed=1)


def test_a_checkpoint_survives_a_kill_between_its_renames(tmp_path):
    save_checkpoint(tmp_path / "state", {"a": torch.arange(3.0)}, {"step": 2})
    (tmp_path / "state").rename(tmp_path / "state.old")
    tensors, numbers = load_checkpoint(tmp_path / "state")
    assert numbers == {"step": 2} and tensors["a"].tolist() == [0, 1, 2]
    (tmp_path / "state.old" / "tensors.safetensors").write_bytes(b"broken")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_checkpoint(tmp_path / "state")


def test_a_folder_is_replaced_whole_or_left(tmp_path):
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with beside_folder(folder) as place:
            (place / "weights").write_text(content)
    with pytest.raises(OSError, match="full"), beside_folder(folder) as place:
        (place / "weights").write_text("thr")
        raise OSError("disk full")
    assert (folder / "weights").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
