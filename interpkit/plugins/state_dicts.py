"""Find the weights of a network among the named tensors of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from interpkit.errors import ModelError, listed, setting

WRAPPING = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that data parallelism, compilation, sharding and activation checkpointing insert anywhere."""
COMPUTED = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|position_ids|inv_freq"
    r"|total_ops|total_params)$"
)
"""Names of buffers that a network computes when it is built, or that nothing reads."""
BESIDE = re.compile(r"(^|_)(loss|criterion|metric|aux|ema|teacher|optim)", re.IGNORECASE)
"""Beginnings of the names of what trains or measures a network, beside its layers."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$)", re.IGNORECASE)
"""Keys of averaged weights, which are preferred to the latest ones."""
SPELLINGS = (
    (re.compile(r"\.(norm|relu|conv)\.(\d+)\."), r".\1\2."),  # DenseNets
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),  # vision transformers
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),  # weight norm
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
    (re.compile(r"\.weight_orig$"), ".parametrizations.weight.original"),  # spectral norm
    (re.compile(r"\.weight_u$"), ".parametrizations.weight.0._u"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.0._v"),
    (re.compile(r"\.gamma$"), ".weight"),
    (re.compile(r"\.beta$"), ".bias"),
)
"""Older spellings of names, tried where a network does not have the name in the file."""
MOST_PARTS = 64
MOST_PREFIXES = 16


@dataclass
class Match:
    """A network's tensors as found under one prefix of a checkpoint.

    Attributes:
        prefix: what stands before the names in the checkpoint, with its last dot.
        given: the tensors under the prefix, by the rest of their names.
        tensors: those of the network, by the network's names.
        missing: names of weights that are not there.
        unexpected: names under the prefix that belong to a layer which the network does not have.
        filled: names of buffers that are not there and keep the values that the network computes.
        ignored: names under the prefix that no layer needs.
        beside: keys of what stands beside the prefix: an optimizer, a loss, another network.
        renamed: name in the file -> name in the network.
        head: (layer in the file, layer in the network) if one of them stands in a sequence of layers.
        shapes: name -> (shape in the file, shape in the network), where they differ.
        layers: those of ``beside`` that look like layers which the user's architecture lacks.
        counts: names of tensors of whole numbers where the network has weights.
        others: prefixes of other networks in the checkpoint, which fit but are not averages.
    """

    prefix: str
    given: dict[str, Tensor]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    head: tuple[str, str] | None = None
    shapes: dict[str, tuple[torch.Size, torch.Size]] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the network can be filled."""
        return not (self.missing or self.unexpected or self.shapes or self.counts)

    def width(self) -> int | None:
        """Return the number of outputs of the file's head, if heads are all that differs in its first dimension."""
        pairs = {(old[0], new[0]) for old, new in self.shapes.values() if old and new and old[0] != new[0]}
        return next(iter(pairs))[0] if len(pairs) == 1 else None

    def channels(self) -> int | None:
        """Return the number of channels that the file's first convolution takes, if it alone differs in that."""
        pairs = [old[1] for old, new in self.shapes.values() if len(old) > 2 and old[1] != new[1]]
        return pairs[0] if len(pairs) == 1 else None

    def kernels(self) -> list[str]:
        """Return the names of the convolutions whose kernels have another size in the file."""
        return [name for name, (old, new) in self.shapes.items() if len(old) > 2 and old[2:] != new[2:]]

    def plausible(self) -> bool:
        """Whether nothing is missing, and only the width of a head or of the first layer may differ."""
        return not self.missing and all(
            len(old) == len(new) and (old[1:] == new[1:] or (len(old) > 2 and old[2:] == new[2:]))
            for old, new in self.shapes.values()
        )


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a state dict has under each name, without the extra state of layers that is not a tensor."""
    state = module.state_dict(keep_vars=True)
    return ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def match(module: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Find a network's tensors, whatever wrappers and prefixes stand before their names.

    Args:
        module: the network; its values are not read.
        tensors: all tensors of a checkpoint; names of nested mappings are joined with dots.

    Returns:
        the best match, which need not fit.

    Raises:
        ModelError: several networks in the checkpoint fit; the message names their keys.
    """
    expected = dict(tensors_of(module))
    computed = {name for name, _ in module.named_buffers()} - expected.keys()
    found = [_under(prefix, expected, computed, tensors) for prefix in _prefixes(expected, tensors)]
    whole = [each for each in found if each.plausible()]
    best = _one_of(whole) if whole else max(found, key=lambda each: len(each.tensors) - len(each.missing))
    if best.missing and (shared := _shared_part(expected)):  # the file has the inside of a wrapper
        inner = {name.removeprefix(shared): tensor for name, tensor in expected.items()}
        lifted = [_under(prefix, inner, computed, tensors) for prefix in _prefixes(inner, tensors)]
        whole = [each for each in lifted if each.plausible()]
        if whole:
            best = _one_of(whole)
            best.tensors = {shared + name: tensor for name, tensor in best.tensors.items()}
            best.filled = [shared + name for name in best.filled]
            best.shapes = {shared + name: pair for name, pair in best.shapes.items()}
    networks = [each.prefix for each in found if each.plausible() and each is not best]
    inside = tuple(p.removeprefix(best.prefix) for p in networks if p != best.prefix and p.startswith(best.prefix))
    best.unexpected = [name for name in best.unexpected if not name.startswith(inside)]
    beside = {name: _key(name, best.prefix) for name in tensors if not name.startswith(best.prefix)}
    best.beside = list(dict.fromkeys(beside.values()))
    for name, key in beside.items():
        like_a_layer = tensors[name].dim() > 1 and key.count(".") == best.prefix.count(".") - 1
        if like_a_layer and key not in best.layers and f"{key}." not in networks:
            best.layers += [] if BESIDE.search(key.rpartition(".")[2]) else [key]
    return best


