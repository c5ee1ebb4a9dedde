import dataclasses

import numpy as np
import pytest
import torch
from tests.conftest import encoded_parts
from tests.contracts import ResumeContract, assert_same
from torch import nn

from taskloom.deep import MLP, AggregatedStep, FitOptions, SharedBottom, SumStep, fit, fit_singles
from taskloom.deep._batches import RowDealer, TaskTensors
from taskloom.deep._fit import _joint_feed, _stacked_loop, new_net
from taskloom.deep._loop import FitLoop, make_fabric
from taskloom.deep._nets import OwnRowsNet, SharedRowsNet
from taskloom.tasks import DataError, FitError, ModelFileError, OptionError, TaskData, load_diabetes_tasks, load_digits_tasks
from taskloom.tasks._features import Features

FAST = FitOptions(max_steps=60, validate_every=5, batch_size=16, accelerator="cpu", learning_rate=3e-3)


class TestFitLoopKeepsItsContract(ResumeContract):
    """With dropout, so that the generator's state matters; own rows, so that pools wrap around."""

    def make(self):
        train, validation, _ = encoded_parts(load_diabetes_tasks("age_groups"))
        fabric = make_fabric(FAST)
        net = OwnRowsNet(new_net(MLP((8,), dropout=0.3), (10,), train.tasks, 0), train.tasks)
        module, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=1e-2, fused=True))
        tensors = [TaskTensors(part, torch.float32, fabric.device) for part in (train, validation)]
        torch.manual_seed(5)
        return FitLoop(module, SumStep(optimizer, fabric), _joint_feed(*tensors, FAST, 0), FAST)

    def advance(self, thing, n):
        thing.run(stop_after=thing.step + n)


class TestStackedLoopKeepsItsContract(ResumeContract):
    """Nets side by side of which some stop and are left out before the save."""

    steps = 60

    def make(self):
        train, validation, _ = encoded_parts(load_digits_tasks())
        options = dataclasses.replace(FAST, max_steps=200, patience=2)
        torch.manual_seed(5)
        return _stacked_loop(MLP((6,)), (train, validation), range(5), [1e-3, 1e-1], (options, 0))[2]

    def advance(self, thing, n):
        thing.run(stop_after=thing.step + n)

    def test_some_nets_are_left_out_by_then(self):
        loop = self.make()
        self.advance(loop, self.steps)
        assert loop.chosen is not None
        assert 0 < len(loop.chosen) < 10
        assert len(loop.module(torch.zeros(len(loop.chosen), 3, 64))) == len(loop.chosen)


def _joint(parts, options=FAST, checkpoint=None, seed=0):
    net = new_net(MLP((8,), dropout=0.2), parts[0].X.shape[1:], parts[0].tasks, seed)
    return fit(net, parts[0], parts[1], options=options, seed=seed, checkpoint=checkpoint)


@pytest.mark.parametrize("shape", ["shared_parts", "own_parts"])
def test_a_fit_that_goes_on_from_its_checkpoint_equals_one_that_never_stopped(shape, request, tmp_path):
    parts = request.getfixturevalue(shape)
    whole = _joint(parts)
    file = tmp_path / "fit.pt"
    options = dataclasses.replace(FAST, checkpoint_every=20)
    _joint(parts, dataclasses.replace(options, max_steps=40), file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.pt"]
    resumed = _joint(parts, options, file)
    assert resumed.steps == whole.steps
    assert resumed.curve == whole.curve
    assert_same(resumed.net.state_dict(), whole.net.state_dict())


def test_a_damaged_or_foreign_checkpoint_is_refused(shared_parts, own_parts, tmp_path):
    file = tmp_path / "fit.pt"
    _joint(shared_parts, dataclasses.replace(FAST, max_steps=20, checkpoint_every=20), file)
    other = dataclasses.replace(FAST, learning_rate=1e-4)
    for parts, options, seed in ((own_parts, FAST, 0), (shared_parts, other, 0), (shared_parts, FAST, 1)):
        with pytest.raises(ModelFileError, match="of another net, other data or other settings"):
            _joint(parts, options, file, seed)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelFileError, match="damaged"):
        _joint(shared_parts, FAST, file)


def test_the_kept_weights_are_those_of_the_least_validation_loss(shared_parts):
    train, validation, _ = shared_parts
    result = _joint(shared_parts, dataclasses.replace(FAST, max_steps=200, learning_rate=2e-2))
    assert min(result.curve.losses) == pytest.approx(result.validation_loss.mean(), rel=1e-6)
    with torch.no_grad():
        outputs = result.net(torch.as_tensor(validation.X, dtype=torch.float32)).double().numpy()
    by_hand = np.nanmean((outputs - validation.y) ** 2, axis=0)
    np.testing.assert_allclose(result.validation_loss, by_hand, rtol=1e-5)
    assert result.net.training is False
    assert train.n_tasks == len(by_hand)


