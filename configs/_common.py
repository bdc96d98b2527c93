"""What experiments share: groups of fields with their usual values; each experiment names what it has of its own."""

from ml_collections import config_dict


def training(**own) -> config_dict.ConfigDict:
    """The group `base`: a base denoiser that is trained in the job."""
    common = {
        "learning_rate": 1e-3,
        "condition_dropout": 0.1,
        "guidance_matched": 0.0,
        "accumulate": 1,
        "weighting": "prediction",
        "averages": (),
        "keep": (),
        "pictures": 0,
    }
    return config_dict.ConfigDict(common | own)


def learning(**own) -> config_dict.ConfigDict:
    """The group `learn`. particles, beta, lambda_ and churn are the paper's (arXiv 2510.00815); the rest is ours."""
    common = {
        "objectives": ("self_consistency", "l2", "rollout"),
        "rules": ("cfg",),
        "particles": 4,
        "beta": 1.75,
        "lambda_": 1.0,
        "delta": 0.1,
        "s_min": 0.01,
        "zeta": 0.01,
        "churn": 1.0,
        "learning_rate": 1e-3,
        "width": 64,
        "depth": 6,
        "embedding": 32,
        "gammas": (0.0,),
        "remat": "none",
        "rollout_learning_rate": 5e-3,
        "checkpoint_every": 200,
    }
    return config_dict.ConfigDict(common | own)


def evaluation(**own) -> config_dict.ConfigDict:
    """The group `eval`."""
    common = {
        "sweep_seeds": 5, "samples": 2000, "clamp": (1.0,), "others": (), "weak": 0, "sampler": "ddim", "churn": 0.0
    }  # fmt: skip
    return config_dict.ConfigDict(common | own)
