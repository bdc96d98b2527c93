"""Reference trajectories of diffusers' schedulers, reproduced with our samplers on their noise levels and models.

Of the 110 stored cases those are here whose scheduler is in our catalogue. Not here: DEIS, PNDM, LMS, KDPM2, LCM, TCD
and consistency schedulers, DPM-Solver in noise prediction, third-order or "heun"-type DPM-Solver++, DDPM with the
larger variance (none of them is in the catalogue); loops of the `scaled` kind, which overwrite the state with the
network's input (a mistake of the official tests; their `proper` twins are here); and single-step DPM-Solver++ begun in
the middle of a pair.

Conventions that differ, and how each is met:
- diffusers' UniPC, and its DPM-Solver++ with `lower_order_final` and fewer than 15 steps, lower the order of the last
  steps also where sigma > 0 at the end; ours only on a step to sigma = 0. The states before are compared.
- its single-step solver takes the inner evaluation from the grid: two of its steps are one of `dpmpp_2s(fraction)`.
- its Heun schedulers list predictions between the states: every other state is compared.
- its clipped DDIM keeps the noise of the unclipped prediction (Guided names both), its DDPM does not.
- its flow shift is applied twice (to the ends, and to what lies between); the stored noise levels are used.
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, sampling
from guidance.sampling.solvers import no_memory
from guidance.schedules import rectified_flow
from guidance.types import Guide, Guided, Schedule
from tests.samplers import driven, unasked

TRAIN_STEPS = 1000


@functools.cache
def _cases(folder):
    return {case["name"]: case for case in json.loads((folder / "scheduler_goldens.json").read_text())["cases"]}


@functools.cache
def _trajectories(folder):
    with np.load(folder / "scheduler_trajectories.npz") as file:
        return {name: np.asarray(file[name], np.float64) for name in file}


# ---- noise levels


def _alphas_cumprod(config) -> np.ndarray:
    """alpha^2 of the discrete variance-preserving schedules."""
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        betas = np.linspace(start, end, TRAIN_STEPS)
    elif kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, TRAIN_STEPS) ** 2
    else:  # squaredcos_cap_v2
        bar = np.cos((np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    cumprod = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(cumprod)
        cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return cumprod


def _discrete_levels(case) -> tuple[np.ndarray, np.ndarray]:
    """sigma/alpha at the visited timesteps of DDIM and DDPM, and at the end; and the timesteps."""
    config = case["config"]
    every = case["scheduler"] == "DDPMScheduler"  # stored with all 1000 steps
    timesteps = np.arange(TRAIN_STEPS)[::-1] if every else np.asarray(case["timesteps"], int)
    bar = _alphas_cumprod(config)
    last = bar[0] if config.get("set_alpha_to_one") is False else 1.0
    if case["scheduler"] == "DDIMInverseScheduler":
        # the model is asked for the timestep that the step goes to
        bar = np.concatenate([[last], bar[timesteps]])
    else:
        bar = np.concatenate([bar[timesteps], [last]])
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - bar) / bar), timesteps


def _table(levels, kind: str) -> tuple[Schedule, jax.Array]:
    """A schedule that has the noise levels at the times of the returned grid, and is interpolated between them."""
    n = len(levels) - 1
    nodes = np.linspace(1, 0, n + 1) if levels[0] > levels[-1] else np.linspace(0, 1, n + 1)
    if kind == "ve":
        alphas, sigmas = np.ones(n + 1), levels
    else:
        alphas = 1 / np.sqrt(1 + levels**2)
        sigmas = np.where(np.isinf(levels), 1.0, np.where(np.isinf(levels), 0, levels) * alphas)
    with np.errstate(divide="ignore"):
        log_snr = np.clip(-2 * np.log(levels), -80, 80)
    order = np.argsort(nodes)
    nodes, alphas, sigmas, log_snr = (jnp.asarray(a[order]) for a in (nodes, alphas, sigmas, log_snr))
    alpha, sigma, level = (Partial(_interpolate, nodes, values) for values in (alphas, sigmas, log_snr))
    time = Partial(_interpolate, -log_snr, nodes, sign=-1)
    schedule = Schedule(alpha, sigma, level, time, Partial(jnp.zeros_like), Partial(jnp.zeros_like))
    return schedule, nodes[np.argsort(order)]


def _interpolate(places, values, at, sign=1):
    return jnp.interp(sign * at, places, values)


# ---- models


def _output(x, timestep):
    return x * timestep / (timestep + 1)


class _Model(NamedTuple):
    """What of a case decides the operations, not the numbers: cases that agree in it compile once."""

    scheduler: str
    kind: str
    scaled: bool
    gaussian: bool
    limits: tuple | None


def _model(case) -> _Model:
    config = case["config"]
    limits = (-1, 1) if config.get("clip_sample") else None
    if config.get("thresholding"):
        limits = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
    family = next((word for word in ("EDM", "DDIM") if case["scheduler"].startswith(word)), "other")
    kind = config.get("prediction_type") or "epsilon"
    return _Model(family, kind, case["loop"] == "proper", case["name"].startswith("gauss"), limits)


def _limited(limits, x0):
    """Clipping, or dynamic thresholding as Imagen's."""
    if limits in (None, (-1, 1)):
        return x0 if limits is None else jnp.clip(x0, -1, 1)
    ratio, largest = limits
    scale = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), ratio, axis=1)
    scale = jnp.minimum(jnp.maximum(scale, 1), largest).reshape(-1, *[1] * (x0.ndim - 1))
    return jnp.clip(x0, -scale, scale) / scale


