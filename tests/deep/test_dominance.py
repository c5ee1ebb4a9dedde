import copy
import csv
import math
from functools import partial

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract, assert_same
from torch import nn

from taskloom.deep import (
    MLP,
    AdaTaskRecipe,
    AdaTaskStep,
    AggregatedStep,
    FitOptions,
    JointRecipe,
    ScalarizedStep,
    SumStep,
    UpdateStep,
)
from taskloom.deep._adatask import AdaTaskAdagrad, AdaTaskAdam, AdaTaskAdamW, AdaTaskLite, AdaTaskRMSprop
from taskloom.deep._dominance import DominanceMeter
from taskloom.deep._dominance_step import MeteredStep
from taskloom.tasks import DataError, OptionError, TaskData, UnknownNameError

SHAPES = {"wide": (7, 5), "bias": (5,), "deep": (3, 2, 2)}
NAMES = ["loud", "quiet", "calm"]

JOINT = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"amsgrad": True, "betas": (0.7, 0.9)}),
    (torch.optim.Adam, {"maximize": True}),
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.AdamW, {"weight_decay": 0.0}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.8}),
    (torch.optim.Adagrad, {"lr_decay": 0.1}),
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
]
OURS = [
    (AdaTaskAdam, {}),
    (AdaTaskAdam, {"weight_decay": 0.3}),
    (AdaTaskAdam, {"reduction": "rsqrt", "task_weights": [1.0, 0.5, 2.0]}),
    (AdaTaskAdamW, {"weight_decay": 0.0}),
    (AdaTaskRMSprop, {"reduction": "mean"}),
    (AdaTaskRMSprop, {"weight_decay": 0.3}),
    (AdaTaskAdagrad, {"lr_decay": 0.1, "weight_decay": 0.3}),
    (AdaTaskLite, {}),
]


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def losses_at(params, step, scales=(1.0, 1.0, 1.0)):
    """Losses that bend, with noise of their own at every step."""
    generator = torch.Generator().manual_seed(100 + step)
    noise = [[torch.randn(p.shape, generator=generator).to(p.dtype) for p in params.values()] for _ in scales]
    return [
        scale * sum((c * p + 0.3 * p.square()).sum() for c, p in zip(cs, params.values(), strict=True))
        for scale, cs in zip(scales, noise, strict=True)
    ]


def make(kind, options, params, lr=0.02, **how):
    is_ours = kind.__name__.startswith("AdaTask")
    optimizer = kind(params.values(), NAMES, lr=lr, **options) if is_ours else kind(params.values(), lr=lr, **options)
    return optimizer, DominanceMeter(optimizer, NAMES, layers=params, **{"every": 1} | how)


def step_of(optimizer, losses):
    optimizer.zero_grad()
    if hasattr(optimizer, "backward"):
        optimizer.backward(losses)
    else:
        sum(loss for loss in losses if loss is not None).backward()
    optimizer.step()


@pytest.mark.parametrize(("kind", "options"), JOINT + OURS)
def test_the_parts_of_all_tasks_add_up_to_the_step(kind, options):
    params = parameters()
    optimizer, meter = make(kind, options, params, max_coords=30)
    for step in range(12):
        before = {name: weight.detach().clone() for name, weight in params.items()}
        losses = losses_at(params, step, (10.0, 0.1, 1.0))
        meter.observe(losses)
        step_of(optimizer, losses)
        for name, weight in params.items():
            moved = (weight.detach() - before[name]).flatten()[meter.coordinates(name)].numpy()
            np.testing.assert_allclose(meter.parts(name).sum(axis=0), moved, rtol=1e-6, atol=1e-9)


def test_usage_equals_the_formulas_kept_for_whole_tensors():
    params = {"wide": parameters()["wide"]}
    optimizer, meter = make(torch.optim.Adam, {}, params, decay=0.9, max_coords=20)
    m, usage, v = torch.zeros(3, 7, 5).double(), torch.zeros(3, 7, 5).double(), torch.zeros(7, 5).double()
    for t in range(1, 10):
        losses = losses_at(params, t, (10.0, 0.1, 1.0))
        meter.observe(losses)
        g = torch.stack([torch.autograd.grad(loss, params["wide"], retain_graph=True)[0] for loss in losses])
        step_of(optimizer, losses)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.sum(dim=0) ** 2
        du = -0.02 * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        usage = 0.9 * usage + 0.1 * du**2
    chosen = usage.flatten(1)[:, meter.coordinates("wide")].numpy()
    np.testing.assert_allclose(meter.usage("wide"), chosen / (1 - 0.9**9), rtol=1e-9)
    np.testing.assert_allclose(meter.relative("wide"), chosen / chosen.sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.Adam, {}), *[row for row in OURS if row[0] is not AdaTaskLite]])
