"""Random class trees for property tests: `@given(st.from_type(Tree))`."""

from __future__ import annotations

from hypothesis import strategies as st

from hrzs.hierarchy.tree import Node, Tree

# What YAML would read as something else, or fold, or refuse; what a terminal or a font makes odd.
ODD = [
    "yes", "no", "on", "y", "True", "null", "~", "1", "1e3", "0x1F", "0o7", "1_000", "1:30", "+1.5", ".inf", "2001-01-01",
    "<<", "=", "a: b", "a:", "#c", "a # c", "-", "- a", "? b", "[z]", "{w}", "a, b", "&a", "*a", "!tag", "!!int 3", "%",
    "@x", "@2", "n02@3", "`", "'", '"', "it's", "|", ">", "---", "...", " lead", "trail ", "trail \t", "two  blanks",
    "a\nb", "\n", "\r\n", "\t", "\0", "\x07", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff", "\ufffe", "\u200f",
    "\u202e", "\u0301", "é", "e\u0301", "狐", "🦊", "👩‍🔬", "\U0010ffff", "id", "class", "children", "\\", "C:\\x", "x" * 300,
    "word " * 60 + "end", "key" * 50 + ": v", "狐" * 300, "\x85" * 300,
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
