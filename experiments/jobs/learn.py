"""Job `learn`: one guidance network per objective (per number of steps too, for rollouts) and seed."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import checkpoints, launch, mesh, recipes, weight_files
from experiments.calls import AUTOGUIDED, LEARNABLE, shortened, written
from experiments.jobs import selection, train
from experiments.jobs.draws import bases_of, model_of, step_of
from experiments.loop import compiled, fit
from experiments.problems import require
from guidance import learning, rollout, sampling, weights
from guidance.conditions import size, taken
from guidance.times import within


class Task(NamedTuple):
    """One weight to learn: its name, its loss, its length, and how to query the result.

    `loss`: (params, key, what `bases_of` gives the rule, data of the problem) -> scalar.

    `start`: the name of the task whose result it starts from. Rollouts at more steps start from those at fewer, with
    proportionally fewer updates, so that each costs about the same; those of other rules from those of CFG, with half
    as many, but for autoguidance, whose gap is another one; those limited to an interval of learn.intervals from
    the unlimited ones, with as many. `rule`: the call of the rule that the weight enters, all knobs spelled.
    """

    name: str
    steps: int | None  # the sampler steps it is meant for; None: any
    loss: Callable
    iterations: int
    learning_rate: float
    weight: Callable  # params of the guidance network -> Weight
    start: str | None = None
    rule: str = "cfg"
    family: str = ""  # the objective or, for rollouts inside other rules, the rule: what shares a colour
    line: str = ""  # the name without the number of steps: what is joined over them in pictures

    @property
    def file(self) -> str:
        """The name as part of a path: letters, digits and . _ - + @."""
        return re.sub(r"[^\w.+@-]+", "_", self.name.replace(" ", "")).strip("_")


def network(problem, config) -> weights.GuidanceNet:
    """What is learned: of the class label or, where a condition is more than that, of the numbers in it."""
    learn, labelled = config.learn, problem.model.columns is None
    return weights.GuidanceNet(
        condition="label" if labelled else "features",
        num_classes=size(problem.model.conditions) if labelled else 0,
        width=learn.width,
        depth=learn.depth,
        time_width=learn.embedding,
        cond_width=learn.embedding,
        head=learn.head,
    )


def tasks(problem, config) -> list[Task]:
    """Every weight that the config asks for."""
    found = []
    for objective in config.learn.objectives:
        if objective == "rollout":
            found += _rollout_tasks(problem, config)
        elif objective == "reward_only":
            found.append(_one_step_task(problem, config, "reward_only", 1.0))
        elif objective == "self_consistency" and problem.reward is not None:
            found += [_one_step_task(problem, config, objective, gamma) for gamma in config.learn.gammas]
        else:
            found.append(_one_step_task(problem, config, objective, 0.0))
    return found


def _rollout_tasks(problem, config) -> list[Task]:
    found, fewest = {}, min(config.eval.steps)
    for rule in sorted(config.learn.rules, key=lambda rule: rule != "cfg"):
        start = None
        for steps in sorted(config.eval.steps):
            known = None if rule == AUTOGUIDED else found.get(("cfg", steps))
            start = known or start
            iterations = max(1, config.learn.rollout_iterations * fewest // ((2 if known else 1) * steps))
            start = _rollout_task(problem, config, rule, steps, iterations, start and start.name)
            found[rule, steps] = start
            for interval in config.learn.intervals:
                limited = _rollout_task(problem, config, rule, steps, iterations, start.name, interval)
                found[rule, steps, interval] = limited
    return list(found.values())


def _rollout_task(
    problem, config, rule: str, steps: int, iterations: int, start: str | None, interval: tuple | None = None
) -> Task:
    learn, net, conditions = config.learn, network(problem, config), problem.model.conditions
    grid, step = sampling.uniform_grid(steps), step_of(config)
    weight = rollout_weight(net, problem.model.schedule, steps, interval)
    unguided = int(jnp.argmax(within(grid[:-1], *interval))) if interval else 0  # steps before the first guided one
    settings = rollout.Rollout(
        learn.rollout_batch,
        segments=_segments(steps - unguided) if learn.remat == "segments" else 1,
        remat=learn.remat,
        detached=unguided,
        features=problem.instrument and problem.instrument.features,
    )

    def loss(params, key, base, data):
        data_key, roll_key, *rest = jax.random.split(key, 3 if learn.rollout_conditions else 2)
        among = drawn(rest[0], conditions, learn.rollout_conditions) if rest else conditions
        columns = problem.model.columns if among is conditions else among
        omega = weights.table(grid, weights.tabulated(weight(params), grid, among), columns)
        real = problem.data.real(data, data_key, learn.rollout_real, among)
        model = model_of(problem, recipes.rule(rule), base)
        return rollout.rollout_loss(roll_key, model, omega, step, grid, real, among, settings)

    line = "rollout" if rule == "cfg" else f"rollout {shortened(rule, LEARNABLE)}"
    if interval:
        line += f" {written(interval[0])} to {written(interval[1])}"
    family = "rollout" if rule == "cfg" else rule
    rate = learn.rollout_learning_rate
    return Task(f"{line}@{steps}", steps, loss, iterations, rate, weight, start, rule, family, line)


def _segments(steps: int) -> int:
    """The divisor of `steps` nearest to its square root."""
    return min((d for d in range(1, steps + 1) if steps % d == 0), key=lambda d: abs(d - steps**0.5))


def rollout_weight(net, schedule, steps: int, interval: tuple[float, float] | None = None) -> Callable:
    """params -> the weight as trained through a uniform grid of `steps`.

    On its own grid no query is clamped; a sampler with smaller steps gets the weight of the trained gap.
    """
    return functools.partial(_weight, net, schedule, 0.5 / steps, 1 - 0.5 / steps, 0.999 / steps, interval)


def drawn(key, conditions, count: int):
    """`count` of the conditions in their order, every such subset as likely; all of them where they are not more.

    A mean over the subset is an unbiased estimate of the mean over all.
    """
    if count >= size(conditions):
        return conditions
    return taken(conditions, jnp.sort(jax.random.permutation(key, size(conditions))[:count]))


def guidance_optimizer(learning_rate: float, iterations: int) -> optax.GradientTransformation:
    """What every guidance network is trained with."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))
    )


