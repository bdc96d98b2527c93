"""Rules, weights, samplers and grids as a config writes them: `apg(cap=5)`, `interval(1.5, 0.2, 0.8)`, `heun`.

A call is a name of the library with literal knobs. It is parsed against what `experiments.config.registry` reads
from the
library's sources, and never evaluated: unknown names and knobs, and values outside the ranges of their knobs, are
refused before anything heavy is imported. What guidance makes of a call is in `experiments.problems.construct`.
"""

import ast
import keyword
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.config import registry
from experiments.config.registry import Knob, Member
from experiments.config.values import Kind, Refused, hint
from guidance import ranges

Known = Mapping[str, Member]

COMBINATIONS = registry.named("rule")  # rules that say what x0 is
STAGES = registry.named("stage")  # rules that change the gap before a combination, or its outcome after it
RULES = {**COMBINATIONS, **STAGES}
WEIGHTS = registry.named("weight")
SAMPLERS = registry.named("sampler")
GRIDS = registry.named("grid")
REWARDS = registry.named("reward")
LEARNED = ".safetensors"  # how the path of a learned weight ends

AUTOGUIDED = "autoguided"  # the rule of CFG, away from the denoiser as it was after fewer updates
TWICE = "unguided_twice"  # no guidance, at the network evaluations of guided sampling
# rules that a weight can be learned inside
LEARNABLE = {**COMBINATIONS, AUTOGUIDED: registry.word(AUTOGUIDED)}
SHAPES = {name: member.without("omega") for name, member in WEIGHTS.items() if name != "constant"}
# what competes with a constant weight of CFG over the same values of omega: rules, and weights but for their omega
SWEPT = {
    **{name: registry.word(name) for name in (TWICE, AUTOGUIDED)},
    **SHAPES,
    **{name: member for name, member in COMBINATIONS.items() if name != "cfg" and member.weight is None},
}


class Call(NamedTuple):
    """A name with its knobs by name."""

    name: str
    knobs: dict[str, Any]


