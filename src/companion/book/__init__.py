"""The book's machinery: run chapters, keep results, check them, render pages. No chapter's method is here."""

from importlib.util import find_spec

from companion.errors import CompanionError

TOOLS = ("ipykernel", "jupyter_book", "myst_nb", "nbformat", "papermill", "yaml")  # of the extra ``book``


def require_tools() -> None:
    """Say what to install if something is missing that runs, checks or renders chapters."""
    if any(find_spec(name) is None for name in TOOLS):
        raise CompanionError('this needs the book\'s tools: run `pip install "companion[book]"`.')
