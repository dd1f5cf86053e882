"""The text of a program: which texts are run, the canonical form that students learn, and which compute nothing.

Everything here parses with `ast`, which hostile text can crash: call it through `sandbox` only, whose workers run it
under limits. The source check gives clear reasons and repeatable runs; what contains a program is the sandbox.

Canonical (arXiv 2312.10730): straight-line Python that ends in `answer = ...`. `def solution(): ... return e` is
unwrapped to that, unused imports are dropped, and so is `import math` (always bound when a program runs). Comments,
docstrings and final prints are removed. Loops and ifs are unchanged.
"""

import ast
import re
from dataclasses import dataclass

ANSWER = "answer"
RAISED = "_raised"  # set where an exception that the program raised ended it; no checked program can use this name
MAX_CHARS = 8000
MAX_NODES = 2000
MAX_DEPTH = 60
MAX_INT_BITS = 256
IMPORTS = frozenset({"math"})  # what real programs use; no clock, no random numbers
_FORMATTERS = frozenset({"format", "format_map"})  # '{0.__class__}' reaches attributes from inside a string
_BUILTINS = frozenset(
    {"breakpoint", "compile", "delattr", "dir", "eval", "exec", "exit", "getattr", "globals", "hash", "help", "id"}
    | {"input", "locals", "open", "quit", "setattr", "vars"}
)
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_IMPORT = "import math\n"
_SIMPLE = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Import | ast.ImportFrom | ast.Assert | ast.Pass
_FOLDS = frozenset({"max", "min", "any", "all", "sum"})
_MIN_FACTS = 2
_Names = frozenset[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program in canonical form (`code`), or the reason why there is none.

    `line` is the same program on one line, None for one with a loop, an if or a function. `degenerate`: its answer is
    not computed from named facts (a label with boilerplate around it).
    """

    code: str | None
    reason: str | None = None
    detail: str = ""
    degenerate: bool = False
    line: str | None = None


class RejectedProgram(Exception):
    """The text is not a program that is run: a reason (see `keys.REASONS`), and a few words of detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def prepare(text: str) -> Prepared:
    """The canonical form of a teacher's or student's program text, or why it has none."""
    try:
        tree = canonical(checked(unfenced(text)))
        if not any(_sets_answer(statement) for statement in tree.body):
            raise RejectedProgram("no_answer", f"no statement sets {ANSWER!r}")
        try:
            code = ast.unparse(tree)
            same = ast.dump(ast.parse(code)) == ast.dump(tree)
        except (ValueError, SyntaxError):  # Python 3.11 cannot unparse every f-string that it parses
            same = False
        if not same:
            raise RejectedProgram("rejected_by_gate", "Python cannot write this program down again")
        if len(code) > MAX_CHARS:
            raise too_long(code)
        return Prepared(code, degenerate=degenerate(tree, ANSWER), line=_one_line(tree))
    except RejectedProgram as error:
        return Prepared(None, error.reason, error.detail)
    except (RecursionError, MemoryError):
        return Prepared(None, "rejected_by_gate", "nested too deeply to be read")


def runnable(text: str) -> Prepared:
    """The code to run for a text: the text itself where possible, else its checked form; `math` is bound either way."""
    try:
        text = unfenced(text)
        tree = checked(text)
        changed = unwrap(tree) | _call_methods(tree) | getattr(tree, "dropped", False) | _guard(tree)
        code = ast.unparse(tree) if changed else text
    except RejectedProgram as error:
        return Prepared(None, error.reason, error.detail)
    except (RecursionError, MemoryError, ValueError):
        return Prepared(None, "rejected_by_gate", "nested too deeply to be read")
    return Prepared(_IMPORT + code if "math" in code else code)


def unfenced(text: str) -> str:
    """The program inside a text's only Markdown fence; the text itself if there is none, or more than one."""
    blocks = _FENCE.findall(text)
    return blocks[0] if len(blocks) == 1 else text


# --- the source check -------------------------------------------------------------------------------------------------


def checked(text: str) -> ast.Module:
    """Parse a text, drop unused imports, and apply the source check.

    Raises:
        RejectedProgram: `empty`, `too_long`, `syntax` or `rejected_by_gate`.
    """
    if not text.strip():
        raise RejectedProgram("empty", "no text")
    if len(text) > MAX_CHARS:
        raise too_long(text)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise RejectedProgram("syntax", str(error)[:200]) from None
    nodes = _nodes(tree)
    if _drop_unused_imports(nodes):
        nodes = _nodes(tree)
        tree.dropped = True  # type: ignore[attr-defined]
    _gate(nodes)
    return tree


def too_long(text: str) -> RejectedProgram:
    """The rejection of a text that is too long to be parsed."""
    return RejectedProgram("too_long", f"{len(text)} characters; at most {MAX_CHARS}")


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """All nodes, without recursion.

    Raises:
        RejectedProgram: too many nodes, or a tree that is too deep.
    """
    level: list[ast.AST] = [tree]
    nodes: list[ast.AST] = []
    for _ in range(MAX_DEPTH):
        nodes += level
        if len(nodes) > MAX_NODES:
            raise RejectedProgram("rejected_by_gate", f"more than {MAX_NODES} nodes")
        level = [child for node in level for child in children(node)]
        if not level:
            return nodes
    raise RejectedProgram("rejected_by_gate", f"nested more than {MAX_DEPTH} deep")


def children(node: ast.AST) -> list[ast.AST]:
    """The direct children of a node, without expression contexts (Load, Store)."""
    nodes: list[ast.AST] = []
    for value in node.__dict__.values():
        if isinstance(value, ast.AST):
            if not isinstance(value, ast.expr_context):
                nodes.append(value)
        elif type(value) is list:
            nodes += [part for part in value if isinstance(part, ast.AST)]
    return nodes


def _drop_unused_imports(nodes: list[ast.AST]) -> bool:
    """Remove unused imports from a tree, given all its nodes; whether anything was removed."""
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    if not imports:
        return False
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used.add("*")  # binds unknown names; the check refuses it
    used |= {name for node in nodes if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    removed: set[ast.AST] = set()
    dropped = 0
    for node in imports:
        # `import a.b` binds `a`
        remaining = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in used]
        dropped += len(node.names) - len(remaining)
        node.names = remaining
        if not remaining:
            removed.add(node)
    if removed:
        for parent in nodes:
            for field in ("body", "orelse", "finalbody"):
                block = getattr(parent, field, None)
                if type(block) is list and any(statement in removed for statement in block):
                    may_be_empty = field == "orelse" or isinstance(parent, ast.Module)
                    rest = [statement for statement in block if statement not in removed]
                    setattr(parent, field, rest or ([] if may_be_empty else [ast.Pass()]))
    return dropped > 0


def _gate(nodes: list[ast.AST]) -> None:
    bound = {node.id for node in nodes if type(node) is ast.Name and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if type(node) is ast.arg}
    for node in nodes:
        if isinstance(node, ast.Constant):
            if type(node.value) is int and node.value.bit_length() > MAX_INT_BITS:
                raise RejectedProgram("rejected_by_gate", f"an int of more than {MAX_INT_BITS} bits")
            continue
        if isinstance(node, ast.Name) and node.id in _BUILTINS and node.id not in bound:
            raise RejectedProgram("rejected_by_gate", f"the builtin {node.id!r}")
        for value in node.__dict__.values():
            if type(value) is str:
                _check_name(value)
            elif type(value) is list and value and type(value[0]) is str:
                for name in value:
                    _check_name(name)
        if isinstance(node, ast.Attribute) and node.attr in _FORMATTERS:
            raise RejectedProgram("rejected_by_gate", f"the method {node.attr!r}")
        if isinstance(node, ast.ImportFrom) and (
            node.level or node.module not in IMPORTS or any(alias.name == "*" for alias in node.names)
        ):
            module = str(node.module)[:60]
            raise RejectedProgram("rejected_by_gate", f"an import from {module!r}; allowed: {sorted(IMPORTS)}")
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in IMPORTS:
                    raise RejectedProgram(
                        "rejected_by_gate", f"an import of {alias.name[:60]!r}; allowed: {sorted(IMPORTS)}"
                    )


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise RejectedProgram("rejected_by_gate", f"the name {name[:60]!r}: none may start with an underscore")


# --- the canonical form -----------------------------------------------------------------------------------------------


def canonical(tree: ast.Module) -> ast.Module:
    """The canonical form of a checked tree, which it changes in place."""
    unwrap(tree)
    rebinds_math = any(
        (isinstance(node, ast.Name) and node.id == "math" and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.arg) and node.arg == "math")
        or (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == "math")
        or (isinstance(node, ast.alias) and node.asname == "math")
        for node in ast.walk(tree)
    )
    tree.body = [
        statement
        for statement in tree.body
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        and (
            rebinds_math
            or not isinstance(statement, ast.Import)
            or [(alias.name, alias.asname) for alias in statement.names] != [("math", None)]
        )
    ]
    while tree.body and any(_sets_answer(s) for s in tree.body[:-1]) and _is_print(tree.body[-1]):
        tree.body.pop()
    return tree


