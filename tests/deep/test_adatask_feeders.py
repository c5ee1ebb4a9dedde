import copy
import gc
import weakref

import pytest
import torch
from tests.contracts import assert_same
from torch import nn
from torch.utils.checkpoint import checkpoint

from taskloom.deep._adatask import AdaTaskAdagrad, AdaTaskAdam, AdaTaskAdamW, AdaTaskLite, AdaTaskRMSprop
from taskloom.tasks import DataError, OptionError, UnknownNameError

ALL = (AdaTaskAdam, AdaTaskAdamW, AdaTaskRMSprop, AdaTaskAdagrad, AdaTaskLite)
TASKS = ["a", "b", "c"]


class Net(nn.Module):
    def __init__(self, K=3, width=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(K))

    def groups(self):
        return [{"params": self.trunk.parameters()}, {"params": self.heads.parameters(), "shared": False}]

    def losses(self, x, z=None):
        z = self.trunk(x) if z is None else z
        return [10.0**k * (head(z).squeeze(1) - x[:, k]).square().mean() for k, head in enumerate(self.heads)]


def batch(step, n=16):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(step))


def fresh(ours=AdaTaskAdam, **options):
    torch.manual_seed(0)
    net = Net()
    return net, ours(net.groups(), TASKS, lr=0.02, **options)


def feed_list(net, optimizer, x):
    optimizer.backward(net.losses(x))


def feed_mapping(net, optimizer, x):
    optimizer.backward(dict(zip(reversed(TASKS), reversed(net.losses(x)), strict=True)))


def feed_features(net, optimizer, x):
    z = net.trunk(x)
    optimizer.backward(net.losses(x, z), features=z)


def feed_tasks(net, optimizer, x, stream=False):
    losses = net.losses(x)
    for k, loss in enumerate(losses):
        with optimizer.task(TASKS[k], stream=stream):
            loss.backward(retain_graph=k < 2)


def feed_stream(net, optimizer, x):
    feed_tasks(net, optimizer, x, stream=True)


def feed_own_batches(net, optimizer, x):
    for k in range(3):
        with optimizer.task(k):
            net.losses(x)[k].backward()


