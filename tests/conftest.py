"""A strict JAX for every test, set up before jax is imported."""

import gc
import importlib.metadata
import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

_FLAGS = ["--xla_force_host_platform_device_count=2"]  # pmap and shard_map need two devices
_FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")  # programs as small as ours are compiled faster whole
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # compiling takes a third of the time without these; XLA aborts on flags it does not know, and later ones do not
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
if "PYTEST_XDIST_WORKER" in os.environ:
    _FLAGS.append("--xla_cpu_multi_thread_eigen=false")  # the workers are the parallelism
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault(
    "PJRT_NPROC", "4"
)  # collectives between CPU devices deadlock with fewer threads than twice those
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for subprocesses; see pytest_runtest_setup
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Skips what needs an accelerator where there is none."""
    if any(item.get_closest_marker("gpu") for item in items) and jax.default_backend() == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))


def pytest_collection_finish():
    """The garbage collector skips what stays to the end, and looks at the rest less often: it took a twentieth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A random key consumed twice raises KeyReuseError, unless the test is marked `key_reuse`. XLA optimises only the
    tests marked `compute`: for the others, compiling is most of the time.

    A hook and not a fixture, to come before the fixtures of modules: they run as the test that first needs them.
    """
    jax.config.update("jax_debug_key_reuse", item.get_closest_marker("key_reuse") is None)
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("compute") is None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    del item
    jax.config.update("jax_debug_key_reuse", False)


@pytest.fixture
def x64():
    """The test computes in float64 where it asks for it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data and published weights beside the repository; without it the test is skipped."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs reference data in {folder}, which is not part of the repository")
    return folder
