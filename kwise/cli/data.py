"""``kwise data``."""

from pathlib import Path
from typing import Annotated

import typer

from kwise.cli.shell import SOURCE, check_outputs, data_app, quiet_libraries, say, show, user_errors


@data_app.command("check")
def data_check(
    file: Annotated[str, typer.Argument(help="rankings or pairs: a file, a hub id, or starter:train")],
    tokenizer: Annotated[str | None, typer.Option(help="folder or hub id, or smollm2: also count tokens")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="with --tokenizer: count conversations longer than this, 2048 unless given")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="write a cleaned copy here")] = None,
    source: SOURCE = "auto",
) -> None:
    """What is in FILE and what is wrong with it. Exit code 1 if there are errors."""
    with user_errors():
        from kwise.data.check import check
        from kwise.data.fix import fix as clean
        from kwise.use.tables import report_tables

        if fix is not None:
            if fix.exists():
                raise ValueError(f"{fix} exists; choose another name")
            check_outputs([file], fix)
        if max_length is not None and tokenizer is None:
            raise ValueError("--max-length counts tokens: give the --tokenizer that makes them")
        loaded = None
        if tokenizer is not None:
            from kwise.model.backbone import load_tokenizer, resolve

            quiet_libraries()
            loaded = load_tokenizer(resolve(tokenizer))
        limit = {} if max_length is None else {"max_length": max_length}
        report = check(file, source, loaded, **limit)
        show(report_tables(report))
        if fix is not None:
            for what, rows in clean(file, str(fix), source).items():
                say(f"{what}: {rows}")
            say(f"cleaned copy in {fix}")
    if report.errors:
        raise typer.Exit(1)
