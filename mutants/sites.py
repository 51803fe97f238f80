"""Where a module can be changed by one small mistake, as a programmer makes it.

What is left alone: texts (messages, documentation), calls of loggers, annotations, and what only a type checker reads.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
LOGGING = {"debug", "info", "warning", "error", "exception", "failure"}
Change = Callable[[ast.AST], ast.AST]


@dataclass(frozen=True)
class Site:
    """One mutant: what stands at ``path`` becomes another thing."""

    file: str
    where: str
    """The class and function."""
    change: str
    """Before and after, as source."""
    number: int
    """Among the mutants of the file: with the file's content, it says which this is."""
    lines: range

    @property
    def name(self) -> str:
        """What it is known by, wherever in the file its function goes."""
        return f"{self.file} :: {self.where} :: {self.change}"


def sites(file: str, source: str) -> list[Site]:
    """Every mutant of a file."""
    return [site for site, _ in _all(file, ast.parse(source))]


def mutated(source: str, number: int) -> ast.Module:
    """The file's tree with one mistake."""
    tree = ast.parse(source)
    for site, apply in _all("", tree):
        if site.number == number:
            apply()
            return ast.fix_missing_locations(tree)
    raise IndexError(number)


def _all(file: str, tree: ast.Module) -> Iterator[tuple[Site, Callable[[], None]]]:
    for number, (where, statement, holder, name, at, new) in enumerate(_changes(tree, [], None)):
        old = getattr(holder, name) if at is None else getattr(holder, name)[at]
        shown = holder if isinstance(holder, ast.expr) or isinstance(old, ast.operator) else old
        changed = copy.deepcopy(shown)
        if shown is holder:
            _put(changed, name, at, new)
        else:
            changed = new
        lines = range(statement.lineno, (_head(statement) or statement.lineno) + 1)
        text = f"{_line(shown)} -> {_line(changed)}"
        yield Site(file, where, text, number, lines), lambda h=holder, n=name, a=at, v=new: _put(h, n, a, v)  # type: ignore[misc]


def _put(holder: ast.AST, name: str, at: int | None, new: object) -> None:
    if at is None:
        setattr(holder, name, new)
    else:
        getattr(holder, name)[at] = new


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:200]


def _head(statement: ast.stmt) -> int | None:
    """The last line of a statement, without the body of those that have one."""
    body = getattr(statement, "body", None)
    return max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno


Found = tuple[str, ast.stmt, ast.AST, str, int | None, ast.AST]


def _changes(node: ast.AST, where: list[str], statement: ast.stmt | None) -> Iterator[Found]:
    """Holder, field, place in it and what is to stand there, for all below ``node``."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        where = [*where, node.name]
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "type_comment", "decorator_list") and not isinstance(
            node, ast.ClassDef
        ):
            continue
        many = isinstance(value, list)
        for at, child in enumerate(value if many else [value]):
            if not isinstance(child, ast.AST):
                continue
            inner = child if isinstance(child, ast.stmt) else statement
            if _left_alone(child):
                continue
            if inner is not None:
                for new in _instead(child, node, name):
                    yield ".".join(where) or "module", inner, node, name, at if many else None, new
            yield from _changes(child, where, inner)


def _left_alone(node: ast.AST) -> bool:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef(decorator_list=[ast.Name(id="overload")]):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=attr, value=logger))) if attr in LOGGING:
            return "log" in ast.unparse(logger)
        case ast.Raise():
            return False
        case ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Global() | ast.Nonlocal():
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name == "__slots__" or name == "__all__"
        case ast.Assert() | ast.Call(func=ast.Name(id="dataclass")):
            return True
        case _:
            return False


def _instead(node: ast.AST, holder: ast.AST, field: str) -> Iterator[ast.AST]:
    match node:
        case ast.cmpop() if type(node) in COMPARISONS:
            yield COMPARISONS[type(node)]()
        case ast.And():
            yield ast.Or()
        case ast.Or():
            yield ast.And()
        case ast.operator() if type(node) in OPERATORS and not (_is_union(holder) or _shifts_nothing(holder)):
            yield OPERATORS[type(node)]()
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value) if not isinstance(holder, ast.UnaryOp):
            yield ast.Constant(value + 1)
        case ast.Name() | ast.Attribute() | ast.Call() if field == "test" and isinstance(holder, ast.If | ast.IfExp):
            yield ast.UnaryOp(ast.Not(), node)
        case ast.Return(value=ast.Constant(value=None | False)):
            return  # None is as false as False, which becomes True elsewhere
        case ast.Return(value=ast.expr()):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Raise():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case _:
            return


def _shifts_nothing(holder: ast.AST) -> bool:
    """``1 << 0``, which is the same in the other direction."""
    match holder:
        case ast.BinOp(op=ast.LShift() | ast.RShift(), right=ast.Constant(value=0)):
            return True
        case _:
            return False


def _is_union(holder: ast.AST) -> bool:
    """``X | None``, which only a type checker reads."""
    return isinstance(holder, ast.BinOp) and isinstance(holder.op, ast.BitOr) and "None" in ast.unparse(holder)