def test_a_task_alone_has_the_whole_step_when_others_are_absent_from_the_start(kind, options):
    params = parameters()
    optimizer, meter = make(kind, options, params)
    for step in range(4):
        loss = losses_at(params, step)[0]
        meter.observe([loss, None, loss.detach() * math.nan])
        step_of(optimizer, [loss, None, None])
    np.testing.assert_allclose(meter.relative("wide"), [[1.0] * 35, [0.0] * 35, [0.0] * 35])


def test_an_absent_task_goes_on_in_joint_momentum_and_stands_still_in_adatask():
    for kind, goes_on in ((torch.optim.Adam, True), (AdaTaskAdam, False)):
        params = parameters()
        optimizer, meter = make(kind, {}, params)
        for step in range(3):
            losses = losses_at(params, step)
            if step == 2:
                losses[1] = None
            meter.observe(losses)
            step_of(optimizer, losses)
        assert bool(np.any(meter.parts("wide")[1])) is goes_on


def constant_noise(snr, steps, optimizer_of, n=4000):
    """AU / lr^2 of two tasks, one 1,000 times as loud, with gradients of a given signal to noise."""
    weight = nn.Parameter(torch.zeros(n, dtype=torch.float64))
    optimizer = optimizer_of([weight])
    meter = DominanceMeter(optimizer, every=1, decay=0.99)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        grads = [scale * (snr + torch.randn(n, generator=generator, dtype=torch.float64)) for scale in (1.0, 1000.0)]
        meter.observe_gradients([[grads[0]], [grads[1]]])
        optimizer.zero_grad()
        optimizer.backward([(grad * weight).sum() for grad in grads])
        optimizer.step()
    return meter.usage("0").mean(axis=1) / optimizer.param_groups[0]["lr"] ** 2


@pytest.mark.parametrize("snr", [0.0, 0.3, 1.0, 3.0])
def test_usage_under_adatask_adam_follows_signal_to_noise_and_not_scale(snr):
    b1 = 0.9
    found = constant_noise(snr, 500, lambda params: AdaTaskAdam(params, 2, lr=0.01, betas=(b1, 0.995)))
    np.testing.assert_allclose(found, (snr**2 + (1 - b1) / (1 + b1)) / (snr**2 + 1), rtol=0.03)


@pytest.mark.parametrize("snr", [0.0, 1.0])
def test_usage_under_adatask_rmsprop_is_the_squared_rate(snr):
    found = constant_noise(snr, 600, lambda params: AdaTaskRMSprop(params, 2, lr=0.01, alpha=0.99))
    np.testing.assert_allclose(found, 1.0, rtol=0.03)


def regression(kind, scale, steps=100, every=1, is_metered=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    trunk = dict(net[:4].named_parameters())
    groups = [{"params": list(trunk.values())}, {"params": net[4].parameters(), "shared": False}]
    optimizer = kind(groups, tasks=2, lr=3e-3) if kind is AdaTaskAdam else kind(groups, lr=3e-3)
    meter = DominanceMeter(optimizer, 2, layers=trunk, every=every) if is_metered else None
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 2, generator=generator)
    for _ in range(steps):
        x = torch.randn(32, 6, generator=generator)
        errors = (net(x) - torch.tanh(x @ mix)).square().mean(dim=0)
        losses = [errors[0], scale * errors[1]]
        if meter is not None:
            meter.observe(losses)
        step_of(optimizer, losses)
    return net, meter


@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_a_hundred_times_as_large_dominates_joint_adam_and_not_adatask(every):
    _, joint = regression(torch.optim.Adam, 100.0, every=every)
    assert max(row.median for row in joint.table() if row.task == "0") < 0.02
    _, apart = regression(AdaTaskAdam, 100.0, every=every)
    assert all(0.1 < row.median < 0.9 for row in apart.table())
    _, unscaled = regression(AdaTaskAdam, 1.0, every=every)
    assert [row.median for row in apart.table()] == pytest.approx([row.median for row in unscaled.table()], abs=1e-3)
    _, equal = regression(torch.optim.Adam, 1.0, every=every)
    assert all(0.1 < row.median < 0.9 for row in equal.table())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, AdaTaskAdam])
def test_the_meter_changes_nothing_of_the_training(kind):
    with_it, _ = regression(kind, 10.0, steps=20, every=3)
    without, _ = regression(kind, 10.0, steps=20, is_metered=False)
    assert_same(list(with_it.state_dict().values()), list(without.state_dict().values()))


