"""Job `learn`: trains a guidance network for each objective and seed, and for rollouts each number of steps.

`guidance.learning.training` has how a weight is trained. This module lists the weights that a config names, says from
what each one starts, and keeps them.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax

from experiments.config.expressions import AUTOGUIDED, LEARNABLE, shortened, written
from experiments.files import weight_files
from experiments.jobs import selection, train
from experiments.jobs.samplers import bases_of, model_of, step_of
from experiments.problems import construct
from experiments.problems.interface import require
from experiments.runtime import checkpoints, launch, mesh, progress
from experiments.runtime.loop import compiled, fit
from guidance import learning, weights
from guidance.learning import training
from guidance.learning.training import ROLLOUT, Recipe, Truth


class Task(NamedTuple):
    """One weight to learn: its name, how it is learned, and what makes a weight of the result.

    start: the name of the task whose result it starts from. A rollout at more steps starts from that at fewer, with
    proportionally fewer updates, so that each costs about the same. One inside another rule starts from that inside
    CFG, with half as many updates; autoguidance does not, since its gap is another one. One that is limited to an
    interval of learn.intervals starts from the unlimited one, with as many updates.
    rule: the call of the rule that the weight enters, with all knobs spelled.
    """

    name: str
    recipe: Recipe
    loss: Callable  # (params, key, what `bases_of` gives the rule, arrays of the problem's data) -> scalar
    weight: Callable  # params of the guidance network -> Weight
    start: str | None = None
    rule: str = "cfg"
    family: str = ""  # the objective or, for rollouts inside other rules, the rule: what shares a colour
    line: str = ""  # the name without the number of steps: what is joined over them in pictures

    @property
    def steps(self) -> int | None:
        """Returns the number of sampler steps that the weight is learned for; None: any."""
        return self.recipe.steps if self.recipe.objective == ROLLOUT else None

    @property
    def file(self) -> str:
        """Returns the name as a part of a path, with only letters, digits and . _ - + @."""
        return re.sub(r"[^\w.+@-]+", "_", self.name.replace(" ", "")).strip("_")


def network(problem, config) -> weights.GuidanceNet:
    """Returns the network that is trained: of the class label or, where a condition is more, of the numbers in it."""
    return training.network(problem.model.conditions, _recipe(problem, config))


def tasks(problem, config) -> list[Task]:
    """Returns a task for every weight of the config, sorted so that a weight comes before those that start from it."""
    found = []
    for objective in config.learn.objectives:
        if objective == ROLLOUT:
            found += _rollout_tasks(problem, config)
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
            updates = max(1, config.learn.rollout_iterations * fewest // ((2 if known else 1) * steps))
            start = _rollout_task(problem, config, rule, steps, updates, start and start.name)
            found[rule, steps] = start
            for interval in config.learn.intervals:
                limited = _rollout_task(problem, config, rule, steps, updates, start.name, interval)
                found[rule, steps, interval] = limited
    return list(found.values())


def _rollout_task(
    problem, config, rule: str, steps: int, updates: int, start: str | None, interval: tuple | None = None
) -> Task:
    learn = config.learn
    recipe = _recipe(problem, config)._replace(
        objective=ROLLOUT, steps=steps, step=step_of(config), interval=interval, updates=updates,
        learning_rate=learn.rollout_learning_rate, particles=learn.rollout_batch, real=learn.rollout_real,
        groups=learn.rollout_conditions, remat=learn.remat,
    )  # fmt: skip
    line = ROLLOUT if rule == "cfg" else f"{ROLLOUT} {shortened(rule, LEARNABLE)}"
    if interval:
        line += f" {written(interval[0])} to {written(interval[1])}"
    family = ROLLOUT if rule == "cfg" else rule
    trained = _trained(problem, recipe, rule)
    return Task(f"{line}@{steps}", recipe, *trained, start, rule, family, line)


def _one_step_task(problem, config, objective: str, gamma: float) -> Task:
    learn = config.learn
    settings = learning.OneStep(
        learn.particles, learn.beta, learn.lambda_, learn.churn, learn.s_min, learn.zeta, learn.delta
    )
    recipe = _recipe(problem, config)._replace(
        objective=objective, updates=learn.iterations, learning_rate=learn.learning_rate, batch=learn.batch,
        one_step=settings, reward=problem.reward, gamma=gamma,
    )  # fmt: skip
    name = f"{objective} + {written(gamma)} reward" if gamma > 0 else objective
    return Task(name, recipe, *_trained(problem, recipe, "cfg"), family=objective, line=name)


def _recipe(problem, config) -> Recipe:
    """Returns what all recipes of a config share."""
    learn, features = config.learn, problem.instrument and problem.instrument.features
    return Recipe(width=learn.width, depth=learn.depth, embedding=learn.embedding, head=learn.head, features=features)


def _trained(problem, recipe: Recipe, rule: str) -> tuple[Callable, Callable]:
    """Returns loss and weight of a Task."""
    model, draws = problem.model, problem.data
    net = training.network(model.conditions, recipe)
    weight = training.weight_of(net, model.schedule, recipe)

    def loss(params, key, base, data):
        truth = Truth(
            lambda key, n: draws.draw(key, data, n), lambda key, k, conditions: draws.real(key, data, k, conditions)
        )
        guided = model_of(problem, construct.rule(rule), base)
        return training.loss(key, guided, weight(params), truth, model.conditions, recipe)

    return loss, weight


def run(problem, config, workdir, bases: list | None = None) -> dict[str, list]:
    """Returns {task name: [params for each seed]}, learned or restored, and writes each as a file in weights/.

    The params are those after the last update or, with learn.select_every, the best on the way (see `selection`).
    bases: what `train.run` returns, where it has run. Raises ConfigError for a problem without the parts that are
    needed.
    """
    require(problem, config.job, "data", *["instrument"] * (config.learn.select_every > 0))
    bases, found, learned = bases or train.run(problem, config, workdir), tasks(problem, config), {}
    given = {rule: bases_of(problem, config, workdir, rule, bases) for rule in dict.fromkeys(t.rule for t in found)}
    for task in found:
        learned[task.name] = _learn(problem, config, workdir, task, given[task.rule], learned.get(task.start))
        launch.first(lambda task=task: _write(problem, config, workdir, task, learned[task.name]))
    return learned


def _write(problem, config, workdir, task: Task, learned: list) -> None:
    """Writes the learned weights as files that can be listed, plotted and sampled with."""
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
    """Returns the learned params for each seed, from those in `starts` or from the network's first ones."""
    recipe, conditions, data = task.recipe, problem.model.conditions, problem.data.arrays
    optimizer, net = training.optimizer(recipe.rate, recipe.updates), network(problem, config)

    def one_update(state, i, key, base, data):
        loss = functools.partial(task.loss, base=base, data=data)
        params, opt_state, figures = learning.update(jax.random.fold_in(key, i), optimizer, loss, *state)
        return (params, opt_state), figures

    one_update = compiled(one_update)
    marks = selection.marks(config.learn.select_every, recipe.updates)
    choose = selection.chooser(problem, config, task, marks, workdir / "selection.jsonl")
    learned = []
    for i, base in enumerate(bases):
        seed = config.seed + i
        key = jax.random.fold_in(jax.random.key(seed), 2)
        with progress.waiting(f"{task.name}, seed {seed}: initial params"):
            params = starts[i] if starts else training.initial(jax.random.fold_in(key, 0), net, conditions)
        folder = workdir / "guidance" / task.file / f"seed_{seed}"
        state, _ = fit(
            f"{task.name}, seed {seed}",
            folder,
            workdir / "metrics.jsonl",
            (params, optimizer.init(params)),
            lambda carry, i, key=key, base=base: one_update(carry, i, jax.random.fold_in(key, 1), base, data),
            recipe.updates,
            config.learn.checkpoint_every,
            marks=marks,
            at_mark=lambda step, state, folder=folder: checkpoints.save(
                checkpoints.kept(folder, step), step, state[0]
            ),
        )
        learned.append(choose(seed, base, folder, state) if marks else mesh.local(state))
    return learned
