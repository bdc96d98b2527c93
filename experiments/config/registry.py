"""What the library offers by name: rules, weights, solvers, grids, guides and rewards, read from its sources.

A name is written once, where the thing is: the function, and its line in the `__init__` of its package. Its knobs,
defaults, ranges, summary and source are those of its signature and docstring (see `guidance.ranges`). All of it is
read by `ast`, so that a wrong name or knob is refused before JAX is imported.

What kind a function is, its return annotation says: `Rule` combines predictions, `Stage` is a part of a rule; then
`Weight`, `Step` and `Solver`, `Guide`, `Reward`; a grid is asked for a number of steps. A config can name what needs
nothing but knobs with ranges, and what a job has at hand.
"""

import ast
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from guidance import ranges

ROOT = pathlib.Path(ranges.__file__).parent
REQUIRED = object()  # the default of a knob that has none
PREDICTIONS = ("positive", "reference", "omega")  # the parameters of a rule that is a function of them, not a maker


class Knob(NamedTuple):
    """A parameter of a function: its default (REQUIRED, or its text where it is no constant) and its annotation."""

    name: str
    default: Any
    annotation: Any  # of guidance.ranges; None where it has no range

    @property
    def needed(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED


class Member(NamedTuple):
    """A public function of the library."""

    name: str  # as configs call it
    maker: str  # as the library does
    package: str  # of guidance
    returns: str
    plain: bool  # a rule that is a function of the predictions itself, not a maker of one
    parameters: tuple[Knob, ...]
    at_hand: tuple[str, ...]  # the parameters that a job fills in
    weight: ranges.WeightIs | None  # what the value of the weight means, where it is not omega
    withheld: str  # why configs cannot name it; "" where they can
    doc: str

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """What a config may set, in order."""
        return () if self.plain else tuple(knob for knob in self.parameters if knob.name not in self.at_hand)

    def without(self, knob: str) -> "Member":
        """The same for configs that do not set that knob, as a sweep does."""
        return self._replace(at_hand=(*self.at_hand, knob))


def word(name: str) -> Member:
    """A name without knobs that is no function of the library."""
    return Member(name, name, "", "", False, (), (), None, "", "")


class Shelf(NamedTuple):
    """Where the functions of one kind are, and how they are told from others."""

    package: str
    returns: tuple[str, ...]
    at_hand: tuple[str, ...] = ()
    suffix: str = ""  # of the library's names, which configs leave out


SHELVES = {
    "rule": Shelf("rules", ("Rule",)),
    "stage": Shelf("rules", ("Stage",)),
    "weight": Shelf("weights", ("Weight",), ("schedule", "grid")),
    "sampler": Shelf("sampling", ("Step", "Solver")),
    "grid": Shelf("sampling", ("Array",), ("schedule", "steps"), "_grid"),
    "guide": Shelf("guides", ("Guide",)),
    "reward": Shelf("truth.rewards", ("Reward", "LinearQuadratic")),
}


@functools.cache
def named(kind: str, root: pathlib.Path = ROOT) -> Mapping[str, Member]:
    """The functions of a kind of SHELVES that a config can name, by their names there."""
    return {member.name: member for member in members(kind, root) if not member.withheld}


@functools.cache
def members(kind: str, root: pathlib.Path = ROOT) -> tuple[Member, ...]:
    """All public functions of a kind of SHELVES, in the order of their package."""
    shelf = SHELVES[kind]
    found = (_member(shelf, *entry) for entry in _public(shelf.package, root))
    return tuple(member for member in found if member is not None)


def functions(package: str, root: pathlib.Path = ROOT) -> list[tuple[str, tuple[Knob, ...], str]]:
    """(name, parameters, docstring) of the public functions of a package; starred parameters keep their stars."""
    found = []
    for name, node, constants in _public(package, root):
        stars = [(node.args.vararg, "*"), (node.args.kwarg, "**")]
        starred = tuple(Knob(f"{mark}{a.arg}", REQUIRED, None) for a, mark in stars if a is not None)
        found.append((name, _parameters(node, constants) + starred, ast.get_docstring(node) or ""))
    return found


def words_of(module: str, root: pathlib.Path = ROOT) -> str:
    """The docstring of a module of guidance."""
    return ast.get_docstring(_tree(_file(module, root))) or ""


def constants(module: str, name: str, root: pathlib.Path = ROOT) -> tuple[str, ...]:
    """The words of a table or tuple at the top of a module of guidance, as in ("learning.rollout", "REMAT")."""
    return tuple(_Constants(_tree(_file(module, root)))[name])


def _file(module: str, root: pathlib.Path) -> pathlib.Path:
    """The source of a module of guidance that is no package, by its dotted name."""
    return root.joinpath(*module.split(".")).with_suffix(".py")


def _public(package: str, root: pathlib.Path) -> list[tuple[str, ast.FunctionDef, "_Constants"]]:
    """(name, function, the constants beside it) of what a package exports, or of what a module defines."""
    if _file(package, root).is_file():
        tree = _tree(_file(package, root))
        return [(name, node, _Constants(tree)) for name, node in _functions(tree).items() if name[0] != "_"]
    found = {}
    tree = _tree(root / package / "__init__.py")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            path = root.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
            functions = _functions(_tree(path))
            for alias in node.names:
                if alias.name in functions:
                    found[alias.asname or alias.name] = functions[alias.name], _Constants(_tree(path))
    return [(name, *found[name]) for name in _Constants(tree)["__all__"] if name in found]


def _member(shelf: Shelf, name: str, node: ast.FunctionDef, constants: "_Constants") -> Member | None:
    """The function as a member of the shelf; None where it is of another kind."""
    returns, said = _returned(node, constants)
    arguments = node.args.posonlyargs + node.args.args
    plain = tuple(a.arg for a in arguments) == PREDICTIONS and "Rule" in shelf.returns
    if not (plain or returns in shelf.returns) or not name.endswith(shelf.suffix):
        return None
    if "steps" in shelf.at_hand and "steps" not in [a.arg for a in arguments]:
        return None
    parameters = _parameters(node, constants)
    at_hand = tuple(knob.name for knob in parameters if knob.name in shelf.at_hand)
    member = Member(
        name.removesuffix(shelf.suffix), name, shelf.package, returns, plain, parameters, at_hand,
        next((entry for entry in said if isinstance(entry, ranges.WeightIs)), None), "", ast.get_docstring(node) or "",
    )  # fmt: skip
    unranged = [knob.name for knob in member.knobs if knob.annotation is None]
    stars = [a.arg for a in (node.args.vararg, node.args.kwarg) if a is not None]
    reason = _withheld(node) or (f"needs {', '.join(unranged + stars)}" if unranged + stars else "")
    return member._replace(withheld=reason)


def _parameters(node: ast.FunctionDef, constants: "_Constants") -> tuple[Knob, ...]:
    positional = node.args.posonlyargs + node.args.args
    missing = len(positional) - len(node.args.defaults)
    defaults = [None] * missing + list(node.args.defaults) + list(node.args.kw_defaults)
    found = []
    for argument, default in zip([*positional, *node.args.kwonlyargs], defaults, strict=True):
        annotation = argument.annotation and _evaluated(argument.annotation, constants)
        annotation = annotation if ranges.of(annotation)[0] is not None else None
        value = REQUIRED
        if default is not None:
            value = _evaluated(default, constants)
            value = ast.unparse(default) if value is None else value
        found.append(Knob(argument.arg, value, annotation))
    return tuple(found)


def _returned(node: ast.FunctionDef, constants: "_Constants") -> tuple[str, list]:
    """(the name of what the function returns, what `Annotated` says beside it)."""
    returns = node.returns
    if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) == "Annotated":
        first, *more = returns.slice.elts
        return ast.unparse(first), [_evaluated(entry, constants) for entry in more]
    return (ast.unparse(returns) if returns is not None else ""), []


def _withheld(node: ast.FunctionDef) -> str:
    """The reason that the decorator `not_by_name` gives, or ""."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "not_by_name":
            return ast.literal_eval(decorator.args[0])
    return ""


def _evaluated(node: ast.expr, constants: "_Constants") -> Any:
    """The value of an expression of our own sources that needs constants and `guidance.ranges` only; else None."""
    try:
        return eval(compile(ast.Expression(node), "guidance", "eval"), {"__builtins__": {}}, constants)
    except (NameError, AttributeError, TypeError):
        return None


class _Constants(dict):
    """What expressions in a module may refer to: `guidance.ranges` and its own constants; of a table, the keys."""

    def __init__(self, tree: ast.Module):
        super().__init__({"math": math, "Annotated": Annotated, "Any": Any, "int": int, "float": float, "str": str})
        self.update({name: value for name, value in vars(ranges).items() if not name.startswith("_")})
        self.tree = tree

    def __missing__(self, name: str) -> Any:
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                if isinstance(node.value, ast.Dict):
                    return tuple(key.value for key in node.value.keys)
                return eval(compile(ast.Expression(node.value), "guidance", "eval"), {"__builtins__": {}}, self)
        raise KeyError(name)


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