def unwrap(tree: ast.Module) -> bool:
    """Turn `def solution(): ... return e` into `...; answer = e`, in place; whether anything changed.

    A function with several returns stays, and `answer = solution()` follows it. Nothing changes where `answer` is set
    to something else already.
    """
    places = [i for i, s in enumerate(tree.body) if isinstance(s, ast.FunctionDef) and s.name == "solution"]
    if len(places) != 1:
        return False
    function = tree.body[places[0]]
    assert isinstance(function, ast.FunctionDef)
    before, after = tree.body[: places[0]], tree.body[places[0] + 1 :]
    parameters = function.args
    if any(ast.iter_child_nodes(parameters)) or function.decorator_list:
        return False
    if not all(map(_calls_solution, after)) or any(map(_sets_answer, before)):
        return False
    if _unwrappable(function):
        *body, last = function.body
        assert isinstance(last, ast.Return) and last.value is not None
        if not (isinstance(last.value, ast.Name) and last.value.id == ANSWER):
            body.append(_assign(last.value))
        tree.body = [*before, *body]
    else:
        call = ast.Call(ast.Name("solution", ast.Load()), [], [])
        tree.body = [*before, function, _assign(call)]
    return True


def _assign(value: ast.expr) -> ast.Assign:
    return ast.Assign([ast.Name(ANSWER, ast.Store())], value, lineno=0)


