"""Jobs: train a base denoiser, learn guidance, evaluate, report; sample; encode. `run` runs what config.job names."""

from jax.tree_util import Partial

from experiments import problems
from experiments.jobs import encode, evaluate, learn, report, sample, train
from experiments.problems import construct, interface
from experiments.runtime import mesh, sizes


def run(config, workdir) -> None:
    """Runs one job or, with config.job = "all", the chain. What an earlier command has done is restored, not repeated.

    Raises ConfigError, in one line, for what does not fit this machine.
    """
    sizes.check(config, mesh.memory())
    with sizes.in_one_line():
        _run(config, workdir)


def _run(config, workdir) -> None:
    if config.job == "encode":
        encode.run(config, workdir)
        return
    with interface.refusing():
        problem = in_data_parallel(problems.build(config, workdir))
    construct.check(config, problem.model)
    bases = learned = None
    if config.job in ("all", "train"):
        bases = train.run(problem, config, workdir)
    if config.job in ("all", "learn"):
        learned = learn.run(problem, config, workdir, bases)
    if config.job in ("all", "evaluate"):
        evaluate.run(problem, config, workdir, bases, learned)
    if config.job in ("all", "report"):
        report.run(problem, config, workdir, bases, learned)
    if config.job == "sample":
        sample.run(problem, config, workdir)


def in_data_parallel(problem: interface.Problem) -> interface.Problem:
    """Returns the problem with the batches that it draws, and the batches of its networks, cut over the devices."""

    model, data = problem.model, problem.data

    def apply(params, *arguments):
        return mesh.spreading(Partial(model.network.apply, params))(*arguments)

    return problem._replace(
        model=model._replace(
            network=model.network and model.network._replace(apply=apply),
            denoise=lambda params: mesh.spreading(model.denoise(params)),
        ),
        data=data
        and data._replace(
            draw=lambda key, arrays, n: mesh.spread(data.draw(key, arrays, n)),
            arrays=mesh.shard(data.arrays),
        ),
    )