def test_observing_leaves_gradients_alone_and_costs_passes_at_sampled_steps_only():
    params = parameters()
    _, meter = make(torch.optim.Adam, {}, params, every=3)
    passes = []
    params["wide"].grad = torch.ones_like(params["wide"])
    for step in range(6):
        losses = losses_at(params, step)
        for loss in losses:
            loss.register_hook(lambda grad, step=step: passes.append(step))
        assert meter.is_due is (step in {2, 5})
        meter.observe(losses)
    assert passes == [2, 2, 2, 5, 5, 5]
    assert torch.equal(params["wide"].grad, torch.ones_like(params["wide"]))


def test_adatask_adam_needs_no_passes_of_the_meter():
    params = parameters()
    _, meter = make(AdaTaskAdam, {}, params)
    losses = losses_at(params, 0)
    for loss in losses:
        loss.register_hook(lambda grad: pytest.fail("a backward pass"))
    meter.observe(losses)


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.Adam, {}), (AdaTaskRMSprop, {"weight_decay": 0.1})])
def test_batches_that_are_accumulated_count_as_one_step(kind, options):
    meters = []
    for n_parts in (1, 4):
        params = parameters()
        optimizer, meter = make(kind, options, params, every=2)
        for step in range(6):
            optimizer.zero_grad()
            for part in range(n_parts):
                losses = [loss / n_parts for loss in losses_at(params, step)]
                meter.observe(losses, more=part > 0)
                if kind is AdaTaskRMSprop:
                    optimizer.backward(losses)
                else:
                    sum(losses).backward()
            optimizer.step()
        meters.append(meter)
    assert [meter.samples for meter in meters] == [3, 3]
    for one, two in zip(*(meter._layers.values() for meter in meters), strict=True):
        torch.testing.assert_close(one.usage, two.usage)
        torch.testing.assert_close(one.parts, two.parts)


def test_more_of_a_step_that_has_not_begun_is_refused():
    params = parameters()
    optimizer, meter = make(torch.optim.Adam, {}, params)
    with pytest.raises(OptionError, match="`more`=True at the first batch"):
        meter.observe(losses_at(params, 0), more=True)
    meter.observe(losses_at(params, 0))
    step_of(optimizer, losses_at(params, 0))
    with pytest.raises(OptionError, match="`more`=True at the first batch"):
        meter.observe(losses_at(params, 0), more=True)


def test_frozen_parameters_are_left_out_of_the_shares_and_disturb_nothing():
    params = parameters()
    frozen = next(iter(params))
    params[frozen].requires_grad_(False)
    optimizer = torch.optim.Adam(list(params.items()), lr=0.01)
    meter = DominanceMeter(optimizer, 3, every=1)
    losses = losses_at(params, 0)
    losses = [loss if loss.requires_grad else None for loss in losses]
    meter.observe(losses)
    sum(loss for loss in losses if loss is not None).backward()
    optimizer.step()
    assert meter.samples == 1
    moved = {row.layer: row.usage > 0 for row in meter.table() if math.isfinite(row.median)}
    assert frozen not in moved
    assert moved


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9}), OURS[4], OURS[7]])
def test_given_gradients_count_like_losses(kind, options):
    meters = []
    for is_given in (False, True):
        params = parameters()
        optimizer, meter = make(kind, options, params)
        for step in range(5):
            losses = losses_at(params, step)
            if is_given:
                grads = [torch.autograd.grad(loss, list(params.values()), retain_graph=True) for loss in losses]
                meter.observe_gradients(dict(zip(NAMES, grads, strict=True)))
            else:
                meter.observe(dict(zip(NAMES, losses, strict=True)))
            step_of(optimizer, losses)
        meters.append(meter.state_dict())
    assert_same(*meters)


def test_streamed_tasks_are_seen_when_observed_before():
    found = []
    for is_streamed in (False, True):
        params = parameters()
        optimizer, meter = make(AdaTaskRMSprop, {}, params)
        for step in range(3):
            losses = losses_at(params, step)
            meter.observe(losses)
            if is_streamed:
                for name, loss in zip(NAMES, losses, strict=True):
                    with optimizer.task(name):
                        loss.backward()
                optimizer.step()
            else:
                step_of(optimizer, losses)
        found.append(meter.usage("deep"))
    np.testing.assert_allclose(*found)
    with optimizer.task("loud"):
        losses_at(params, 9)[0].backward()
    with pytest.raises(OptionError, match="observe before"):
        meter.observe(losses_at(params, 9))


