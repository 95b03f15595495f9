"""The `tsd` command. What is heavy is imported by the command that needs it: `tsd --help` is instant."""

import json
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from tsd import __version__
from tsd.errors import InputError, TsdError, UserError, show_trace

if TYPE_CHECKING:
    from tsd.study.findings import Finding

STOPPED = 130  # the exit code of what was interrupted

app = typer.Typer(
    name="tsd",
    help="""Distil the reading of time series into small language models.

    A study has six stages: [bold]generate[/] series with known ground truth, [bold]annotate[/] them with a
    teacher, [bold]curate[/] its replies, [bold]train[/] students of several sizes on several train sizes,
    [bold]evaluate[/] them, and [bold]report[/] how they scale. [bold]study[/] runs all stages and continues
    where it was stopped.

    Start with: [bold]tsd study laptop[/]""",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str, typer.Argument(help="A recipe's name (see `tsd recipes`) or the path of a .yaml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one field of the recipe; repeatable."),
]
Out = Annotated[
    str | None, typer.Option(help="The folder that holds studies: a path or a URI such as s3://bucket/x.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and how long it would take; do nothing.")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python modules that the folder names: plugins, a task.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tsd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """The options of `tsd` itself; its help text is given above."""


@app.command()
def study(recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False) -> None:
    """Run a whole study, from generating series to the report. Started again, it continues where it was stopped.

    Example: tsd study laptop --set students.train_sizes=[500,2000] --set name=small
    """
    _stage(recipe, set_, out, dry_run, "study")


@app.command()
def generate(
    recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False
) -> None:
    """Generate the series and measure their ground truth. Writes RUN/series."""
    _stage(recipe, set_, out, dry_run, "generate")


@app.command()
def annotate(
    recipe: RecipeName = "laptop",
    set_: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Annotate only so many rows, show plots, replies, labels and cost, and stop."
        ),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Annotate the rows again that ended as error, and no others.")
    ] = False,
) -> None:
    """Have the teacher describe every series. Reads RUN/series, writes RUN/annotations.

    Example: tsd annotate mine.yaml --preview 10
    """
    _stage(recipe, set_, out, dry_run, "annotate", preview, retry_errors)


@app.command()
def curate(
    recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False
) -> None:
    """Sort the replies into examples and rejects. Reads RUN/annotations, writes RUN/examples and RUN/rejects."""
    _stage(recipe, set_, out, dry_run, "curate")


@app.command()
def train(recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False) -> None:
    """Train every student that is not finished. Reads RUN/examples, writes RUN/students."""
    _stage(recipe, set_, out, dry_run, "train")


@app.command()
def evaluate(
    recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False
) -> None:
    """Decode and score the students on held-out series. Writes RUN/predictions and RUN/runs."""
    _stage(recipe, set_, out, dry_run, "evaluate")


@app.command()
def report(
    recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False
) -> None:
    """Fit the scaling laws and write RUN/report.html."""
    _stage(recipe, set_, out, dry_run, "report")


@app.command()
def check(recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None) -> None:
    """Check what a study needs, one line each: keys, addresses, models, packages, GPUs, storage, MLflow.

    Every command does the same at its start. On a cluster (RAY_ADDRESS) every running node is checked, too.
    """
    from tsd.recipe import load

    place = [f"out={json.dumps(out)}"] if out is not None else []
    wanted = load(recipe, [*(set_ or []), *place])
    wanted.require_enough_series()
    from tsd.cluster import preflight

    fine = preflight.report(preflight.before_ray(wanted, "study"), print)
    fine &= preflight.report(preflight.of_cluster(wanted, "study"), print)
    if not fine:
        raise typer.Exit(2)