def feed_jac(net, optimizer, x):
    """What torchjd's `mtl_backward` leaves behind."""
    losses, shared = net.losses(x), list(net.trunk.parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    for weight, *of_tasks in zip(shared, *rows, strict=True):
        weight.jac = torch.stack(of_tasks)
    for loss, head in zip(losses, net.heads, strict=True):
        for weight, grad in zip(
            head.parameters(), torch.autograd.grad(loss, list(head.parameters()), retain_graph=True), strict=True
        ):
            weight.grad = grad


def train(feed, ours=AdaTaskAdam, steps=8, **options):
    net, optimizer = fresh(ours, **options)
    for step in range(steps):
        optimizer.zero_grad()
        feed(net, optimizer, batch(step))
        optimizer.step()
    return net.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize("ours", ALL)
@pytest.mark.parametrize("feed", [feed_mapping, feed_features, feed_tasks, feed_jac])
def test_feeders_that_keep_gradients_agree_to_the_bit(feed, ours):
    truth, found = train(feed_list, ours), train(feed, ours)
    assert_same(truth[0], found[0])


@pytest.mark.parametrize("ours", ALL)
@pytest.mark.parametrize("feed", [feed_stream, feed_own_batches])
@pytest.mark.parametrize("options", [{}, {"reduction": "mean", "task_weights": [1.0, 0.5, 2.0], "weight_decay": 0.1}])
def test_streaming_agrees_with_them(feed, ours, options):
    truth, found = train(feed_list, ours, **options), train(feed, ours, **options)
    for key in truth[0]:
        torch.testing.assert_close(truth[0][key], found[0][key], rtol=1e-4, atol=1e-5)


def test_streamed_gradients_are_dropped_at_once_and_weights_wait_for_the_step(monkeypatch):
    import taskloom.deep._adatask_feeders as feeders

    monkeypatch.setattr(feeders, "CHUNK", 1)
    net, optimizer = fresh()
    before, refs = {key: value.clone() for key, value in net.trunk.state_dict().items()}, []
    for weight in net.trunk.parameters():
        weight.register_hook(lambda grad: refs.append(weakref.ref(grad)))
    losses = net.losses(batch(0))
    for k, loss in enumerate(losses):
        with optimizer.task(k):
            loss.backward(retain_graph=k < 2)
        gc.collect()
        assert all(weight.grad is None for weight in net.trunk.parameters())
        assert not any(ref() is not None for ref in refs)
    assert_same(before, dict(net.trunk.state_dict()))
    optimizer.step()
    assert not torch.equal(before["0.weight"], net.trunk[0].weight)


def test_streamed_in_small_chunks_it_is_the_same(monkeypatch):
    import taskloom.deep._adatask_feeders as feeders

    whole = train(feed_stream)
    monkeypatch.setattr(feeders, "CHUNK", 10)
    assert_same(whole[0], train(feed_stream)[0])


def test_a_learning_rate_is_read_at_the_step():
    ends = []
    for early in (True, False):
        net, optimizer = fresh()
        optimizer.param_groups[0]["lr"] = 0.5 if early else 0.1
        feed_stream(net, optimizer, batch(0))
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        ends.append(dict(net.trunk.state_dict()))
    assert_same(*ends)


def test_microbatches_add_up():
    net, optimizer = fresh()
    twin, whole = fresh()
    x = batch(0, 16)
    for part in x.split(8):
        optimizer.backward([loss / 2 for loss in net.losses(part)])
    whole.backward(twin.losses(x))
    for task in TASKS:
        for one, two in zip(optimizer.task_gradients(task), whole.task_gradients(task), strict=True):
            torch.testing.assert_close(one, two)
    optimizer.step()
    whole.step()
    assert float(optimizer.state[net.trunk[0].weight]["step_a"]) == 1
    for one, two in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_step_uses_gradients_up_and_zero_grad_forgets_them():
    net, optimizer = fresh()
    optimizer.backward(net.losses(batch(0)))
    assert optimizer.has_fed()
    optimizer.zero_grad()
    assert not optimizer.has_fed()
    optimizer.backward(net.losses(batch(0)))
    optimizer.step()
    assert not optimizer.has_fed()
    assert optimizer.task_gradients("a") == [None] * 4
    optimizer.zero_grad(set_to_none=False)
    assert all(weight.grad is not None and not weight.grad.any() for weight in net.heads.parameters())
    assert all(weight.grad is None for weight in net.trunk.parameters())


def test_the_gradient_of_a_task_is_that_of_its_loss_alone():
    net, optimizer = fresh()
    x = batch(3)
    optimizer.backward(net.losses(x))
    for k, task in enumerate(TASKS):
        expected = torch.autograd.grad(net.losses(x)[k], list(net.trunk.parameters()))
        assert_same(list(expected), optimizer.task_gradients(task))
        own = torch.autograd.grad(net.losses(x)[k], list(net.heads[k].parameters()))
        assert_same(list(own), [weight.grad for weight in net.heads[k].parameters()])


def test_each_head_is_gone_through_once():
    net, optimizer = fresh()
    counts = dict.fromkeys(range(3), 0)
    for k, head in enumerate(net.heads):
        head.weight.register_hook(lambda _, k=k: counts.update({k: counts[k] + 1}))
    optimizer.backward(net.losses(batch(0)))
    assert counts == {0: 1, 1: 1, 2: 1}


def test_a_task_that_blows_up_leaves_the_others_alone():
    net, optimizer = fresh()
    a, b, _ = net.losses(batch(0))
    optimizer.backward([a, (b * 0).sqrt(), None])
    assert all(grad.isfinite().all() for grad in optimizer.task_gradients("a"))
    assert not all(grad.isfinite().all() for grad in optimizer.task_gradients("b"))


def test_heads_outside_of_the_optimizer_get_their_gradients_too():
    for use_features in (False, True):
        torch.manual_seed(0)
        net = Net()
        optimizer, other = AdaTaskAdam(net.trunk.parameters(), 3), torch.optim.SGD(net.heads.parameters(), lr=0.1)
        z = net.trunk(batch(0))
        optimizer.backward(net.losses(batch(0), z), features=z if use_features else None)
        assert all(weight.grad is not None for weight in net.heads.parameters())
        optimizer.step()
        other.step()


def test_a_tied_weight_gets_one_gradient_a_task_however_it_is_fed():
    grads = []
    for stream in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(5, 5)
        optimizer = AdaTaskRMSprop(layer.parameters(), 2, lr=0.1, alpha=0.0)
        out = layer(torch.tanh(layer(batch(0))))
        for k in range(2):
            with optimizer.task(k, stream=stream):
                out[:, k].sum().backward(retain_graph=k == 0)
        optimizer.step()
        grads.append(optimizer.state[layer.weight]["square_avg_0"])
    assert_same(*grads)


def test_frozen_parameters_are_left_alone_and_may_be_thawed():
    net, optimizer = fresh()
    net.trunk[0].requires_grad_(False)
    before = net.trunk[0].weight.clone()
    optimizer.backward(net.losses(batch(0)))
    optimizer.step()
    assert torch.equal(before, net.trunk[0].weight)
    net.trunk[0].requires_grad_(True)
    optimizer.zero_grad()
    optimizer.backward(net.losses(batch(1)))
    optimizer.step()
    assert not torch.equal(before, net.trunk[0].weight)
    assert float(optimizer.state[net.trunk[0].weight]["step_a"]) == 1


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_trunks_work(use_reentrant):
    net, optimizer = fresh()
    x = batch(0).requires_grad_()
    z = checkpoint(net.trunk, x, use_reentrant=use_reentrant)
    optimizer.backward(net.losses(x, z))
    expected = torch.autograd.grad(net.losses(batch(0))[1], list(net.trunk.parameters()))
    for one, two in zip(optimizer.task_gradients("b"), expected, strict=True):
        torch.testing.assert_close(one, two)


def test_a_graph_can_be_kept():
    net, optimizer = fresh()
    losses = net.losses(batch(0))
    optimizer.backward(losses, retain_graph=True)
    once = [grad.clone() for grad in optimizer.task_gradients("a")]
    optimizer.backward(losses)
    for one, two in zip(optimizer.task_gradients("a"), once, strict=True):
        torch.testing.assert_close(one, 2 * two)


class TestFeatures:
    def test_many_features_and_heads_with_a_part_in_common(self):
        torch.manual_seed(0)
        low, high, bridge = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        ends = []
        for use_features in (True, False):
            optimizer = AdaTaskAdam([*low.parameters(), *high.parameters()], TASKS)
            z1 = low(batch(0)).tanh()
            z2 = high(batch(1)[:, :4]).tanh()
            common = bridge(z2)
            losses = [common.sum(), common.square().sum() + z1.sum(), z1.square().sum()]
            bridge.zero_grad()
            optimizer.backward(losses, features=[z1, z2] if use_features else None)
            ends.append([*(optimizer.task_gradients(task) for task in TASKS), bridge.weight.grad])
        for one, two in zip(ends[0][:3], ends[1][:3], strict=True):
            for a, b in zip(one, two, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)
        torch.testing.assert_close(ends[0][3], ends[1][3])

    def test_the_heads_part_of_the_graph_is_freed_before_the_trunk_is_walked(self):
        net, optimizer = fresh()
        z = net.trunk(batch(0))
        inner = net.heads[0](z)
        freed = []
        net.trunk[0].weight.register_hook(lambda _: freed.append(ref() is None))
        product = inner * inner
        ref = weakref.ref(product)
        loss = product.mean()
        del product
        optimizer.backward({"a": loss}, features=z)
        assert freed == [True]

    def test_a_loss_that_leads_past_them_is_refused(self):
        net, optimizer = fresh()
        z = net.trunk(batch(0))
        with pytest.raises(DataError, match="past them to a shared parameter"):
            optimizer.backward({"a": z.sum() + net.trunk[0].weight.sum()}, features=z)
        with pytest.raises(DataError, match="not computed"):
            optimizer.backward({"a": z.sum()}, features=z.detach())
        with pytest.raises(DataError, match="hang on one another"):
            optimizer.backward({"a": z.sum()}, features=[z, z.tanh()])
        assert not optimizer.has_fed()

    def test_a_loss_that_reaches_none_of_them_is_no_observation(self):
        net, optimizer = fresh()
        z = net.trunk(batch(0))
        optimizer.backward({"a": z.sum(), "b": net.heads[1].weight.sum()}, features=z)
        optimizer.step()
        assert "step_b" not in optimizer.state[net.trunk[0].weight]
        assert "step_a" in optimizer.state[net.trunk[0].weight]


class TestJac:
    def test_rows_of_some_tasks_are_named(self):
        net, optimizer = fresh()
        weight = net.trunk[0].weight
        weight.jac = torch.ones(2, *weight.shape)
        optimizer.take_jac(["c", 0])
        optimizer.step()
        assert sorted(key for key in optimizer.state[weight] if key.startswith("step")) == ["step_a", "step_c"]
        assert not hasattr(weight, "jac")

    def test_a_wrong_number_of_rows_is_refused_and_nothing_is_taken(self):
        net, optimizer = fresh()
        good, bad = net.trunk[0].weight, net.trunk[2].weight
        good.jac, bad.jac = torch.ones(3, *good.shape), torch.ones(2, *bad.shape)
        with pytest.raises(DataError, match=r"3 rows, one a task \(a, b, c\)"):
            optimizer.step()
        assert hasattr(good, "jac")
        optimizer.zero_grad()
        assert not hasattr(good, "jac")

    def test_rows_that_lie_otherwise_in_memory_than_the_parameter(self):
        ends = []
        for permute in (True, False):
            weight = nn.Parameter(torch.zeros(4, 6))
            optimizer = AdaTaskAdam([weight], 2, lr=0.1, eps=1.0)
            jac = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
            weight.jac = jac.permute(0, 2, 1).contiguous().permute(0, 2, 1) if permute else jac
            optimizer.step()
            ends.append(weight.detach())
        assert_same(*ends)

    @pytest.mark.parametrize("ours", ALL)
    @pytest.mark.parametrize("fill", ["backward", "mtl_backward"])
    def test_what_torchjd_fills_is_what_backward_makes(self, fill, ours):
        autojac = pytest.importorskip("torchjd.autojac", reason="the extra torchjd is not installed")

        def feed(net, optimizer, x):
            z = net.trunk(x)
            losses = net.losses(x, z)
            if fill == "mtl_backward":
                autojac.mtl_backward(losses, features=z)
            else:
                # It fills all that it is given alike: heads' rows are added up, as their update takes a `.grad`.
                autojac.backward(losses, inputs=list(net.parameters()))
                for weight in net.heads.parameters():
                    weight.grad = weight.jac.sum(dim=0)
                    del weight.jac
            optimizer.take_jac()
            assert optimizer.has_fed()

        truth, found = train(feed_list, ours), train(feed, ours)
        for key, value in truth[0].items():
            torch.testing.assert_close(value, found[0][key], rtol=1e-4, atol=1e-5)
        assert [list(of) for of in truth[1]["state"].values()] == [list(of) for of in found[1]["state"].values()]

    def test_torchjds_rows_of_some_tasks_go_to_those(self):
        autojac = pytest.importorskip("torchjd.autojac", reason="the extra torchjd is not installed")
        (net, optimizer), (twin, plain) = fresh(), fresh()
        z = net.trunk(batch(0))
        losses = net.losses(batch(0), z)
        autojac.mtl_backward([losses[2], losses[0]], features=z)
        optimizer.take_jac(["c", "a"])
        losses = twin.losses(batch(0))
        plain.backward({"a": losses[0], "c": losses[2]})
        for task in TASKS:
            for one, two in zip(optimizer.task_gradients(task), plain.task_gradients(task), strict=True):
                assert (one is None) == (two is None) == (task == "b")
                if one is not None:
                    torch.testing.assert_close(one, two)

    def test_a_gradient_that_torchjd_has_joined_is_refused(self):
        autojac = pytest.importorskip("torchjd.autojac", reason="the extra torchjd is not installed")
        from torchjd.aggregation import PCGrad

        net, optimizer = fresh()
        z = net.trunk(batch(0))
        autojac.mtl_backward(net.losses(batch(0), z), features=z)
        autojac.jac_to_grad(net.trunk.parameters(), PCGrad())
        with pytest.raises(DataError, match="a sum over tasks"):
            optimizer.step()


class TestLossesThatAreNoNumbers:
    @pytest.mark.parametrize("through_features", [True, False])
    def test_nan_beside_a_number_is_an_absent_task(self, through_features):
        ends = []
        for leave_out in (True, False):
            net, optimizer = fresh()
            for step in range(3):
                z = net.trunk(batch(step))
                a, b, c = net.losses(batch(step), z)
                nothing = net.heads[1](z)[:0].mean()
                given = {"a": a, "c": c} if leave_out and step == 1 else {"a": a, "b": nothing if step == 1 else b, "c": c}
                optimizer.backward(given, features=z if through_features else None)
                optimizer.step()
                optimizer.zero_grad()
            ends.append((dict(net.state_dict()), optimizer.state_dict()))
        assert_same(*ends)

    def test_a_constant_nan_is_absent_too_as_it_is_for_the_meter(self):
        net, optimizer = fresh()
        a, _, c = net.losses(batch(0))
        optimizer.backward([a, torch.tensor(torch.nan), c])
        optimizer.step()
        assert "step_b" not in optimizer.state[net.trunk[0].weight]

    def test_nothing_but_nan_is_refused_before_anything_is_done(self):
        net, optimizer = fresh()
        with pytest.raises(DataError, match="of `a`, `b`, `c` are all NaN: the net has diverged, or"):
            optimizer.backward([loss * torch.nan for loss in net.losses(batch(0))])
        assert not optimizer.has_fed()
        assert all(weight.grad is None for weight in net.heads.parameters())

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_an_infinite_loss_stops_the_step_and_names_its_task(self, sign):
        net, optimizer = fresh()
        optimizer.backward(net.losses(batch(0)))
        optimizer.step()
        optimizer.zero_grad()
        before = [{key: value.clone() for key, value in net.state_dict().items()}, copy.deepcopy(optimizer.state_dict())]
        a, b, c = net.losses(batch(1))
        optimizer.backward([a, sign * torch.inf * b, c])
        with pytest.raises(DataError, match="that of task `b` is infinite, and nothing was moved"):
            optimizer.step()
        assert_same(before, [dict(net.state_dict()), optimizer.state_dict()])
        optimizer.zero_grad()
        optimizer.backward(net.losses(batch(1)))
        optimizer.step()
        assert float(optimizer.state[net.trunk[0].weight]["step_b"]) == 2

    def test_under_a_scaler_an_infinite_loss_skips_the_step(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        a, b, c = net.losses(batch(0))
        optimizer.backward([scaler.scale(loss) for loss in (a, torch.inf * b, c)])
        optimizer.unscale_(scaler)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 512.0
        assert_same(before, dict(net.state_dict()))
        optimizer.zero_grad()
        optimizer.backward([scaler.scale(loss) for loss in net.losses(batch(0))])
        optimizer.unscale_(scaler)
        scaler.step(optimizer)
        assert not torch.equal(before["trunk.0.weight"], net.trunk[0].weight)

    def test_losses_of_several_types_and_shapes_are_looked_at_together(self):
        net, optimizer = fresh()
        a, b, c = net.losses(batch(0))
        # Infinite in 32 bits alone.
        optimizer.backward([a.double() * 1e300, b[None], c])
        optimizer.step()

    @pytest.mark.parametrize("through_features", [True, False])
    def test_one_that_makes_the_gradients_of_others_nan_stops_the_step(self, through_features):
        net, optimizer = fresh()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        x = batch(0)
        z = net.trunk(x)
        outputs = torch.cat([head(z)[:, :1] for head in net.heads], dim=1)
        labels = torch.cat([x[:, :1], x[:, :1] * torch.nan, x[:, :1]], dim=1)
        losses = list((outputs - labels).square().mean(dim=0).unbind())
        optimizer.backward(losses, features=z if through_features else None)
        with pytest.raises(DataError, match=r"that of `b`, NaN for an absent task, .*torch.where"):
            optimizer.step()
        assert_same(before, dict(net.state_dict()))
        optimizer.zero_grad()
        a, _, c = net.losses(x)
        optimizer.backward([a, torch.tensor(torch.nan), c])
        optimizer.step()
        assert all(weight.isfinite().all() for weight in net.parameters())


class TestMisuse:
    def test_a_summed_gradient_is_never_used(self):
        net, optimizer = fresh()
        sum(net.losses(batch(0))).backward()
        with pytest.raises(DataError, match="a sum over tasks"):
            optimizer.step()
        with pytest.raises(DataError, match="a sum over tasks"):
            optimizer.backward(net.losses(batch(0)))
        optimizer.zero_grad()
        optimizer.backward(net.losses(batch(0)))
        sum(net.losses(batch(0))).backward()
        with pytest.raises(DataError, match="a sum over tasks"):
            optimizer.step()

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (torch.stack, "give a list or dict of scalars"),
            (lambda losses: losses[:2], "2 for 3 tasks"),
            (lambda losses: {"a": losses[0].detach()}, "hangs on no parameter"),
            (lambda losses: {"a": losses[0].expand(2)}, "must be a scalar"),
            (lambda losses: [1.0, None, None], "must be a scalar"),
            (lambda _: None, "`losses`=None"),
        ],
    )
    def test_bad_losses_are_refused_before_anything_is_done(self, make, match):
        net, optimizer = fresh()
        with pytest.raises(DataError, match=match):
            optimizer.backward(make(net.losses(batch(0))))
        assert not optimizer.has_fed()

    def test_unknown_tasks(self):
        net, optimizer = fresh()
        with pytest.raises(UnknownNameError, match="`d`"):
            optimizer.backward({"d": net.losses(batch(0))[0]})
        with pytest.raises(UnknownNameError, match="`3`"), optimizer.task(3):
            pass

    @pytest.mark.parametrize(
        "call",
        [
            lambda optimizer: optimizer.step(),
            lambda optimizer: optimizer.zero_grad(),
            lambda optimizer: optimizer.remove_task("a"),
            lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
        ],
        ids=["step", "zero_grad", "remove_task", "load_state_dict"],
    )
    @pytest.mark.parametrize("stream", [True, False])
    def test_what_ends_or_changes_a_step_is_refused_while_a_task_is_open(self, call, stream):
        net, optimizer = fresh()
        with optimizer.task("a", stream=stream):
            net.losses(batch(0))[0].backward()
            with pytest.raises(OptionError, match="inside `task`='a': leave that one first"):
                call(optimizer)
        optimizer.step()

    def test_a_task_that_is_in_the_coming_step_already_is_not_removed(self):
        net, optimizer = fresh()
        with optimizer.task("a"):
            net.losses(batch(0))[0].backward()
        with pytest.raises(OptionError, match="`name`='a' was streamed"):
            optimizer.remove_task("a")
        optimizer.zero_grad()
        optimizer.backward([torch.inf * loss for loss in net.losses(batch(0))])
        with pytest.raises(OptionError, match="has an infinite loss"):
            optimizer.remove_task("b")
        optimizer.zero_grad()
        optimizer.remove_task("b")
        assert optimizer.tasks == ["a", "c"]

    def test_a_task_removed_by_its_number_leaves_nothing_behind(self):
        net, optimizer = fresh()
        optimizer.backward(net.losses(batch(0)))
        optimizer.step()
        optimizer.backward(net.losses(batch(1)))
        optimizer.remove_task(0)
        assert {key[-2:] for key in optimizer.state[net.trunk[0].weight]} == {"_b", "_c"}
        optimizer.step()
        assert {key[-2:] for key in optimizer.state[net.trunk[0].weight]} == {"_b", "_c"}

    def test_after_a_streamed_pass_that_failed_the_message_says_how_to_go_on(self):
        net, optimizer = fresh()
        with pytest.raises(ZeroDivisionError), optimizer.task("a"):
            raise ZeroDivisionError
        with pytest.raises(OptionError, match="if that pass failed, `zero_grad`"), optimizer.task("a"):
            pass
        optimizer.zero_grad()
        with optimizer.task("a"):
            net.losses(batch(0))[0].backward()

    def test_one_task_at_a_time(self):
        _, optimizer = fresh()
        with optimizer.task("a"), pytest.raises(OptionError, match="leave that one first"), optimizer.task("b"):
            pass
        with optimizer.task("b"):
            pass

    def test_a_streamed_task_is_seen_once_a_step(self):
        net, optimizer = fresh()
        with optimizer.task("a"):
            net.losses(batch(0))[0].backward()
        with pytest.raises(OptionError, match="streamed already"), optimizer.task("a"):
            pass
        with pytest.raises(OptionError, match="streamed already"):
            optimizer.backward({"a": net.losses(batch(0))[0]})
        optimizer.backward({"b": net.losses(batch(0))[1]})
        with pytest.raises(OptionError, match="seen twice"), optimizer.task("b"):
            pass
        optimizer.step()
        assert float(optimizer.state[net.trunk[0].weight]["step_a"]) == 1
        with pytest.raises(OptionError, match="second gradient"), optimizer.task("a"):  # noqa: PT012
            net.losses(batch(0))[0].backward()
            net.losses(batch(1))[0].backward()

    def test_an_error_inside_leaves_the_optimizer_open_for_more(self):
        net, optimizer = fresh()
        with pytest.raises(ZeroDivisionError), optimizer.task("a"):
            raise ZeroDivisionError
        optimizer.zero_grad()
        optimizer.backward(net.losses(batch(0)))
        optimizer.step()

    def test_sparse_gradients(self):
        table = nn.Embedding(5, 3, sparse=True)
        optimizer = AdaTaskAdam(table.parameters(), 2)
        with pytest.raises(DataError, match="sparse=False"):
            optimizer.backward({0: table(torch.tensor([1, 2])).sum()})
        optimizer.zero_grad()
        with pytest.raises(DataError, match="sparse=False"), optimizer.task(0):
            table(torch.tensor([1, 2])).sum().backward()

    def test_sparse_gradients_of_heads(self):
        weight, table = nn.Parameter(torch.ones(3)), nn.Embedding(5, 3, sparse=True)
        optimizer = AdaTaskAdam([{"params": [weight]}, {"params": table.parameters(), "shared": False}], 2)
        optimizer.backward([(table(torch.tensor([1, 2])) * weight).sum(), weight.sum()])
        with pytest.raises(DataError, match="sparse=False"):
            optimizer.step()
        assert torch.equal(weight, torch.ones(3))

    def test_an_optimizer_that_is_gone_leaves_parameters_as_usual(self):
        net, optimizer = fresh()
        optimizer.backward(net.losses(batch(0)))
        del optimizer
        gc.collect()
        net.losses(batch(0))[0].backward()
        assert net.trunk[0].weight.grad is not None


