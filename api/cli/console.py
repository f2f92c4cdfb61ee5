"""What the verbs print: text, tables and progress on stderr, one JSON object on stdout."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from rich.text import Text

__all__ = ["SCHEMA", "Console", "Progress"]

SCHEMA = 1
"""Version of every JSON object; it grows when a field changes its meaning or disappears."""

PIPE_WIDTH = 120
"""Columns of tables that go to a file or a pipe."""


class Console:
    """Output of one verb.

    Parameters
    ----------
    json
        Whether :meth:`result` prints its object.
    verbose, quiet
        How often ``-v`` and ``-q`` were given; they cancel each other.
    """

    def __init__(self, *, json: bool = False, verbose: int = 0, quiet: int = 0) -> None:
        self._json = json
        self._level = verbose - quiet
        self._rich: RichConsole | None = None

    @property
    def rich(self) -> "RichConsole":
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=True, highlight=False)
            if not self._rich.is_terminal:
                self._rich.width = PIPE_WIDTH
        return self._rich

    def say(self, text: str, *, level: int = 0) -> None:
        """One line of text; ``level`` 1 only with ``-v``, 0 unless ``-q``, -1 unless ``-qq``."""
        if self._level >= level:
            self.rich.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; cells that are numbers are set to the right."""
        if self._level < 0:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            numeric = any(isinstance(row[index], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        self.rich.print(table)

    def draw(self, picture: "Text", *, title: str) -> None:
        """A picture of characters below its title; nothing with ``-q``."""
        if self._level >= 0:
            self.rich.print(title, markup=False, style="bold")
            self.rich.print(picture)

    def result(self, fields: dict[str, Any]) -> None:
        """The verb's JSON object, with the schema version first."""
        if self._json:
            sys.stdout.write(json.dumps({"schema": SCHEMA, **fields}, indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self) -> Iterator["Progress"]:
        """Bars for what takes long; only text with ``-v`` where stderr is not a terminal, nothing with ``-q``."""
        if self._level < 0 or not self.rich.is_terminal:
            yield Progress(lambda text: self.say(text, level=1))
            return
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, console=self.rich, transient=True) as bars:
            yield Progress(lambda text: self.say(text, level=1), bars)


class Progress:
    """What a long step is doing: a counted bar for each name, and one line of changing text."""

    def __init__(self, say: Callable[[str], None], bars: "RichProgress | None" = None) -> None:
        self._say, self._bars = say, bars
        self._tasks: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._last = ""

    def __call__(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``name``; with a total of 0 ``name`` is only a text."""
        if total == 0:
            self.tell(name)
            return
        if self._bars is None:
            if done == total and name not in self._finished:
                self._finished.add(name)
                self._say(f"{name}: {done} of {total}")
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done)

    def tell(self, text: str) -> None:
        """Replace the line of text; where lines are printed one below the other, a text that repeats the last is left out."""
        if self._bars is None:
            if text != self._last:
                self._say(text)
            self._last = text
        elif "" in self._tasks:
            self._bars.update(self._tasks[""], description=text)
        else:
            self._tasks[""] = self._bars.add_task(text, total=None)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ") if abs(value) >= 10_000 else str(value)
    return str(value)
