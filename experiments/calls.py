"""Rules, weights, samplers and grids as a config writes them: `apg(cap=5)`, `interval(1.5, 0.2, 0.8)`, `heun`.

A call is a known name with literal knobs. It is parsed against the tables below and never evaluated; what guidance
makes of it is in `experiments.recipes`. The tables repeat names and knobs of the library, so that a wrong one is
refused before anything heavy is imported; a test holds them against the signatures.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.kinds import Kind, Refused, hint

# name: its knobs in order, those that have a default with "?"

COMBINATIONS = {  # rules that say what x0 is
    "cfg": "",
    "angle_domain": "cap?",
    "apg": "eta? cap? beta?",
    "cfg_plus_plus": "",
    "cfg_rescale": "phi?",
    "cfg_zero_star": "steps?",
    "ep_cfg": "",
    "frequency_decoupled": "factors? parallel?",
    "gap_normalised": "gamma?",
    "magnitude_aware": "sensitivity?",
    "mahiro": "",
    "power_law": "exponent?",
    "tcfg": "",
}
STAGES = {  # rules that change the gap before a combination, or its outcome after it
    "channels": "mask",
    "energy": "",
    "momentum": "beta",
    "norm_cap": "radius",
    "optimized_scale": "",
    "project": "eta",
    "rescale": "phi?",
    "tangential": "",
    "zero_init": "steps?",
}
RULES = COMBINATIONS | STAGES
WEIGHTS = {
    "beta": "omega a b",
    "clamp_linear": "omega floor",
    "constant": "omega",
    "exponential": "omega rate",
    "interval": "omega lo hi",
    "interval_of_log_snr": "omega lo hi",
    "interval_of_noise_levels": "omega lo hi",
    "interval_of_steps": "omega first last",
    "powered_cosine": "omega power floor? of?",
    "ramp": "shape omega floor? of?",
    "step_down": "omega switch? share?",
    "step_up": "omega switch? share?",
    "triangle": "omega peak?",
}
SAMPLERS = {  # those whose samples do not depend on the batch they are in
    "churned_ddim": "churn",
    "ddim": "",
    "ddpm": "",
    "dpmpp_2m": "",
    "dpmpp_2m_sde": "eta?",
    "dpmpp_2s": "fraction?",
    "dpmpp_2s_sde": "eta? fraction?",
    "edm": "",
    "edm_stochastic": "gamma s_noise? noise_min? noise_max?",
    "euler": "",
    "heun": "",
    "unipc": "order? variant?",
}
GRIDS = {
    "cosine": "t_max? t_min?",
    "edm": "noise_max? noise_min? rho?",
    "karras": "noise_max? noise_min? rho?",  # another name of edm
    "log_snr": "t_max? t_min?",
    "uniform": "t_max? t_min?",
}
LEARNED = ".safetensors"  # how the path of a learned weight ends


class Call(NamedTuple):
    """A name with its knobs by name."""

    name: str
    knobs: dict[str, Any]


def parse(what: str, text: str, known: Mapping[str, str]) -> list[Call]:
    """The calls of "name", "name(1, knob=2)" or several of them separated by commas, `known` as the tables above.

    Knobs are numbers (also inf), words, and tuples of them. Raises Refused, which calls the thing `what`.
    """
    try:
        tree = ast.parse(f"({text.strip()},)", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused(f"not a {what} with knobs, as in {_example(known)}") from None
    if not isinstance(tree, ast.Tuple):
        raise Refused(f"not a {what} with knobs, as in {_example(known)}")
    return [_call(what, node, known) for node in tree.elts]


def _call(what: str, node: ast.expr, known: Mapping[str, str]) -> Call:
    called = isinstance(node, ast.Call)
    name = node.func if called else node
    if not isinstance(name, ast.Name):
        raise Refused(f"not a {what} with knobs, as in {_example(known)}")
    if name.id not in known:
        raise Refused(f"no such {what} {name.id!r}{hint(name.id, known)}; allowed: {', '.join(known)}")
    words = known[name.id].split()
    names, given = [word.rstrip("?") for word in words], {}
    signature = f"{name.id}({', '.join(words)})" if words else f"{name.id} without knobs"
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
    missing = [word for word in words if not word.endswith("?") and word not in given]
    if missing:
        raise Refused(f"{name.id}: {' and '.join(missing)} missing; allowed: {signature}")
    return Call(name.id, given)


def _literal(name: str, knob: str, node: ast.expr) -> Any:
    """A number, a word with or without quotes, or a tuple of them; `inf` is the number."""
    if isinstance(node, ast.Name):
        return math.inf if node.id == "inf" else node.id
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


def _example(known: Mapping[str, str]) -> str:
    name = max(known, key=lambda name: len(known[name]))
    return f"{name}({', '.join(word.rstrip('?') + '=..' for word in known[name].split())})"


def signatures(known: Mapping[str, str]) -> str:
    """The tables as one line for people: "cfg, angle_domain(cap?), ..."."""
    return ", ".join(f"{name}({', '.join(knobs.split())})" if knobs else name for name, knobs in known.items())


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        value = ", ".join(map(str, value))
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError
    return str(value).strip().strip("'\"")


def one(what: str, known: Mapping[str, str]) -> Kind:
    """A field that holds a single call, kept as text."""

    def read(value):
        text = _text(value)
        if len(parse(what, text, known)) != 1:
            raise Refused(f"one {what}, not several; allowed: {', '.join(known)}")
        return text

    return Kind(f"one of {signatures(known)}", read, str)


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
