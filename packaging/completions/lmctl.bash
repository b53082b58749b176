# Completion of lmctl for bash, made by 'lmctl completion bash': do not edit.
_lmctl() {
    local line=${COMP_LINE:0:COMP_POINT} at='' found='' cur word i
    local IFS=$' \t\n'
    cur=${line##*[[:space:]]}
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --context-length|--draft|--expires|--filter|--gpu|--identifier|--limit|--max-tokens|--parallel|--prompt|--prompt-tokens|--scope|--set|--socket|--source|--streams|--system|--ttl|--user-repo|-c|-n|-p|-s) ((i++)) ;;
            -*) ;;
            *) case "$at $word" in ' get'|' ls'|' show'|' import'|' rm'|' log'|' bench'|' status'|' ps'|' load'|' unload'|' reload'|' chat'|' completion'|' preset'|' preset ls'|' preset show'|' preset check'|' token'|' token create'|' token ls'|' token revoke'|' downloads'|' downloads ls'|' downloads watch'|' downloads pause'|' downloads resume'|' downloads cancel'|' chats'|' chats ls'|' chats rm') at+=" $word" ;; esac ;;
        esac
    done
    COMPREPLY=()
    case "$at:${COMP_WORDS[COMP_CWORD - 1]}" in
        ':--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' get:-n'|' get:--limit') found='' ;;
        ' get:--draft') found='' ;;
        ' get:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' ls:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' show:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' import:--user-repo') found='' ;;
        ' import:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' rm:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' log:--source') found='model server' ;;
        ' log:--filter') found='input output' ;;
        ' log:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' bench:--streams') found='' ;;
        ' bench:--prompt-tokens'|' bench:-p') found='' ;;
        ' bench:--max-tokens'|' bench:-n') found='' ;;
        ' bench:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' status:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' ps:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' load:--ttl') found='' ;;
        ' load:--context-length'|' load:-c') found='' ;;
        ' load:--parallel') found='' ;;
        ' load:--identifier') found='' ;;
        ' load:--gpu') found='auto max off' ;;
        ' load:--set') found='' ;;
        ' load:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' unload:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' reload:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' chat:--prompt'|' chat:-p') found='' ;;
        ' chat:--system'|' chat:-s') found='' ;;
        ' chat:--ttl') found='' ;;
        ' chat:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' preset:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' preset ls:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' preset show:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' preset check:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' token:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' token create:--scope') found='inference manage inference,manage' ;;
        ' token create:--expires') found='' ;;
        ' token create:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' token ls:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' token revoke:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' downloads:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' downloads ls:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' downloads watch:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' downloads pause:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' downloads resume:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' downloads cancel:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' chats:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' chats ls:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        ' chats rm:--socket') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
        *) if [[ $cur == -* ]]; then case $at in
            '') found='--json --socket --version -h --help' ;;
            ' get') found='--gguf --mlx -n --limit --draft --detach -d --yes -y --json --socket -h --help' ;;
            ' ls') found='--llm --embedding --vlm --detailed --json --socket -h --help' ;;
            ' show') found='--template --header --json --socket -h --help' ;;
            ' import') found='--copy --hard-link --symbolic-link --user-repo --dry-run --json --socket -h --help' ;;
            ' rm') found='--force --yes -y --dry-run --json --socket -h --help' ;;
            ' log') found='--source --filter --stats --json --socket -h --help' ;;
            ' bench') found='--streams --prompt-tokens -p --max-tokens -n --json --socket -h --help' ;;
            ' status') found='--json --socket -h --help' ;;
            ' ps') found='--watch -w --json --socket -h --help' ;;
            ' load') found='--ttl --context-length -c --parallel --identifier --gpu --set --reload --estimate-only --json --socket -h --help' ;;
            ' unload') found='--all --force --json --socket -h --help' ;;
            ' reload') found='--json --socket -h --help' ;;
            ' chat') found='--prompt -p --system -s --stats --ttl --json --socket -h --help' ;;
            ' completion') found='-h --help' ;;
            ' preset') found='--json --socket -h --help' ;;
            ' preset ls') found='--json --socket -h --help' ;;
            ' preset show') found='--effective --json --socket -h --help' ;;
            ' preset check') found='--json --socket -h --help' ;;
            ' token') found='--json --socket -h --help' ;;
            ' token create') found='--scope --expires --json --socket -h --help' ;;
            ' token ls') found='--json --socket -h --help' ;;
            ' token revoke') found='--json --socket -h --help' ;;
            ' downloads') found='--json --socket -h --help' ;;
            ' downloads ls') found='--json --socket -h --help' ;;
            ' downloads watch') found='--json --socket -h --help' ;;
            ' downloads pause') found='--json --socket -h --help' ;;
            ' downloads resume') found='--json --socket -h --help' ;;
            ' downloads cancel') found='--json --socket -h --help' ;;
            ' chats') found='--json --socket -h --help' ;;
            ' chats ls') found='--json --socket -h --help' ;;
            ' chats rm') found='--all --json --socket -h --help' ;;
        esac; else case $at in
            '') found='get ls show import rm log bench status ps load unload reload chat completion preset token downloads chats' ;;
            ' show') found=$(lmctl complete models 2>/dev/null) ;;
            ' import') compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); return ;;
            ' rm') found=$(lmctl complete models 2>/dev/null) ;;
            ' bench') found=$(lmctl complete targets 2>/dev/null) ;;
            ' load') found=$(lmctl complete targets 2>/dev/null) ;;
            ' unload') found=$(lmctl complete instances 2>/dev/null) ;;
            ' chat') found=$(lmctl complete targets 2>/dev/null) ;;
            ' completion') found='bash zsh fish' ;;
            ' preset') found='ls show check' ;;
            ' preset show') found=$(lmctl complete presets 2>/dev/null) ;;
            ' token') found='create ls revoke' ;;
            ' token revoke') found=$(lmctl complete tokens 2>/dev/null) ;;
            ' downloads') found='ls watch pause resume cancel' ;;
            ' downloads watch') found=$(lmctl complete downloads 2>/dev/null) ;;
            ' downloads pause') found=$(lmctl complete downloads 2>/dev/null) ;;
            ' downloads resume') found=$(lmctl complete downloads 2>/dev/null) ;;
            ' downloads cancel') found=$(lmctl complete downloads 2>/dev/null) ;;
            ' chats') found='ls rm' ;;
            ' chats rm') found=$(lmctl complete chats 2>/dev/null) ;;
        esac; fi ;;
    esac
    # Readline replaces only what follows the last of these; names have them inside.
    local held=${cur%"${cur##*[@:=]}"}
    for word in $found; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("${word#"$held"}")
    done
}
complete -F _lmctl lmctl
