"""Whether a program computes its answer, or only wraps a label (the filter of non-degenerate programs).

Works on a checked syntax tree inside the sandbox's limited workers; statements are read in order, without running them.
"""

import ast

_FOLDS = frozenset({"max", "min", "any", "all", "sum"})
_MIN_FACTS = 2
_Names = frozenset[str]


class _Flow:
    """Which names each name depends on, and which are computed: by an operation on at least one other name."""

    def __init__(self) -> None:
        self.uses: dict[str, set[str]] = {}
        self.computed: set[str] = set()
        self.facts: dict[str, int] = {}

    def block(self, body: list[ast.stmt], control: _Names) -> None:
        """Read statements; `control` are the names of the tests that decide whether they run."""
        for statement in body:
            self._statement(statement, control)

    def _statement(self, node: ast.stmt, control: _Names) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                self._bind(target, node.value, control, changed=isinstance(node, ast.AugAssign))
        elif isinstance(node, ast.For):
            self._bind(node.target, node.iter, control, fact=False)
            self._inner(node, control | names(node.iter))
        elif isinstance(node, ast.If | ast.While):
            self._test(node.test)
            self._inner(node, control | names(node.test))
        elif isinstance(node, ast.FunctionDef):
            self._function(node, control)
        else:
            self._inner(node, control)

    def _inner(self, node: ast.stmt, control: _Names) -> None:
        for part in ("body", "orelse", "finalbody"):
            block = getattr(node, part, None)
            if isinstance(block, list):
                self.block([s for s in block if isinstance(s, ast.stmt)], control)

    def _test(self, test: ast.expr) -> None:
        """A comparison in a test decides like one in an assignment: the names in it count as looked at."""
        if operates(test):
            self.computed |= {name for name in names(test) if self.uses.get(name)}

    def _function(self, node: ast.FunctionDef, control: _Names) -> None:
        self.uses[node.name] = set(control)
        for inner in ast.walk(node):
            if isinstance(inner, ast.expr):
                self.uses[node.name] |= names(inner)
                if operates(inner):
                    self.computed.add(node.name)
        self.block(node.body, control)

    def _bind(
        self, target: ast.expr, value: ast.expr, control: _Names, *, changed: bool = False, fact: bool = True
    ) -> None:
        for name in sorted(names(target)):
            uses = self.uses.setdefault(name, set())
            uses |= names(value) | control
            if operates(value) or (changed and names(value)):
                self.computed.add(name)
            if fact:
                self.facts[name] = self.facts.get(name, 0) + 1


def names(node: ast.AST) -> _Names:
    """Every name in an expression."""
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def operates(node: ast.AST) -> bool:
    """Whether an expression compares, calculates or folds (max, min, any, all, sum) something that holds a name."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Compare | ast.BoolOp | ast.BinOp | ast.UnaryOp) and names(inner):
            return True
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in _FOLDS:
            return any(names(argument) for argument in inner.args)
    return False


def degenerate(tree: ast.Module, answer: str) -> bool:
    """Whether a program names fewer than two facts, or its answer depends on no name that is computed from names."""
    flow = _Flow()
    flow.block(tree.body, frozenset())
    if sum(count for name, count in flow.facts.items() if name != answer) < _MIN_FACTS:
        return True
    seen: set[str] = set()
    todo = [answer]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name != answer and name in flow.computed:
            return False
        todo += flow.uses.get(name, ())
    return True