class TestClipping:
    def test_each_task_has_its_own_norm(self):
        net, optimizer = fresh()
        optimizer.backward(net.losses(batch(0)))
        before = {task: [grad.clone() for grad in optimizer.task_gradients(task)] for task in TASKS}
        expected = {task: float(torch.cat([grad.flatten() for grad in grads]).norm()) for task, grads in before.items()}
        bound = expected["b"] * 0.9
        norms = optimizer.clip_task_gradients(bound)
        assert norms == pytest.approx(expected)
        for task in TASKS:
            factor = min(1.0, bound / expected[task])
            for one, two in zip(optimizer.task_gradients(task), before[task], strict=True):
                torch.testing.assert_close(one, two * factor, rtol=1e-4, atol=1e-7)
        assert expected["a"] < bound < expected["c"]

    def test_what_cannot_be_clipped_is_refused(self):
        net, optimizer = fresh()
        for norm in (0, None):
            with pytest.raises(OptionError, match=f"`max_norm`={norm}"):
                optimizer.clip_task_gradients(norm)
        feed_stream(net, optimizer, batch(0))
        with pytest.raises(OptionError, match="can no longer be clipped"):
            optimizer.clip_task_gradients(1.0)


def scaled_training(feed, scale, poison=(), steps=6, ours=AdaTaskAdam):
    net, optimizer = fresh(ours)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    states = []
    for step in range(steps):
        optimizer.zero_grad()
        feed(net, optimizer, scaler, batch(step), step in poison)
        optimizer.unscale_(scaler)
        scaler.step(optimizer)
        scaler.update()
        states.append({key: value.clone() for key, value in net.state_dict().items()})
    return states, optimizer, scaler


