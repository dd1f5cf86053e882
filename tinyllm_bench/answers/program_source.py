"""ScoringMode the text of a program: the source check, and the canonical form that students learn (arXiv 2312.10730).

Everything here parses with `ast`, which hostile text can crash: call it through `sandbox.Sandbox` only, whose workers
run it under limits. The check is for clean reasons and repeatable runs; what contains a program is the sandbox.

Canonical: straight-line Python that ends in `answer = ...`. `def solution(): ... return e` is unwrapped to that,
imports that nothing uses are dropped, and so is `import math` (always bound when a program runs). Comments, docstrings
and closing prints go. Loops and ifs stay as they are.
"""

import ast
import re
from dataclasses import dataclass

from tinyllm_bench.answers.codec import joined
from tinyllm_bench.answers.program_check import MAX_CHARS, Rejected, checked, children, too_long
from tinyllm_bench.answers.program_flow import degenerate

ANSWER = "answer"
RAISED = "_raised"  # set where an exception of the program's own ended it; a name that no checked program has
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_IMPORT = "import math\n"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program in canonical form (`code`), or the reason why there is none.

    `line` is the same program on one line, None where it has a loop, an if or a function. `degenerate`: its answer is
    not computed from named facts (a label with boilerplate).
    """

    code: str | None
    reason: str | None = None
    detail: str = ""
    degenerate: bool = False
    line: str | None = None


def unfenced(text: str) -> str:
    """The program inside a text's only Markdown fence; the text itself where there is none, or more than one."""
    blocks = _FENCE.findall(text)
    return blocks[0] if len(blocks) == 1 else text


def prepare(text: str) -> Prepared:
    """The canonical form of a teacher's or student's program text, or why it has none."""
    try:
        tree = canonical(checked(unfenced(text)))
        return _written(tree)
    except Rejected as error:
        return Prepared(None, error.reason, error.detail)
    except (RecursionError, MemoryError):
        return Prepared(None, "rejected_by_gate", "nested too deeply to be read")


def runnable(text: str) -> Prepared:
    """What is run for a text: the text itself where it may be, else its checked form; `math` is bound either way."""
    try:
        text = unfenced(text)
        tree = checked(text)
        changed = unwrap(tree) | _call_methods(tree) | getattr(tree, "dropped", False) | _guard(tree)
        code = ast.unparse(tree) if changed else text
    except Rejected as error:
        return Prepared(None, error.reason, error.detail)
    except (RecursionError, MemoryError, ValueError):
        return Prepared(None, "rejected_by_gate", "nested too deeply to be read")
    return Prepared(_IMPORT + code if "math" in code else code)


def _guard(tree: ast.Module) -> bool:
    """Let a program that raises exceptions itself leave a mark when one of them ends it; whether anything changed.

    A limit of the interpreter cannot be caught, whatever the clause; what a program raises can. So the mark tells a
    memory limit from `raise MemoryError("memory limit exceeded")`.
    """
    if not any(isinstance(node, ast.Raise) for node in ast.walk(tree)):
        return False
    mark = ast.Assign([ast.Name(RAISED, ast.Store())], ast.Constant(True), lineno=0)
    tree.body = [ast.Try(tree.body, [ast.ExceptHandler(None, None, [mark, ast.Raise(None, None)])], [], [])]
    return True


def _call_methods(tree: ast.Module) -> bool:
    """`key=d.get` becomes `key=lambda _item: d.get(_item)`, which the interpreter knows; whether anything changed."""
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
    item = ast.arg("_item")  # a name that no checked program has
    parameters = ast.arguments(posonlyargs=[], args=[item], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(parameters, ast.Call(method, [ast.Name("_item", ast.Load())], []))


def _written(tree: ast.Module) -> Prepared:
    if not any(_sets_answer(statement) for statement in tree.body):
        raise Rejected("no_answer", f"no statement sets {ANSWER!r}")
    try:
        code = ast.unparse(tree)
        same = ast.dump(ast.parse(code)) == ast.dump(tree)
    except (ValueError, SyntaxError):  # Python 3.11 cannot write every f-string that it reads
        same = False
    if not same:
        raise Rejected("rejected_by_gate", "Python cannot write this program down again")
    if len(code) > MAX_CHARS:
        raise too_long(code)
    return Prepared(code, degenerate=degenerate(tree, ANSWER), line=joined(tree))


def canonical(tree: ast.Module) -> ast.Module:
    """The canonical form of a checked tree, which it changes."""
    unwrap(tree)
    if not _binds_math_twice(tree):
        tree.body = [s for s in tree.body if not _is_plain_math(s)]
    tree.body = [s for s in tree.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    while tree.body and any(_sets_answer(s) for s in tree.body[:-1]) and _is_print(tree.body[-1]):
        tree.body.pop()
    return tree


def _is_plain_math(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import) and [(a.name, a.asname) for a in statement.names] == [("math", None)]


def _binds_math_twice(tree: ast.Module) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == "math" and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.arg) and node.arg == "math")
        or (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == "math")
        or (isinstance(node, ast.alias) and node.asname == "math")
        for node in ast.walk(tree)
    )


def _is_print(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Name)
        and statement.value.func.id == "print"
    )


def _sets_answer(statement: ast.AST) -> bool:
    """Whether a statement, or one inside it that belongs to the same scope, binds `answer`."""
    return any(
        isinstance(node, ast.Name) and node.id == ANSWER and isinstance(node.ctx, ast.Store)
        for node in _same_scope(statement)
    )


def _same_scope(statement: ast.AST) -> list[ast.AST]:
    found, todo = [], [statement]
    while todo:
        node = todo.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            todo += children(node)
    return found


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
    if not _takes_nothing(function) or not all(map(_calls_solution, after)) or any(map(_sets_answer, before)):
        return False
    inside = [node for s in function.body for node in _same_scope(s)]
    if _unwrappable(function, inside):
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


def _takes_nothing(function: ast.FunctionDef) -> bool:
    given = function.args
    some = given.posonlyargs or given.args or given.kwonlyargs or given.vararg or given.kwarg
    return not some and not function.decorator_list


def _unwrappable(function: ast.FunctionDef, inside: list[ast.AST]) -> bool:
    last = function.body[-1]
    returns = [node for node in inside if isinstance(node, ast.Return)]
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
