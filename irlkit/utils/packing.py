"""Tensors of nested dicts joined to few long ones, so that checkpoints are written fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PACKED = "packed tensor"


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Join the tensors of nested dicts, lists and tuples to one per dtype, on the CPU.

    A file of a few long tensors is written many times faster than one of hundreds of short ones.

    Returns:
        The tree with plain data for tensors, and by name of the dtype the joined tensors, shape
        (numbers of that dtype,), which share no memory with those of the tree.

    >>> plain, joined = pack({"a": torch.ones(2), "b": [torch.zeros(1)]})
    >>> joined, unpack(plain, joined)["b"]
    ({'float32': tensor([1., 1., 0.])}, [tensor([0.])])
    """
    pieces: dict[str, list[Tensor]] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            dtype = str(node.dtype).removeprefix("torch.")
            pieces.setdefault(dtype, []).append(node.detach().flatten().cpu())
            return {_PACKED: dtype, "shape": list(node.shape)}
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(value) for value in node)
        return node

    return walk(tree), {dtype: torch.cat(parts) for dtype, parts in pieces.items()}


def unpack(tree: Any, joined: Mapping[str, Tensor]) -> Any:
    """Undo ``pack``: return the tree with its tensors, each of the shape that it had.

    Args:
        tree: with plain data for tensors.
        joined: by name of the dtype, shape (numbers of that dtype,).

    Raises:
        ValueError: the tensors are more or fewer than the tree has a place for.
    """
    left = dict(joined)

    def walk(node: Any) -> Any:
        if isinstance(node, Mapping) and _PACKED in node:
            dtype, shape = node[_PACKED], node["shape"]
            size = math.prod(shape)
            if dtype not in left or len(left[dtype]) < size:
                raise ValueError(f"tensors of {dtype} are missing")
            tensor, left[dtype] = left[dtype][:size], left[dtype][size:]
            return tensor.reshape(shape).clone()
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(value) for value in node)
        return node

    unpacked = walk(tree)
    if any(len(rest) for rest in left.values()):
        raise ValueError("there are more tensors than there is a place for")
    return unpacked
