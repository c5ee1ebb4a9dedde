"""Steps of groups where nets, optimizers and losses are out of the ordinary."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.deep.two_processes import results_of
from torch import nn

from taskloom.deep import (
    AdaTaskAdam,
    CycledGroups,
    FixedGroups,
    GroupPasses,
    RandomGroups,
    RepeatedStep,
    SelectiveGroups,
    SelectiveOptions,
    SelectiveRecipe,
    Singletons,
)
from taskloom.deep._frozen_heads import _KEPT
from taskloom.tasks import DataError, OptionError, UnknownNameError

NAMES = ["a", "b", "c"]
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
decaying = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)


class Heads(nn.Module):
    """A trunk and, for each task, one row of a layer or a head of its own."""

    def __init__(self, packed=False, norm=False):
        super().__init__()
        torch.manual_seed(2)
        self.trunk = nn.Linear(4, 8)
        self.heads = nn.Linear(8, 3) if packed else nn.ModuleList(nn.Linear(8, 1) for _ in NAMES)
        self.norms = nn.ModuleList(nn.BatchNorm1d(1) if norm else nn.Identity() for _ in NAMES)

    def rows(self):
        weights = [self.heads.weight] if isinstance(self.heads, nn.Linear) else [head.weight for head in self.heads]
        return torch.cat([weight.detach() for weight in weights]).clone()

    def forward(self, x):
        z = torch.tanh(self.trunk(x))
        return self.heads(z) if isinstance(self.heads, nn.Linear) else torch.cat([head(z) for head in self.heads], dim=1)

    def losses(self, *present):
        z = torch.tanh(self.trunk(X))
        outputs = {k: self.norms[k](self.heads[k](z))[:, 0] for k in map(NAMES.index, present)}
        return {NAMES[k]: (output - Y[:, k]).square().mean() for k, output in outputs.items()}


def weights_of(net):
    return [weight.detach().clone() for weight in net.parameters()]


def squared(net, labels):
    return (net(X) - labels).square().mean(dim=0)


def masked(net, labels):
    mask = ~labels.isnan()
    return ((net(X) - labels.nan_to_num()).square() * mask).sum(dim=0) / mask.sum(dim=0)


def unbound(net, labels):
    return dict(zip(NAMES, squared(net, labels).unbind(), strict=True))


def careful(net, labels):
    mask = ~labels.isnan()
    sums, counts = ((net(X) - labels.nan_to_num()).square() * mask).sum(dim=0), mask.sum(dim=0)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)


def apart(net, labels):
    z = net(X)
    return {name: (z[:, k] - labels[:, k]).square().mean() for k, name in enumerate(NAMES)}


ABSENT = torch.where(torch.tensor([False, False, True]), torch.nan, Y)
SELECTIVE = partial(SelectiveGroups, tasks=NAMES)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("closure", [squared, masked, unbound])
@pytest.mark.parametrize("make", [SELECTIVE, partial(RepeatedStep, tasks=NAMES), partial(Singletons, tasks=3)])
def test_an_absent_task_that_makes_all_gradients_nan_is_refused_before_weights_move(make, closure, packed):
    if closure is unbound and make.func is Singletons:
        make = partial(make, tasks=NAMES)
    net = Heads(packed)
    before, step = weights_of(net), make(decaying(net.parameters()))
    with pytest.raises(DataError, match=r"`closure`: the loss of `(c|2)` is NaN.*`torch.where`"):
        step.step(lambda: closure(net, ABSENT))
    assert all(torch.equal(one, two) for one, two in zip(before, weights_of(net), strict=True))
    # And all is well afterwards: heads are found as if nothing had been.
    step.step(lambda: squared(net, Y) if closure is not unbound else unbound(net, Y))
    assert all(weight.isfinite().all() for weight in weights_of(net))
    assert packed or step.heads.owners[2:] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("closure", [careful, apart])
def test_an_absent_task_whose_nan_stays_out_of_the_graph_is_no_fault(closure):
    net = Heads()
    step = SELECTIVE(decaying(net.parameters()))
    for _ in range(3):
        assert step.step(lambda: closure(net, ABSENT)).isnan().tolist() == [False, False, True]
    assert all(weight.isfinite().all() for weight in weights_of(net))


def test_an_adatask_optimizer_refuses_them_as_well():
    net = Heads()
    optimizer = AdaTaskAdam([{"params": net.trunk.parameters()}, {"params": net.heads.parameters(), "shared": False}], NAMES)
    with pytest.raises(DataError):
        SELECTIVE(optimizer).step(lambda: unbound(net, ABSENT))
    assert all(weight.isfinite().all() for weight in weights_of(net))


def test_an_infinite_loss_is_not_laid_at_the_door_of_an_absent_task():
    net = Heads()
    SELECTIVE(torch.optim.SGD(net.parameters(), lr=1.0)).step(
        lambda: torch.where(torch.tensor([False, False, True]), torch.nan, squared(net, Y) * torch.inf)
    )
    assert not all(weight.isfinite().all() for weight in weights_of(net))


def test_losses_find_the_tasks_of_an_adatask_optimizer_by_name():
    def trained(order):
        net = Heads()
        groups = [{"params": net.trunk.parameters()}, {"params": net.heads.parameters(), "shared": False}]
        optimizer = AdaTaskAdam(groups, NAMES, lr=1e-2, task_weights={"c": 0.0})
        step = RepeatedStep(optimizer, tasks=order, times=1)
        for _ in range(3):
            step.step(lambda: {name: 10**k * loss for k, (name, loss) in enumerate(net.losses(*NAMES).items())})
        return weights_of(net)

    for one, two in zip(trained(NAMES), trained(NAMES[::-1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("late", ["added", "thawed"])
def test_heads_that_come_later_are_held_still_too(late):
    net = Heads()
    weights = list(net.parameters())
    optimizer = torch.optim.Adam(weights[:-2] if late == "added" else weights, lr=1e-2)
    net.heads[2].requires_grad_(late == "added")
    step = Singletons(optimizer, tasks=3)
    for _ in range(3):
        step.step(lambda: squared(net, Y))
    net.heads[2].requires_grad_(True)
    if late == "added":
        optimizer.add_param_group({"params": weights[-2:]})
    step.step(lambda: squared(net, Y))
    seen = [net.rows()]
    optimizer.register_step_post_hook(lambda *_: seen.append(net.rows()))
    for _ in range(3):
        step.step(lambda: squared(net, Y))
    moved = [(one != two).any(dim=1).sum() for one, two in pairwise(seen)]
    assert moved == [1] * 9
    assert step.heads.owners == [-2, -2, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("affinity", ["proximal", "first_order"])
@pytest.mark.parametrize("when", [0, 3])
def test_a_layer_may_be_frozen_at_any_time(affinity, when):
    net = Heads()
    options = SelectiveOptions(affinity=affinity, measure_every=1)
    step = SELECTIVE(torch.optim.Adam(net.parameters()), warmup=2, regroup_every=2, options=options)
    for batch in range(6):
        if batch == when:
            net.trunk.weight.requires_grad_(False)
            still = net.trunk.weight.clone()
        step.step(lambda: squared(net, Y))
    assert torch.equal(still, net.trunk.weight)


def test_a_resumed_run_with_a_frozen_layer_knows_its_heads():
    net = Heads()
    net.trunk.bias.requires_grad_(False)
    step = SELECTIVE(torch.optim.Adam(net.parameters()))
    step.step(lambda: squared(net, Y))
    net.trunk.bias.requires_grad_(True)
    again = SELECTIVE(torch.optim.Adam(net.parameters()))
    again.load_state_dict(step.state_dict())
    again.step(lambda: squared(net, Y))
    assert again.heads.owners[2:] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("present", [["a", "b"], ["a"]])
@pytest.mark.parametrize("make", [SELECTIVE, partial(RepeatedStep, tasks=NAMES)])
def test_rows_of_tasks_that_never_came_do_not_move(make, present, packed):
    net = Heads(packed)
    step, before = make(decaying(net.parameters())), net.rows()
    for _ in range(5):
        step.step(lambda: {name: loss for name, loss in apart(net, Y).items() if name in present})
    moved = (net.rows() != before).any(dim=1).tolist()
    assert moved == [name in present for name in NAMES]
    # When it comes, its row is its own.
    step.step(lambda: apart(net, Y))
    assert (net.rows() != before).any(dim=1).all()


@pytest.mark.parametrize("shown", [True, False])
def test_batch_normalisation_in_the_head_of_a_task_that_comes_later_counts_a_batch_once(shown):
    net = Heads(norm=True)
    step = SELECTIVE(torch.optim.SGD(net.parameters(), lr=0.01))
    if shown:
        step.meet(net)
    for batch in range(5):
        step.step(lambda batch=batch: net.losses(*(NAMES[:2] if batch == 0 else NAMES)))
    assert [int(norm.num_batches_tracked) for norm in net.norms] == [5, 5, 4]
    assert not step.randomness._is_looking


def test_a_compiled_net_is_met_without_a_warning():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    compiled = torch.compile(net, backend="eager")
    step = SELECTIVE(torch.optim.SGD(net.parameters(), lr=0.01))
    for _ in range(3):
        step.step(lambda: squared(compiled, Y))
    assert int(net[1].num_batches_tracked) == 3


def test_what_is_kept_for_sets_of_tasks_does_not_grow_for_ever():
    n_tasks, rng = 14, np.random.default_rng(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, n_tasks))
    random = RandomGroups(torch.optim.SGD(net.parameters(), lr=0.01), tasks=n_tasks, warmup=1)
    repeated = RepeatedStep(torch.optim.SGD(net.parameters(), lr=0.01), tasks=n_tasks, times=1)
    for _ in range(300):
        random.step(lambda: net(X).square().mean(dim=0))
        gone = torch.from_numpy(rng.random(n_tasks) < 0.5)
        repeated.step(lambda gone=gone: torch.where(gone, torch.nan, net(X).square().mean(dim=0)))
    for kept in (random.heads._masks, random.heads._outside, repeated._ones):
        assert len(kept) <= _KEPT


def test_hooks_after_the_step_see_packed_heads_as_they_stay():
    net = Heads(packed=True)
    optimizer, seen = decaying(net.parameters()), []
    optimizer.register_step_post_hook(lambda *_: seen.append(net.rows()))
    step = Singletons(optimizer, tasks=3)
    for _ in range(3):
        step.step(lambda: squared(net, Y))
    assert [int((one != two).any(dim=1).sum()) for one, two in pairwise(seen)] == [1] * 8


def test_sparse_gradients_of_embeddings_are_no_obstacle():
    torch.manual_seed(0)
    tables, trunk = nn.ModuleList(nn.Embedding(9, 4, sparse=True) for _ in NAMES), nn.Linear(4, 1)
    rows = torch.arange(6)
    step = SELECTIVE(torch.optim.SGD([*tables.parameters(), *trunk.parameters()], lr=0.1), warmup=2, regroup_every=2)
    for _ in range(4):
        step.step(lambda: torch.stack([(trunk(table(rows)) - 1).square().mean() for table in tables]))
    assert step.heads.owners == [0, 1, 2, -2, -2]
    before = tables[2].weight.detach().clone()
    step.step(lambda: {name: (trunk(table(rows)) - 1).square().mean() for name, table in zip("ab", tables, strict=False)})
    assert torch.equal(before, tables[2].weight)


def test_random_groups_are_known_after_a_stop():
    net = Heads()
    step = RandomGroups(torch.optim.SGD(net.parameters(), lr=0.01), tasks=NAMES, warmup=0)
    assert step.groups == []
    step.step(lambda: squared(net, Y))
    again = RandomGroups(torch.optim.SGD(net.parameters(), lr=0.01), tasks=NAMES, warmup=0)
    again.load_state_dict(step.state_dict())
    assert again.groups == step.groups
    assert sorted(map(len, step.groups)) == [1, 2]


def test_without_a_warm_up_groups_are_made_of_the_first_batch():
    net = Heads()
    step = SELECTIVE(torch.optim.SGD(net.parameters(), lr=0.01), warmup=0, regroup_every=4)
    for _ in range(6):
        step.step(lambda: squared(net, Y))
    assert [batch for batch, *_ in step.history] == [1, 5]


def test_groups_may_be_given_as_a_number_for_each_task():
    made = FixedGroups(decaying(Heads().parameters()), tasks=NAMES, groups=np.array([1, 0, 1]))
    assert made.groups == [{"a", "c"}, {"b"}]


def cycle(rank):
    net = Heads()
    whole = nn.parallel.DistributedDataParallel(net)
    step = CycledGroups(torch.optim.SGD(net.parameters(), lr=0.1), tasks=3, groups=[[0], [1], [2]], passes=GroupPasses(rank))
    for _ in range(7):
        step.step(lambda: squared(whole, Y))
    return [weight.detach() for weight in net.parameters()]


def test_processes_with_different_seeds_cycle_through_groups_in_one_order(tmp_path):
    one, two = results_of(cycle, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def poisoned(rank):
    net = Heads()
    whole = nn.parallel.DistributedDataParallel(net)
    step = SELECTIVE(torch.optim.SGD(net.parameters(), lr=0.1))
    try:
        step.step(lambda: squared(whole, ABSENT if rank else Y))
    except DataError as error:
        return str(error)
    return "nothing"


def test_a_task_that_one_process_lacks_is_refused_by_all(tmp_path):
    one, two = results_of(poisoned, tmp_path)
    assert one == two
    assert "the loss of `c` is NaN" in one


def uneven(rank):
    net = Heads()
    groups = [{"params": net.trunk.parameters()}, {"params": net.heads.parameters(), "shared": False}]
    step = SELECTIVE(AdaTaskAdam(groups, NAMES, lr=0.01))
    for _ in range(3):
        step.step(lambda: dict(zip(NAMES, careful(net, ABSENT if rank else Y).unbind(), strict=True)))
    return weights_of(net)


def test_processes_with_an_adatask_optimizer_may_lack_tasks_of_each_other(tmp_path):
    one, two = results_of(uneven, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[-2], Heads().heads[2].weight)


def test_with_own_rows_a_closure_that_takes_no_tasks_is_refused():
    net = Heads()
    step = SELECTIVE(decaying(net.parameters()), options=SelectiveOptions(own_rows=True))
    with pytest.raises(OptionError, match="`own_rows`=True calls `closure` with the list"):
        step.step(lambda: squared(net, Y))


def states():
    net = Heads()
    step = SELECTIVE(torch.optim.Adam(net.parameters()))
    step.step(lambda: squared(net, Y))
    plain = Singletons(torch.optim.Adam(net.parameters()), tasks=NAMES)
    plain.step(lambda: squared(net, Y))
    return step.state_dict(), plain.state_dict()


@pytest.mark.parametrize(
    ("tasks", "which", "match"),
    [
        (NAMES[::-1], 0, "`state` is of the tasks a, b, c, this step of c, b, a"),
        (2, 0, "`state` is of 3 tasks, this step of 2"),
        (NAMES, 1, "`state` is that of Singletons: it cannot be loaded into SelectiveGroups"),
        (NAMES, None, "`state` is that of something else"),
    ],
)
def test_the_state_of_another_step_is_refused_and_changes_nothing(tasks, which, match):
    optimizer = torch.optim.Adam(Heads().parameters())
    step = SelectiveGroups(optimizer, tasks=tasks)
    with pytest.raises(DataError, match=match):
        step.load_state_dict({"optimizer": {}} if which is None else states()[which])
    assert not optimizer.state
    assert step.costs.batches == 0


def refused(make, **how):
    return lambda: make(decaying(Heads().parameters()), **how)


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        (refused(SelectiveGroups, bta=0.1), UnknownNameError, "`bta`; did you mean `beta`"),
        (refused(SelectiveGroups, preference=0.0), OptionError, r"`preference` is one of the options: give `options`=Sel"),
        (refused(SelectiveGroups, options={"preference": 0.0}), OptionError, "`options` is a dict"),
        (refused(SelectiveGroups, options=GroupPasses()), OptionError, "`options` is a GroupPasses"),
        (refused(SelectiveGroups, beta=None), OptionError, "`beta`=None"),
        (refused(SelectiveGroups, beta="x"), OptionError, "`beta`='x'"),
        (refused(SelectiveGroups, fabric=["a", "b"]), OptionError, r"`fabric`=\['a', 'b'\] is no Fabric"),
        (refused(SelectiveGroups, tasks=2.0), OptionError, "`tasks`=2.0: give a number"),
        (refused(SelectiveGroups, tasks=[["a"]]), OptionError, "`tasks`=.*texts"),
        (refused(FixedGroups, fabric=[[0], [1]]), OptionError, r"`fabric`=.*`groups`= by their names"),
        (refused(FixedGroups, groups="ab"), OptionError, "`groups` is a str"),
        (refused(FixedGroups, groups=None), OptionError, "`groups` is a NoneType"),
        (refused(FixedGroups, groups=["ab", "c"]), OptionError, "`groups` has 'ab' in place of a list"),
        (refused(FixedGroups, groups=[0, 1], tasks=3), OptionError, "each of the 3 tasks"),
        (refused(Singletons, passes={"seed": 1}), OptionError, "`passes` is a dict"),
        (lambda: Singletons("adam"), OptionError, "`optimizer` is a str"),
        (lambda: Singletons(Heads().parameters()), OptionError, "`optimizer` is a generator"),
        (lambda: Singletons(torch.optim.LBFGS(Heads().parameters())), OptionError, "the step of LBFGS"),
        (lambda: GroupPasses(freeze_heads="no"), OptionError, "`freeze_heads`='no': give True or False"),
        (lambda: SelectiveOptions(preference=None), OptionError, "`preference`=None: give a finite number, 'auto' or 'median'"),
        (lambda: SelectiveOptions(measure_last=None), OptionError, "`measure_last`=None"),
        (lambda: SelectiveOptions(measure_last="x"), OptionError, "`measure_last`='x'"),
        (lambda: SelectiveOptions(compat="official", preference=0.5), OptionError, "`preference`=0.5 with `compat`='official'"),
        (lambda: SelectiveOptions(compat="official", measure_every=7), OptionError, "`measure_every`=7 with"),
        (lambda: SelectiveRecipe(groups=GroupPasses()), OptionError, "`groups` is a GroupPasses"),
        (lambda: SelectiveRecipe(groups=None), OptionError, "`groups` is a NoneType"),
        (lambda: SelectiveRecipe(groups=SelectiveOptions(scaler=object())), OptionError, "`groups` with a `scaler`"),
        (
            lambda: SelectiveGroups(AdaTaskAdam(Heads().parameters(), NAMES), tasks=["a", "b", "x"]),
            OptionError,
            r"3 \(a, b, x\) of them, but the optimizer knows 3 \(a, b, c\)",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(make, kind, match):
    with pytest.raises(kind, match=match):
        make()


@pytest.mark.parametrize("tasks", [np.int64(3), (name for name in NAMES), {"a": 0, "b": 1, "c": 2}.keys()])
def test_tasks_may_be_any_count_or_names(tasks):
    step = SelectiveGroups(decaying(Heads().parameters()), tasks=tasks, seed=np.int64(3))
    assert step.n_tasks == 3


@pytest.mark.parametrize(
    ("tasks", "given", "match"),
    [
        (3, lambda net: list(squared(net, Y)), "`closure` gave a list: give a tensor"),
        (3, lambda net: None, "`closure` gave a NoneType"),
        (3, lambda net: squared(net, Y).detach().numpy(), "`closure` gave a ndarray"),
        (NAMES, lambda net: {"a": 1.0}, "loss of task `a` is a float"),
        (NAMES, lambda net: {"a": net(X)[:, 0]}, r"loss of task `a` is of shape \(16,\)"),
        (None, lambda net: apart(net, Y), r"`tasks` has no names: give `tasks`=\['a', 'b', 'c'\]"),
        (None, lambda net: {}, "`tasks` has no names: give `tasks`"),
        (3, lambda net: squared(net, Y).detach(), "hang on no parameter that is trained"),
        (NAMES, lambda net: {"a": torch.tensor(1.0)}, "the losses of `a` hang on no parameter"),
    ],
)
def test_losses_that_no_step_can_be_made_of_are_refused(tasks, given, match):
    net = Heads()
    before = weights_of(net)
    with pytest.raises(DataError, match=match):
        SelectiveGroups(decaying(net.parameters()), tasks=tasks).step(lambda: given(net))
    assert all(torch.equal(one, two) for one, two in zip(before, weights_of(net), strict=True))
