"""Jobs: train a base denoiser, learn guidance, evaluate, report; sample; encode. `run` does what config.job names."""

from jax.tree_util import Partial

from experiments import launch, leaderboard, mesh, problems
from experiments.config import ConfigError
from experiments.jobs import encode, evaluate, learn, report, sample, train


def run(config, workdir) -> None:
    """Runs one job, or with config.job = "all" the chain; what is already done is restored, not repeated."""
    if config.job == "leaderboard":
        if launch.several():
            raise ConfigError("job = leaderboard: allowed: one process")
        leaderboard.run(config, workdir)
        return
    if config.job == "encode":
        encode.run(config, workdir)
        return
    try:
        problem = in_data_parallel(problems.build(config, workdir))
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:  # what a user's files are not
        raise ConfigError(str(error)) from error
    if config.job in ("all", "train"):
        train.run(problem, config, workdir)
    if config.job in ("all", "learn"):
        learn.run(problem, config, workdir)
    if config.job in ("all", "evaluate"):
        evaluate.run(problem, config, workdir)
    if config.job in ("all", "report"):
        report.run(problem, config, workdir)
    if config.job == "sample":
        sample.run(problem, config, workdir)


def in_data_parallel(problem: problems.Problem) -> problems.Problem:
    """The same problem with the batches that it draws and that its networks see cut over the devices."""

    def apply(params, *arguments):
        return mesh.spreading(Partial(problem.network.apply, params))(*arguments)

    return problem._replace(
        network=problem.network and problem.network._replace(apply=apply),
        denoise=lambda params: mesh.spreading(problem.denoise(params)),
        draw=lambda data, key, n: mesh.spread(problem.draw(data, key, n)),
        data=mesh.shard(problem.data),
    )
