"""The command line as a user meets it."""

from typer.testing import CliRunner

from kwise.cli import app


def run(*words):
    """What a user types after ``kwise``: exit code, and output and errors as one line of text."""
    result = CliRunner().invoke(app, [str(word) for word in words], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())