@pytest.mark.parametrize(("kind", "options"), [JOINT[0], OURS[0], OURS[7]])
def test_a_layer_that_no_task_reaches_has_no_shares_and_does_not_disturb(kind, options):
    params = parameters()
    optimizer, meter = make(kind, options, params)
    reached = {name: weight for name, weight in params.items() if name != "bias"}
    for step in range(3):
        losses = losses_at(reached, step)
        meter.observe(losses)
        step_of(optimizer, losses)
    assert np.isnan(meter.relative("bias")).all()
    assert math.isnan(next(row.median for row in meter.table() if row.layer == "bias"))
    np.testing.assert_allclose(meter.relative("wide").sum(axis=0), 1.0)


def test_coordinates_are_distinct_seeded_and_shared_out_over_layers():
    params = {"big": nn.Parameter(torch.zeros(200, 50)), "small": nn.Parameter(torch.zeros(7))}
    optimizer = torch.optim.SGD(params.values())
    drawn = [
        DominanceMeter(optimizer, 2, layers=params, max_coords=100, seed=seed) for seed in (4, np.random.default_rng(4), 5)
    ]
    same, again, other = [meter.coordinates("big") for meter in drawn]
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)
    assert len(set(same.tolist())) == 93
    assert drawn[0].coordinates("small").tolist() == list(range(7))
    assert DominanceMeter(optimizer, 2, layers=params).coordinates("big").size == 10_000


def test_layers_are_named_as_the_optimizer_was_told_and_private_groups_left_out():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    groups = [{"params": net[0].named_parameters()}, {"params": net[1].named_parameters(), "shared": False}]
    assert DominanceMeter(torch.optim.SGD(groups), 2).layers == ["weight", "bias"]
    assert DominanceMeter(torch.optim.SGD(net.parameters()), 2).layers == ["0", "1", "2", "3"]


