# Made by packaging/manual.py from the parser of vpnctl.

function __vpnctl_names --argument-names kind
    sh -c 'case $1 in
user) timeout 10 vpnctl user list | awk -F "\t" "NR > 1 { print \$1 }" ;;
client) timeout 10 vpnctl client list | awk -F "\t" "NR > 1 && \$3 !~ /^revoked/ { print \$2 }" ;;
session) timeout 10 vpnctl status | awk -F "\t" "list { print \$1 } \$1 == \"id\" { list = 1 }" ;;
running) set -- /run/pyvpn-client-*/vpnd.sock
    for name; do name=${name%/*}; printf "%s\n" "${name#/run/pyvpn-client-}"; done ;;
profile) for name in /etc/pyvpn/client/*.toml; do basename "$name" .toml; done ;;
esac 2>/dev/null | grep -xE "[a-z0-9][a-z0-9._@-]{0,63}" | sort -u' sh $kind
end

function __vpnctl_at --argument-names wanted number # COMMAND [NUMBER-OF-ARGUMENTS]
    set -l words (commandline -opc)
    set -l command ''
    set -l count 0
    set -l takes ''
    for word in $words[2..]
        if test -n "$takes"
            set takes ''
        else if string match -q -- '-*' $word
            __vpnctl_takes "$command $word"; and set takes yes
        else if __vpnctl_is_command (string trim -- "$command $word")
            set command (string trim -- "$command $word")
        else
            set count (math $count + 1)
        end
    end
    test "$command" = "$wanted"; or return
    test -z "$number"; or test "$number" = "$count"
end

function __vpnctl_is_command --argument-names words
    switch $words
        case 'status' 'up' 'down' 'user' 'user add' 'user passwd' 'user list' 'client' 'client add' 'client list' 'client revoke' 'rotate-keys' 'config' 'config check' 'config show' 'reload' 'pki' 'pki init' 'pki status' 'pki renew' 'pki rotate-server-key' 'pki crl'
            return 0
    end
    return 1
end

function __vpnctl_takes --argument-names words # COMMAND OPTION
    switch $words
        case '* --run-dir' '* --state-dir' '* --ca-dir'
            return 0
        case 'up --user' 'up --group' 'up --script' 'up --helper-socket' 'up --log-dir' 'up --pin' 'up --password-fd' 'up --otp-fd'
            return 0
        case 'user add --group'
            return 0
        case 'client add --user' 'client add --output' 'client add --key-type'
            return 0
        case 'client revoke --user'
            return 0
        case 'rotate-keys --session' 'rotate-keys --user' 'rotate-keys --client'
            return 0
        case 'config check --policy'
            return 0
        case 'pki init --name' 'pki init --key-type' 'pki init --config'
            return 0
        case 'pki rotate-server-key --key-type'
            return 0
        case 'pki crl --output'
            return 0
    end
    return 1
end

complete -c vpnctl -f
complete -c vpnctl -s h -l help -d 'show a short help and exit'
complete -c vpnctl -l run-dir -x -a '(__fish_complete_directories)' -d 'where the daemon\'s socket is (default: /run/pyvpn-server)'
complete -c vpnctl -l state-dir -x -a '(__fish_complete_directories)' -d 'where the server keeps its keys (default: /var/lib/pyvpn)'
complete -c vpnctl -l ca-dir -x -a '(__fish_complete_directories)' -d 'where the certificate authority is (default: /var/lib/pyvpn-ca)'
complete -c vpnctl -l json -d 'print JSON, for programs'
complete -c vpnctl -l table -d 'print tables even when standard output is no terminal'
complete -c vpnctl -n '__vpnctl_at ""' -a status -d 'Show the daemon, its interface and its sessions (what a bare `vpnctl` does)'
complete -c vpnctl -n '__vpnctl_at ""' -a up -d 'Connect a client to its server'
complete -c vpnctl -n '__vpnctl_at ""' -a down -d 'Disconnect a client'
complete -c vpnctl -n '__vpnctl_at ""' -a user -d 'Add users, set their passwords, list them'
complete -c vpnctl -n '__vpnctl_at ""' -a client -d 'Add, list and revoke clients: devices that log in with a certificate'
complete -c vpnctl -n '__vpnctl_at ""' -a rotate-keys -d 'Change the keys of sessions now'
complete -c vpnctl -n '__vpnctl_at ""' -a config -d 'Check a configuration file, or show what is in force'
complete -c vpnctl -n '__vpnctl_at ""' -a reload -d 'Have the server read its configuration, keys and certificates anew; no session ends'
complete -c vpnctl -n '__vpnctl_at ""' -a pki -d 'Make, renew and show the certificate authority and the server\'s keys'
complete -c vpnctl -n '__vpnctl_at ""' -l version -d 'show the version and exit'
complete -c vpnctl -n '__vpnctl_at "status" 0' -x -a '(__vpnctl_names running)'
complete -c vpnctl -n '__vpnctl_at "up"' -l foreground -d 'stay, and write the log here; Ctrl-C ends it'
complete -c vpnctl -n '__vpnctl_at "up"' -l user -x -d 'log in as this user'
complete -c vpnctl -n '__vpnctl_at "up"' -l group -x -d 'log in to this group, where the server offers several'
complete -c vpnctl -n '__vpnctl_at "up"' -l script -r -F -d 'a vpnc-script, run without privileges, to set up addresses and routes'
complete -c vpnctl -n '__vpnctl_at "up"' -l helper-socket -r -F -d 'the socket of the privileged helper (default: as the profile says)'
complete -c vpnctl -n '__vpnctl_at "up"' -l log-dir -x -a '(__fish_complete_directories)' -d 'where the log is written, in client-NAME.log (default: /var/log/pyvpn)'
complete -c vpnctl -n '__vpnctl_at "up"' -l pin -x -d 'with a URL: the server\'s key, pin-sha256:..., instead of CA and name; may be repeated'
complete -c vpnctl -n '__vpnctl_at "up"' -l allow-tls12 -d 'with a URL: for servers without TLS 1.3'
complete -c vpnctl -n '__vpnctl_at "up"' -l password-fd -x -d 'read from this descriptor, one a line: the password, and others to try when it is refused'
complete -c vpnctl -n '__vpnctl_at "up"' -l otp-fd -x -d 'read from this descriptor, one a line: one-time codes'
complete -c vpnctl -n '__vpnctl_at "up" 0' -r -F -a '(__vpnctl_names profile)'
complete -c vpnctl -n '__vpnctl_at "down" 0' -x -a '(__vpnctl_names running)'
complete -c vpnctl -n '__vpnctl_at "user"' -a add -d 'Add a user who logs in by password'
complete -c vpnctl -n '__vpnctl_at "user"' -a passwd -d 'Give a user a new password'
complete -c vpnctl -n '__vpnctl_at "user"' -a list -d 'List all users'
complete -c vpnctl -n '__vpnctl_at "user add"' -l group -x -d 'a group the user is in; may be repeated'
complete -c vpnctl -n '__vpnctl_at "user add"' -l password-stdin -d 'read the password from the first line of standard input instead of asking for it'
complete -c vpnctl -n '__vpnctl_at "user add"' -l no-password -d 'the user logs in by certificate only'
complete -c vpnctl -n '__vpnctl_at "user passwd"' -l password-stdin -d 'read the password from the first line of standard input instead of asking for it'
complete -c vpnctl -n '__vpnctl_at "user passwd" 0' -x -a '(__vpnctl_names user)'
complete -c vpnctl -n '__vpnctl_at "client"' -a add -d 'Make a client\'s NAME.toml and NAME.p12'
complete -c vpnctl -n '__vpnctl_at "client"' -a list -d 'Show all clients, revoked ones too'
complete -c vpnctl -n '__vpnctl_at "client"' -a revoke -d 'End a client\'s sessions and refuse it for good'
complete -c vpnctl -n '__vpnctl_at "client add"' -l user -x -a '(__vpnctl_names user)' -d 'user it belongs to, made where there is none (default: NAME)'
complete -c vpnctl -n '__vpnctl_at "client add"' -l foreign -d 'for other makers\' clients, which cannot renew: valid 2 years instead of 90 days'
complete -c vpnctl -n '__vpnctl_at "client add"' -l output -x -a '(__fish_complete_directories)' -d 'where the two files are written (default: the current directory)'
complete -c vpnctl -n '__vpnctl_at "client add"' -l key-type -x -a 'p256 p384 rsa3072 rsa4096' -d 'kind of the client\'s key (default: p256)'
complete -c vpnctl -n '__vpnctl_at "client revoke"' -l user -x -a '(__vpnctl_names user)' -d 'user it belongs to; needed where several users have a client of that name'
complete -c vpnctl -n '__vpnctl_at "client revoke" 0' -x -a '(__vpnctl_names client)'
complete -c vpnctl -n '__vpnctl_at "rotate-keys"' -l session -x -a '(__vpnctl_names session)' -d 'one session; `vpnctl status --json` shows its id'
complete -c vpnctl -n '__vpnctl_at "rotate-keys"' -l user -x -a '(__vpnctl_names user)' -d 'all sessions of a user'
complete -c vpnctl -n '__vpnctl_at "rotate-keys"' -l all -d 'all sessions (the default)'
complete -c vpnctl -n '__vpnctl_at "rotate-keys"' -l client -x -a '(__vpnctl_names running)' -d 'the session of a client on this machine'
complete -c vpnctl -n '__vpnctl_at "config"' -a check -d 'Say whether a server\'s configuration, or a client\'s profile, can be used'
complete -c vpnctl -n '__vpnctl_at "config"' -a show -d 'Show every value, where it is from, and where the running server differs'
complete -c vpnctl -n '__vpnctl_at "config check"' -l policy -r -F -d 'the root helper\'s policy (default: /etc/pyvpn/helper.toml)'
complete -c vpnctl -n '__vpnctl_at "config check" 0' -r -F
complete -c vpnctl -n '__vpnctl_at "config show" 0' -r -F
complete -c vpnctl -n '__vpnctl_at "pki"' -a init -d 'Make the authority and the server\'s keys; what is there is never overwritten'
complete -c vpnctl -n '__vpnctl_at "pki"' -a status -d 'Show the certificates, their ends, and the pins'
complete -c vpnctl -n '__vpnctl_at "pki"' -a renew -d 'Renew what is due, answer clients\' requests, write the revocation list'
complete -c vpnctl -n '__vpnctl_at "pki"' -a rotate-server-key -d 'Put the server\'s next key in use; profiles that know it stay good'
complete -c vpnctl -n '__vpnctl_at "pki"' -a crl -d 'Print the revocation list, for programs of others'
complete -c vpnctl -n '__vpnctl_at "pki init"' -l name -x -d 'host name or address of the server, the one for profiles first (may be repeated; default: [server] name in server.toml, else this host\'s full name and address)'
complete -c vpnctl -n '__vpnctl_at "pki init"' -l key-type -x -a 'p256 p384 rsa3072 rsa4096' -d 'kind of all keys that are made (default: p256)'
complete -c vpnctl -n '__vpnctl_at "pki init"' -l if-missing -d 'do nothing where the server has its certificate'
complete -c vpnctl -n '__vpnctl_at "pki init"' -l config -r -F -d 'server.toml with the name (default: /etc/pyvpn/server.toml)'
complete -c vpnctl -n '__vpnctl_at "pki renew"' -l force -d 'renew the server\'s certificate although it is not due'
complete -c vpnctl -n '__vpnctl_at "pki rotate-server-key"' -l key-type -x -a 'p256 p384 rsa3072 rsa4096' -d 'kind of the key that will follow it (default: p256)'
complete -c vpnctl -n '__vpnctl_at "pki rotate-server-key"' -l force -d 'do it although clients whose profiles are older are locked out'
complete -c vpnctl -n '__vpnctl_at "pki crl"' -l output -r -F -d 'write it there instead'
