"""Reads from the library's sources what it offers by name: rules, weights, solvers, grids, guides and rewards.

To add one, write the function, and its line in the `__init__` of its package; nothing is registered here. Its knobs
(parameters), their defaults and ranges, its summary and its source are read from its signature and docstring (see
`guidance.ranges`). The library is not imported for it, so that a wrong name or knob is refused before JAX is imported.
Instead each function becomes a *stub*, a function with the same signature and docstring that does nothing.

The return annotation says of which kind a function is: `Rule` combines predictions, `Stage` is a part of a rule; then
there are `Weight`, `Step` and `Solver`, `Guide`, `Reward`. A grid is an `Array` from a number of `steps`. A config can
name a function if all its parameters have ranges, except those that a job fills in, such as the noise schedule.
"""

import ast
import builtins
import functools
import inspect
import keyword
import math
import pathlib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from guidance import ranges

ROOT = pathlib.Path(ranges.__file__).parent
PREDICTIONS = ["positive", "reference", "omega"]  # parameters of a rule itself; other functions make a rule


class Shelf(NamedTuple):
    """The place of the functions of one kind, and what tells them from others."""

    package: str  # of guidance
    returns: tuple[str, ...]  # names of types, one of which they return
    at_hand: tuple[str, ...] = ()  # the parameters that a job fills in
    suffix: str = ""  # how their names end in the library; configs leave it out


SHELVES = {
    "rule": Shelf("rules", ("Rule",)),
    "stage": Shelf("rules", ("Stage",)),
    "weight": Shelf("weights", ("Weight",), ("schedule", "grid")),
    "sampler": Shelf("sampling", ("Step", "Solver")),
    "grid": Shelf("sampling", ("Array",), ("schedule", "steps"), "_grid"),
    "guide": Shelf("guides", ("Guide",)),
    "reward": Shelf("truth.rewards", ("Reward", "LinearQuadratic")),
}


class Member(NamedTuple):
    """A public function of the library, as configs see it."""

    name: str  # in configs
    maker: str  # in the library
    package: str  # of guidance; "" for a word that is no function
    parameters: tuple[inspect.Parameter, ...]
    at_hand: tuple[str, ...] = ()  # the parameters that a config does not set
    weight: ranges.WeightIs | None = None  # of a rule whose weight is not omega: what it is
    withheld: str = ""  # the reason why configs cannot name it, "" if they can
    doc: str = ""

    @property
    def plain(self) -> bool:
        """Returns whether it is a rule itself, a function of the two predictions; other functions make a rule."""
        return [parameter.name for parameter in self.parameters] == PREDICTIONS

    @property
    def signature(self) -> inspect.Signature:
        """Returns the signature that configs see: only what they may set."""
        settable = [parameter for parameter in self.parameters if parameter.name not in self.at_hand]
        return inspect.Signature([] if self.plain else settable)

    @property
    def knobs(self) -> tuple[inspect.Parameter, ...]:
        """Returns the parameters that a config may set, in order."""
        return tuple(self.signature.parameters.values())

    @property
    def usage(self) -> str:
        """Returns the signature for people, as in "apg(eta=0, cap=15, beta=-0.5)"."""
        return usage(self.name, self.knobs) if self.knobs else self.name

    def without(self, knob: str) -> "Member":
        """Returns the member without a knob, which something else sets, as a sweep sets omega."""
        return self._replace(at_hand=(*self.at_hand, knob))


def bare_word(name: str) -> Member:
    """Returns a member for a word that configs use like a function without knobs, and the library does not have."""
    return Member(name, name, "", ())


@functools.cache
def named(kind: str, root: pathlib.Path = ROOT) -> Mapping[str, Member]:
    """Returns the functions of a kind (a key of SHELVES) that configs can name, by their names in configs."""
    return {member.name: member for member in members(kind, root) if not member.withheld}


@functools.cache
def members(kind: str, root: pathlib.Path = ROOT) -> tuple[Member, ...]:
    """Returns all public functions of a kind (a key of SHELVES), in the order of `__all__` of their package."""
    found = (_member(kind, name, stub) for name, stub in functions(SHELVES[kind].package, root).items())
    return tuple(member for member in found if member is not None)