@app.command()
def explain(
    file: Annotated[
        str, typer.Argument(help="A CSV file with a header line, or a Parquet file; a path or a URI.")
    ],
    model: Annotated[str, typer.Option(help="A student: a folder or URI such as RUN/students/NAME.")],
    column: Annotated[
        str | None, typer.Option(help="The column to read; may be left out if one is numeric.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print labels, sentences and what was done as JSON.")
    ] = False,
    time: Annotated[
        str | None, typer.Option(help="The column of times; `rows` keeps the order of the file.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="Read only rows with this value, such as one sensor's; repeatable."
        ),
    ] = None,
    decimal: Annotated[str | None, typer.Option(metavar=". or ,", help="The decimal sign.")] = None,
    dates: Annotated[
        str | None,
        typer.Option(metavar="day-first, month-first or year-first", help="How dates such as 01/02/03 are read."),
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(metavar="NUMBER", help="A number that stands for a missing value, or `none`; repeatable."),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Print a trained student's description of a series from your own file.

    Rows are sorted by time. Separators, decimal signs, units, totals and codes for missing values are detected,
    and every change is reported. An ambiguous file is refused, and the message names the option that decides.

    By default, a trend is a change of a quarter of the range beyond noise and cycles, noise is what is left
    around trend, cycles, level shifts and slow bends, and beginning and end are quarters of the points. The
    student's README.md has its own definitions. Numbers are on the scale 0-99 to which the series is mapped.
    """
    from tsd.inference import explain as explaining
    from tsd.measurements import Hints

    hints = Hints(time, decimal, dates, tuple(where or ()), tuple(missing or ()))
    answer, understood = explaining.explain(file, model, column, as_json, hints, trust_code)
    print(answer)
    if not understood:
        sys.exit(1)


@app.command()
def look(
    run: Annotated[str, typer.Argument(help="A run folder such as runs/laptop, or a dataset of series.")],
    plots: Annotated[bool, typer.Option("--plots", help="A page of plots by class.")] = False,
    out: Annotated[str | None, typer.Option(help="The file to write. Default: RUN/plots.html.")] = None,
    per_class: Annotated[int, typer.Option(min=1, max=1000, help="Series per combination of classes.")] = 6,
    style: Annotated[str | None, typer.Option(help="paper, compact or bare. Default: the recipe's.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Write a page that shows the content of a run, and print its path.

    Example: tsd look runs/laptop --plots
    """
    from tsd.reporting import gallery

    gallery.require_there(run)
    if not plots:
        raise InputError("tsd look needs an option: --plots writes a page of its series as a teacher sees them")
    print(gallery.show_plots(run, out, per_class, style, trust_code))


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="A run folder such as runs/laptop.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged files again, with the stages that made them.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Read every file of a run and report which are missing, truncated or changed, one line per table and finding.

    Exit code 0: all existing files are intact, also those of an unfinished study. Exit code 1: some are damaged.
    With --repair, --trust-code also lets it run engines, send keys and read checkpoints that the folder names.
    Example: tsd verify runs/laptop --repair
    """
    from tsd.errors import DataError
    from tsd.study import verify as verifying

    findings: list[Finding] = []
    finished = True
    for checked in verifying.check(run, trust_code):
        findings += checked.findings
        finished = finished and checked.finished
        print("\n".join(checked.lines), flush=True)
    if not findings and not finished:
        print(f"{run} is not finished, and its files are intact: the command that made it continues it")
    if findings and not repair:
        raise DataError(f"{run} is damaged, see above: `tsd verify {run} --repair` makes damaged files again")
    if findings:
        from tsd.cluster import commands

        commands.repair(run, findings, trust_code)


teacher_app = typer.Typer(help="Train small vision-language models as teachers.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")


@teacher_app.command("train")
def train_teacher(
    recipe: RecipeName = "laptop", set_: Overrides = None, out: Out = None, dry_run: DryRun = False
) -> None:
    """Train the teacher that the recipe describes (teacher.train), and print its scores.

    `tsd study` does this, too. The result is a transformers model folder, which `vllm serve` can load.
    Example: tsd teacher train laptop --set teacher.train.pictures=4000 --set name=careless
    """
    _stage(recipe, set_, out, dry_run, "teacher")


recipes_app = typer.Typer(
    help="List recipes, show one with everything it inherits, or write the reference of all keys.",
    invoke_without_command=True,
)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with tsd."""
    if context.invoked_subcommand is None:
        from tsd.recipe import load, names

        for name in names():
            print(f"{name:<10} {load(name).about}")


@recipes_app.command()
def show(
    recipe: RecipeName,
    set_: Overrides = None,
    comments: Annotated[
        bool, typer.Option("--comments", help="Print each key's description above it, and mark defaults.")
    ] = False,
) -> None:
    """Print the fully resolved recipe. Save it to a file to start your own."""
    from tsd.recipe import load, reference, to_yaml

    write = reference.commented if comments else to_yaml
    print(write(load(recipe, set_ or [])), end="")


@recipes_app.command("reference")
def write_reference(folder: Annotated[str, typer.Argument(help="The folder to write into.")] = "docs") -> None:
    """Write the reference of all recipe keys: recipe.md for people, and recipe.schema.json for editors."""
    from tsd.recipe import reference

    for path in reference.write(folder):
        print(path)


def _stage(
    name: str,
    overrides: list[str] | None,
    out: str | None,
    dry_run: bool,
    stage: str,
    preview: int | None = None,
    retry_errors: bool = False,
) -> None:
    """Run one stage, or the whole study, with the recipe of that name; print its plan instead if `dry_run`."""
    from tsd.recipe import load

    place = [f"out={json.dumps(out)}"] if out is not None else []
    recipe = load(name, [*(overrides or []), *place])
    if stage == "study":
        recipe.require_enough_series()
    if stage == "teacher":
        recipe.require_own_teacher()
    if dry_run:
        from tsd.study.plan import plan

        print(plan(recipe, stage))
        return
    from tsd.cluster import commands

    commands.run(recipe, stage, preview, retry_errors)


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Exit code: 2 for an error that the user can fix, 1 for another one, 130 if stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _calm_surroundings()
    try:
        code = app(arguments, standalone_mode=False)
        if code == STOPPED:  # typer's answer to a KeyboardInterrupt
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except TsdError as error:
        show_trace(error)
        _leave(str(error), 2 if isinstance(error, UserError) else 1)
    except (KeyboardInterrupt, typer.Abort):
        _leave("stopped; the same command goes on from here", STOPPED)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a wrong option or argument, as typer says it
            error.show()
            sys.exit(2)
        cause = getattr(error, "cause", None)  # what a Ray task raised
        if isinstance(cause, TsdError):
            show_trace(cause)
            _leave(str(cause), 2 if isinstance(cause, UserError) else 1)
        from tsd.tasks.modules import blamed

        if failure := blamed(error):
            show_trace(failure)
            _leave(str(failure), 2)
        raise


def _calm_surroundings() -> None:
    """Keep what a shell or a notebook left in the environment from ending a command that it is not about."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without our signs: LC_ALL=C, PYTHONIOENCODING
    if any(option.startswith("error") for option in sys.warnoptions):  # other people's libraries warn
        os.environ.pop("PYTHONWARNINGS", None)
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)


def _leave(message: str, code: int) -> None:
    for line in message.splitlines():
        print(f"tsd: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
