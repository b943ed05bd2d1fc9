"""What a command is here: click underneath, and over it the words, the help and the errors that Ollama's users know.

`Command` is one command, `LazyGroup` a group that imports a command only when it is called for. No command lives here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ndani.errors import BadRequest

HOST = ("NDANI_HOST", "IP address of the ndani server (default 127.0.0.1:11434); OLLAMA_HOST is read too")
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """Where a command lives and how a list of commands shows it."""

    module: str
    attribute: str
    short: str
    aliases: tuple[str, ...] = ()


def exactly(count: int) -> tuple[int, int | None]:
    """A command that takes this many arguments."""
    return count, count


def at_most(count: int) -> tuple[int, int | None]:
    """A command that takes this many arguments or fewer."""
    return 0, count


def at_least(count: int) -> tuple[int, int | None]:
    """A command that takes this many arguments or more."""
    return count, None


class Command(click.Command):
    """One command. Its callback gets `args`, the words that are no flags, counted against `takes`."""

    def __init__(
        self,
        *,
        usage: str,
        takes: tuple[int, int | None] = (0, None),
        environment: Sequence[tuple[str, str]] = (HOST,),
        aliases: Sequence[str] = (),
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.usage, self.takes, self.environment, self.aliases = usage, takes, environment, aliases
        self.context_settings = {"help_option_names": ["-h", "--help"], **self.context_settings}
        self.params.append(click.Argument(["args"], nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_args))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read flags and words. Raises BadRequest in the words of Ollama's command line."""
        if ctx.resilient_parsing:  # a shell asks what may follow a line that is not complete yet
            return super().parse_args(ctx, args)
        try:
            rest = super().parse_args(ctx, _plain(self, args))
        except click.UsageError as error:
            raise BadRequest(wording(error, args)) from None
        given, (least, most) = len(ctx.params["args"]), self.takes
        if least == most and given != least:
            raise BadRequest(f"accepts {least} arg(s), received {given}")
        if given < least:
            raise BadRequest(f"requires at least {least} arg(s), only received {given}")
        if most is not None and given > most:
            raise BadRequest(f"accepts at most {most} arg(s), received {given}")
        return rest

    def get_help(self, ctx: click.Context) -> str:
        """The help text: what it does, usage, aliases, flags, environment."""
        path = ctx.command_path.removesuffix(ctx.info_name or "")
        parts = [self.help or "", f"Usage:\n  {path}{self.usage} [flags]"]
        if self.aliases:
            parts.append(f"Aliases:\n  {', '.join((str(self.name), *self.aliases))}")
        parts.append("Flags:\n" + flag_lines(self, ctx))
        if self.environment:
            wide = max(27, *(len(name) for name, _ in self.environment))
            parts.append("Environment Variables:\n" + "\n".join(f"      {n:<{wide}}   {doc}" for n, doc in self.environment))
        return "\n\n".join(parts)


class LazyGroup(click.Group):
    """A group of commands, each imported when it is called for: listing models must not wait for code that runs them."""

    def __init__(self, *, table: Mapping[str, CommandEntry], aliases: Sequence[str] = (), **rest: Any) -> None:
        super().__init__(invoke_without_command=True, **rest)
        self.table, self.aliases = table, aliases
        self.context_settings = {"help_option_names": ["-h", "--help"], **self.context_settings}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order they are shown."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name or an alias; None when there is no such command."""
        for name, entry in self.table.items():
            if cmd_name == name or cmd_name in entry.aliases:
                found: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
                return found
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word, under its own name. Raises BadRequest for an unknown one, with what may be meant."""
        command = self.get_command(ctx, args[0])
        if command is None and ctx.resilient_parsing:
            return None, None, args
        if command is None:
            raise BadRequest(unknown(args[0], self.table, ctx.command_path))
        return command.name, command, args[1:]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """Names of commands, and flags; no command is imported for it."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=entry.short) for name, entry in self.table.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags before the command's name."""
        own = next((at for at, word in enumerate(args) if not word.startswith("-")), len(args))
        try:
            return super().parse_args(ctx, args if ctx.resilient_parsing else _plain(self, args[:own]) + args[own:])
        except click.UsageError as error:
            raise BadRequest(wording(error, args)) from None

    def get_help(self, ctx: click.Context) -> str:
        """The help text: usage, commands, flags."""
        path, wide = ctx.command_path, max(len(name) for name in self.table)
        commands = "\n".join(f"  {name:<{wide}}   {entry.short}" for name, entry in self.table.items())
        return "\n\n".join(
            [
                self.help or "",
                f"Usage:\n  {path} [flags]\n  {path} [command]",
                f"Available Commands:\n{commands}",
                "Flags:\n" + flag_lines(self, ctx),
                f'Use "{path} [command] --help" for more information about a command.',
            ]
        )


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
    """A flag's value is a file: the shell knows which there are."""
    return [click.shell_completion.CompletionItem(incomplete, type="file")]


