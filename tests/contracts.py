"""Contracts that stateful objects keep: a test class inherits one, gives a factory, and gets its tests."""

import io

import torch


class ResumeContract:
    """Run n steps, save, load into a fresh object, run on: equal to no stop, to the bit; same seed, same bits."""

    steps = 8

    def make(self):
        """A fresh object with `state_dict` and `load_state_dict`."""
        raise NotImplementedError

    def advance(self, thing, n):
        """n steps."""
        raise NotImplementedError

    def observe(self, thing):
        """A state dict of tensors that must agree."""
        return thing.state_dict()

    def test_resumed_equals_uninterrupted(self):
        whole = self.make()
        self.advance(whole, 2 * self.steps)
        first = self.make()
        self.advance(first, self.steps)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = self.make()
        # Whatever happens to the generator in between must not matter.
        torch.rand(17)
        second.load_state_dict(torch.load(file, weights_only=True))
        self.advance(second, self.steps)
        assert_same(self.observe(whole), self.observe(second))

    def test_same_seed_same_bits(self):
        one, two = self.make(), None
        self.advance(one, self.steps)
        two = self.make()
        self.advance(two, self.steps)
        assert_same(self.observe(one), self.observe(two))


def assert_same(one, two):
    """Nested dicts, lists and tensors equal to the bit."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    else:
        assert one == two