def _prediction(model: _Model, x, alpha, sigma, timestep):
    """x_0 and the network's own noise."""
    if model.gaussian:
        eps = (x - 0.3 * alpha) * sigma / (0.25 * alpha**2 + sigma**2)
        return (x - sigma * eps) / alpha, eps
    if model.scheduler == "EDM":
        data = 0.5
        norm = jnp.sqrt(sigma**2 + data**2)
        out = _output(x / norm if model.scaled else x, timestep)
        sign = -1 if model.kind == "v_prediction" else 1
        x0 = (data / norm) ** 2 * x + sign * sigma * data / norm * out
        return x0, (x - x0) / sigma
    length = jnp.sqrt(alpha**2 + sigma**2)  # variance-exploding states are scaled for the network
    x, alpha, sigma = x / length, alpha / length, sigma / length
    out = _output(x, timestep)
    if model.kind == "epsilon":
        return (x - sigma * out) / alpha, out
    if model.kind == "v_prediction":
        return alpha * x - sigma * out, alpha * out + sigma * x
    return out, (x - alpha * out) / sigma


@dataclasses.dataclass(frozen=True)
class _Ask:
    model: _Model

    def __call__(self, times, stamps, state, denoise, schedule, x, *, t, s, cond):
        timestep, alpha, sigma = (a[0] for a in (jnp.interp(t, times, stamps), schedule.alpha(t), schedule.sigma(t)))
        x0, eps = _prediction(self.model, x, alpha, sigma, timestep)
        x0 = _limited(self.model.limits, x0)
        if self.model.scheduler != "DDIM":
            eps = (x - alpha * x0) / sigma
        return state, Guided(x0, eps, {"positive": jnp.ones((), jnp.int32)})


def _guide(case, nodes, timesteps) -> Guide:
    order = np.argsort(nodes)
    stamps = jnp.asarray(np.asarray(timesteps, np.float64)[order])
    return Guide(Partial(no_memory), Partial(_Ask(_model(case)), nodes[order], stamps))


# ---- cases