def test_patience_ends_a_fit_early(shared_parts):
    options = dataclasses.replace(FAST, max_steps=5000, patience=3, learning_rate=5e-2)
    result = _joint(shared_parts, options)
    assert result.steps < 1000
    best = int(np.argmin(result.curve.losses))
    assert len(result.curve.losses) - 1 - best == 3


@pytest.mark.parametrize("shape", ["shared_parts", "own_parts"])
def test_the_loop_takes_the_steps_that_a_bare_loop_takes(shape, request):
    train, validation, _ = request.getfixturevalue(shape)
    options = dataclasses.replace(FAST, precision="64-true", max_steps=25, validate_every=25)
    loop_net = new_net(MLP((6,)), train.X.shape[1:], train.tasks, 0)
    bare_net = new_net(MLP((6,)), train.X.shape[1:], train.tasks, 0).double()
    result = fit(loop_net, train, validation, options=options)
    optimizer = torch.optim.Adam(bare_net.parameters(), lr=3e-3)
    pools = [np.arange(train.n_rows)] if train.is_shared else [train.rows(t) for t in range(train.n_tasks)]
    dealer = RowDealer(pools, 16, seed=0)
    for step in range(25):
        optimizer.zero_grad()
        rows = dealer.rows(step)
        for t in range(train.n_tasks):
            mine = rows[0 if train.is_shared else t].numpy()
            labels = train.y[mine, t] if train.is_shared else train.y[mine]
            seen = ~np.isnan(labels)
            outputs = bare_net(torch.as_tensor(train.X[mine]))[:, t]
            if seen.any():
                (outputs[torch.as_tensor(seen)] - torch.as_tensor(labels[seen])).square().mean().backward()
        optimizer.step()
    for one, two in zip(loop_net.parameters(), bare_net.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
    assert result.steps == 25


@pytest.mark.parametrize("shape", ["shared_parts", "own_parts", "digit_parts"])
def test_single_nets_side_by_side_equal_nets_trained_one_by_one(shape, request):
    train, validation, _ = request.getfixturevalue(shape)
    options = dataclasses.replace(FAST, precision="64-true", patience=3, max_steps=80)
    batched, loop = (
        fit_singles(MLP((6,)), train, validation, rates=[1e-3, 3e-2], options=options, batched=batched)
        for batched in (True, False)
    )
    assert batched.rates == loop.rates
    assert (batched.steps, batched.total_steps) == (loop.steps, loop.total_steps)
    np.testing.assert_allclose(batched.validation_loss, loop.validation_loss, rtol=1e-6)
    for one, two in zip(batched.nets, loop.nets, strict=True):
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_net_of_ones_own_is_trained_in_place(own_parts):
    train, validation, _ = own_parts
    net = nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, train.n_tasks))
    before = net[0].weight.detach().clone()
    result = fit(net, train, validation, options=FAST)
    assert result.net is net
    assert not torch.equal(before, net[0].weight)
    assert result.validation_loss.mean() < result.curve.losses[0]


def test_images_of_any_shape_pass_through():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 1, 6, 6)).astype(np.float32)
    data = TaskData.shared_rows(X, np.column_stack([X.mean(axis=(1, 2, 3)), X[:, 0, 0, 0]]))

    def make(shape, tasks):
        assert shape == (1, 6, 6)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, len(tasks)))

    joint = fit(make((1, 6, 6), data.tasks), data, data, options=FAST)
    single = fit_singles(make, data, data, rates=[1e-2], options=FAST)
    assert joint.validation_loss.shape == single.validation_loss.shape == (2,)


def test_a_net_that_diverges_is_said_to_have(own_parts):
    train, validation, _ = own_parts
    options = dataclasses.replace(FAST, learning_rate=1e30)
    assert fit(SharedBottom(10, train.tasks), train, validation, options=options).failed
    with pytest.raises(FitError, match="every learning rate of \\[1e\\+30\\] diverged on task `19 to 34`"):
        fit_singles(MLP(), train, validation, rates=[1e30], options=options)


def test_a_net_with_wrong_outputs_is_refused_before_any_work(own_parts):
    train, validation, _ = own_parts
    with pytest.raises(OptionError, match="one column for each regression"):
        fit(nn.Linear(10, 2), train, validation, options=FAST)