def _one_of(whole: list[Match]) -> Match:
    """Return the match to use, where several are whole: equal ones are one, and averaged weights come first."""
    first, rest = whole[0], whole[1:]
    if all(each.tensors.keys() == first.tensors.keys() and _equal(first.tensors, each.tensors) for each in rest):
        return first
    averaged = [each for each in whole if AVERAGED.search(each.prefix)]
    if len(averaged) == 1:
        averaged[0].others = [each.prefix for each in whole if each is not averaged[0]]
        return averaged[0]
    keys = [each.prefix.rstrip(".") or "the top level" for each in whole]
    example = next(key for key in keys if key != "the top level")
    raise ModelError(
        f"the file has several networks that fit: {listed(keys)}. Choose one, for example "
        f"{setting('weights_key', example)}."
    )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


def _shared_part(names: Iterable[str]) -> str:
    """Return the first part that all names share, with its dot, or nothing."""
    firsts = {name.partition(".")[0] if "." in name else "" for name in names}
    return f"{firsts.pop()}." if len(firsts) == 1 and "" not in firsts else ""


def _prefixes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before names that the network has, the most frequent first."""
    names = {_bare(name) for name in expected}
    hits: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")[:MOST_PARTS]
        for start, part in enumerate(parts):
            if part not in WRAPPING and ".".join(p for p in parts[start:] if p not in WRAPPING) in names:
                hits["".join(f"{part}." for part in parts[:start])] += 1
    most = max(hits.values(), default=0)
    return [prefix for prefix, count in hits.most_common(MOST_PREFIXES) if 2 * count >= most] or [""]


def _under(prefix: str, expected: Mapping[str, Tensor], computed: set[str], tensors: Mapping[str, Tensor]) -> Match:
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    match = Match(prefix, given)
    _prune(given, expected)
    own = {_bare(name): name for name in expected}
    left = []
    for name, tensor in given.items():
        target = name if name in expected else own.get(_bare(name)) or _respelled(name, own)
        if target is None or target in match.tensors:
            left.append(name)
            continue
        match.tensors[target] = tensor
        if _bare(target) != _bare(name):
            match.renamed[name] = target
    _fill(match, expected)
    left = _match_head(match, expected, left)
    firsts = {name.partition(".")[0] for name in expected}
    for name in left:
        first = name.partition(".")[0]
        harmless = COMPUTED.search(name) or not given[name].is_floating_point() or _bare(name) in computed
        beside = first not in firsts and BESIDE.search(first)
        (match.ignored if harmless or beside else match.unexpected).append(name)
    for name, tensor in match.tensors.items():
        if is_lazy(expected[name]):  # it has the shape of what is loaded
            continue
        if expected[name].is_floating_point() and not (tensor.is_floating_point() or tensor.is_complex()):
            match.counts.append(name)
        if tensor.numel() == 1 == expected[name].numel():
            match.tensors[name] = tensor.reshape(expected[name].shape)
        elif tensor.shape != expected[name].shape:
            match.shapes[name] = (tensor.shape, expected[name].shape)
    return match


def _prune(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Apply the masks of `torch.nn.utils.prune`, WEIGHT_mask to WEIGHT_orig, where a network has the product alone."""
    for mask in [name for name in given if name.endswith("_mask")]:
        name = mask.removesuffix("_mask")
        original = given.get(f"{name}_orig")
        if name in expected and name not in given and original is not None and original.shape == given[mask].shape:
            given[name] = given.pop(f"{name}_orig") * given.pop(mask)