VP_2M = ["dpmpp_2m", "dpmpp_2m_with_noise", "dpmpp_2m_thres", "dpmpp_2m_v", "dpmpp_2m_karras_v", "dpmpp_2m_lu_v"]
PLAIN = {
    **dict.fromkeys(
        [
            "ddim_eps", "ddim_v", "ddim_set_alpha_to_one", "ddim_no_set_alpha_to_one", "ddim_with_noise",
            "ddim_eps_noclip", "ddim_sample_noclip", "ddim_v_trailing_zsnr", "ddim_scaled_linear_noclip",
            "ddim_cosine_noclip", "ddim_thresholding", "ddim_inverse_eps", "ddim_inverse_v", "gauss_ddim_10",
            "gauss_ddim_20", "dpmpp_o1_midpoint_sigma_min", "dpmpp_o1_midpoint_zero", "dpmpp_o1_heun_sigma_min",
            "dpmpp_o1_heun_zero", "euler_eps_proper", "euler_v_proper", "euler_karras_proper", "edm_euler",
            "edm_euler_karras18",
        ],
        sampling.ddim(),
    ),
    **dict.fromkeys(
        [
            *VP_2M, "dpmpp_o2_midpoint_zero", "dpmpp_2m_karras_zero", "dpm_inverse", "gauss_dpmpp2m_20",
            "edm_dpmpp_2m", "edm_dpmpp_2m_with_noise", "edm_dpmpp_2m_thres", "edm_dpmpp_2m_v", "edm_dpmpp_2m_proper",
        ],
        sampling.dpmpp_2m(),
    ),
    **dict.fromkeys(["ddim_eta1_noclip", "sde_dpmpp_o1", "euler_ancestral_proper"], sampling.ddpm()),
    "sde_dpmpp_o2": sampling.dpmpp_2m_sde(),
    **dict.fromkeys(["heun_eps_proper", "heun_karras_proper", "heun_v_proper"], sampling.edm()),
    "unipc_bh1_o1": sampling.unipc(1, "bh1"),
    "unipc_bh2_o1": sampling.unipc(1),
}  # fmt: skip
# these lower the order of their last steps: how many states at the end are left out
LOWERED = {
    "gauss_dpmpp2m_10": (sampling.dpmpp_2m(), 1),
    **dict.fromkeys(
        [
            "unipc_bh2_o2", "unipc_karras", "unipc_v", "unipc_karras_v", "unipc_with_noise", "unipc_1d",
            "unipc_1d_karras", "unipc_1d_with_noise", "gauss_unipc_10", "gauss_unipc_20",
        ],
        (sampling.unipc(), 1),
    ),
    "unipc_bh1_o2": (sampling.unipc(2, "bh1"), 1),
    "unipc_bh1_o3": (sampling.unipc(3, "bh1"), 2),
    "unipc_bh2_o3": (sampling.unipc(3), 2),
}  # fmt: skip
SINGLE = ["dpmpp_single", "dpmpp_single_karras", "dpmpp_single_v", "dpmpp_single_karras_v"]
FLOW = ["flow_euler_shift1", "flow_euler_shift3", "flow_heun_shift1", "flow_heun_shift3"]


def _setting(case):
    """(schedule, grid, guide) of a case, from where it starts."""
    heun = "Heun" in case["scheduler"]
    if case["sigmas"] is None:
        levels, timesteps = _discrete_levels(case)
    else:
        levels, timesteps = np.asarray(case["sigmas"], np.float64), np.asarray(case["timesteps"])
    if heun:  # levels and timesteps are repeated for the second evaluation
        levels = np.concatenate([levels[0::2], levels[-1:]])
        timesteps = np.concatenate([timesteps[:1], timesteps[1::2]])
    kind = "ve" if any(word in case["scheduler"] for word in ("Euler", "Heun", "EDM")) else "vp"
    schedule, grid = _table(levels, kind)
    stamps = np.concatenate([timesteps, [0]])[: len(levels)]
    guide = _guide(case, grid, stamps)
    return schedule, grid[case.get("t_start", 0) :], guide


# the references ran in float32: rounding of some tens of steps, relative to the size of each state
_run = jax.jit(
    lambda solver, guide, schedule, grid, x, noise: driven(solver, unasked, guide, schedule, grid, x, None, noise)
)


def _close(got, expected):
    scale = np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True)
    np.testing.assert_array_less(np.abs(got - expected), np.broadcast_to(2e-5 * scale + 1e-12, expected.shape))


@pytest.fixture
def goldens(shared):
    return shared / "golden" / "diffusers_goldens"


@pytest.mark.parametrize("name", [*PLAIN, *LOWERED])
def test_reference_trajectories(name, goldens, x64):
    case, files = _cases(goldens)[name], _trajectories(goldens)
    solver, left_out = (PLAIN[name], 0) if name in PLAIN else LOWERED[name]
    expected = files[f"{name}/traj"]
    if "Heun" in case["scheduler"]:
        expected = np.concatenate([expected[::2], expected[-1:]])
    schedule, grid, guide = _setting(case)
    steps = len(expected) - 1
    assert len(grid) == len(expected)
    noise = files.get(f"{name}/noise", np.zeros((steps, *expected.shape[1:])))
    noise = np.concatenate([noise, np.zeros((steps - len(noise), *expected.shape[1:]))])[:, None]
    got = _run(sampling.as_solver(solver), guide, schedule, grid, jnp.asarray(expected[0]), jnp.asarray(noise))
    kept = len(expected) - left_out
    _close(np.asarray(got)[:kept], expected[:kept])


