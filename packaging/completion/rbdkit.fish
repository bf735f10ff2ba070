# Completion of rbdkit and rbdkit-filter for fish. The program itself says what there is.

function __rbdkit_words --argument-names key
    sed -n "s/^$key=//p" | string split ' '
end

# The first word that is no option: the plugin.
function __rbdkit_plugin
    set -l words (commandline -opc)
    set -e words[1]
    set -l skip 0
    for word in $words
        if test $skip -eq 1
            set skip 0
        else if string match -qr -- '^(-[DegiPptUu]|--filter|--wasm-filter)$' $word
            set skip 1
        else if not string match -q -- '-*' $word
            echo $word
            return
        end
    end
    return 1
end

function __rbdkit_parameters
    set -l filters
    set -l take 0
    for word in (commandline -opc)
        if test $take -eq 1
            set -a filters --filter=$word
            set take 0
        else if test $word = --filter
            set take 1
        else if string match -q -- '--filter=*' $word
            set -a filters $word
        end
    end
    set -l told (rbdkit $filters (__rbdkit_plugin) --dump-plugin 2>/dev/null)
    for key in params filter_params
        string join \n -- $told | __rbdkit_words $key | string match -rv '^$' | sed 's/$/=/'
    end
end

complete -c rbdkit -n 'not __rbdkit_plugin' -f -a '(rbdkit --dump-config 2>/dev/null | __rbdkit_words plugins)'
complete -c rbdkit -n '__rbdkit_plugin' -a '(__rbdkit_parameters)'
complete -c rbdkit -l filter -x -a '(rbdkit --dump-config 2>/dev/null | __rbdkit_words filters)'
complete -c rbdkit -n 'string match -q -- "-*" (commandline -ct)' -f \
    -a '(rbdkit --long-options 2>/dev/null; rbdkit --short-options 2>/dev/null)'

complete -c rbdkit-filter -n __fish_use_subcommand -f \
    -a '(rbdkit-filter --help 2>/dev/null | sed -n "/^Commands:/,/^\$/s/^  \([a-z]*\) .*/\1/p")'
complete -c rbdkit-filter -n 'not __fish_use_subcommand; and string match -q -- "-*" (commandline -ct)' -f \
    -a '(rbdkit-filter (commandline -opc)[2] --help 2>/dev/null | string match -ra -- "--[a-z-]+" | sort -u)'
