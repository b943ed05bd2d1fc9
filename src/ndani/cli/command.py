"""The classes of commands: click, with the help texts and the error messages of Ollama's command line.

`Command` is one command; `LazyGroup` is a group that imports a command only when it is used. The commands themselves are
in the other modules of this folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ndani.errors import BadRequest

HOST_VARIABLE = ("NDANI_HOST", "IP address of the ndani server (default 127.0.0.1:11434); OLLAMA_HOST is read too")
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """The module and attribute of a command, and what the list of commands shows of it."""

    module: str
    attribute: str
    short_help: str
    aliases: tuple[str, ...] = ()


def exactly(count: int) -> tuple[int, int | None]:
    """The arity of a command that takes this many arguments."""
    return count, count


def at_most(count: int) -> tuple[int, int | None]:
    """The arity of a command that takes this many arguments or fewer."""
    return 0, count


def at_least(count: int) -> tuple[int, int | None]:
    """The arity of a command that takes this many arguments or more."""
    return count, None


class Command(click.Command):
    """One command. Its callback receives the positional arguments as `args`; `arity` is the least and the greatest number of them.

    `implicit_values` has the value of each flag whose `=value` may be missing.
    """

    def __init__(
        self,
        *,
        usage: str,
        arity: tuple[int, int | None] = (0, None),
        environment: Sequence[tuple[str, str]] = (HOST_VARIABLE,),
        aliases: Sequence[str] = (),
        implicit_values: Mapping[str, str] | None = None,
        **click_options: Any,
    ) -> None:
        super().__init__(**click_options)
        self.usage, self.arity, self.environment, self.aliases = usage, arity, environment, aliases
        self.implicit_values = implicit_values or {}
        self.context_settings = {"help_option_names": ["-h", "--help"], **self.context_settings}
        self.params.append(click.Argument(["args"], nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_args))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse flags and arguments. Raises BadRequest with the message of Ollama's command line."""
        if ctx.resilient_parsing:  # a shell completes a line that is not finished
            return super().parse_args(ctx, args)
        try:
            remaining = super().parse_args(ctx, _normalise_flags(self.params, self.implicit_values, args))
        except click.UsageError as error:
            raise BadRequest(usage_error_message(error, args)) from None
        count, (minimum, maximum) = len(ctx.params["args"]), self.arity
        if minimum == maximum and count != minimum:
            raise BadRequest(f"accepts {minimum} arg(s), received {count}")
        if count < minimum:
            raise BadRequest(f"requires at least {minimum} arg(s), only received {count}")
        if maximum is not None and count > maximum:
            raise BadRequest(f"accepts at most {maximum} arg(s), received {count}")
        return remaining

    def get_help(self, ctx: click.Context) -> str:
        """The help text: what it does, usage, aliases, flags, environment."""
        path = ctx.command_path.removesuffix(ctx.info_name or "")
        parts = [self.help or "", f"Usage:\n  {path}{self.usage} [flags]"]
        if self.aliases:
            parts.append(f"Aliases:\n  {', '.join((str(self.name), *self.aliases))}")
        parts.append("Flags:\n" + format_flags(self, ctx))
        if self.environment:
            width = max(27, *(len(name) for name, _ in self.environment))
            parts.append("Environment Variables:\n" + "\n".join(f"      {n:<{width}}   {doc}" for n, doc in self.environment))
        return "\n\n".join(parts)