@pytest.mark.parametrize("name", SINGLE)
def test_single_step_references(name, goldens, x64):
    """Two steps of the reference: DDIM to the inner time, then the whole step of `dpmpp_2s`."""
    case, expected = _cases(goldens)[name], _trajectories(goldens)[f"{name}/traj"]
    schedule, grid, guide = _setting(case)
    lam = 0.5 * schedule.log_snr(grid)

    def one(solver, grid, x):
        noise = jnp.zeros((1, 1, *x.shape))
        return np.asarray(_run(sampling.as_solver(solver), guide, schedule, grid, jnp.asarray(x), noise))[-1]

    for i in range(0, len(grid) - 1, 2):
        fraction = (lam[i + 1] - lam[i]) / (lam[i + 2] - lam[i])
        _close(one(sampling.ddim(), grid[i : i + 2], expected[i])[None], expected[i + 1][None])
        whole = one(sampling.dpmpp_2s(fraction), grid[i : i + 3 : 2], expected[i])
        _close(whole[None], expected[i + 2][None])


def _flow_model(x, t, cond):
    return x - t[0] * _output(x, TRAIN_STEPS * t[0])


@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_references(name, goldens, x64):
    """Rectified flow, where Euler and DDIM are one, on the shifted grids."""
    case, expected = _cases(goldens)[name], _trajectories(goldens)[f"{name}/traj"]
    levels, heun = np.asarray(case["sigmas"], np.float64), "Heun" in case["scheduler"]
    if heun:
        levels, expected = np.concatenate([levels[0::2], levels[-1:]]), np.concatenate([expected[::2], expected[-1:]])
    grid, x = sampling.as_grid(levels), jnp.asarray(expected[0])
    for solver in [sampling.heun()] if heun else [sampling.euler(), sampling.ddim()]:
        out = sampling.sample(
            jax.random.key(0), _flow_model, guides.unguided(), solver, rectified_flow(), grid, x, None, trajectory=True
        )
        _close(np.asarray(out.trajectory), expected)
    shift = case["config"]["shift"]
    ends = shift / (1 + (shift - 1)), shift * 0.001 / (1 + (shift - 1) * 0.001)
    if not heun:  # the reference shifts its ends, spaces evenly, and shifts again
        ours = sampling.shifted(rectified_flow(), jnp.linspace(*ends, len(levels) - 1), shift)
        np.testing.assert_allclose(ours, levels[:-1], rtol=1e-6)


# ---- noise streams of the reference


def _torch_normal(stream: np.random.RandomState, n: int) -> np.ndarray:
    """torch's CPU normals: Box-Muller on blocks of sixteen 24-bit uniforms of a Mersenne twister."""
    raw = stream.randint(0, 2**32, n, dtype=np.uint32).reshape(-1, 2, 8)
    uniform = (raw & 0xFFFFFF) / 2**24
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(n)


@pytest.mark.parametrize("name", ["ddpm_1000_eps", "ddpm_1000_v"])
def test_ancestral_references(name, goldens, x64):
    """1000 steps of DDPM with clipping, on the noise of seed 0; ten states of the trajectory are stored."""
    case, expected = _cases(goldens)[name], _trajectories(goldens)[f"{name}/traj"]
    schedule, grid, guide = _setting(case)
    stream, shape = np.random.RandomState(0), expected.shape[1:]
    noise = np.stack([_torch_normal(stream, int(np.prod(shape))).reshape(shape) for _ in range(len(grid) - 2)])
    noise = np.concatenate([noise, np.zeros((1, *shape))])[:, None]
    solver = sampling.as_solver(sampling.ddpm())
    got = np.asarray(_run(solver, guide, schedule, grid, jnp.asarray(expected[0]), jnp.asarray(noise)))
    np.testing.assert_allclose(got[np.asarray(case["traj_kept_indices"])], expected, atol=2e-4)


def test_rectified_flow_reference(shared, x64):
    """Five "linear-quadratic" steps; the start and every velocity are the next normals of one stream of seed 42."""
    folder = shared / "golden" / "maxdiffusion_rf"
    expected = [
        np.load(folder / "step_00_noisy_input.npy"),
        *(np.load(folder / f"step_0{i}.npy") for i in range(1, 6)),
    ]
    stream = np.random.RandomState(42)
    start, *velocities = [_torch_normal(stream, expected[0].size).reshape(expected[0].shape) for _ in range(6)]
    grid = sampling.as_grid(1 - np.cumsum([0, 0.0125, 0.0125, 7 / 60, 0.325, 8 / 15 - 1e-15]))
    table = jnp.asarray(np.stack(velocities))

    def denoise(x, t, cond):
        return x - t[0] * table[jnp.argmin(jnp.abs(grid - t[0]))]

    x = jnp.asarray(start)
    out = sampling.sample(
        jax.random.key(0), denoise, guides.unguided(), sampling.euler(), rectified_flow(), grid, x, None,
        trajectory=True,
    )  # fmt: skip
    np.testing.assert_allclose(out.trajectory, np.stack(expected), atol=5e-6)