def _weight(net, schedule, s_min, t_max, gap_min, interval, params):
    return weights.learned(net, params, schedule, s_min, t_max, gap_min, interval)


def _one_step_task(problem, config, objective: str, gamma: float) -> Task:
    learn, net = config.learn, network(problem, config)
    conditions, schedule = problem.model.conditions, problem.model.schedule
    settings = learning.OneStep(
        learn.particles, learn.beta, learn.lambda_, learn.churn, learn.s_min, learn.zeta, learn.delta
    )
    weight = functools.partial(_weight, net, schedule, learn.s_min, 1 - learn.zeta, learn.delta, None)

    def loss(params, key, base, data):
        data_key, key = jax.random.split(key)
        model = model_of(problem, recipes.rule("cfg"), base)
        if objective == "per_condition":
            each = 2 * max(1, learn.batch * learn.particles // (2 * size(conditions)))
            real = problem.data.real(data, data_key, each, conditions)
            return learning.per_condition_consistency(key, model, weight(params), real, conditions, settings)
        x0, cond = problem.data.draw(data, data_key, learn.batch)
        arguments = key, model, weight(params), x0, cond, settings
        if objective in ("self_consistency", "l2"):
            return getattr(learning, objective)(*arguments, gamma, problem.reward if gamma > 0 else None)
        if objective == "reward_only":
            return learning.reward_only(*arguments, problem.reward)
        return getattr(learning, {"marginal": "marginal_consistency"}.get(objective, objective))(*arguments)

    rewarded = objective == "self_consistency" and gamma > 0
    name = f"{objective} + {written(gamma)} reward" if rewarded else objective
    return Task(name, None, loss, learn.iterations, learn.learning_rate, weight, family=objective, line=name)


def run(problem, config, workdir) -> dict[str, list]:
    """{task name: [params for each seed]}, learned or restored; each is kept as a file of its own in weights/.

    The params after the last update or, with learn.select_every, the best of those on the way (see `selection`).
    """
    require(problem, config.job, "data", *["instrument"] * (config.learn.select_every > 0))
    bases, found, learned = train.run(problem, config, workdir), tasks(problem, config), {}
    given = {rule: bases_of(problem, config, workdir, rule, bases) for rule in dict.fromkeys(t.rule for t in found)}
    for task in found:
        learned[task.name] = _learn(problem, config, workdir, task, given[task.rule], learned.get(task.start))
        launch.first(lambda task=task: _write(problem, config, workdir, task, learned[task.name]))
    return learned


def _write(problem, config, workdir, task: Task, learned: list) -> None:
    """The learned weights as files that can be listed, plotted and sampled with."""
    for i, params in enumerate(learned):
        weight_files.write(
            workdir / "weights" / f"{task.file}_seed_{config.seed + i}.safetensors",
            task.weight(params),
            problem=problem.name,
            objective=task.name,
            rule=task.rule,
            steps=task.steps,
            null=problem.model.null,
            names=problem.data and problem.data.names,
            conditions=problem.model.conditions,
            training=config.to_dict(),
        )


def _learn(problem, config, workdir, task: Task, bases, starts) -> list:
    """The learned params for each seed, from those in `starts` or from the network's own initial ones."""
    optimizer = guidance_optimizer(task.learning_rate, task.iterations)
    net, data = network(problem, config), problem.data.arrays

    def one_update(state, i, key, base, data):
        loss = functools.partial(task.loss, base=base, data=data)
        params, opt_state, figures = learning.update(jax.random.fold_in(key, i), optimizer, loss, *state)
        return (params, opt_state), figures

    one_update = compiled(one_update)
    zero, one = jnp.zeros(1), taken(problem.model.conditions, slice(1))
    init = jax.jit(lambda key: net.init(key, log_snr_t=zero, log_snr_s=zero, cond=one))
    marks = selection.marks(config.learn.select_every, task.iterations)
    choose = selection.chooser(problem, config, task, marks, workdir / "selection.jsonl")
    learned = []
    for i, base in enumerate(bases):
        seed = config.seed + i
        key = jax.random.fold_in(jax.random.key(seed), 2)
        params = starts[i] if starts else init(jax.random.fold_in(key, 0))
        folder = workdir / "guidance" / task.file / f"seed_{seed}"
        state, _ = fit(
            f"{task.name}, seed {seed}",
            folder,
            workdir / "metrics.jsonl",
            (params, optimizer.init(params)),
            lambda carry, i, key=key, base=base: one_update(carry, i, jax.random.fold_in(key, 1), base, data),
            task.iterations,
            config.learn.checkpoint_every,
            marks=marks,
            at_mark=lambda step, state, folder=folder: checkpoints.save(
                checkpoints.kept(folder, step), step, state[0]
            ),
        )
        learned.append(choose(seed, base, folder, state) if marks else mesh.local(state))
    return learned