def test_a_sample_with_an_infinite_part_is_left_out():
    params = parameters()
    optimizer, meter = make(torch.optim.SGD, {"momentum": 0.9}, params)
    for step, factor in enumerate((math.inf, 1.0)):
        losses = losses_at(params, step)
        meter.observe([losses[0], losses[1] * factor, losses[2]])
        step_of(optimizer, losses)
    assert (meter.samples, meter.dropped) == (1, 1)
    assert np.isfinite(meter.relative("wide")).all()


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_step_that_a_scaler_skips_is_not_sampled(is_fused):
    params = parameters(torch.float32)
    optimizer, meter = make(torch.optim.Adam, {"fused": is_fused}, params)
    scaler = torch.amp.GradScaler("cpu")
    for step, factor in enumerate((1.0, math.inf, 1.0)):
        losses = losses_at(params, step)
        meter.observe(losses)
        optimizer.zero_grad()
        scaler.scale(sum(losses) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert meter.samples == (1, 1, 2)[step]


def test_after_close_steps_are_no_longer_seen():
    params = parameters()
    optimizer, meter = make(torch.optim.SGD, {}, params)
    meter.observe(losses_at(params, 0))
    meter.close()
    step_of(optimizer, losses_at(params, 0))
    assert meter.samples == 0


def observed():
    params = parameters()
    optimizer, meter = make(torch.optim.Adam, {}, params)
    losses = losses_at(params, 0, (5.0, 1.0, 1.0))
    meter.observe(losses)
    step_of(optimizer, losses)
    return meter


def test_the_table_has_quartiles_of_each_layer_and_task():
    meter = observed()
    rows = meter.table()
    assert [(row.layer, row.task) for row in rows] == [(layer, task) for layer in SHAPES for task in NAMES]
    assert all(0 <= row.low <= row.median <= row.high <= 1 for row in rows)
    assert rows[0].median == np.median(meter.relative("wide")[0])
    assert rows[0].usage == pytest.approx(np.mean(meter.parts("wide")[0] ** 2))


def test_the_figure_has_a_panel_a_layer_and_bars_that_sum_to_one():
    figure = observed().figure()
    assert [note.text for note in figure.layout.annotations] == list(SHAPES)
    assert [bars.name for bars in figure.data[:3]] == NAMES
    assert all(sum(bars.y) == pytest.approx(1.0) for bars in figure.data)


def test_scalars_go_through_fabric_once_a_sample(tmp_path):
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    params = parameters()
    module = nn.ParameterDict(params)
    module, optimizer = fabric.setup(module, torch.optim.Adam(params.values(), lr=0.02))
    meter = DominanceMeter(optimizer, NAMES, layers=params, every=2)
    meter.log(fabric, 0)
    for step in range(1, 6):
        losses = losses_at(params, step)
        meter.observe(losses)
        optimizer.zero_grad()
        fabric.backward(sum(losses))
        optimizer.step()
        meter.log(fabric if step < 3 else logger, step)
    logger.save()
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "dominance/wide/loud" in lines[0]
    assert "usage/deep/calm" in lines[0]
    assert [line.split(",")[lines[0].split(",").index("step")] for line in lines[1:]] == ["2", "4"]


def log_with(logger):
    """Five steps with a sample at each second one; the medians of rAU and mean AU of task `loud` in layer `wide`, by step."""
    params = parameters()
    optimizer, meter = make(torch.optim.Adam, {}, params, every=2)
    written = {}
    for step in range(1, 6):
        losses = losses_at(params, step, (5.0, 1.0, 1.0))
        meter.observe(losses)
        step_of(optimizer, losses)
        meter.log(logger, step)
        if step % 2 == 0:
            row = next(row for row in meter.table() if (row.layer, row.task) == ("wide", "loud"))
            written[step] = (row.median, row.usage)
    logger.finalize("success")
    return written


def test_a_csv_file_reads_back_what_was_measured(tmp_path):
    from lightning_fabric.loggers import CSVLogger

    written = log_with(CSVLogger(tmp_path, name="run", version=0))
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    read = {int(row["step"]): (float(row["dominance/wide/loud"]), float(row["usage/wide/loud"])) for row in rows}
    assert read == written
    assert len(rows[0]) == 1 + 2 * len(SHAPES) * len(NAMES)


def test_tensorboard_reads_back_what_was_measured(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    from lightning_fabric.loggers import TensorBoardLogger

    written = log_with(TensorBoardLogger(tmp_path, name="run", version=0))
    found = events.EventAccumulator(str(tmp_path / "run" / "version_0"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == sorted(
        f"{kind}/{layer}/{task}" for kind in ("dominance", "usage") for layer in SHAPES for task in NAMES
    )
    for place, kind in enumerate(("dominance", "usage")):
        read = {event.step: event.value for event in found.Scalars(f"{kind}/wide/loud")}
        assert read == pytest.approx({step: values[place] for step, values in written.items()}, rel=1e-6)


def test_counts_hold_every_weight_that_moved_once_for_each_task():
    meter = observed()
    counts = meter.counts("wide", bins=10)
    assert counts.shape == (3, 10)
    assert counts.sum(axis=1).tolist() == [35, 35, 35]
    relative = meter.relative("wide")
    assert counts[1, 0] == ((relative[1] >= 0) & (relative[1] < 0.1)).sum()
    frozen = {"wide": nn.Parameter(torch.ones(4))}
    optimizer, still = make(torch.optim.SGD, {}, frozen)
    loss = 0 * frozen["wide"].sum()
    still.observe([loss, loss, loss])
    step_of(optimizer, [loss])
    assert not still.counts("wide").any()


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9})])
def test_losses_weighed_later_count_as_if_they_had_been_weighed_before(kind, options):
    weights, meters = torch.tensor([5.0, 0.2, 1.0], dtype=torch.float64), []
    for is_told in (False, True):
        params = parameters()
        optimizer, meter = make(kind, options, params, every=2)
        for step in range(6):
            losses = torch.stack(losses_at(params, step))
            meter.observe(list(losses if is_told else weights * losses))
            if is_told:
                losses.register_hook(meter.weigh)
            optimizer.zero_grad()
            (weights * losses).sum().backward()
            optimizer.step()
        meters.append(meter)
    for layer in SHAPES:
        np.testing.assert_allclose(meters[0].usage(layer), meters[1].usage(layer), rtol=1e-10)


def test_weights_below_adatask_and_of_the_wrong_shape_are_refused():
    _, apart = make(AdaTaskAdam, {}, parameters())
    with pytest.raises(OptionError, match="`task_weights`"):
        apart.weigh(torch.ones(3))
    _, joint = make(torch.optim.Adam, {}, parameters())
    with pytest.raises(DataError, match=r"`weights` has shape \(2,\)"):
        joint.weigh(torch.ones(2))


class Constant(nn.Module):
    """A scalarizer that weighs the first loss as it is told, and the others by 1."""

    def __init__(self, first, n_tasks):
        super().__init__()
        self.weights = torch.ones(n_tasks)
        self.weights[0] = first

    def forward(self, losses):
        return (self.weights * losses).sum()


STEPS = {
    "joint": SumStep,
    "adatask": AdaTaskStep,
    "loud": partial(ScalarizedStep, make=partial(Constant, 100.0)),
}


