"""Completing ndani's words in bash, zsh and fish: the script a shell is given, and the answers to what it then asks.

The machinery is click's; a shell asks by running `ndani` with `_NDANI_COMPLETE` set. What may stand in a place says
`candidates`. Nothing here ever prints an error: it would land in the middle of a command line.
"""

from __future__ import annotations

import contextlib
import os
import sys

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

from ndani.cli.command import Command, exactly
from ndani.cli.output import emit
from ndani.errors import BadRequest

VARIABLE = "_NDANI_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

#: Bash breaks words at colons, and names of models have one: the whole line is asked about, and what bash took off is cut.
_BASH = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" response item cut="" word
    response=$(env COMP_LINE="$line" %(complete_var)s=bash_complete "$1")
    word="${line##* }"
    [[ "$COMP_WORDBREAKS" == *:* && "$word" == *:* ]] && cut="${word%%:*}:"
    COMPREPLY=()
    while IFS= read -r item; do
        case "${item%%%%,*}" in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            plain) item="${item#*,}"; COMPREPLY+=("${item#"$cut"}") ;;
        esac
    done <<< "$response"
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2> /dev/null || complete -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """Click's, asked about the whole line."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """The script works in every bash since 4.4, and starting one only to ask it costs a tenth of a second."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        said = split_arg_string(line)[1:]
        word = said.pop() if said and not line[-1:].isspace() else ""
        return said, word


@click.command(
    "completion",
    cls=Command,
    usage="completion bash|zsh|fish",
    arity=exactly(1),
    environment=(),
    help="Print what makes a shell complete ndani's words",
)
def completion(args: tuple[str, ...]) -> None:
    """Print the script of one shell."""
    if args[0] not in SHELLS:
        raise BadRequest(f'there is no completion for "{args[0]}"; give one of {", ".join(SHELLS)}')
    from ndani.cli import commands
    from ndani.cli.about import root

    emit(_complete(root(commands()), args[0]).source())


def answer(door: click.Command, asked: str) -> int:
    """Print what may stand where the cursor is; `asked` is the value of the variable, such as `bash_complete`."""
    shell, _, verb = asked.partition("_")
    # Whatever goes wrong while a user types is not worth a word on their screen.
    with contextlib.suppress(Exception):
        if verb == "complete" and shell in SHELLS:
            emit(_complete(door, shell).complete())
            sys.stdout.flush()
    return 0


def _complete(door: click.Command, shell: str) -> click.shell_completion.ShellComplete:
    add_completion_class(_Bash)
    found = get_completion_class(shell)
    assert found  # click knows all of SHELLS
    return found(door, {}, "ndani", VARIABLE)
