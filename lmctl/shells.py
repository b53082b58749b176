"""Completion scripts for bash, zsh and fish, made of lmctl's own declaration.

Names (of models, instances, …) come from ``lmctl complete KIND`` when they are needed.
"""

from collections.abc import Sequence

from lmctl.tree import Command, Option

FILES = "files"
SHELLS = ("bash", "zsh", "fish")

#: What an argument is the name of, by its command. "targets" is everything that a request may name.
_ARGUMENTS = {
    ("show",): "models",
    ("rm",): "models",
    ("import",): FILES,
    ("load",): "targets",
    ("bench",): "targets",
    ("chat",): "targets",
    ("unload",): "instances",
    ("preset", "show"): "presets",
    ("token", "revoke"): "tokens",
    ("downloads", "watch"): "downloads",
    ("downloads", "pause"): "downloads",
    ("downloads", "resume"): "downloads",
    ("downloads", "cancel"): "downloads",
    ("chats", "rm"): "chats",
}
#: The words that an option's or an argument's value is one of, where its metavar does not tell them (``model|server``).
_WORDS = {"input,output": ("input", "output"), "SCOPES": ("inference", "manage", "inference,manage")}
_FILE_METAVARS = {"PATH", "FILE"}


def script(shell: str, root: Command) -> str:
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](root)


def _at(command: Command) -> str:
    """The command's words as the scripts collect them: each behind a blank."""
    return "".join(f" {word}" for word in command.path)


def _words(metavar: str) -> Sequence[str]:
    if metavar in _WORDS:
        return _WORDS[metavar]
    return [word for word in metavar.split("|") if not word.isupper()] if "|" in metavar else ()


def _valued(root: Command) -> list[str]:
    """Every option that takes a value, wherever: the word behind it is no command."""
    return sorted({name for command in root.walk() for one in command.options if one.metavar for name in one.names})


def _paths(root: Command) -> list[str]:
    return [_at(command) for command in root.walk() if command.path]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _values(root: Command) -> list[tuple[str, Option]]:
    """(command's words, option) for each option with a value."""
    return [(_at(command), one) for command in root.walk() for one in command.options if one.metavar]


_BEGIN = "# Completion of lmctl for {shell}, made by 'lmctl completion {shell}': do not edit.\n"


def _bash(root: Command) -> str:
    values, options, names = [], [], []
    valued, known = "|".join(_valued(root)), "|".join(_quoted(path) for path in _paths(root))
    for at, option in _values(root):
        patterns = "|".join(_quoted(f"{at}:{name}") for name in option.names)
        if option.metavar in _FILE_METAVARS:
            values.append(f'        {patterns}) compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;')
        else:
            values.append(f"        {patterns}) found={_quoted(' '.join(_words(option.metavar)))} ;;")
    for command in root.walk():
        at = _quoted(_at(command))
        flags = " ".join(name for one in command.options for name in one.names)
        options.append(f"            {at}) found={_quoted(flags)} ;;")
        if command.children:
            children = " ".join(child.path[-1] for child in command.children)
            names.append(f"            {at}) found={_quoted(children)} ;;")
        for argument in command.arguments:
            kind = _ARGUMENTS.get(command.path, "")
            if words := _words(argument.metavar):
                names.append(f"            {at}) found={_quoted(' '.join(words))} ;;")
            elif kind == FILES:
                names.append(f'            {at}) compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;')
            elif kind:
                names.append(f"            {at}) found=$(lmctl complete {kind} 2>/dev/null) ;;")
    return "\n".join([
        _BEGIN.format(shell="bash") + "_lmctl() {",
        "    local line=${COMP_LINE:0:COMP_POINT} at='' found='' cur word i",
        "    local IFS=$' \\t\\n'",
        "    cur=${line##*[[:space:]]}",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        word=${COMP_WORDS[i]}",
        "        case $word in",
        f"            {valued}) ((i++)) ;;",
        "            -*) ;;",
        f"            *) case \"$at $word\" in {known}) at+=\" $word\" ;; esac ;;",
        "        esac",
        "    done",
        "    COMPREPLY=()",
        "    case \"$at:${COMP_WORDS[COMP_CWORD - 1]}\" in",
        *values,
        "        *) if [[ $cur == -* ]]; then case $at in",
        *options,
        "        esac; else case $at in",
        *names,
        "        esac; fi ;;",
        "    esac",
        "    # Readline replaces only what follows the last of these; names have them inside.",
        "    local held=${cur%\"${cur##*[@:=]}\"}",
        "    for word in $found; do",
        "        [[ $word == \"$cur\"* ]] && COMPREPLY+=(\"${word#\"$held\"}\")",
        "    done",
        "}",
        "complete -F _lmctl lmctl",
        "",
    ])  # fmt: skip