class Fitting:
    """A trunk of two layers and a head for each of three tasks under an update step, metered or not."""

    def __init__(self, make_step, every=2, is_metered=True, optimizer=torch.optim.Adam):
        torch.manual_seed(3)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(8, 1) for _ in NAMES])
        self.net = nn.ModuleDict({"trunk": self.trunk, "heads": self.heads})
        self.optimizer = optimizer(self.net.parameters(), lr=1e-2)
        step = make_step(self.optimizer, Backward())
        weights = dict(self.net.named_parameters())
        self.step = MeteredStep(step, self.optimizer, weights, every) if is_metered else step
        self.done = 0

    def advance(self, n, missing=()):
        for _ in range(n):
            generator = torch.Generator().manual_seed(self.done)
            x, noise = torch.randn(16, 4, generator=generator), torch.randn(3, 16, generator=generator)
            absent = torch.tensor([task in missing for task in NAMES])

            def closure(x=x, noise=noise, absent=absent):
                outputs = torch.cat([head(self.trunk(x)) for head in self.heads], dim=1).T
                losses = (outputs - x[:, :3].T - noise).square().mean(dim=1)
                return torch.where(absent, math.nan, losses)

            self.step.step(closure)
            self.done += 1

    def state_dict(self):
        return copy.deepcopy({"net": self.net.state_dict(), "step": self.step.state_dict(), "done": self.done})

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.step.load_state_dict(state["step"])
        self.done = state["done"]


class Backward:
    """All of a fabric that a step asks for on one device in full precision."""

    def backward(self, loss):
        loss.backward()


@pytest.mark.parametrize("name", STEPS)
def test_a_metered_step_trains_to_the_same_bits_and_leaves_heads_out(name):
    metered, plain = Fitting(STEPS[name]), Fitting(STEPS[name], is_metered=False)
    metered.advance(12)
    plain.advance(12)
    assert_same(dict(metered.net.state_dict()), dict(plain.net.state_dict()))
    found = metered.step.found(NAMES)
    assert list(found) == ["trunk.0.weight", "trunk.0.bias"]
    assert [list(shares) for shares in found.values()] == [NAMES, NAMES]
    assert all(sum(share["counts"]) == 32 for share in found["trunk.0.weight"].values())


def test_weights_of_losses_show_in_the_shares_and_adatask_takes_dominance_away():
    medians = {}
    for name, make_step in STEPS.items():
        fitting = Fitting(make_step)
        fitting.advance(40)
        medians[name] = [shares["loud"]["median"] for shares in fitting.step.found(NAMES).values()]
    assert min(medians["loud"]) > 0.95
    assert all(0.05 < median < 0.6 for name in ("joint", "adatask") for median in medians[name])


def test_the_shares_are_those_of_a_meter_set_up_by_hand():
    fitting = Fitting(SumStep, every=3, optimizer=partial(torch.optim.SGD, momentum=0.9))
    fitting.advance(12)
    again = Fitting(SumStep, is_metered=False, optimizer=partial(torch.optim.SGD, momentum=0.9))
    meter = DominanceMeter(again.optimizer, 3, layers={f"trunk.{n}": w for n, w in again.trunk.named_parameters()}, every=3)
    again.step, inner = Observing(again.step, meter), again.step
    assert inner is again.step.inner
    again.advance(12)
    found = fitting.step.found(NAMES)
    for layer in meter.layers:
        assert [share["counts"] for share in found[layer].values()] == meter.counts(layer).tolist()


class Observing(UpdateStep):
    def __init__(self, inner, meter):
        self.inner, self.meter = inner, meter

    def step(self, closure):
        losses = closure()
        self.meter.observe(list(losses))
        return self.inner.step(lambda: losses)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_with_one_task_in_a_batch_nothing_tells_what_is_shared_until_there_are_two():
    fitting = Fitting(SumStep)
    fitting.advance(3, missing=("quiet", "calm"))
    assert fitting.step.meter is None
    assert fitting.step.found(NAMES) == {}
    fitting.advance(4, missing=("calm",))
    found = fitting.step.found(NAMES)
    assert list(found) == ["trunk.0.weight", "trunk.0.bias"]
    assert all(shares["calm"]["median"] == 0 for shares in found.values())