def _unwrappable(function: ast.FunctionDef) -> bool:
    """Whether the only return of a function is its last statement, and nothing in it needs a function."""
    last = function.body[-1]
    returns = [node for s in function.body for node in _same_scope(s) if isinstance(node, ast.Return)]
    refuse = ast.Yield | ast.YieldFrom | ast.Await | ast.Global | ast.Nonlocal
    recursive = any(isinstance(node, ast.Name) and node.id == "solution" for node in ast.walk(function))
    return (
        isinstance(last, ast.Return)
        and last.value is not None
        and returns == [last]
        and not recursive
        and not any(isinstance(node, refuse) for node in ast.walk(function))
    )


def _calls_solution(statement: ast.stmt) -> bool:
    """`solution()`, `print(solution())` or `name = solution()`, with or without a print of that name."""
    if isinstance(statement, ast.Assign):
        return isinstance(statement.targets[0], ast.Name) and _is_call(statement.value)
    return _is_print(statement) or (isinstance(statement, ast.Expr) and _is_call(statement.value))


def _is_call(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "solution"
        and not value.args
        and not value.keywords
    )


def _is_print(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Name)
        and statement.value.func.id == "print"
    )


def _sets_answer(statement: ast.AST) -> bool:
    """Whether a statement, or one inside it in the same scope, binds `answer`."""
    return any(
        isinstance(node, ast.Name) and node.id == ANSWER and isinstance(node.ctx, ast.Store)
        for node in _same_scope(statement)
    )


def _same_scope(statement: ast.AST) -> list[ast.AST]:
    """The nodes of a statement without the bodies of functions and classes inside it."""
    nodes, todo = [], [statement]
    while todo:
        node = todo.pop()
        nodes.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            todo += children(node)
    return nodes


