"""Random class trees for property tests: `@given(st.from_type(Tree))`."""

from __future__ import annotations

from hypothesis import strategies as st

from hrzs.hierarchy.tree import Node, Tree

# What YAML would read as something else, or fold, or refuse.
ODD = [
    "yes", "no", "null", "~", "1", "1e3", "0x1f", "2020-01-01", "<<", "=", "a: b", "# x", "- y", "[z]", "{w}", "&a",
    "*a", "!t", "%d", "@2", "n02@3", "'", '"', " lead", "trail ", "a\nb", "\t", "\x85", "\u2028", "é", "狐", "🦊", "id",
    "class", "children", "x" * 300, "word " * 60 + "end", "key" * 50 + ": v",
]  # fmt: skip
texts = st.one_of(st.text(min_size=1, max_size=10), st.sampled_from(ODD))


@st.composite
def trees(draw: st.DrawFn, names: st.SearchStrategy[str] = texts) -> Tree:
    """A tree of 2 to 12 leaves, levels with gaps, classes in any order."""
    count = draw(st.integers(2, 12))
    class_ids = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    prompts = st.lists(names, max_size=2).map(tuple)
    nodes = [
        Node(draw(names), draw(st.one_of(st.just(c), names)), class_id=c, prompts=draw(prompts)) for c in class_ids
    ]
    inner_ids = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    while len(nodes) > 1 or nodes[0].is_leaf:
        last = len(inner_ids) == 1
        taken = len(nodes) if last else draw(st.integers(1, len(nodes)))
        children, nodes = nodes[:taken], nodes[taken:]
        level = max(child.level for child in children) + draw(st.integers(1, 3))
        nodes.append(Node(draw(names), inner_ids.pop(), tuple(children), None, level, draw(prompts)))
    order = draw(st.one_of(st.just(()), st.just(tuple(sorted(class_ids))), st.permutations(class_ids).map(tuple)))
    header = {"name": draw(names), "levels": draw(st.integers(-5, 10**6)), "list": draw(st.lists(names, max_size=3))}
    return Tree(nodes[0], order, header)


st.register_type_strategy(Tree, trees())