def test_steps_and_optimizers_that_have_no_parts_are_refused_before_training():
    for make_step in (
        partial(AggregatedStep, aggregator=lambda matrix: matrix.sum(dim=0)),
        partial(AdaTaskStep, aggregator=lambda matrix: matrix.sum(dim=0)),
    ):
        with pytest.raises(OptionError, match="`dominance_every`=2: a step out of joined gradients"):
            Fitting(make_step)
    with pytest.raises(OptionError, match="`optimizer`=Rprop"):
        Fitting(SumStep, optimizer=torch.optim.Rprop)
    with pytest.raises(OptionError, match="`dominance_every`=0"):
        Fitting(SumStep, every=0)


class FittingThatResumes(ResumeContract):
    name = "joint"

    def make(self):
        return Fitting(STEPS[self.name], every=3)

    def advance(self, thing, n):
        thing.advance(n)

    def observe(self, thing):
        return thing.state_dict()


class TestMeteredSumResumes(FittingThatResumes):
    pass


class TestMeteredAdaTaskResumes(FittingThatResumes):
    name = "adatask"


class TestMeteredWeightsResume(FittingThatResumes):
    name = "loud"


def regression_data(n_tasks=2):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    return TaskData.shared_rows(X, X @ rng.normal(size=(4, n_tasks)))


FAST = FitOptions(max_steps=30, accelerator="cpu", batch_size=16)


def test_a_recipe_measures_when_asked_and_gives_the_same_model():
    data = regression_data()
    for kind in (JointRecipe, AdaTaskRecipe):
        recipe = partial(kind, MLP((6,)), FAST)
        silent, asked = (recipe(dominance_every=n).fit(data, data, seed=0, budget=2) for n in (0, 5))
        assert silent.dominance == {}
        assert list(asked.dominance) == ["encoder.0.weight", "encoder.0.bias"]
        assert_same(silent.predictor.state()[0].keys(), asked.predictor.state()[0].keys())
        for name, array in silent.predictor.state()[0].items():
            assert np.array_equal(array, asked.predictor.state()[0][name])
    with pytest.raises(OptionError, match="`dominance_every`=-1"):
        JointRecipe(dominance_every=-1).fit(data, data, seed=0)


@pytest.mark.parametrize("recipe", [JointRecipe, AdaTaskRecipe])
def test_it_measures_in_mixed_precision(recipe, shared_parts):
    train, validation, _ = shared_parts
    options = FitOptions(max_steps=20, accelerator="cpu", learning_rate=1e-2, precision="bf16-mixed")
    fit = recipe(options=options, dominance_every=2).fit(train, validation, seed=0, budget=1)
    assert fit.dominance
    for tasks in fit.dominance.values():
        assert set(tasks) == {task.name for task in train.tasks}


def test_the_inner_step_meets_the_net():
    met = []
    fitting = Fitting(SumStep)
    fitting.step.inner.meet = met.append
    fitting.step.meet(fitting.net)
    assert met == [fitting.net]


def test_one_task_alone_has_no_shares():
    data = regression_data(1)
    assert JointRecipe(MLP((6,)), FAST, dominance_every=5).fit(data, data, seed=0, budget=1).dominance == {}


@pytest.mark.parametrize("name", ["UWRecipe", "FAMORecipe", "DWARecipe"])
def test_learned_weights_are_metered_too(name):
    pytest.importorskip("torchjd", reason="needs torchjd")
    from taskloom import deep

    data = regression_data()
    found = getattr(deep, name)(MLP((6,)), FAST, dominance_every=5).fit(data, data, seed=0, budget=1).dominance
    assert all(0 < share["median"] < 1 for shares in found.values() for share in shares.values())
    with pytest.raises(OptionError, match="joined gradients"):
        deep.PCGradRecipe(MLP((6,)), FAST, dominance_every=5).fit(data, data, seed=0)


class TrainingThatResumes(ResumeContract):
    kind, options = torch.optim.Adam, {}

    def make(self):
        params = parameters()
        optimizer, meter = make(self.kind, self.options, params, every=3, max_coords=30)
        return Training(params, optimizer, meter)

    def advance(self, thing, n):
        for _ in range(n):
            losses = losses_at(thing.params, thing.done)
            thing.meter.observe(losses)
            step_of(thing.optimizer, losses)
            thing.done += 1

    def observe(self, thing):
        return thing.meter.state_dict()