def complete_folder(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
    """A flag's value is a folder."""
    return [click.shell_completion.CompletionItem(incomplete, type="dir")]


def _complete_args(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
    from ndani.cli.candidates import complete_args

    return complete_args(ctx, param, incomplete)


def unknown(word: str, table: Mapping[str, CommandEntry], path: str) -> str:
    """The sentence for a command that is not there, and those whose spelling is near."""
    import difflib

    near = difflib.get_close_matches(word, table, n=3, cutoff=0.66)  # one wrong letter of three is near
    hint = "\n\nDid you mean this?\n" + "\n".join(f"\t{name}" for name in near) if near else ""
    return f'unknown command "{word}" for "{path}"{hint}'


def wording(error: click.UsageError, args: Sequence[str]) -> str:
    """Click's complaint about flags in the words that Ollama's users know."""
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        if name.startswith("--"):
            return f"unknown flag: {name}"
        whole = next((word for word in args if word.startswith(name)), name)
        return f"unknown shorthand flag: {name[-1]!r} in {whole}"
    if isinstance(error, click.BadOptionUsage):
        return f"flag needs an argument: {error.option_name}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        flag = max(error.param.opts, key=len)
        return f'invalid argument for "{flag}" flag: {error.message}'
    return error.format_message()


def flag_lines(command: click.Command, ctx: click.Context) -> str:
    """The flags of a command, aligned, one line each, by name."""
    left: dict[str, str] = {}
    for param in command.get_params(ctx):
        if not isinstance(param, click.Option) or param.hidden:
            continue
        long = max(param.opts, key=len)
        short = next((f"{opt}, " for opt in param.opts if not opt.startswith("--")), "    ")
        kind = "" if param.is_flag else f" {param.metavar or 'string'}"
        # click's own sentence for --help is not ours
        left[f"  {short}{long}{kind}"] = f"help for {command.name}" if long == "--help" else param.help or ""
    wide = max(map(len, left))
    return "\n".join(f"{flag:<{wide}}   {doc}" for flag, doc in sorted(left.items(), key=lambda item: item[0][6:]))


def _plain(command: click.Command, args: list[str]) -> list[str]:
    """Bring flags that Ollama also takes as `--flag=false`, or bare where a value may follow `=`, into click's one form."""
    flags: dict[str, bool] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            flags |= dict.fromkeys(param.opts, param.is_flag)
    bare = getattr(command, "bare_values", {})
    plain: list[str] = []
    for at, word in enumerate(args):
        name, equals, value = word.partition("=")
        if word == "--":
            return plain + args[at:]
        if equals and flags.get(name) and name.startswith("--"):
            if value.lower() not in _TRUE + _FALSE:
                raise BadRequest(f'invalid argument "{value}" for "{name}" flag: true or false is needed')
            plain += [name] if value.lower() in _TRUE else []
        elif word in bare:
            plain.append(f"{word}={bare[word]}")
        else:
            plain.append(word)
    return plain