def scaled_list(net, optimizer, scaler, x, is_poisoned):
    losses = net.losses(x)
    if is_poisoned:
        # Infinite in the trunk alone: the head's own gradients are finite.
        z = net.trunk(x)
        losses[1] = net.losses(x, z + (0 * z).sqrt().sum() * 0)[1]
    optimizer.backward([scaler.scale(loss) for loss in losses])


def scaled_jac(net, optimizer, scaler, x, is_poisoned):
    feed_jac(net, optimizer, x)
    scale = float(scaler.scale(torch.ones(())))
    for weight in net.trunk.parameters():
        weight.jac *= scale
        if is_poisoned:
            weight.jac[1] = torch.inf
    for weight in net.heads.parameters():
        weight.grad *= scale


class TestGradScaler:
    @pytest.mark.parametrize("ours", ALL)
    @pytest.mark.parametrize("feed", [scaled_list, scaled_jac])
    def test_scaling_by_a_power_of_two_changes_nothing(self, feed, ours):
        states, _, _ = scaled_training(feed, 1024.0, ours=ours)
        assert_same(dict(train(feed_list, ours, steps=6)[0]), states[-1])

    @pytest.mark.parametrize("feed", [scaled_list, scaled_jac])
    def test_one_infinite_gradient_of_one_task_skips_all_tasks_and_heads(self, feed):
        states, optimizer, scaler = scaled_training(feed, 1024.0, poison={3})
        assert_same(states[2], states[3])
        assert not torch.equal(states[3]["trunk.0.weight"], states[4]["trunk.0.weight"])
        assert scaler.get_scale() == 512.0
        ages = {key: float(value) for key, value in next(iter(optimizer.state.values())).items() if key.startswith("step")}
        assert set(ages.values()) == {5.0}

    def test_an_infinite_gradient_of_a_head_skips_the_tasks(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        optimizer.backward([scaler.scale(loss) for loss in net.losses(batch(0))])
        net.heads[0].weight.grad[0, 0] = torch.inf
        optimizer.unscale_(scaler)
        scaler.step(optimizer)
        scaler.update()
        assert_same(before, dict(net.state_dict()))
        assert scaler.get_scale() == 2.0

    def test_clipping_comes_after_unscaling(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        optimizer.backward([scaler.scale(loss) for loss in net.losses(batch(0))])
        optimizer.unscale_(scaler)
        norms = optimizer.clip_task_gradients(1e9)
        twin, plain = fresh()
        plain.backward(twin.losses(batch(0)))
        assert norms == pytest.approx(plain.clip_task_gradients(1e9))
        scaler.step(optimizer)

    def test_no_heads_and_two_optimizers_under_one_scaler(self):
        torch.manual_seed(0)
        layers = [nn.Linear(5, 2) for _ in range(2)]
        optimizers = [AdaTaskAdam(layer.parameters(), 2) for layer in layers]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            for layer, optimizer in zip(layers, optimizers, strict=True):
                optimizer.backward([scaler.scale(loss) for loss in layer(batch(step)).square().mean(dim=0).unbind()])
                optimizer.unscale_(scaler)
                scaler.step(optimizer)
            scaler.update()
        assert all(
            float(optimizer.state[layer.weight]["step_1"]) == 3 for layer, optimizer in zip(layers, optimizers, strict=True)
        )

    def test_a_scaler_that_is_switched_off_does_nothing(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        optimizer.backward([scaler.scale(loss) for loss in net.losses(batch(0))])
        optimizer.unscale_(scaler)
        scaler.step(optimizer)
        scaler.update()
        assert float(optimizer.state[net.trunk[0].weight]["step_a"]) == 1

    def test_a_step_without_unscaling_is_refused(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizer.backward([scaler.scale(loss) for loss in net.losses(batch(0))])
        with pytest.raises(OptionError, match="unscale_"):
            scaler.step(optimizer)

    def test_streamed_gradients_are_refused(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        with optimizer.task("a"):
            scaler.scale(net.losses(batch(0))[0]).backward()
        with pytest.raises(OptionError, match="no longer be unscaled"):
            optimizer.unscale_(scaler)
        with pytest.raises(OptionError, match="no longer be unscaled"):
            scaler.step(optimizer)

    def test_nothing_more_is_fed_after_unscaling(self):
        net, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizer.backward([scaler.scale(loss) for loss in net.losses(batch(0))])
        optimizer.unscale_(scaler)
        with pytest.raises(OptionError, match="`step` or `zero_grad` first"):
            optimizer.backward(net.losses(batch(0)))