def _described(name: str, text: str) -> str:
    """A word for zsh's _describe."""
    return _quoted(name.replace(":", "\\:") + ":" + text)


def _zsh(root: Command) -> str:
    values, options, names = [], [], []
    valued, known = "|".join(_valued(root)), "|".join(_quoted(path) for path in _paths(root))
    for at, option in _values(root):
        patterns = "|".join(_quoted(f"{at}:{name}") for name in option.names)
        if option.metavar in _FILE_METAVARS:
            values.append(f"        ({patterns}) _files; return ;;")
        else:
            values.append(f"        ({patterns}) found=({' '.join(map(_quoted, _words(option.metavar)))}) ;;")
    for command in root.walk():
        at = _quoted(_at(command))
        flags = " ".join(_described(name, one.help) for one in command.options for name in one.names)
        options.append(f"            ({at}) found=({flags}) ;;")
        if command.children:
            children = " ".join(_described(child.path[-1], child.help) for child in command.children)
            names.append(f"            ({at}) found=({children}) ;;")
        for argument in command.arguments:
            kind = _ARGUMENTS.get(command.path, "")
            if words := _words(argument.metavar):
                names.append(f"            ({at}) plain=({' '.join(words)}) ;;")
            elif kind == FILES:
                names.append(f"            ({at}) _files; return ;;")
            elif kind:
                names.append(f'            ({at}) plain=(${{(f)"$(lmctl complete {kind} 2>/dev/null)"}}) ;;')
    return "\n".join([
        "#compdef lmctl",
        _BEGIN.format(shell="zsh") + "_lmctl() {",
        "    local at='' word i",
        "    local -a found plain",
        "    for ((i = 2; i < CURRENT; i++)); do",
        "        word=${words[i]}",
        "        case $word in",
        f"            ({valued}) ((i++)) ;;",
        "            (-*) ;;",
        f"            (*) case \"$at $word\" in ({known}) at+=\" $word\" ;; esac ;;",
        "        esac",
        "    done",
        "    case \"$at:${words[CURRENT - 1]}\" in",
        *values,
        "        (*) if [[ ${words[CURRENT]} == -* ]]; then case $at in",
        *options,
        "        esac; else case $at in",
        *names,
        "        esac; fi ;;",
        "    esac",
        "    (( $#plain )) && compadd -- $plain",
        "    (( $#found )) && _describe lmctl found",
        "}",
        "if [[ $funcstack[1] == _lmctl ]]; then _lmctl \"$@\"; else compdef _lmctl lmctl; fi",
        "",
    ])  # fmt: skip


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish(root: Command) -> str:
    lines = [
        _BEGIN.format(shell="fish") + "function __lmctl_at",
        "    set -l at ''",
        "    set -l behind 0",
        "    for word in (commandline -opc)[2..-1]",
        "        if test $behind = 1",
        "            set behind 0",
        f"        else if contains -- $word {' '.join(_valued(root))}",
        "            set behind 1",
        f"        else if contains -- \"$at $word\" {' '.join(_fish_quoted(path) for path in _paths(root))}",
        "            set at \"$at $word\"",
        "        end",
        "    end",
        "    test \"$at\" = \"$argv[1]\"",
        "end",
        "complete -c lmctl -f",
    ]  # fmt: skip
    for command in root.walk():
        here = f"complete -c lmctl -n {_fish_quoted(f'__lmctl_at {_fish_quoted(_at(command))}')}"
        lines += [f"{here} -a {child.path[-1]} -d {_fish_quoted(child.help)}" for child in command.children]
        for argument in command.arguments:
            kind = _ARGUMENTS.get(command.path, "")
            if words := _words(argument.metavar):
                lines.append(f"{here} -a {_fish_quoted(' '.join(words))}")
            elif kind == FILES:
                lines.append(f"{here} -F")
            elif kind:
                lines.append(f"{here} -a '(lmctl complete {kind} 2>/dev/null)'")
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = ""
            if option.metavar in _FILE_METAVARS:
                value = " -r -F"
            elif option.metavar:
                value = " -x" + (f" -a {_fish_quoted(' '.join(words))}" if (words := _words(option.metavar)) else "")
            lines.append(f"{here} {names}{value} -d {_fish_quoted(option.help)}")
    return "\n".join([*lines, ""])
