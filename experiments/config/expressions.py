"""Reads calls, by which configs name rules, weights, samplers and grids: `apg(cap=5)`, `interval(1.5, 0.2, 0.8)`.

A call is the name of a function of the library, with numbers or words for its knobs (its parameters). It is compared
with the signatures that `experiments.config.registry` reads from the library's sources. It is never evaluated: unknown
names, unknown knobs and values outside the range of a knob are refused before anything heavy is imported.
`experiments.problems.construct` builds what a call stands for.
"""

import ast
import itertools
import math
from collections.abc import Mapping
from os.path import isfile
from typing import Any, NamedTuple

from experiments.config import registry
from experiments.config.registry import Member, written
from experiments.config.values import Kind, Refused, as_text, did_you_mean, each, listed
from guidance import ranges

Known = Mapping[str, Member]  # functions that a field can name, by their names in configs

COMBINATIONS = registry.named("rule")  # rules that say what x0 is
STAGES = registry.named("stage")  # rules that change the gap before a combination, or its outcome after it
RULES = {**COMBINATIONS, **STAGES}
WEIGHTS = registry.named("weight")
SAMPLERS = registry.named("sampler")
GRIDS = registry.named("grid")
REWARDS = registry.named("reward")
LEARNED = ".safetensors"  # how the path of a learned weight ends

AUTOGUIDED = "autoguided"  # the rule of CFG; its reference is the denoiser as it was after fewer updates
TWICE = "unguided_twice"  # no guidance and twice the steps: as many network evaluations as guided sampling takes
# rules that a weight can be learned inside
LEARNABLE = {**COMBINATIONS, AUTOGUIDED: registry.bare_word(AUTOGUIDED)}
# weights whose omega is left out
SHAPES = {name: member.without("omega") for name, member in WEIGHTS.items() if name != "constant"}
# what is tried with every omega of a list: rules with constant weights, and weights whose omega is left out
SWEPT = {
    **{name: registry.bare_word(name) for name in (TWICE, AUTOGUIDED)},
    **SHAPES,
    **{name: member for name, member in COMBINATIONS.items() if name != "cfg" and member.weight is None},
}


class Call(NamedTuple):
    """A function of the library with a value for each of its knobs."""

    member: Member
    knobs: dict[str, Any]

    @property
    def name(self) -> str:
        """Returns the name of the function in configs."""
        return self.member.name

    @property
    def text(self) -> str:
        """Returns the call with the values of all knobs; it means the same if a default of the library changes."""
        return _written(self.name, self.knobs)

    @property
    def short(self) -> str:
        """Returns the call with only those knobs whose values are not the defaults, for people."""
        usual = {knob.name: knob.default for knob in self.member.knobs}
        return _written(self.name, {name: value for name, value in self.knobs.items() if value != usual[name]})


def parse(what: str, text: str, known: Known) -> list[Call]:
    """Returns the calls in a text such as "name", "name(1, knob=2)", or several of them separated by commas.

    Values of knobs are numbers (also inf), as_text, and tuples of these. Knobs that are not given have their defaults.
    Raises Refused for a name that is not in `known`, an unknown knob, or a value outside a knob's range; the message
    calls the function a `what` ("no such rule"). Raises ValueError or SyntaxError for a text that is no call.
    """
    return [_call(what, ast.parse(entry.strip(), mode="eval").body, known) for entry in listed(text)]


def _call(what: str, node: ast.expr, known: Known) -> Call:
    """Returns the call of one parsed expression. Raises as `parse`."""
    function, values, pairs = (node.func, node.args, node.keywords) if isinstance(node, ast.Call) else (node, [], [])
    if not isinstance(function, ast.Name):
        raise ValueError
    name = function.id
    if name not in known:
        raise Refused(f"no such {what} {name!r}{did_you_mean(name, known, '; --list has all')}")
    member = known[name]
    for knob in (pair.arg for pair in pairs):
        if knob not in member.signature.parameters:
            close = did_you_mean(str(knob), member.signature.parameters)
            raise Refused(f"{name}: no knob {knob!r}{close}; allowed: {member.usage}")
    given = [_value(name, value) for value in values], {pair.arg: _value(name, pair.value) for pair in pairs}
    try:
        bound = member.signature.bind(*given[0], **given[1])
    except TypeError as error:  # too many values, one knob twice, or one that is missing
        raise Refused(f"{name}: {error}; allowed: {member.usage}") from None
    bound.apply_defaults()
    wrong = ranges.fault({knob.name: knob.annotation for knob in member.knobs}, bound.arguments)
    if wrong is not None:
        raise Refused(f"{name}: {wrong}")
    return Call(member, dict(bound.arguments))


