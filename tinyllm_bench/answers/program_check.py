"""The source check: which program texts are run at all.

It is there for clean reasons and repeatable runs; what contains a program is the sandbox. Hostile text can crash `ast`,
so this is called inside the sandbox's limited workers only.
"""

import ast

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
_SPECIAL = {ast.Attribute, ast.Import, ast.ImportFrom}


class Rejected(Exception):
    """The text is no program that we run: a reason of the rejection table, and a few words for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def checked(text: str) -> ast.Module:
    """Parse a text, drop unused imports, and refuse what the source check refuses.

    Raises:
        Rejected: `empty`, `too_long`, `syntax` or `rejected_by_gate`.
    """
    if not text.strip():
        raise Rejected("empty", "no text")
    if len(text) > MAX_CHARS:
        raise too_long(text)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise Rejected("syntax", str(error)[:200]) from None
    nodes = _nodes(tree)
    if _drop_unused_imports(tree, nodes):
        nodes = _nodes(tree)
        tree.dropped = True  # type: ignore[attr-defined]
    _gate(nodes)
    return tree


def too_long(text: str) -> Rejected:
    """The rejection of a text that is not even read."""
    return Rejected("too_long", f"{len(text)} characters; at most {MAX_CHARS}")


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """Every node, found without recursion; refuses too many, and trees that are too deep."""
    level: list[ast.AST] = [tree]
    found: list[ast.AST] = []
    for _ in range(MAX_DEPTH):
        found += level
        if len(found) > MAX_NODES:
            raise Rejected("rejected_by_gate", f"more than {MAX_NODES} nodes")
        level = [child for node in level for child in children(node)]
        if not level:
            return found
    raise Rejected("rejected_by_gate", f"nested more than {MAX_DEPTH} deep")


def children(node: ast.AST) -> list[ast.AST]:
    """The nodes right below one, without the Load and Store marks."""
    found: list[ast.AST] = []
    for value in node.__dict__.values():
        if isinstance(value, ast.AST):
            if not isinstance(value, ast.expr_context):
                found.append(value)
        elif type(value) is list:
            found += [part for part in value if isinstance(part, ast.AST)]
    return found


def _drop_unused_imports(tree: ast.Module, nodes: list[ast.AST]) -> bool:
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    if not imports:
        return False
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used.add("*")  # nobody knows what that binds; the check refuses it
    used |= {name for node in nodes if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    gone: set[ast.AST] = set()
    dropped = 0
    for node in imports:
        kept = [alias for alias in node.names if _bound(alias) in used]
        dropped += len(node.names) - len(kept)
        node.names = kept
        if not kept:
            gone.add(node)
    _remove(nodes, gone)
    return dropped > 0


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _remove(nodes: list[ast.AST], gone: set[ast.AST]) -> None:
    if not gone:
        return
    for node in nodes:
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if type(block) is list and any(statement in gone for statement in block):
                may_be_empty = name == "orelse" or isinstance(node, ast.Module)
                kept = [statement for statement in block if statement not in gone]
                setattr(node, name, kept or ([] if may_be_empty else [ast.Pass()]))


def _gate(nodes: list[ast.AST]) -> None:
    bound = {node.id for node in nodes if type(node) is ast.Name and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if type(node) is ast.arg}
    for node in nodes:
        kind = type(node)
        if kind is ast.Constant:
            _check_constant(node.value)  # type: ignore[attr-defined]
            continue
        if kind is ast.Name and node.id in _BUILTINS and node.id not in bound:  # type: ignore[attr-defined]
            raise Rejected("rejected_by_gate", f"the builtin {node.id!r}")  # type: ignore[attr-defined]
        for value in node.__dict__.values():
            if type(value) is str:
                _check_name(value)
            elif type(value) is list and value and type(value[0]) is str:
                for name in value:
                    _check_name(name)
        if kind in _SPECIAL:
            _check_special(node)


def _check_constant(value: object) -> None:
    if type(value) is int and value.bit_length() > MAX_INT_BITS:
        raise Rejected("rejected_by_gate", f"an int of more than {MAX_INT_BITS} bits")


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise Rejected("rejected_by_gate", f"the name {name[:60]!r}: none may start with an underscore")


def _check_special(node: ast.AST) -> None:
    if isinstance(node, ast.Attribute):
        if node.attr in _FORMATTERS:
            raise Rejected("rejected_by_gate", f"the method {node.attr!r}")
    elif isinstance(node, ast.ImportFrom):
        if node.level or node.module not in IMPORTS or any(alias.name == "*" for alias in node.names):
            raise Rejected("rejected_by_gate", f"an import from {str(node.module)[:60]!r}; allowed: {sorted(IMPORTS)}")
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name not in IMPORTS:
                raise Rejected("rejected_by_gate", f"an import of {alias.name[:60]!r}; allowed: {sorted(IMPORTS)}")
