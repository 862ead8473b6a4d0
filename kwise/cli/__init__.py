"""The command line, a module for each stage. With ``demo``, the only part that knows all others."""

# isort: off
# commands stand in ``kwise --help`` in the order of these lines
from kwise.cli import train as train
from kwise.cli import score as score
from kwise.cli import evaluate as evaluate
from kwise.cli import folders as folders
from kwise.cli import data as data
from kwise.cli.shell import app as app
from kwise.cli.shell import keep_memory as keep_memory
