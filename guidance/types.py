"""The few types that all parts of the project share. Read this file first.

Conventions. Time `t` lies in [0, 1], from data at 0 to noise at 1: x_t = alpha(t) x_0 + sigma(t) eps. A step goes from
`t` down to `s < t`. The batch axis comes first; `t`, `s` and `omega` have shape [batch]. A function of both times
takes them by keyword, so that they cannot be confused. Random keys come first. `omega = 0` is unguided:

    guided = D_c + omega (D_c - D_u)          scale = 1 + omega (what diffusers and the Imagen paper print)

D_c is the prediction at the condition. D_u is the reference prediction: usually that at the null condition. Every leaf
of a guide's state and of a solver's memory is [batch, ...], so that particle methods can copy and reorder rows.

Dtypes. Times have the dtype of the grid (float32), whatever that of x. Samplers keep x in float32 or wider, and guides
cast predictions to the dtype of what they are combined with (`guides.two.prediction_of`), whatever the network's
dtype. Integer x holds tokens. No function here casts tokens: a solver for tokens returns the dtype that it was given,
the predictions are what that solver reads (logits, for example), and there is no noise, so that `Guided.eps` is None.

Every function below is pure. Functions with knobs are built as `jax.tree_util.Partial`, so that a weight, a guide or a
denoiser is a pytree whose leaves are its knobs. It can be passed through `jit` (a sweep over omega compiles once),
mapped over by `vmap` and differentiated by `grad`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Cond = Any  # a pytree of arrays with leading axis [batch]; class labels are int32 [batch]
State = Any  # a pytree; () for guides without memory


class Denoise(Protocol):
    """A denoiser; `predictions.as_denoise` makes one from a network."""

    def __call__(self, x: Array, t: Array, cond: Cond, /) -> Array:
        """Returns the x0-prediction [batch, ...] for x [batch, ...], t [batch], cond leaves [batch, ...]."""


class Weight(Protocol):
    """A guidance weight: how strongly each step is guided. omega = 0 is unguided."""

    def __call__(self, *, t: Array, s: Array, cond: Cond) -> Array:
        """Returns omega [batch], in the dtype of t, for the step from t [batch] down to s [batch]."""


class Reward(Protocol):
    """A function that rates clean samples; higher is better."""

    def __call__(self, x0: Array, cond: Cond, /) -> Array:
        """Returns the reward [batch] of x0 [batch, ...]."""


class Schedule(NamedTuple):
    """A noise schedule x_t = alpha(t) x_0 + sigma(t) eps, as functions elementwise in t; SNR = alpha^2/sigma^2."""

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    log_snr: Callable[[Array], Array]
    time: Callable[[Array], Array]  # the inverse of log_snr
    alpha_dot: Callable[[Array], Array]  # d alpha / d t
    sigma_dot: Callable[[Array], Array]  # d sigma / d t


class At(NamedTuple):
    """The point (x [batch, ...], t [batch]) of the predictions, the end s [batch] of the step, and the schedule."""

    x: Array
    t: Array
    s: Array
    schedule: Schedule


class Branches(NamedTuple):
    """The record that a stage of a rule takes and returns: the two predictions, omega, and the guided prediction."""

    positive: Array  # D_c [batch, ...]
    reference: Array  # D_u [batch, ...], or what an earlier stage replaced it by
    omega: Array  # [batch]
    x0: Array  # the guided prediction so far [batch, ...]; D_c until a rule has combined the two predictions
    eps: Array | None  # the noise that the step keeps [batch, ...]; None: the noise that x0 implies


class Stage(NamedTuple):
    """A part of a rule that needs more than the two predictions and omega, such as a memory, (x, t) or the last x0.

    init: x [batch, ...] -> state.
    apply: (state, Branches, At) -> (state, Branches).
    idle: state -> state, for a step on which omega is 0 for the whole batch. Such a step returns D_c and does not
        evaluate the reference. None: this would be wrong, so the reference is evaluated on every step.
    """

    init: Callable[[Array], State]
    apply: Callable[[State, Branches, At], tuple[State, Branches]]
    idle: Callable[[State], State] | None


class PlainRule(Protocol):
    """A rule that needs the two predictions and omega only.

    If it returns D_c at omega = 0, declare this by `rules.neutral`: guides then skip its reference where omega is 0.
    """

    def __call__(self, positive: Array, reference: Array, omega: Array, /) -> Array:
        """Returns the guided x0-prediction [batch, ...] for positive, reference [batch, ...] and omega [batch]."""


Rule = PlainRule | Stage  # how predictions are combined; `rules.stack` applies several in turn


class Guided(NamedTuple):
    """The guided prediction at (x_t, t), as a step uses it."""

    x0: Array  # the guided x0-prediction [batch, ...]
    # the noise that the step keeps [batch, ...]: x = alpha x0 + sigma eps, unless the rule separates the two (CFG++);
    # None if x holds tokens
    eps: Any
    nfe: dict[str, Array]  # network evaluations per sample in this call, by branch name (int32 scalars)


class Apply(Protocol):
    """The function of a guide that evaluates the branches and combines them."""

    def __call__(
        self, state: State, denoise: Denoise, schedule: Schedule, x: Array, /, *, t: Array, s: Array, cond: Cond
    ) -> tuple[State, Guided]:
        """Returns (state, guided prediction) for x [batch, ...] at t [batch] and a step down to s [batch]."""


class Guide(NamedTuple):
    """A rule together with its weight and its branches; the counterpart of optax.GradientTransformation.

    init: x [batch, ...] -> state, leaves [batch, ...].
    """

    init: Callable[[Array], State]
    apply: Apply


class Step(Protocol):
    """An update x_t -> x_s from one guided prediction at (x_t, t). Deterministic steps ignore the keys."""

    def __call__(self, keys: Array, x: Array, guided: Guided, /, *, t: Array, s: Array, schedule: Schedule) -> Array:
        """Returns x_s [batch, ...] for keys, t, s [batch] and x [batch, ...] at t."""


class Evaluate(Protocol):
    """The function by which a solver evaluates the guide.

    The carry has the guide's state and the count of network evaluations. A solver passes it on without reading it.
    """

    def __call__(self, carry: State, x: Array, /, *, t: Array, s: Array) -> tuple[State, Guided]:
        """Returns (carry, guided prediction) for x [batch, ...] at t [batch] and a step down to s [batch]."""


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
        """Returns (memory, carry, x_s [batch, ...]) for keys, t, s [batch] and x [batch, ...] at t."""


class Solver(NamedTuple):
    """An update x_t -> x_s that may evaluate the guide any number of times and may remember earlier steps.

    A `Step` is the common special case of one evaluation and no memory. Functions that take a solver also take a step.

    init: x [batch, ...] -> memory, leaves [batch, ...]; () for a solver without memory.
    """

    init: Callable[[Array], State]
    apply: Advance