def _respelled(name: str, own: Mapping[str, str]) -> str | None:
    bare = _bare(name)
    return next((own[new] for old, word in SPELLINGS if (new := old.sub(word, bare)) != bare and new in own), None)


def _fill(match: Match, expected: Mapping[str, Tensor]) -> None:
    """Give tied weights the one tensor that is there, and sort the rest into computed buffers and missing weights."""
    stored = {id(expected[name]): tensor for name, tensor in match.tensors.items()}
    for name, tensor in expected.items():
        if name in match.tensors:
            continue
        if id(tensor) in stored:
            match.tensors[name] = stored[id(tensor)]
        elif COMPUTED.search(name) or not (tensor.is_floating_point() or tensor.is_complex()):
            match.filled.append(name)
        else:
            match.missing.append(name)


def _match_head(match: Match, expected: Mapping[str, Tensor], left: list[str]) -> list[str]:
    """Use ``fc.1.weight`` as ``fc.weight`` and the like, where that layer is all that differs.

    Returns:
        the names that are still left.
    """
    theirs = [name for name in left if match.given[name].is_floating_point() and not COMPUTED.search(name)]
    inside, outside = {_layer(name) for name in match.missing}, {_layer(name) for name in theirs}
    inside_leaves = sorted(name.rpartition(".")[2] for name in match.missing)
    if len(inside) != 1 or len(outside) != 1 or inside_leaves != sorted(name.rpartition(".")[2] for name in theirs):
        return left
    new, old = inside.pop(), outside.pop()
    nested = f"{new}.".startswith(f"{old}.") or f"{old}.".startswith(f"{new}.")
    if not nested and re.sub(r"(\.\d+)+$", "", new) != re.sub(r"(\.\d+)+$", "", old):
        return left
    pairs = {f"{old}.{leaf}": f"{new}.{leaf}" for leaf in inside_leaves}
    if any(match.given[one].shape[1:] != expected[other].shape[1:] for one, other in pairs.items()):
        return left
    match.tensors |= {other: match.given[one] for one, other in pairs.items()}
    match.renamed |= pairs
    match.missing = []
    if any(part.isdecimal() for part in set(old.split(".")) ^ set(new.split("."))):
        match.head = (old, new)
    return [name for name in left if name not in pairs]


def _layer(name: str) -> str:
    return _bare(name.rpartition(".")[0])


def _key(name: str, prefix: str) -> str:
    """Return the shortest part of a name that is not the beginning of the prefix: the key of something else."""
    parts, inside = name.split("."), prefix.split(".")
    same = next((i for i, (one, other) in enumerate(zip(parts, inside, strict=False)) if one != other), len(parts) - 1)
    return ".".join(parts[: same + 1])
