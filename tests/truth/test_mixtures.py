"""Mixtures: every closed form against Bayes' rule, autodiff, scipy or exact sampling statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance import schedules
from guidance.truth import mixtures
from tests import oracles
from tests.oracles import FORMS, MEANS, NAMES, PRIOR, WEIGHTS, covariances, example, points

# ---- construction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(means=[], covariances=1.0), "at least one class"),
        (dict(means=[[1.0, 2.0]], covariances=1.0), r"array \[modes, d\]"),
        (dict(means=[[[1.0]], [[1.0, 2.0]]], covariances=1.0), "same dimension"),
        (dict(means=[[[np.nan]]], covariances=1.0), "means: must be finite"),
        (dict(means=[[[1.0]]], covariances=0.0), "must be positive"),
        (dict(means=[[[1.0]]], covariances=[1.0, 2.0]), "expected 1 classes, got 2"),
        (dict(means=[[[1.0]], [[2.0]]], covariances=[[1.0], [[1.0]]]), "same form"),
        (dict(means=[[[1.0, 0.0]]], covariances=[[[1.0, 1.0, 1.0]]]), "each class needs"),
        (dict(means=[[[1.0, 0.0]]], covariances=[[[[1.0, 0.5], [0.0, 1.0]]]]), "symmetric"),
        (dict(means=[[[1.0, 0.0]]], covariances=[[[[1.0, 2.0], [2.0, 1.0]]]]), "definite"),
        (dict(means=[[[1.0]]], covariances=1.0, weights=[[1.0, 1.0]]), "weights of class 0: expected 1"),
        (dict(means=[[[1.0]]], covariances=1.0, weights=[[-1.0]]), "non-negative"),
        (dict(means=[[[1.0]]], covariances=1.0, weights=[]), "weights: expected 1 classes"),
        (dict(means=[[[1.0]]], covariances=1.0, class_prior=[0.0]), "class_prior: the sum"),
    ],
)
def test_from_classes_names_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        mixtures.from_classes(**arguments)
    assert "\n" not in str(caught.value)


def test_null_row_is_the_average_of_the_classes():
    mixture = example("isotropic")
    np.testing.assert_allclose(np.exp(mixture.log_weights), oracles.mode_probabilities(), rtol=1e-6)
    assert mixture.null == 2
    pair = oracles.cfg_1d()
    np.testing.assert_array_equal(pair.log_weights[pair.null], pair.log_weights[1])


def test_unknown_label_gives_nan_not_another_class():
    mixture = example("isotropic")
    x, t = jnp.zeros((2, 2)), jnp.full(2, 0.5)
    out = mixtures.denoise(mixture, schedules.by_name("cosine"))(x, t, jnp.array([2, 3]))
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


# ---- densities


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_log_density_is_that_of_scipy(form, name):
    with jax.enable_x64(True):
        mixture, schedule = example(form), schedules.by_name(name)
        x, t, cond = points()
        t = t.at[:3].set(0.0).at[3:6].set(1.0)
        actual = mixtures.log_density(mixture, schedule, x, t, cond)
        modes = np.concatenate(MEANS)
        for i in range(len(x)):
            a, s = float(schedule.alpha(t[i])), float(schedule.sigma(t[i]))
            density = [
                scipy.stats.multivariate_normal(a * m, a**2 * c + s**2 * np.eye(2)).pdf(x[i])
                for m, c in zip(modes, oracles.covariance_matrices(form), strict=True)
            ]
            np.testing.assert_allclose(actual[i], np.log(oracles.mode_probabilities()[cond[i]] @ density), rtol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_gradient_and_denoiser_is_tweedie(form, name):
    with jax.enable_x64(True):
        mixture, schedule = example(form), schedules.by_name(name)
        x, t, cond = points()
        t = t.at[:3].set(0.0)
        gradient = jax.grad(lambda x: mixtures.log_density(mixture, schedule, x, t, cond).sum())(x)
        score = mixtures.score(mixture, schedule, x, t, cond)
        np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
        tweedie = (x + schedule.sigma(t)[:, None] ** 2 * score) / schedule.alpha(t)[:, None]
        # Tweedie divides by alpha (down to .04 here) and subtracts terms of size sigma^2 score (|x| up to 100 in EDM).
        x0 = mixtures.denoise(mixture, schedule)(x, t, cond)
        np.testing.assert_allclose(x0, tweedie, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(x0[:3], x[:3], rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_posterior_and_reverse_kernel_obey_bayes(form, name):
    """p(x_0|x_t) p(x_t) = p(x_0) p(x_t|x_0) and p(x_s|x_t) p(x_t) = p(x_s) p(x_t|x_s), pointwise."""
    with jax.enable_x64(True):
        mixture, schedule = example(form), schedules.by_name(name)
        x, t, cond = points()
        y = points(seed=1)[0]
        s = t * jnp.linspace(0.1, 0.95, len(t))

        def gaussian(x, mean, variance):
            return (-0.5 * (x - mean) ** 2 / variance[:, None] - 0.5 * jnp.log(2 * np.pi * variance)[:, None]).sum(-1)

        p_t = mixtures.log_density(mixture, schedule, x, t, cond)
        for earlier in (jnp.zeros_like(t), s):
            kernel = mixtures.reverse_kernel(mixture, schedule, x, t=t, s=earlier, cond=cond)
            forward = (schedule.alpha(t) / schedule.alpha(earlier))[:, None]
            spread = schedule.sigma(t) ** 2 - forward[:, 0] ** 2 * schedule.sigma(earlier) ** 2
            right = mixtures.log_density(mixture, schedule, y, earlier, cond) + gaussian(x, forward * y, spread)
            np.testing.assert_allclose(mixtures.law_log_density(kernel, y) + p_t, right, rtol=1e-8)
        law = mixtures.posterior(mixture, schedule, x, t, cond)
        chex.assert_trees_all_close(
            law, mixtures.reverse_kernel(mixture, schedule, x, t=t, s=jnp.zeros_like(t), cond=cond), atol=1e-12
        )
        np.testing.assert_allclose(mixtures.law_mean(law), mixtures.denoise(mixture, schedule)(x, t, cond), rtol=1e-12)


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(NAMES),
    st.floats(0.05, 0.95),
    st.sampled_from([1, 3]),
    st.sampled_from(FORMS),
)
def test_random_mixtures_obey_bayes(seed, name, time, dim, form):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        counts = (2, 1, 3)
        shape = {"isotropic": (), "diagonal": (dim,), "full": (dim, dim)}[form]
        spread = [rng.uniform(0.1, 2, (k, *shape)) for k in counts]
        if form == "full":
            spread = [r @ r.swapaxes(1, 2) + 0.1 * np.eye(dim) for r in spread]
        mixture = mixtures.from_classes(
            [rng.normal(size=(k, dim)) * 3 for k in counts], spread, [rng.uniform(0.1, 1, k) for k in counts]
        )
        schedule, t, cond = schedules.by_name(name), jnp.full(4, time), jnp.arange(4)
        x0, eps = jnp.asarray(rng.normal(size=(2, 4, dim)))
        x = schedules.diffuse(schedule, x0, eps, t)
        log_noise = -0.5 * jnp.sum(eps**2, -1) - dim * jnp.log(jnp.sqrt(2 * jnp.pi) * schedule.sigma(t))
        left = mixtures.law_log_density(jax.jit(mixtures.posterior)(mixture, schedule, x, t, cond), x0)
        log_density = jax.jit(mixtures.log_density)
        left += log_density(mixture, schedule, x, t, cond)
        right = log_density(mixture, schedule, x0, jnp.zeros(4), cond) + log_noise
        np.testing.assert_allclose(left, right, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_two_ends_of_time(form):
    mixture = example(form)
    x, _, cond = points()
    zero, one, half = (jnp.full(len(x), v) for v in (0.0, 1.0, 0.5))
    for name in NAMES:
        schedule = schedules.by_name(name)
        denoise = mixtures.denoise(mixture, schedule)
        np.testing.assert_allclose(denoise(x, zero, cond), x, rtol=1e-5, atol=1e-5)
        still = mixtures.reverse_kernel(mixture, schedule, x, t=half, s=half, cond=cond)
        np.testing.assert_allclose(still.means - x[:, None], np.zeros_like(still.means), atol=1e-5)
        np.testing.assert_allclose(still.variances, np.zeros_like(still.variances), atol=1e-6)
        for t, s in ((zero, zero), (one, zero), (one, half), (one, one)):
            drawn = mixtures.reverse_sample(jax.random.key(0), mixture, schedule, x, t=t, s=s, cond=cond)
            assert np.isfinite(drawn).all()
    for name in ("rectified_flow", "cosine"):  # alpha = 0 at t = 1: x says nothing
        schedule = schedules.by_name(name)
        np.testing.assert_allclose(
            mixtures.denoise(mixture, schedule)(x, one, cond), mixtures.moments(mixture, cond)[0], rtol=1e-5, atol=1e-6
        )
        kernel = mixtures.reverse_kernel(mixture, schedule, x, t=one, s=half, cond=cond)
        chex.assert_trees_all_close(
            mixtures.law_log_density(kernel, x), mixtures.log_density(mixture, schedule, x, half, cond), rtol=1e-5
        )


def test_bridge_keeps_the_marginals_and_has_the_published_values():
    with jax.enable_x64(True):
        s, t = (jnp.array(v) for v in zip((0.5, 0.6), (0.3, 0.5), (0.4, 0.9), (0.01, 0.99), strict=True))
        for name in NAMES:
            schedule = schedules.by_name(name)
            a, b, v = mixtures.bridge(schedule, t=t, s=s)
            np.testing.assert_allclose(a * schedule.alpha(t) + b, schedule.alpha(s), rtol=1e-12)
            np.testing.assert_allclose(a**2 * schedule.sigma(t) ** 2 + v, schedule.sigma(s) ** 2, rtol=1e-12)
        published = [  # KER-5, churn 1
            (0.55555556, 0.27777778, 0.13888889),
            (0.25714286, 0.57142857, 0.07346939),
            (0.03292181, 0.59670782, 0.15912209),
        ]
        actual = mixtures.bridge(schedules.by_name("rectified_flow"), t=t[:3], s=s[:3])
        np.testing.assert_allclose(np.stack(actual, -1), published, atol=1e-8)


# ---- exact sampling; bounds of 5 standard errors


@pytest.mark.parametrize("form", FORMS)
def test_moments_and_samples(form):
    mixture, n = example(form), 20_000
    modes, covariance = np.concatenate(MEANS), oracles.covariance_matrices(form)
    for c, weights in enumerate(oracles.mode_probabilities()):
        mean = weights @ modes
        spread = sum(
            w * (v + np.outer(m - mean, m - mean)) for w, m, v in zip(weights, modes, covariance, strict=True)
        )
        actual = mixtures.moments(mixture, jnp.array([c]))
        np.testing.assert_allclose(actual[0][0], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(actual[1][0], spread, rtol=1e-5, atol=1e-6)
        x = np.asarray(mixtures.sample(jax.random.key(c), mixture, jnp.full(n, c)), np.float64)
        assert (np.abs(x.mean(0) - mean) < 5 * oracles.standard_error(x)).all()
        squares = np.einsum("nd,ne->nde", x - mean, x - mean)
        assert (np.abs(squares.mean(0) - spread) < 5 * oracles.standard_error(squares)).all()


def test_sample_joint_draws_classes_by_their_prior():
    n, mixture = 20_000, example("diagonal")
    x, cond = mixtures.sample_joint(jax.random.key(3), mixture, n)
    share = np.mean(np.asarray(cond) == 1)
    assert abs(share - PRIOR[1]) < 5 * np.sqrt(PRIOR[0] * PRIOR[1] / n)
    for c in range(2):
        of_class = np.asarray(x)[np.asarray(cond) == c]
        gap = np.abs(of_class.mean(0) - mixtures.moments(mixture, jnp.array([c]))[0][0])
        assert (gap < 5 * oracles.standard_error(of_class)).all()


def test_a_sample_depends_on_its_index_not_on_the_batch():
    mixture, key = example("full"), jax.random.key(5)
    nine = mixtures.sample(key, mixture, jnp.arange(9) % 3)
    np.testing.assert_array_equal(mixtures.sample(key, mixture, jnp.arange(4) % 3), nine[:4])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(9))
    np.testing.assert_array_equal(mixtures.sample(keys, mixture, jnp.arange(9) % 3), nine)


@pytest.mark.parametrize("form", ["isotropic", "full"])
@pytest.mark.parametrize("name", ["rectified_flow", "edm"])
def test_reverse_chain_carries_the_marginal_to_the_data(name, form):
    """Three exact kernels of any size, from p_T to p_0; the intermediate marginal is checked too."""
    n, mixture, schedule = 20_000, example(form), schedules.by_name(name)
    times = schedule.time(jnp.array([-6.0, -0.5, 0.8]))
    cond = jnp.arange(n) % 3
    keys = jax.random.split(jax.random.key(7), 5)
    step = jax.jit(mixtures.reverse_sample)
    x = schedules.diffuse(
        schedule,
        mixtures.sample(keys[0], mixture, cond),
        jax.random.normal(keys[1], (n, 2)),
        jnp.full(n, times[0]),
    )
    for key, t, s in zip(keys[2:], times, [*times[1:], jnp.zeros(())], strict=True):
        x = step(key, mixture, schedule, x, t=jnp.full(n, t), s=jnp.full(n, s), cond=cond)
        a, sig = float(schedule.alpha(s)), float(schedule.sigma(s))
        for c in range(3):
            mean, covariance = (np.asarray(m)[0] for m in mixtures.moments(mixture, jnp.array([c])))
            rows_c = np.asarray(x, np.float64)[np.asarray(cond) == c] - a * mean
            squares = np.einsum("nd,ne->nde", rows_c, rows_c)
            assert (np.abs(rows_c.mean(0)) < 5 * oracles.standard_error(rows_c)).all()
            gap = np.abs(squares.mean(0) - a**2 * covariance - sig**2 * np.eye(2))
            assert (gap < 5 * oracles.standard_error(squares)).all()


def test_draws_in_three_dimensions_have_the_given_covariance():
    """In two dimensions eigenvector matrices may be symmetric and would hide a transposed basis."""
    n, root = 20_000, np.random.default_rng(3).normal(size=(3, 3))
    covariance = root @ root.T + 0.1 * np.eye(3)
    mixture, cond = mixtures.from_classes([np.zeros((1, 3))], [covariance[None]]), jnp.zeros(n, jnp.int32)
    np.testing.assert_allclose(mixtures.moments(mixture, cond[:1])[1][0], covariance, rtol=1e-4, atol=1e-5)
    schedule = schedules.by_name("rectified_flow")
    noise = jax.random.normal(jax.random.key(0), (n, 3))
    ends = {"t": jnp.ones(n), "s": jnp.zeros(n)}
    for x in (
        mixtures.sample(jax.random.key(1), mixture, cond),
        mixtures.reverse_sample(jax.random.key(2), mixture, schedule, noise, **ends, cond=cond),
    ):
        squares = np.einsum("nd,ne->nde", x, x)
        assert (np.abs(squares.mean(0) - covariance) < 5 * oracles.standard_error(squares)).all()


def test_posterior_draws_average_to_the_denoiser():
    n, mixture, schedule = 20_000, example("full"), schedules.by_name("cosine")
    x, t, cond = jnp.tile(jnp.array([[0.4, -0.3]]), (n, 1)), jnp.full(n, 0.6), jnp.zeros(n, jnp.int32)
    law = mixtures.posterior(mixture, schedule, x, t, cond)
    drawn = mixtures.law_sample(jax.random.key(11), law)
    gap = np.asarray(drawn).mean(0) - mixtures.denoise(mixture, schedule)(x[:1], t[:1], cond[:1])[0]
    assert (np.abs(gap) < 5 * oracles.standard_error(drawn)).all()
    covariance = mixtures.law_moments(jax.tree.map(lambda a: a[:1], law)._replace(basis=law.basis))[1][0]
    centred = np.asarray(drawn) - np.asarray(drawn).mean(0)
    squares = np.einsum("nd,ne->nde", centred, centred)
    assert (np.abs(squares.mean(0) - covariance) < 5 * oracles.standard_error(squares)).all()


# ---- symmetries


def test_full_covariances_along_the_axes_are_the_diagonal_ones():
    blocks = covariances("diagonal")
    diagonal = example("diagonal")
    full = mixtures.from_classes(MEANS, [np.stack([np.diag(v) for v in block]) for block in blocks], WEIGHTS, PRIOR)
    repeated = [np.repeat(v[:, None], 2, 1) for v in covariances("isotropic")]
    wide = mixtures.from_classes(MEANS, repeated, WEIGHTS, PRIOR)
    x, t, cond = points()
    schedule = schedules.by_name("cosine")
    for one, other in ((diagonal, full), (example("isotropic"), wide)):
        for function in (mixtures.log_density, mixtures.score, mixtures.responsibilities):
            chex.assert_trees_all_close(
                function(one, schedule, x, t, cond), function(other, schedule, x, t, cond), rtol=2e-5, atol=2e-6
            )
        chex.assert_trees_all_close(mixtures.moments(one, cond), mixtures.moments(other, cond), rtol=1e-5, atol=1e-6)


def test_turning_the_mixture_turns_the_denoiser():
    with jax.enable_x64(True):
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0]
        blocks = [np.stack([turn @ np.diag(v) @ turn.T for v in block]) for block in covariances("diagonal")]
        turned = mixtures.from_classes([m @ turn.T for m in MEANS], blocks, WEIGHTS, PRIOR)
        x, t, cond = points()
        schedule = schedules.by_name("linear_vp")
        plain = mixtures.denoise(example("diagonal"), schedule)(x, t, cond)
        np.testing.assert_allclose(
            mixtures.denoise(turned, schedule)(x @ turn.T, t, cond), plain @ turn.T, rtol=1e-10, atol=1e-12
        )


def test_a_batch_is_its_singles_and_the_transforms_agree():
    for form in FORMS:
        mixture, schedule = example(form), schedules.by_name("rectified_flow")
        x, t, cond = points()
        denoise = mixtures.denoise(mixture, schedule)
        batch = denoise(x, t, cond)
        assert batch.dtype == x.dtype
        singles = jnp.concatenate([denoise(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(len(x))])
        chex.assert_trees_all_close(batch, singles, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(batch, jax.jit(lambda d, *a: d(*a))(denoise, x, t, cond), rtol=1e-5, atol=1e-6)
        mapped = jax.vmap(lambda d, x, t, c: d(x[None], t[None], c[None])[0], (None, 0, 0, 0))(denoise, x, t, cond)
        chex.assert_trees_all_close(batch, mapped, rtol=1e-5, atol=1e-6)


def test_a_sweep_over_mixtures_compiles_once():
    traced = chex.assert_max_traces(lambda d, *a: d(*a), n=1)
    call, schedule, (x, t, cond) = jax.jit(traced), schedules.by_name("edm"), points()
    for variance in (0.1, 0.2, 0.3):
        call(mixtures.denoise(mixtures.from_classes(MEANS, variance), schedule), x, t, cond)
