"""Parameters and buffers exchanged for a while, and put back as they were."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def put_back(net: nn.Module) -> Generator[None]:
    """Within it weights may be exchanged, as `torch.func.functional_call` does; afterwards the net has its own again.

    That function leaves an exchanged weight behind in a layer that a net holds under two names.
    """
    kept = [
        (module, name, tensor)
        for module in net.modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    try:
        yield
    finally:
        for module, name, tensor in kept:
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
