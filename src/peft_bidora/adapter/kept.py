"""What is computed of tensors and kept on a module until one of them changes."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")
_NAME = "_kept_of_tensors"
_steps = [0]  # of all optimisers of the process: a fused one writes into its parameters and raises no version


def _count_step(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)


def kept(module: nn.Module, name: str, tensors: Sequence[Tensor], settings: Any, compute: Callable[[], T]) -> T:
    """Return what was computed before under this name, or compute it anew if it may be stale.

    What is written through `.data` raises no version and goes unseen: `forget` after it.

    Args:
        module: holds what is kept, outside of its state.
        name: of what is kept.
        tensors: what it is computed of. Replacing one changes its storage, writing into it raises its version.
        settings: what else it is computed of.
        compute: returns it.
    """
    if torch.compiler.is_compiling():  # a compiled graph has no place to keep it in
        return compute()
    if any(tensor.is_inference() for tensor in tensors):  # such a tensor counts no versions
        return compute()
    # A reference tells a storage from a later one at the same address, and keeps none of them alive.
    states = ((weakref.ref(t.untyped_storage()), t.data_ptr(), t._version) for t in tensors)
    key = (settings, _steps[0] if any(t.requires_grad for t in tensors) else None, *states)
    store = module.__dict__.setdefault(_NAME, _Store())
    found: tuple[Any, T] | None = store.get(name)
    if found is None or found[0] != key:
        found = store[name] = (key, compute())
    return found[1]


def forget(module: nn.Module, name: str | None = None) -> None:
    """Drop what a module keeps under a name, or all of it."""
    store = module.__dict__.get(_NAME, {})
    for each in list(store) if name is None else [name]:
        store.pop(each, None)


class _Store(dict[str, Any]):
    """A copy of it, or what is read from a file, is empty: it belongs to other tensors."""

    def __reduce__(self) -> Any:
        return _Store, ()

    def __deepcopy__(self, memo: Any) -> "_Store":
        return _Store()
