"""Progress bars whose rates leave compilations out."""

from tqdm import tqdm


def count_compiled(bar: tqdm) -> None:
    """Counts an item that had to be compiled, and lets the bar measure its time and its rate from now on."""
    if not bar.disable:
        bar.last_print_t = bar.start_t
        bar.unpause()
        bar.update()
        bar.initial = bar.last_print_n = bar.n
