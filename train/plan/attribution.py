"""Memory traffic of a compiled program by its source: which part of the model moves the bytes.

The model names its parts with `jax.named_scope`, and XLA keeps those names in the metadata of every
instruction: "jit(step)/transpose(jvp(mlp))/dot_general" is the MLP's backward pass. Kernels that
XLA made without a name, such as copies, belong to the source of what they read or, failing that, of
the kernels that read them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from train.plan.collectives import KINDS
from train.plan.compiled import Share
from train.plan.hlo import Computation, HloModule, Instruction
from train.plan.schedule import is_backward, kernel_bytes, kernels_of, memory_bytes

# The scope of a part of the model -> the name of its source. The innermost scope decides.
SCOPES: Mapping[str, str] = {
    "window_attention": "window attention",
    "channel_attention": "channel attention",
    "text_attention": "text attention",
    "mlp": "MLPs",
    "layer_norm": "norms",
    "convolution": "convolutions",
    "projector": "projector",
    "embedding": "token embeddings",
    "dropout": "dropout",
    "logits": "logits, cross entropy",
    "cross_entropy": "logits, cross entropy",
    "search": "search",
    "optimizer": "optimizer",
    "gather_parameters": "collectives, gathers",
}
COLLECTIVES, OTHER = SCOPES["gather_parameters"], "residual sums, other"
_WORD = re.compile(r"[\w.-]+")
_COLLECTIVE = re.compile("|".join(KINDS))


def attribute(module: HloModule, turns: Mapping[str, int] | None = None) -> dict[str, Share]:
    """Traffic by source, the largest first; together it is `schedule.traffic`.

    Args:
        turns: trips of `while` instructions that end on data; of those left out, one.
    """
    operations = _operations(module)
    found: dict[str, Share] = {}
    for kernel, operands, times in kernels_of(module, turns=turns):
        operation = operations[kernel.name]
        source = COLLECTIVES if _is_collective(module, kernel) else source_of(operation)
        size = float(times * kernel_bytes(module, kernel, operands))
        backward = is_backward(operation)
        before = found.get(source, Share())
        found[source] = Share(
            forward=before.forward + (0.0 if backward else size),
            backward=before.backward + (size if backward else 0.0),
            kernels=before.kernels + times,
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def source_of(operation: str) -> str:
    """The source that an operation's name tells, "jit(step)/jvp(mlp)/add" -> "MLPs"."""
    words = (SCOPES[word] for word in reversed(_WORD.findall(operation)) if word in SCOPES)
    return next(words, OTHER)


def _operations(module: HloModule) -> dict[str, str]:
    """The name of the operation that each instruction outside of fusions belongs to."""
    found: dict[str, str] = {}
    for computation in module.computations.values():
        found |= _named(module, computation)
    return found


def _named(module: HloModule, computation: Computation) -> dict[str, str]:
    instructions = computation.instructions
    names = {name: _own_operation(module, one) for name, one in instructions.items()}
    # Operands stand before their users, so one pass each way reaches along whole chains.
    for name, one in instructions.items():
        names[name] = names[name] or next(filter(None, map(names.get, one.operands)), "")
    for name in reversed(instructions):
        for operand in instructions[name].operands:
            names[operand] = names.get(operand) or names[name]
    return names


def _own_operation(module: HloModule, one: Instruction) -> str:
    """The instruction's own name; of a fusion that has none of the model's, its largest part's."""
    if source_of(one.operation) != OTHER or one.opcode != "fusion":
        return one.operation
    inside = module.computations[one.calls("calls")[0]].instructions.values()
    sizes: Counter[str] = Counter()
    for part in inside:
        if source_of(part.operation) != OTHER:
            sizes[part.operation] += memory_bytes(part.shape)
    return sizes.most_common(1)[0][0] if sizes else one.operation


def _is_collective(module: HloModule, kernel: Instruction) -> bool:
    if _COLLECTIVE.search(kernel.opcode):
        return True
    called = (name for key in ("calls", "to_apply") for name in kernel.calls(key))
    return any(
        _COLLECTIVE.search(part.opcode)
        for name in called
        for part in module.computations[name].instructions.values()
    )
