"""Jobs: train a base denoiser, learn guidance, evaluate, report. `run` does the part that config.job names."""

from experiments import leaderboard, problems
from experiments.jobs import evaluate, learn, report, train


def run(config, workdir) -> None:
    """Runs one job, or with config.job = "all" the chain; what is already done is restored, not repeated."""
    if config.job == "leaderboard":
        leaderboard.run(config, workdir)
        return
    problem = problems.build(config)
    if config.job in ("all", "train"):
        train.run(problem, config, workdir)
    if config.job in ("all", "learn"):
        learn.run(problem, config, workdir)
    if config.job in ("all", "evaluate"):
        evaluate.run(problem, config, workdir)
    if config.job in ("all", "report"):
        report.run(problem, config, workdir)
