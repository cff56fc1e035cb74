"""Model ↔ vector: one flat float32 tensor whose slices are the model's parameters.

After `bind` there is no copying between model and vector: an optimizer step on the model is a change of the
vector, and an assignment to a slice of the vector is a change of the model. Every parameter stays an
nn.Parameter of its own, because 8-bit optimizers keep their state in blocks per tensor. Tied weights
appear once. Knows nothing of fragments beyond the layout it is given, and nothing of training.
Caller's duty: after `bind` never move or cast the model (`.to`, `.half`): that would cut it loose.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from protocols.layout import Layout, format_tensor
from protocols.refusal import Reason, Refused


def tensors(model: nn.Module) -> list[str]:
    """Every parameter as "name 256x128", in model order, tied ones once: what `rules.Model.tensors` lists."""
    return [format_tensor(name, parameter.shape) for name, parameter in model.named_parameters()]


def bind(model: nn.Module, layout: Layout, device: torch.device | str) -> Tensor:
    """Move `model` to `device` and lay its parameters, values kept, as views into one new tensor.

    Returns (n,) float32 on `device`. Changes `model` in place. Raises Refused(MALFORMED) when the names or
    shapes of the model are not those of the layout; then nothing was changed.
    """
    check(model, layout)
    model.to(device=device, dtype=torch.float32)
    flat = torch.empty(layout.elements, dtype=torch.float32, device=device)
    slots = views(flat, layout)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            slots[name].copy_(parameter)
            parameter.data = slots[name]
    return flat


def check(model: nn.Module, layout: Layout) -> None:
    """Raise Refused(MALFORMED), naming the first difference, unless `layout` is one of this model."""
    ours = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    theirs = {span.name: span.shape for span in layout.spans}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise Refused(Reason.MALFORMED, f"tensor {name}: the model has {ours.get(name)}, the layout {theirs.get(name)}")


def views(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """`flat` (n,) as its tensors by name: views, in vector order."""
    return {span.name: flat[span.start : span.stop].view(span.shape) for span in layout.spans}


def digest(t: Tensor) -> str:
    """SHA-256 over the little-endian bytes of a float32 tensor, row-major, in lower-case hexadecimal."""
    assert t.dtype == torch.float32, t.dtype
    values = t.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
