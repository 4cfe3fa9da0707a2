"""A decision tree over the sides of hyperplanes, by scikit-learn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import interpkit
from interpkit import UsageError
from interpkit_rules.rules import Leaf, Split

LEAST_SHARE = 0.002
"""A rule must hold for at least this share of the points."""


def need_trees() -> Any:
    """Return the module ``sklearn.tree``.

    Raises:
        UsageError: scikit-learn is not installed; names the extra.
    """
    try:
        from sklearn import tree
    except ImportError as error:
        raise UsageError(
            f"the inverter 'hypinv' requires the package scikit-learn: {interpkit.install_extra('rules')}."
        ) from error
    return tree


def fit(above: Tensor, labels: Tensor, most: int) -> Leaf | Split:
    """Fit a tree.

    Args:
        above: (N, K) bool, the sides of points.
        labels: (N,) int64, their classes.
        most: maximum number of leaves.
    """
    if not above.shape[1] or most < 2:
        values, counts = labels.unique(return_counts=True)
        best = int(counts.argmax())
        return Leaf(label=int(values[best]), points=len(labels), agreement=int(counts[best]) / len(labels))
    least = max(1, round(LEAST_SHARE * len(labels)))
    model = need_trees().DecisionTreeClassifier(max_leaf_nodes=most, min_samples_leaf=least, random_state=0)
    model.fit(above.numpy().astype("float32"), labels.numpy())
    return _read(model, 0)


def _read(model: Any, node: int) -> Leaf | Split:
    """Return a node of scikit-learn's tree; two leaves of one class are joined to one."""
    tree = model.tree_
    shares, points = tree.value[node][0], int(tree.n_node_samples[node])
    best = shares.argmax()
    leaf = Leaf(label=int(model.classes_[best]), points=points, agreement=min(1.0, float(shares[best] / shares.sum())))
    if tree.children_left[node] < 0:
        return leaf
    below, above = (_read(model, int(side[node])) for side in (tree.children_left, tree.children_right))
    if isinstance(below, Leaf) and isinstance(above, Leaf) and below.label == above.label:
        return leaf
    return Split(plane=int(tree.feature[node]), below=below, above=above)
