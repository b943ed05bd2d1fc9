"""Shell completion in bash, zsh and fish: the script that a shell loads, and the completions that it then requests.

Click does the work; the script runs `ndani` with `_NDANI_COMPLETE` set. `candidates` has the completions of arguments.
No error is printed while completing: it would appear in the middle of the user's command line.
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

#: Bash splits words at colons, which names of models contain: the script passes the whole line, and removes the part before
#: the colon from each completion.
_BASH_SCRIPT = """\
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


class _BashCompletion(BashComplete):
    """Click's class, with our script and the whole line as its input."""

    source_template = _BASH_SCRIPT

    @staticmethod
    def _check_version() -> None:
        """Skip the check: it starts a bash, which takes a tenth of a second, and the script works in every bash since 4.4."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        word = words.pop() if words and not line[-1:].isspace() else ""
        return words, word


@click.command(
    "completion",
    cls=Command,
    usage="completion bash|zsh|fish",
    arity=exactly(1),
    environment=(),
    help="Print what makes a shell complete ndani's words",
)
def completion(args: tuple[str, ...]) -> None:
    """Print the completion script of a shell."""
    if args[0] not in SHELLS:
        raise BadRequest(f'there is no completion for "{args[0]}"; give one of {", ".join(SHELLS)}')
    from ndani.cli import commands
    from ndani.cli.about import root

    emit(_shell_complete(root(commands()), args[0]).source())


def print_completions(root_command: click.Command, instruction: str) -> int:
    """Print the completions at the cursor; `instruction` is the value of the variable, for example `bash_complete`."""
    shell, _, verb = instruction.partition("_")
    # An error must not appear on the command line that the user is typing.
    with contextlib.suppress(Exception):
        if verb == "complete" and shell in SHELLS:
            emit(_shell_complete(root_command, shell).complete())
            sys.stdout.flush()
    return 0


def _shell_complete(root_command: click.Command, shell: str) -> click.shell_completion.ShellComplete:
    add_completion_class(_BashCompletion)
    completion_class = get_completion_class(shell)
    assert completion_class  # click has a class for each of SHELLS
    return completion_class(root_command, {}, "ndani", VARIABLE)