def frozen(net):
    return net.requires_grad_(False)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda net, a, b: fit(nn.Linear(5, 6), a, b), OptionError, r"`net` does not map rows of shape \(10,\)"),
        (lambda net, a, b: fit(frozen(net), a, b), OptionError, "no parameter that requires a gradient"),
        (lambda net, a, b: fit(net, a, b, options={"max_steps": 3}), OptionError, "`options`={'max_steps': 3}"),
        (lambda net, a, b: fit(net, a, b, seed=-1), OptionError, "`seed`=-1"),
        (lambda net, a, b: fit(net, a, b, seed=None), OptionError, "`seed`=None"),
        (lambda net, a, b: fit(net, a, b, seed=1.5), OptionError, "`seed`=1.5"),
        (lambda net, a, b: fit(net, a, b, update="pcgrad"), OptionError, "`update`='pcgrad' makes no update step; give what"),
        (lambda net, a, b: fit(net, a, b, update=None), OptionError, "`update`=None makes no update step"),
        (lambda net, a, b: fit(net, a, b, update=torch.optim.Adam), OptionError, "`update`=<class .*Adam'> makes no update"),
        (lambda net, a, b: fit(net, a, b, update=made(net)), OptionError, "`update` is a SumStep that is made already; give"),
        (lambda net, a, b: fit(net, a, b, update=AggregatedStep), OptionError, "the fabric .missing .* 'aggregator'.; give"),
        (
            lambda net, a, b: fit(net, a, b, update=lambda optimizer: None),
            OptionError,
            "cannot be called with an optimizer and",
        ),
        (lambda net, a, b: fit(net, a, b, update=lambda *_: 3), OptionError, "made a int; let it give back an `UpdateStep`"),
        (lambda net, a, b: fit(net, a, narrower(b)), DataError, r"rows of shape \(9,\), `train` of \(10,\)"),
        (lambda net, a, b: fit(net, a, renamed(b)), DataError, "`validation` is of the tasks other"),
        (lambda net, a, b: fit(net, a, shared(b)), DataError, "`validation` has shared rows and `train` own rows"),
        (lambda net, a, b: fit_singles(MLP(), a, narrower(b), rates=[1e-3]), DataError, r"rows of shape \(9,\)"),
        (lambda net, a, b: fit_singles(MLP(), a, b, rates=[]), OptionError, "`rates` is empty"),
        (lambda net, a, b: fit_singles(MLP(), a, b, rates=[1e-3, -1.0]), OptionError, "`rates`=-1.0"),
        (lambda net, a, b: fit_singles(MLP(), a, b, rates=[1e-3], seed=-1), OptionError, "`seed`=-1"),
        (lambda net, a, b: fit_singles(net, a, b, rates=[1e-3]), OptionError, "`net` is a SharedBottom: give what makes"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_any_work(call, error, match, own_parts):
    train, validation, _ = own_parts
    net = SharedBottom(10, train.tasks)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error, match=match):
        call(net, train, validation)
    assert_same(before, dict(net.state_dict()))
    assert net.training


def made(net):
    return SumStep(torch.optim.SGD(net.parameters()), None)


def narrower(data):
    return dataclasses.replace(data, features=Features(data.X[:, :9]))


def renamed(data):
    tasks = (dataclasses.replace(data.tasks[0], name="other"), *data.tasks[1:])
    return TaskData(tasks, data.features, data.y, data.task_of_row, data.by)


def shared(data):
    return TaskData(data.tasks, data.features, np.repeat(data.y[:, None], data.n_tasks, axis=1))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_learn_as_much(precision, own_parts):
    train, validation, _ = own_parts
    results = [
        fit(
            new_net(MLP((8,)), (10,), train.tasks, 0),
            train,
            validation,
            options=dataclasses.replace(FAST, precision=p, max_steps=150),
        )
        for p in (precision, "32-true")
    ]
    ours, plain = (result.validation_loss.mean() for result in results)
    assert ours == pytest.approx(plain, rel=0.05)


def test_the_callers_generator_is_left_alone(own_parts):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    _joint(own_parts)
    assert torch.equal(torch.rand(3), expected)


def test_layouts_agree_on_the_same_rows(shared_parts):
    train = shared_parts[0]
    net = SharedBottom(4, train.tasks, hidden=(5,))
    x = torch.randn(6, 4)
    own = OwnRowsNet(net, train.tasks)(x.expand(train.n_tasks, -1, -1))
    torch.testing.assert_close(SharedRowsNet(net, train.tasks)(x), own)
