"""What all commands share: the app, where they print, how the user's mistakes end, options, models, progress."""

import contextlib
import ctypes
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from safetensors import SafetensorError

import kwise

if TYPE_CHECKING:
    from kwise.model.reward_model import RewardModel

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at ranking files.", no_args_is_help=True)
app.add_typer(data_app, name="data")
# without emoji: in "starter:train: 127 rankings" rich would print ":train:" as a picture
console, errors = Console(emoji=False), Console(stderr=True, emoji=False)

MODEL = Annotated[str, typer.Argument(help="folder or hub id of a reward model")]
SOURCE = Annotated[str, typer.Option(help="nectar, completions, pairs, battles or arena; auto tells by the columns")]
CALIBRATED = Annotated[
    bool, typer.Option("--calibrated", help="(reward - centre) / temperature, by what kwise calibrate found")
]
LOWER_BOUND = Annotated[
    float | None, typer.Option("--lower-bound", metavar="C", help="also errors, and bounds C errors below the score")
]
CACHE = Annotated[bool, typer.Option("--cache/--no-cache", help="keep scores on disk, and score nothing twice")]
DTYPE_DEFAULT = "float32"
DTYPE = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the user can mend is one message and exit code 1, not a traceback."""
    try:
        yield
    # bad data or settings; missing files or models; weights that do not fit on the disk; a loss that is not finite
    except (ValueError, OSError, SafetensorError, FloatingPointError) as error:
        errors.print("error:", style="bold red", end=" ")
        say(str(error), errors)
        raise typer.Exit(1) from error


def check_outputs(words: Sequence[str], *files: Path) -> None:
    """Raise ``ValueError`` for one of ``files`` that cannot be written or has the name of another format, or that is what one of
    ``words`` names, or is or would be a file of a suite among them: before any work is done."""
    from kwise.use.suites import SUITES
    from kwise.use.suites.suite import DATA_FILE

    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a folder: name a file to write")
        if not file.parent.is_dir():
            raise ValueError(f"{file.parent} is no folder to write {file.name} into")
        if file.suffix in (".gz", ".zst", ".parquet"):
            raise ValueError(
                f"what is written is plain text, which a name that ends in {file.suffix} hides: choose another"
            )
        for word in words:
            suite, _, path = word.partition(":")
            read = Path(path if suite in SUITES and path else word)
            if file.exists() and read.exists() and file.samefile(read):
                raise ValueError(f"{file} is read as {word}: choose another name to write to")
            patterns = (
                [each for own in SUITES[suite].files.values() for each in own.patterns] if suite in SUITES else []
            )
            if (
                read.resolve() in file.resolve().parents
                and DATA_FILE.search(file.name)
                and any(map(file.match, patterns))
            ):
                raise ValueError(f"{file} would be one of the files of {word}: choose another place to write to")


def quiet_libraries() -> None:
    """kwise says itself what the load report and the bars of transformers say."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft asks transformers by the old name: nothing that a user could mend
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def keep_memory() -> None:
    """Let glibc keep what torch frees, for the next operation, in place of handing it back to the system, which must clear
    every page of it anew. The process holds on to the most that it ever needed (up to 2 GiB more than it uses).

    Where the user has set one of the two thresholds himself, both stay as they are.
    """
    own = os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    if platform.libc_ver()[0] != "glibc" or own:
        return
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 2**30)


def load_model(folder: str, dtype: str) -> "RewardModel":
    """A ``RewardModel`` from ``folder``."""
    import torch

    from kwise.model.backbone import DTYPES
    from kwise.model.reward_model import RewardModel

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'; known: {', '.join(DTYPES)}")
    quiet_libraries()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # of torchrun
    return RewardModel.from_pretrained(folder, dtype=getattr(torch, dtype))


def print_version(wanted: bool) -> None:
    """``kwise --version``."""
    if wanted:
        say(f"kwise {kwise.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print it and stop")
    ] = False,
) -> None:
    """Rankings into reward models, reward models into answers."""
    keep_memory()


def report_shortened(count: int, model: "RewardModel") -> None:
    """Say how many responses the truncation rule cut."""
    if count:
        rule = f"{model.settings.max_length} tokens and were cut by rule '{model.settings.truncation}'"
        say(f"{count} responses were longer than {rule}", errors, "yellow")


def show_progress(bar: Progress, task: TaskID, done: int, total: int) -> None:
    """Move a bar to ``done`` of ``total``."""
    bar.update(task, completed=done, total=total)


def bar_of(bar: Progress, task: TaskID, what: str, done: int, total: int) -> None:
    """Move a bar that says ``what`` is done."""
    bar.update(task, description=what, completed=done, total=total)


def say(line: str, to: Console = console, style: str | None = None) -> None:
    """Print a line as it is: a user's text is never taken for markup, a path never broken."""
    to.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def show(parts: "Iterable[Table | str]") -> None:
    """Print tables and lines."""
    for part in parts:
        if isinstance(part, str):
            say(part)
        else:
            console.print(part, highlight=False)
