#compdef lmctl
# Completion of lmctl for zsh, made by 'lmctl completion zsh': do not edit.
_lmctl() {
    local at='' word i
    local -a found plain
    for ((i = 2; i < CURRENT; i++)); do
        word=${words[i]}
        case $word in
            (--context-length|--draft|--expires|--filter|--gpu|--identifier|--limit|--max-tokens|--parallel|--prompt|--prompt-tokens|--scope|--set|--socket|--source|--streams|--system|--ttl|--user-repo|-c|-n|-p|-s) ((i++)) ;;
            (-*) ;;
            (*) case "$at $word" in (' get'|' ls'|' show'|' import'|' rm'|' log'|' bench'|' status'|' ps'|' load'|' unload'|' reload'|' chat'|' completion'|' preset'|' preset ls'|' preset show'|' preset check'|' token'|' token create'|' token ls'|' token revoke'|' downloads'|' downloads ls'|' downloads watch'|' downloads pause'|' downloads resume'|' downloads cancel'|' chats'|' chats ls'|' chats rm') at+=" $word" ;; esac ;;
        esac
    done
    case "$at:${words[CURRENT - 1]}" in
        (':--socket') _files; return ;;
        (' get:-n'|' get:--limit') found=() ;;
        (' get:--draft') found=() ;;
        (' get:--socket') _files; return ;;
        (' ls:--socket') _files; return ;;
        (' show:--socket') _files; return ;;
        (' import:--user-repo') found=() ;;
        (' import:--socket') _files; return ;;
        (' rm:--socket') _files; return ;;
        (' log:--source') found=('model' 'server') ;;
        (' log:--filter') found=('input' 'output') ;;
        (' log:--socket') _files; return ;;
        (' bench:--streams') found=() ;;
        (' bench:--prompt-tokens'|' bench:-p') found=() ;;
        (' bench:--max-tokens'|' bench:-n') found=() ;;
        (' bench:--socket') _files; return ;;
        (' status:--socket') _files; return ;;
        (' ps:--socket') _files; return ;;
        (' load:--ttl') found=() ;;
        (' load:--context-length'|' load:-c') found=() ;;
        (' load:--parallel') found=() ;;
        (' load:--identifier') found=() ;;
        (' load:--gpu') found=('auto' 'max' 'off') ;;
        (' load:--set') found=() ;;
        (' load:--socket') _files; return ;;
        (' unload:--socket') _files; return ;;
        (' reload:--socket') _files; return ;;
        (' chat:--prompt'|' chat:-p') found=() ;;
        (' chat:--system'|' chat:-s') found=() ;;
        (' chat:--ttl') found=() ;;
        (' chat:--socket') _files; return ;;
        (' preset:--socket') _files; return ;;
        (' preset ls:--socket') _files; return ;;
        (' preset show:--socket') _files; return ;;
        (' preset check:--socket') _files; return ;;
        (' token:--socket') _files; return ;;
        (' token create:--scope') found=('inference' 'manage' 'inference,manage') ;;
        (' token create:--expires') found=() ;;
        (' token create:--socket') _files; return ;;
        (' token ls:--socket') _files; return ;;
        (' token revoke:--socket') _files; return ;;
        (' downloads:--socket') _files; return ;;
        (' downloads ls:--socket') _files; return ;;
        (' downloads watch:--socket') _files; return ;;
        (' downloads pause:--socket') _files; return ;;
        (' downloads resume:--socket') _files; return ;;
        (' downloads cancel:--socket') _files; return ;;
        (' chats:--socket') _files; return ;;
        (' chats ls:--socket') _files; return ;;
        (' chats rm:--socket') _files; return ;;
        (*) if [[ ${words[CURRENT]} == -* ]]; then case $at in
            ('') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '--version:Show the version.' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' get') found=('--gguf:Only GGUF models (the default of a search).' '--mlx:Only MLX models, which this build can keep but not run.' '-n:The most results of a search.  [default: 10]' '--limit:The most results of a search.  [default: 10]' '--draft:Fetch this draft model (owner/repo[@quant]) as well.' '--detach:Begin, and do not watch.' '-d:Begin, and do not watch.' '--yes:Do not ask.' '-y:Do not ask.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' ls') found=('--llm:Only language models.' '--embedding:Only embedding models.' '--vlm:Only models that see.' '--detailed:Also files, vision part, template and format.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' show') found=('--template:Print the chat template and nothing else.' '--header:Print the file'\''s metadata.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' import') found=('--copy:Leave the file where it is, and copy it.' '--hard-link:Give the file a second name.' '--symbolic-link:Point to the file where it is.' '--user-repo:Put it there. Default: a loose file.' '--dry-run:Tell what would be done, and do nothing.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' rm') found=('--force:Also while it is loaded; requests end with an error.' '--yes:Do not ask.' '-y:Do not ask.' '--dry-run:Tell what would go, and remove nothing.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' log') found=('--source:The models'\'' prompts and answers, or lmd'\''s own log.  [default: model]' '--filter:Only prompts, or only answers. [default: both]' '--stats:Tell tokens and speed after each answer.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' bench') found=('--streams:How many requests at once, one run for each.  [default: 1,4,8]' '--prompt-tokens:Of each prompt.  [default: 512]' '-p:Of each prompt.  [default: 512]' '--max-tokens:Of each answer.  [default: 128]' '-n:Of each answer.  [default: 128]' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' status') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' ps') found=('--watch:Keep the list up to date until Ctrl-C.' '-w:Keep the list up to date until Ctrl-C.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' load') found=('--ttl:Unload after so long without use: 300, 5m, 1h, never.' '--context-length:The most tokens that one sequence may hold.' '-c:The most tokens that one sequence may hold.' '--parallel:Sequences computed at once; more wait in a queue.' '--identifier:The name that requests use for this instance.' '--gpu:Layers to keep in the GPU'\''s memory.' '--set:Any other key of a preset'\''s [load]; may be repeated.' '--reload:Replace the running instance by one with the current settings.' '--estimate-only:Tell what it would take and whether that fits; load nothing.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' unload') found=('--all:Unload every instance.' '--force:Also while requests use it; they end with an error.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' reload') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' chat') found=('--prompt:Ask this, print the answer and leave.' '-p:Ask this, print the answer and leave.' '--system:The system prompt.' '-s:The system prompt.' '--stats:Tell tokens and speed after each answer.' '--ttl:Unload after so long without use: 300, 5m, 1h, never.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' completion') found=('-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' preset') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' preset ls') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' preset show') found=('--effective:Every setting that applies, and where each comes from.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' preset check') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' token') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' token create') found=('--scope:inference, manage (load, unload and fetch), or both.  [default: inference]' '--expires:End it after so long: 30d, 12h, never.  [default: never]' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' token ls') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' token revoke') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' downloads') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' downloads ls') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' downloads watch') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' downloads pause') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' downloads resume') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' downloads cancel') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' chats') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' chats ls') found=('--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
            (' chats rm') found=('--all:Every conversation.' '--json:Print JSON instead of text.' '--socket:lmd'\''s control socket. [default: $LMD_SOCKET, else the usual places]' '-h:Show this help and exit.' '--help:Show this help and exit.') ;;
        esac; else case $at in
            ('') found=('get:Fetch a model from the Hugging Face hub. lmd does it: leave, and it goes on.' 'ls:List the models on disk.' 'show:Show what a model is, what it can do, and the memory it takes at several context lengths.' 'import:Put a model file into the library: moved, unless another way is said.' 'rm:Remove a model'\''s files from the disk.' 'log:Watch the exact text that models get and what they answer, live. lmd keeps none of it.' 'bench:Measure how fast a model reads prompts and writes answers.' 'status:Show how the daemon is doing.' 'ps:List the models in memory.' 'load:Load a model into memory. Without --ttl it stays until '\''lmctl unload'\''.' 'unload:Take a model out of memory.' 'reload:Read lmd.toml and the presets anew.' 'chat:Talk to a model. Text on standard input is part of the prompt; Ctrl-C stops the answer.' 'completion:Print the script that completes commands, models and instances. For bash: eval "$(lmctl completion bash)".' 'preset:Show and check presets.' 'token:Make and revoke tokens for the HTTP API.' 'downloads:Show and steer what lmd downloads.' 'chats:List and remove the conversations that lmd keeps for /api/v1/chat.') ;;
            (' show') plain=(${(f)"$(lmctl complete models 2>/dev/null)"}) ;;
            (' import') _files; return ;;
            (' rm') plain=(${(f)"$(lmctl complete models 2>/dev/null)"}) ;;
            (' bench') plain=(${(f)"$(lmctl complete targets 2>/dev/null)"}) ;;
            (' load') plain=(${(f)"$(lmctl complete targets 2>/dev/null)"}) ;;
            (' unload') plain=(${(f)"$(lmctl complete instances 2>/dev/null)"}) ;;
            (' chat') plain=(${(f)"$(lmctl complete targets 2>/dev/null)"}) ;;
            (' completion') plain=(bash zsh fish) ;;
            (' preset') found=('ls:List the presets.' 'show:Show a preset'\''s file, or with --effective what it comes to.' 'check:Check the preset files on disk without applying them. Exits with 1 if any is wrong.') ;;
            (' preset show') plain=(${(f)"$(lmctl complete presets 2>/dev/null)"}) ;;
            (' token') found=('create:Make a token and print it, this once: lmd keeps a hash of it.' 'ls:List the tokens.' 'revoke:End a token. It counts at once.') ;;
            (' token revoke') plain=(${(f)"$(lmctl complete tokens 2>/dev/null)"}) ;;
            (' downloads') found=('ls:List the downloads, those that have ended too.' 'watch:Watch one download to its end, or all.' 'pause:Stop a download, and keep what has come.' 'resume:Go on with a download that was paused or has failed.' 'cancel:Stop a download, and remove what has come.') ;;
            (' downloads watch') plain=(${(f)"$(lmctl complete downloads 2>/dev/null)"}) ;;
            (' downloads pause') plain=(${(f)"$(lmctl complete downloads 2>/dev/null)"}) ;;
            (' downloads resume') plain=(${(f)"$(lmctl complete downloads 2>/dev/null)"}) ;;
            (' downloads cancel') plain=(${(f)"$(lmctl complete downloads 2>/dev/null)"}) ;;
            (' chats') found=('ls:List the conversations, the last used first.' 'rm:Remove conversations with all their branches.') ;;
            (' chats rm') plain=(${(f)"$(lmctl complete chats 2>/dev/null)"}) ;;
        esac; fi ;;
    esac
    (( $#plain )) && compadd -- $plain
    (( $#found )) && _describe lmctl found
}
if [[ $funcstack[1] == _lmctl ]]; then _lmctl "$@"; else compdef _lmctl lmctl; fi