class LazyGroup(click.Group):
    """A group that imports each command only when it is used: `ndani list` must not wait for the import of `ndani serve`."""

    def __init__(self, *, entries: Mapping[str, CommandEntry], **click_options: Any) -> None:
        super().__init__(invoke_without_command=True, **click_options)
        self.entries = entries
        self.context_settings = {"help_option_names": ["-h", "--help"], **self.context_settings}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands in the order of the help text."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name or an alias; None when there is no such command."""
        for name, entry in self.entries.items():
            if cmd_name == name or cmd_name in entry.aliases:
                command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
                return command
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names. Raises BadRequest with similar names when there is none."""
        command = self.get_command(ctx, args[0])
        if command is None and ctx.resilient_parsing:
            return None, None, args
        if command is None:
            raise BadRequest(unknown_command_message(args[0], self.entries, ctx.command_path))
        return command.name, command, args[1:]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """Complete names of commands, and flags, without importing any command."""
        from click.shell_completion import CompletionItem

        matches = [CompletionItem(name, help=entry.short_help) for name, entry in self.entries.items() if name.startswith(incomplete)]
        return matches + click.Command.shell_complete(self, ctx, incomplete)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the flags before the name of the command."""
        command_index = next((index for index, argument in enumerate(args) if not argument.startswith("-")), len(args))
        try:
            if not ctx.resilient_parsing:
                args = _normalise_flags(self.params, {}, args[:command_index]) + args[command_index:]
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise BadRequest(usage_error_message(error, args)) from None

    def get_help(self, ctx: click.Context) -> str:
        """The help text: usage, commands, flags."""
        path, width = ctx.command_path, max(len(name) for name in self.entries)
        commands = "\n".join(f"  {name:<{width}}   {entry.short_help}" for name, entry in self.entries.items())
        return "\n\n".join(
            [
                self.help or "",
                f"Usage:\n  {path} [flags]\n  {path} [command]",
                f"Available Commands:\n{commands}",
                "Flags:\n" + format_flags(self, ctx),
                f'Use "{path} [command] --help" for more information about a command.',
            ]
        )


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
    """Complete the value of a flag as the path of a file; the shell lists the files."""
    return [click.shell_completion.CompletionItem(incomplete, type="file")]


def complete_folder(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
    """Complete the value of a flag as the path of a folder; the shell lists the folders."""
    return [click.shell_completion.CompletionItem(incomplete, type="dir")]


def _complete_args(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
    from ndani.cli.candidates import complete_args

    return complete_args(ctx, param, incomplete)


def unknown_command_message(name: str, entries: Mapping[str, CommandEntry], path: str) -> str:
    """The error message for a command that does not exist, with the commands of similar spelling."""
    import difflib

    similar = difflib.get_close_matches(name, entries, n=3, cutoff=0.66)  # still matches a name of three letters with one wrong
    hint = "\n\nDid you mean this?\n" + "\n".join(f"\t{candidate}" for candidate in similar) if similar else ""
    return f'unknown command "{name}" for "{path}"{hint}'


def usage_error_message(error: click.UsageError, args: Sequence[str]) -> str:
    """Click's error about flags, as the message that Ollama's command line has for it."""
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        if name.startswith("--"):
            return f"unknown flag: {name}"
        argument = next((arg for arg in args if arg.startswith(name)), name)
        return f"unknown shorthand flag: {name[-1]!r} in {argument}"
    if isinstance(error, click.BadOptionUsage):
        return f"flag needs an argument: {error.option_name}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        flag = max(error.param.opts, key=len)
        return f'invalid argument for "{flag}" flag: {error.message}'
    return error.format_message()


def format_flags(command: click.Command, ctx: click.Context) -> str:
    """The help lines of a command's flags, aligned and sorted by name."""
    lines: dict[str, str] = {}
    for param in command.get_params(ctx):
        if not isinstance(param, click.Option) or param.hidden:
            continue
        long = max(param.opts, key=len)
        short = next((f"{opt}, " for opt in param.opts if not opt.startswith("--")), "    ")
        value_type = "" if param.is_flag else f" {param.metavar or 'string'}"
        # Ollama's text for --help differs from click's
        lines[f"  {short}{long}{value_type}"] = f"help for {command.name}" if long == "--help" else param.help or ""
    width = max(map(len, lines))
    return "\n".join(f"{flag:<{width}}   {doc}" for flag, doc in sorted(lines.items(), key=lambda item: item[0][6:]))


def _normalise_flags(params: Sequence[click.Parameter], implicit_values: Mapping[str, str], args: Sequence[str]) -> list[str]:
    """Rewrite the forms of flags that Ollama accepts and click does not: `--flag=false`, and a flag whose `=value` may be missing."""
    flags: dict[str, bool] = {}
    for param in params:
        if isinstance(param, click.Option):
            flags |= dict.fromkeys(param.opts, param.is_flag)
    normalised: list[str] = []
    for index, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if argument == "--":
            return [*normalised, *args[index:]]
        if equals and flags.get(name) and name.startswith("--"):
            if value.lower() not in _TRUE + _FALSE:
                raise BadRequest(f'invalid argument "{value}" for "{name}" flag: true or false is needed')
            normalised += [name] if value.lower() in _TRUE else []
        elif argument in implicit_values:
            normalised.append(f"{argument}={implicit_values[argument]}")
        else:
            normalised.append(argument)
    return normalised