class _Words(ast.NodeTransformer):
    """Replaces names by texts, so that words need no quotes, and `inf` and `nan` by numbers."""

    def visit_Name(self, node):
        return ast.Constant(float(node.id) if node.id in ("inf", "nan") else node.id)


def _value(name: str, node: ast.expr) -> Any:
    """Returns the number, word or tuple that an expression spells, a knob of the function `name`. Raises Refused."""
    shown = ast.unparse(node)
    try:
        value = ast.literal_eval(_Words().visit(node))
    except (ValueError, TypeError):
        value = None
    if not _is_plain(value):
        raise Refused(f"{name}: {shown}: allowed: numbers, words and tuples of them")
    return tuple(value) if isinstance(value, list) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def spelled(what: str, text: str, known: Known) -> str:
    """Returns a text of calls with the values of all knobs written out: `Call.text` of each. Raises as `parse`."""
    return ", ".join(call.text for call in parse(what, text, known))


def shortened(text: str, known: Known) -> str:
    """Returns a text of one call without the knobs that have their defaults: its `Call.short`. Raises as `parse`."""
    return parse("call", text, known)[0].short


def _written(name: str, knobs: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{knob}={written(value)}' for knob, value in knobs.items())})" if knobs else name


def _example(known: Known) -> str:
    """Returns the signature of the function with the most knobs, as an example for people."""
    return max(known.values(), key=lambda member: len(member.knobs)).usage


def _allowed(what: str, known: Known) -> str:
    extra = "".join(f", or {member.name}" for member in known.values() if not member.package)
    return f"{what}, as in {_example(known)}{extra}; --list has all"


def call(what: str, known: Known, *, empty: bool = False) -> Kind:
    """Returns the kind of texts that are one call, or empty if `empty`. They are kept as they were typed."""
    allowed = ("empty, or " if empty else "one ") + _allowed(what, known)
    return Kind(allowed, as_text, lambda text: (empty and not text) or len(parse(what, text, known)) == 1)


def calls(what: str, known: Known, *, empty: bool = False) -> Kind:
    """Returns the kind of tuples of distinct calls. Each is kept with the values of all its knobs."""
    one = call(what, known)
    return each(one._replace(convert=lambda value: spelled(what, as_text(value), known)), empty=empty)


def rules() -> Kind:
    """Returns the kind of texts that are one rule, with any number of stages. They are kept as they were typed."""
    stages = f"with any number of stages, as in {_example(STAGES)}, before or after it, separated by commas"

    def one_combines(text):
        return len([call for call in parse("rule", text, RULES) if call.name in COMBINATIONS]) == 1

    return Kind(f"exactly one {_allowed('rule', COMBINATIONS)}; {stages}", as_text, one_combines)


def weight() -> Kind:
    """Returns the kind of texts that are omega, a call of a weight, or the path of a learned weight, kept as typed."""
    allowed = f"a number, one {_allowed('weight', WEIGHTS)}; or the path of an existing {LEARNED} file"

    def known(text):
        return text.endswith(LEARNED) or is_number(text) or len(parse("weight", text, WEIGHTS)) == 1

    return Kind(allowed, as_text, known, lambda text: not text.endswith(LEARNED) or isfile(text))


def is_number(text: str) -> bool:
    """Returns whether the text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def integers(text: str) -> list[range]:
    """Returns the ranges of integers in a text such as "0-49999" or "0-9,42", ends included. Raises Refused."""
    found = []
    for part in text.replace(" ", "").split(","):
        low, dash, high = part.partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)) or int(high or low) >= 2**31:
            raise Refused(f"{part!r}: allowed: integers and ranges from 0 to 2**31 - 1, as in 0-9,42")
        if int(high or low) < int(low):
            raise Refused(f"the range {part} runs backwards; allowed: ranges with the smaller end first, as in 0-9,42")
        found.append(range(int(low), int(high or low) + 1))
    return found


def _distinct(text: str) -> bool:
    """Returns whether no integer is in two of the ranges of a text."""
    ordered = sorted(integers(text), key=lambda found: found.start)
    return all(before.stop <= after.start for before, after in itertools.pairwise(ordered))


SEEDS = Kind("distinct integers and ranges, both ends included, as in 0-49999 or 0-9,42", as_text, _distinct)
LABELS = Kind("all, or class labels and ranges as in 0-9,207", as_text, lambda text: text == "all" or integers(text))