def parse(what: str, text: str, known: Known) -> list[Call]:
    """The calls of "name", "name(1, knob=2)" or several of them separated by commas, `known` as the tables above.

    Knobs are numbers (also inf), words, and tuples of them. Raises Refused, which calls the thing `what`, for another
    name or knob and for a value outside the knob's range.
    """
    try:
        tree = ast.parse(f"({text.strip()},)", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused(f"not a {what} with knobs, as in {_example(known)}") from None
    if not isinstance(tree, ast.Tuple):
        raise Refused(f"not a {what} with knobs, as in {_example(known)}")
    try:
        return [_call(what, node, known) for node in tree.elts]
    except RecursionError:  # an expression nested so deeply that it can be read but not written
        raise Refused(f"not a {what} with knobs, as in {_example(known)}") from None


def _call(what: str, node: ast.expr, known: Known) -> Call:
    called = isinstance(node, ast.Call)
    name = node.func if called else node
    if not isinstance(name, ast.Name):
        raise Refused(f"not a {what} with knobs, as in {_example(known)}")
    if name.id not in known:
        raise Refused(f"no such {what} {name.id!r}{hint(name.id, known)}; allowed: {', '.join(known)}")
    knobs, given = known[name.id].knobs, {}
    names = [knob.name for knob in knobs]
    signature = _signature(known[name.id]) if knobs else f"{name.id} without knobs"
    arguments = node.args if called else []
    if len(arguments) > len(names):
        raise Refused(f"{name.id}: {len(arguments)} knobs given; allowed: {signature}")
    pairs = list(zip(names, arguments, strict=False))
    pairs += [(keyword.arg, keyword.value) for keyword in (node.keywords if called else [])]
    for knob, value in pairs:
        if knob not in names:
            raise Refused(f"{name.id}: no knob {knob!r}{hint(str(knob), names)}; allowed: {signature}")
        if knob in given:
            raise Refused(f"{name.id}: {knob} is given twice; allowed: {signature}")
        given[knob] = _literal(name.id, knob, value)
    missing = [knob.name for knob in knobs if knob.needed and knob.name not in given]
    if missing:
        raise Refused(f"{name.id}: {' and '.join(missing)} missing; allowed: {signature}")
    call = Call(name.id, given)
    wrong = ranges.fault({knob.name: knob.annotation for knob in knobs}, whole(call, known).knobs)
    if wrong is not None:
        raise Refused(f"{name.id}: {wrong}")
    return call


def whole(call: Call, known: Known) -> Call:
    """The call with all knobs in their order, those that are not given at their defaults."""
    knobs = {knob.name: call.knobs.get(knob.name, knob.default) for knob in known[call.name].knobs}
    return Call(call.name, knobs)


def canonical(call: Call, known: Known) -> str:
    """The one text of a call, all knobs spelled: what makes equal calls equal, whatever the library's defaults become.

    "apg(cap=5)" is apg(eta=0, cap=5, beta=-0.5).
    """
    return _written(whole(call, known))


def short(call: Call, known: Known) -> str:
    """The call for people: only the knobs that differ from their defaults."""
    usual = {knob.name: knob.default for knob in known[call.name].knobs}
    return _written(Call(call.name, {n: v for n, v in whole(call, known).knobs.items() if v != usual[n]}))


def spelled(what: str, text: str, known: Known) -> str:
    """The canonical text of one call, or of several separated by commas. Raises as `parse`."""
    return ", ".join(canonical(call, known) for call in parse(what, text, known))


def shortened(text: str, known: Known) -> str:
    """The text of one call for people, from any text of it. Raises as `parse`."""
    return short(parse("call", text, known)[0], known)


def _written(call: Call) -> str:
    knobs = ", ".join(f"{name}={written(value)}" for name, value in call.knobs.items())
    return f"{call.name}({knobs})" if knobs else call.name


def written(value: Any) -> str:
    """A knob's value as text that reads back as the same value; 1 and 1.0 are one number, and one text."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(written, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, str):
        return value if value.isidentifier() and not keyword.iskeyword(value) else repr(value)
    return repr(value)


def _literal(name: str, knob: str, node: ast.expr) -> Any:
    """A number, a word with or without quotes, or a tuple of them; `inf` and `nan` are the numbers."""
    if isinstance(node, ast.Name):
        return float(node.id) if node.id in ("inf", "nan") else node.id
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(name, knob, element) for element in node.elts)
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    if negative:
        node = node.operand
        value = math.inf if isinstance(node, ast.Name) and node.id == "inf" else getattr(node, "value", None)
    else:
        value = getattr(node, "value", None)
    allowed = (int, float) if negative else (int, float, str)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise Refused(f"{name}: {knob} is {ast.unparse(node)}; allowed: a number, a word or a tuple of them")
    return -value if negative else value


def _example(known: Known) -> str:
    member = max(known.values(), key=lambda member: len(member.knobs))
    return f"{member.name}({', '.join(f'{knob.name}=..' for knob in member.knobs)})"


def _signature(member: Member) -> str:
    """ "apg(eta=0, cap=15, beta=-0.5)": the knobs with their defaults."""
    return f"{member.name}({', '.join(map(_shown, member.knobs))})" if member.knobs else member.name


def _shown(knob: Knob) -> str:
    if knob.needed:
        return knob.name
    return f"{knob.name}={f'{knob.default:.4g}' if isinstance(knob.default, float) else written(knob.default)}"


def signatures(known: Known) -> str:
    """The tables as one line for people: "cfg, angle_domain(cap=1.047), ..."."""
    return ", ".join(map(_signature, known.values()))


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        value = ", ".join(map(str, value))
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError
    return str(value).strip().strip("'\"")


def one(what: str, known: Known, *, empty: bool = False) -> Kind:
    """A field that holds a single call, kept as text; or, where it may be `empty`, none."""

    def read(value):
        text = _text(value)
        if not (empty and text == "") and len(parse(what, text, known)) != 1:
            raise Refused(f"one {what}, not several; allowed: {', '.join(known)}")
        return text

    return Kind(f"{'empty, or ' if empty else ''}one of {signatures(known)}", read, str)


def several(what: str, known: Known, *, empty: bool = False) -> Kind:
    """A field that holds distinct calls, each kept as its canonical text."""

    def read(value):
        texts = [value] if isinstance(value, str) else list(value)
        found = [canonical(call, known) for text in texts for call in parse(what, text, known)]
        twice = [text for text in dict.fromkeys(found) if found.count(text) > 1]
        if twice:
            raise Refused(f"{twice[0]} is given twice; allowed: distinct ones")
        if not (found or empty):
            raise ValueError
        return tuple(found)

    size = "any number" if empty else "one or more"
    return Kind(f"{size} of {signatures(known)}, separated by commas", read, _listed)


def _listed(text: str) -> list[str]:
    """The calls of a list as it is typed, with or without brackets around it and quotes around its entries."""
    try:
        entries = ast.parse(f"[{text}]", mode="eval").body.elts
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return [text]  # refused, with words for it, where calls are read
    if len(entries) == 1 and isinstance(entries[0], ast.List | ast.Tuple):
        entries = entries[0].elts
    return [str(entry.value) if isinstance(entry, ast.Constant) else ast.unparse(entry) for entry in entries]


def rules() -> Kind:
    """A field that holds a stack of rules, kept as text; exactly one of them combines the predictions."""

    def read(value):
        text = _text(value)
        combining = [call.name for call in parse("rule", text, RULES) if call.name in COMBINATIONS]
        if len(combining) != 1:
            raise Refused(
                f"{len(combining)} of these say what x0 is; allowed: exactly one of {', '.join(COMBINATIONS)}"
            )
        return text

    words = f"with any of {signatures(STAGES)} before or after it, separated by commas"
    return Kind(f"one of {signatures(COMBINATIONS)}, {words}", read, str)


def weight() -> Kind:
    """A field that holds omega: a number, a call, or the path of a learned weight; kept as text."""

    def read(value):
        text = _text(value)
        if not text.endswith(LEARNED) and not is_number(text):
            one("weight", WEIGHTS).read(text)
        return text

    return Kind(f"omega, {signatures(WEIGHTS)}, or the path of a learned weight (*{LEARNED})", read, str)


def is_number(text: str) -> bool:
    """Whether the text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def integers(text: str) -> list[range]:
    """ "0-49999" or "0-9,42" -> ranges of consecutive integers, ends included. Raises Refused."""
    found = []
    for word in text.replace(" ", "").split(","):
        low, dash, high = word.partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)) or int(high or low) >= 2**31:
            raise Refused(
                f"{word!r} is no integer or range; allowed: integers and ranges from 0 to 2**31 - 1, as in 0-9,42"
            )
        if int(high or low) < int(low):
            raise Refused(f"the range {word} runs backwards; allowed: ranges with the smaller end first, as in 0-9,42")
        found.append(range(int(low), int(high or low) + 1))
    return found


def seeds() -> Kind:
    """Distinct integers as text with ranges."""

    def read(value):
        text = _text(value)
        ordered = sorted(integers(text), key=lambda r: r.start)
        for before, after in zip(ordered, ordered[1:], strict=False):
            if after.start < before.stop:
                raise Refused(f"seed {after.start} is given twice; allowed: distinct seeds, as in 0-49999")
        return text

    return Kind("distinct integers and ranges, both ends included, as in 0-49999 or 0-9,42", read, str)


def labels() -> Kind:
    """The word all, or integers as text with ranges."""

    def read(value):
        text = _text(value)
        if text != "all":
            integers(text)
        return text

    return Kind("all, or class labels and ranges as in 0-9,207", read, str)