class Training:
    def __init__(self, params, optimizer, meter):
        self.params, self.optimizer, self.meter, self.done = params, optimizer, meter, 0

    def state_dict(self):
        params = {name: weight.detach() for name, weight in self.params.items()}
        parts = {
            "optimizer": self.optimizer.state_dict(),
            "meter": self.meter.state_dict(),
            "params": params,
            "done": self.done,
        }
        return copy.deepcopy(parts)

    def load_state_dict(self, state):
        for name, weight in self.params.items():
            weight.data.copy_(state["params"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.meter.load_state_dict(state["meter"])
        self.done = state["done"]


class TestAdamResumes(TrainingThatResumes):
    pass


class TestMomentumResumes(TrainingThatResumes):
    kind, options = torch.optim.SGD, {"momentum": 0.9}


class TestAdaTaskResumes(TrainingThatResumes):
    kind, options = AdaTaskAdam, {}


class TestLiteResumes(TrainingThatResumes):
    kind, options = AdaTaskLite, {}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "`every`=0"),
        ({"every": 1.5}, "`every`=1.5"),
        ({"every": True}, "`every`=True"),
        ({"decay": "x"}, "`decay`='x'"),
        ({"max_coords": 10.5}, "`max_coords`=10.5"),
        ({"seed": -1}, "`seed`=-1"),
        ({"decay": 1.0}, "`decay`=1.0"),
        ({"max_coords": 2}, "`max_coords`=2"),
        ({"tasks": 0}, "`tasks`=0"),
        ({"tasks": ["a", "a"]}, "occurs twice"),
        ({"tasks": None}, "`tasks` is missing"),
        ({"layers": {}}, "no shared parameter"),
        ({"layers": {"other": nn.Parameter(torch.ones(2))}}, "`other` is not among"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    optimizer = torch.optim.Adam(parameters().values())
    with pytest.raises(OptionError, match=match):
        DominanceMeter(optimizer, **{"tasks": 2} | options)
    assert not optimizer._optimizer_step_post_hooks


def test_optimizers_that_cannot_be_taken_apart_are_refused():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(OptionError, match="`optimizer`=Rprop"):
        DominanceMeter(torch.optim.Rprop([weight]), 2)
    with pytest.raises(OptionError, match="is a int"):
        DominanceMeter(3, 2)
    with pytest.raises(OptionError, match="`aggregator`"):
        DominanceMeter(AdaTaskAdam([weight], 2, aggregator=lambda matrix: matrix.sum(dim=0)))
    with pytest.raises(OptionError, match="those of the optimizer"):
        DominanceMeter(AdaTaskAdam([weight], 2), ["a", "b"])
    private = nn.Parameter(torch.ones(2))
    optimizer = AdaTaskAdam([{"params": [weight]}, {"params": [private], "shared": False}], 2)
    with pytest.raises(OptionError, match="no two tasks"):
        DominanceMeter(optimizer, layers={"head": private})
    meter = DominanceMeter(optimizer)
    optimizer.add_task("new")
    with pytest.raises(OptionError, match="make a new meter"):
        meter.observe([None, None])


def test_bad_losses_and_gradients_are_refused():
    params = parameters()
    _, meter = make(torch.optim.Adam, {}, params)
    losses = losses_at(params, 0)
    for given, match in [
        (torch.stack(losses), "one tensor"),
        (losses[:2], "has 2 for 3 tasks"),
        ([losses[0], params["bias"], None], "must be a scalar"),
        ([losses[0], 1.0, None], "must be a scalar"),
        ([losses[0], losses[1].detach(), None], "hangs on no parameter"),
    ]:
        with pytest.raises(DataError, match=match):
            meter.observe(given)
    with pytest.raises(UnknownNameError, match="loudd"):
        meter.observe({"loudd": losses[0]})
    grads = [torch.zeros(shape) for shape in SHAPES.values()]
    for given in (grads[:2], [grads[1], grads[0], grads[2]]):
        with pytest.raises(DataError, match="`gradients` of task `loud`"):
            meter.observe_gradients([given, None, None])


def test_nothing_to_show_and_strange_names_are_refused():
    _, meter = make(torch.optim.Adam, {}, parameters())
    for show in (meter.table, meter.figure, lambda: meter.relative("wide"), lambda: meter.parts("wide")):
        with pytest.raises(DataError, match="no step was sampled"):
            show()
    with pytest.raises(UnknownNameError, match="wyde"):
        meter.coordinates("wyde")
    with pytest.raises(OptionError, match="`log_metrics`"):
        meter.log(3, 0)


def test_a_state_of_other_tasks_or_layers_is_refused():
    meter = observed()
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(DataError, match="make one like it"):
        DominanceMeter(torch.optim.SGD([weight]), 2).load_state_dict(meter.state_dict())
    small = {name: nn.Parameter(torch.ones(1)) for name in SHAPES}
    other = DominanceMeter(torch.optim.SGD(small.values()), NAMES, layers=small)
    with pytest.raises(DataError, match="more coordinates"):
        other.load_state_dict(meter.state_dict())