def _one_line(tree: ast.Module) -> str | None:
    """A straight-line program on one line, joined with `; `, or None."""
    if not tree.body or not all(isinstance(statement, _SIMPLE) for statement in tree.body):
        return None
    line = "; ".join(ast.unparse(statement) for statement in tree.body)
    if "\n" in line or ast.dump(ast.parse(line)) != ast.dump(tree):
        return None
    return line


# --- what the interpreter needs ---------------------------------------------------------------------------------------


def _guard(tree: ast.Module) -> bool:
    """Wrap a program that raises exceptions, so that `RAISED` is set when one of them ends it; whether it was wrapped.

    A limit of the interpreter cannot be caught by any clause, an exception that the program raises can. So the mark
    tells a memory limit from `raise MemoryError("memory limit exceeded")`.
    """
    if not any(isinstance(node, ast.Raise) for node in ast.walk(tree)):
        return False
    mark = ast.Assign([ast.Name(RAISED, ast.Store())], ast.Constant(True), lineno=0)
    tree.body = [ast.Try(tree.body, [ast.ExceptHandler(None, None, [mark, ast.Raise(None, None)])], [], [])]
    return True


def _call_methods(tree: ast.Module) -> bool:
    """Write `key=d.get` as `key=lambda _item: d.get(_item)`, which Monty supports; whether anything changed."""
    changed = False
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "key" and isinstance(node.value, ast.Attribute):
            node.value, changed = _called(node.value), True
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("map", "filter")
            and len(node.args) == 2
            and isinstance(node.args[0], ast.Attribute)
        ):
            node.args[0], changed = _called(node.args[0]), True
    return changed


def _called(method: ast.Attribute) -> ast.Lambda:
    item = ast.arg("_item")  # no checked program can use this name
    parameters = ast.arguments(posonlyargs=[], args=[item], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(parameters, ast.Call(method, [ast.Name("_item", ast.Load())], []))


# --- programs that compute nothing ------------------------------------------------------------------------------------


def degenerate(tree: ast.Module, answer: str) -> bool:
    """Whether a program names fewer than two facts, or its answer depends on no name computed from other names.

    Such a program only wraps a label; `Prepared.degenerate` marks it for filters.
    """
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


class _Flow:
    """Which names each name depends on, and which are computed by an operation on at least one other name.

    Statements are read in order, nothing is run. A fact is an assignment.
    """

    def __init__(self) -> None:
        self.uses: dict[str, set[str]] = {}
        self.computed: set[str] = set()
        self.facts: dict[str, int] = {}

    def block(self, body: list[ast.stmt], control: _Names) -> None:
        """Read statements; `control` are the names in the tests that decide whether they run."""
        for node in body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    self._bind(target, node.value, control, changed=isinstance(node, ast.AugAssign))
            elif isinstance(node, ast.For):
                self._bind(node.target, node.iter, control, fact=False)
                self._inner(node, control | names(node.iter))
            elif isinstance(node, ast.If | ast.While):
                if operates(node.test):  # a comparison in a test counts like one in an assignment
                    self.computed |= {name for name in names(node.test) if self.uses.get(name)}
                self._inner(node, control | names(node.test))
            elif isinstance(node, ast.FunctionDef):
                self.uses[node.name] = set(control)
                for inner in ast.walk(node):
                    if isinstance(inner, ast.expr):
                        self.uses[node.name] |= names(inner)
                        if operates(inner):
                            self.computed.add(node.name)
                self.block(node.body, control)
            else:
                self._inner(node, control)

    def _inner(self, node: ast.stmt, control: _Names) -> None:
        for part in ("body", "orelse", "finalbody"):
            block = getattr(node, part, None)
            if isinstance(block, list):
                self.block([s for s in block if isinstance(s, ast.stmt)], control)

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
    """All names in an expression."""
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def operates(node: ast.AST) -> bool:
    """Whether an expression compares, calculates or folds (max, min, any, all, sum) something that holds a name."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Compare | ast.BoolOp | ast.BinOp | ast.UnaryOp) and names(inner):
            return True
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in _FOLDS:
            return any(names(argument) for argument in inner.args)
    return False
