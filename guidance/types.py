"""The protocols: the few types that every part of the project speaks. Read this file first.

Conventions. Time `t` lies in [0, 1]: 0 is data, 1 is noise, x_t = alpha(t) x_0 + sigma(t) eps; a step goes from `t`
down to `s < t`. Batch axis first; `t`, `s` and `omega` have shape [batch]. Whatever takes both times takes them by
keyword, so that they cannot be exchanged; random keys come first. `omega = 0` is unguided:

    guided = D_c + omega (D_c - D_u)          scale = 1 + omega (what diffusers and the Imagen paper print)

Every leaf of a guide's state and of a solver's memory is [batch, ...], so that rows may be exchanged and repeated on
the way, as particle methods do.

Dtypes. Times are the grid's (float32), never those of x. Samplers keep x in float32 or wider and guides raise
predictions to what they are combined with (`guides.two.asked`), whatever the network computes in. Integer x holds
tokens: nothing of ours casts it, a solver for tokens returns the dtype that it was given, predictions are whatever
that solver reads (logits, say), and there is no noise: `Guided.eps` is None.

Every function below is pure. Those with knobs are built as `jax.tree_util.Partial`, so that a weight, a guide or a
denoiser is itself a pytree whose leaves are its knobs: it may be passed through `jit` (a sweep over omega compiles
once), mapped over by `vmap` and differentiated by `grad`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Cond = Any  # a pytree of arrays with leading axis [batch]; class labels are int32 [batch]
State = Any  # a pytree; () for guides without memory


class Denoise(Protocol):
    """Every network is wrapped into this, once."""

    def __call__(self, x: Array, t: Array, cond: Cond, /) -> Array:
        """x [batch, ...], t [batch] -> x0-prediction [batch, ...]."""


class Weight(Protocol):
    """How much, and when: omega, which is 0 where nothing is guided."""

    def __call__(self, *, t: Array, s: Array, cond: Cond) -> Array:
        """t, s [batch] -> omega [batch] in the dtype of t, for the step from t down to s."""


class Reward(Protocol):
    """What a clean sample is worth."""

    def __call__(self, x0: Array, cond: Cond, /) -> Array:
        """x0 [batch, ...] -> reward [batch]."""


class Schedule(NamedTuple):
    """Functions of time, elementwise in t: x_t = alpha(t) x_0 + sigma(t) eps, log_snr = log(alpha^2 / sigma^2)."""

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    log_snr: Callable[[Array], Array]
    time: Callable[[Array], Array]  # the inverse of log_snr
    alpha_dot: Callable[[Array], Array]  # d alpha / d t
    sigma_dot: Callable[[Array], Array]  # d sigma / d t


class At(NamedTuple):
    """Where the branches were evaluated, and where the step goes: x [batch, ...], t [batch], s [batch]."""

    x: Array
    t: Array
    s: Array
    schedule: Schedule


class Branches(NamedTuple):
    """What a stage of a rule sees and hands on: the two predictions, the weight, and the opinion so far."""

    positive: Array  # D_c [batch, ...]
    reference: Array  # D_u, or what stands for it [batch, ...]
    omega: Array  # [batch]
    x0: Array  # the opinion so far; D_c before a rule has combined the two
    eps: Array | None  # the noise to keep; None: the one that x0 implies


class Stage(NamedTuple):
    """A part of a rule that needs more than the two predictions and omega: a memory, the place, the opinion so far.

    init: x [batch, ...] -> state.
    apply: (state, Branches, At) -> (state, Branches).
    idle: state -> state on a step whose omega is zero for the whole batch, so that the reference was not evaluated
        and D_c is the answer; None where that would be wrong, and the reference is evaluated on every step.
    """

    init: Callable[[Array], State]
    apply: Callable[[State, Branches, At], tuple[State, Branches]]
    idle: Callable[[State], State] | None


class PlainRule(Protocol):
    """A rule that needs the two predictions and omega only.

    One whose answer at omega = 0 is D_c says so by `rules.neutral`: only then is its reference not evaluated where
    nothing is guided.
    """

    def __call__(self, positive: Array, reference: Array, omega: Array, /) -> Array:
        """positive, reference [batch, ...], omega [batch] -> guided x0-prediction [batch, ...]."""


Rule = PlainRule | Stage  # how predictions are combined; `rules.stack` puts several in a row


class Guided(NamedTuple):
    """What a step needs to know of the guide's opinion at (x_t, t)."""

    x0: Array  # where to go
    # which noise to keep, an array; x = alpha x0 + sigma eps unless the rule separates the two (CFG++). None where x
    # is tokens, whose solvers do not ask
    eps: Any
    nfe: dict[str, Array]  # network evaluations per sample of this call, by branch name (int32 scalars)


class Apply(Protocol):
    """The opinion of a guide."""

    def __call__(
        self, state: State, denoise: Denoise, schedule: Schedule, x: Array, /, *, t: Array, s: Array, cond: Cond
    ) -> tuple[State, Guided]:
        """x [batch, ...] at t [batch], for a step down to s [batch] -> (state, opinion)."""


class Guide(NamedTuple):
    """A rule with its weight and its branches; the counterpart of optax.GradientTransformation.

    init: x [batch, ...] -> state, leaves [batch, ...].
    """

    init: Callable[[Array], State]
    apply: Apply


class Step(Protocol):
    """An update x_t -> x_s, given the guide's opinion at (x_t, t). Deterministic steps ignore the keys."""

    def __call__(self, keys: Array, x: Array, guided: Guided, /, *, t: Array, s: Array, schedule: Schedule) -> Array:
        """keys, t, s [batch], x [batch, ...] -> x_s [batch, ...]."""


class Evaluate(Protocol):
    """How a solver asks the guide at (x, t) for a step to s.

    The carry holds the guide's state and the count of network evaluations; solvers hand it on and never look inside.
    """

    def __call__(self, carry: State, x: Array, /, *, t: Array, s: Array) -> tuple[State, Guided]:
        """x [batch, ...], t, s [batch] -> (carry, opinion)."""


class Advance(Protocol):
    """One step of a solver."""

    def __call__(
        self,
        keys: Array,
        memory: State,
        carry: State,
        evaluate: Evaluate,
        x: Array,
        /,
        *,
        t: Array,
        s: Array,
        schedule: Schedule,
    ) -> tuple[State, State, Array]:
        """keys, t, s [batch], x [batch, ...] -> (memory, carry, x_s)."""


class Solver(NamedTuple):
    """An update x_t -> x_s that asks the guide as often as it wants and may remember earlier steps.

    A `Step` is the common special case, one evaluation and no memory; whatever takes a solver takes a step.

    init: x [batch, ...] -> memory, leaves [batch, ...]; () for solvers without.
    """

    init: Callable[[Array], State]
    apply: Advance
