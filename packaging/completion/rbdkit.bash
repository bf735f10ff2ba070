# Completion of rbdkit and rbdkit-filter for bash. The program itself says what there is.

# Offers those of the words that begin with what is typed.
_rbdkit_take() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

_rbdkit_plugin() {
    # The first word that is no option and no option's value.
    local i word
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        =) ((i++)) ;;
        -[DegiPptUu] | --filter | --wasm-filter | --filter-* | --plugin-param | --run | --log | \
            --limit | --record | --record-limit | \
            --tls | --tls-certificates | --tls-psk | --tls-priority | --unix | --port | --pidfile | \
            --user | --group | --ipaddr | \
            --threads | --exportname | --debug | --mask-handshake | --selinux-label | --timeout | --name | --plugindir)
            # `--option=value` is three words here.
            [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
            ((i++))
            ;;
        -*) ;;
        *)
            printf '%s\n' "$word"
            return
            ;;
        esac
    done
}

# The filters before the plugin, as options.
_rbdkit_filters() {
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == --filter ]]; then
            [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
            printf -- '--filter=%s\n' "${COMP_WORDS[i + 1]}"
        fi
    done
}

_rbdkit() {
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} option plugin
    COMPREPLY=()
    # The option whose value is typed: `--filter=co`, `--filter co`, `-U so`.
    option=$before
    [[ $before == = ]] && option=${COMP_WORDS[COMP_CWORD - 2]}
    if [[ $current == = ]]; then
        option=$before
        current=
    fi
    case $option in
    --filter)
        _rbdkit_take "$("$program" --dump-config 2>/dev/null | sed -n 's/^filters=//p')" "$current"
        return
        ;;
    --log) _rbdkit_take 'stderr syslog null default' "$current" && return ;;
    --tls) _rbdkit_take 'off on require' "$current" && return ;;
    --filter-on-fault) _rbdkit_take 'error disconnect exit' "$current" && return ;;
    -u | --user) mapfile -t COMPREPLY < <(compgen -u -- "$current") && return ;;
    -g | --group) mapfile -t COMPREPLY < <(compgen -g -- "$current") && return ;;
    --wasm-filter | --filter-key | --record | --tls-psk | --tls-certificates | \
        -P | --pidfile | -U | --unix | --plugindir)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    esac
    if [[ $current == -* ]]; then
        _rbdkit_take "$("$program" --long-options 2>/dev/null; "$program" --short-options 2>/dev/null)" "$current"
        return
    fi
    plugin=$(_rbdkit_plugin)
    if [[ -z $plugin ]]; then
        _rbdkit_take "$("$program" --dump-config 2>/dev/null | sed -n 's/^plugins=//p')" "$current"
    elif [[ $before == = || ${COMP_WORDS[COMP_CWORD]} == = ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    else
        local filters keys
        mapfile -t filters < <(_rbdkit_filters)
        keys=$("$program" "${filters[@]}" "$plugin" --dump-plugin 2>/dev/null |
            sed -n 's/^params=//p; s/^filter_params=//p' | tr ' ' '\n')
        compopt -o nospace
        _rbdkit_take "$(sed '/./s/$/=/' <<<"$keys")" "$current"
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$current")
    fi
}

_rbdkit_filter() {
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _rbdkit_take "$("$program" --help 2>/dev/null | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')" "$current"
    elif [[ $current == -* ]]; then
        _rbdkit_take "$("$program" "$command" --help 2>/dev/null | grep -oE -- '(^| )--[a-z-]+')" "$current"
    else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}

complete -F _rbdkit rbdkit
complete -F _rbdkit_filter rbdkit-filter