def _member(kind: str, name: str, stub: Callable) -> Member | None:
    """Returns the member for a function of this kind; None for a function of another kind."""
    shelf, signature = SHELVES[kind], inspect.signature(stub)
    returns, *remarks = typing.get_args(signature.return_annotation) or [signature.return_annotation]
    plain = kind == "rule" and list(signature.parameters) == PREDICTIONS
    if not (plain or returns.__name__ in shelf.returns) or not name.endswith(shelf.suffix):
        return None
    if "steps" in shelf.at_hand and "steps" not in signature.parameters:
        return None
    at_hand = tuple(parameter for parameter in signature.parameters if parameter in shelf.at_hand)
    weight = [remark for remark in remarks if isinstance(remark, ranges.WeightIs)]
    parameters, doc = tuple(signature.parameters.values()), inspect.getdoc(stub) or ""
    member = Member(
        name.removesuffix(shelf.suffix), name, shelf.package, parameters, at_hand, *weight or [None], doc=doc
    )
    needs = ", ".join(knob.name for knob in member.knobs if ranges.of(knob.annotation)[0] is None)
    return member._replace(withheld=getattr(stub, "withheld", "") or (f"needs {needs}" if needs else ""))


@functools.cache
def functions(package: str, root: pathlib.Path = ROOT) -> Mapping[str, Callable]:
    """Returns stubs of the functions that a package of guidance exports, or that a module defines, by name."""
    if _file(package, root).is_file():
        stubs = _stubs(_file(package, root))
        return {name: stubs[name] for name, node in stubs.nodes.items() if name[0] != "_" and _defines(node)}
    package_stubs, found = _stubs(root / package / "__init__.py"), {}
    for node in package_stubs.imports:
        stubs = _stubs(root.parent.joinpath(*str(node.module).split(".")).with_suffix(".py"))
        imported = {alias.asname or alias.name: alias.name for alias in node.names}
        found |= {new: stubs[name] for new, name in imported.items() if _defines(stubs.nodes.get(name))}
    return {name: found[name] for name in package_stubs["__all__"] if name in found}


def constants(module: str, name: str, root: pathlib.Path = ROOT) -> tuple[str, ...]:
    """Returns the words in a tuple, or the keys of a table, of a module of guidance: ("learning.rollout", "REMAT")."""
    return tuple(_stubs(_file(module, root))[name])


def usage(name: str, parameters: Iterable[inspect.Parameter]) -> str:
    """Returns "name(a, b=1)" for people; numbers are rounded to four digits."""
    return f"{name}({', '.join(map(_shown, parameters))})"


def _shown(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.default is parameter.empty:
        return stars + parameter.name
    default = parameter.default
    return f"{parameter.name}={f'{default:.4g}' if isinstance(default, float) else written(default)}"


def written(value: Any) -> str:
    """Returns a text that `expressions.parse` reads as this value of a knob. 1 and 1.0 have the same text."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(written, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value):
        return value
    return repr(value)


def _file(module: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the path of the source of a module of guidance."""
    return root.joinpath(*module.split(".")).with_suffix(".py")


def _defines(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.FunctionDef)


class _Placeholder(type):
    """The type of placeholders: classes that stand for names imported by a source file, and for their attributes."""

    def __getattr__(cls, name: str) -> "_Placeholder":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(name, (), {})


class _Stubs(dict):
    """The names of a source file, as its signatures see them: {name: value}.

    A function is a stub, a constant has its value, and what `guidance.ranges` and `typing` define is known; any other
    name is a placeholder. Only the lines of a name are evaluated, when it is first asked for.
    """

    def __init__(self, path: pathlib.Path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        self.nodes: dict[str, ast.stmt] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.nodes[node.targets[0].id] = node
        known = vars(builtins) | vars(typing) | vars(ranges) | {"math": math, "not_by_name": _withholding}
        super().__init__({name: value for name, value in known.items() if name not in self.nodes})

    def __missing__(self, name: str) -> Any:
        node = self.nodes.get(name)
        if node is None:
            return _Placeholder(name, (), {})
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = [d for d in node.decorator_list if ast.unparse(d).startswith("not_by_name(")]
            node.body = node.body[:1] if ast.get_docstring(node) else [ast.Pass()]
        exec(compile(ast.fix_missing_locations(ast.Module([node], [])), "guidance", "exec"), self)
        return self[name]


_stubs = functools.cache(_Stubs)


def _withholding(reason: str) -> Callable[[Callable], Callable]:
    """Replaces the decorator `ranges.not_by_name`, and keeps its reason with the stub."""

    def keep(stub):
        stub.withheld = reason
        return stub

    return keep
