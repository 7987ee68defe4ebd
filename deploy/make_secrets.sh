#!/bin/sh
# Makes what compose.yaml and the Kubernetes manifests take as secrets, in deploy/secrets (or the directory given):
#   triton_secret   the word without which Triton answers nothing but health
#   access.toml     the server's access file: `client` may read and record, `operator` may do everything
#   client.token    their tokens, for `segrec --token-file`; the server does not need them
#   operator.token
# Each file is made once, and left as it is when it exists.
set -eu
directory=${1:-$(dirname "$0")/secrets}
mkdir -p -m 700 "$directory"
cd "$directory"
umask 022  # the containers' users read the files; the directory is closed to all other users of this machine

add_caller() {  # name, roles
    [ ! -e "$1.token" ] || return 0
    token=$(openssl rand -hex 32)
    hash=$(printf %s "$token" | openssl dgst -sha256 -r | cut -d ' ' -f 1)
    printf '[[callers]]\nname = "%s"\nroles = [%s]\ntoken_sha256 = ["%s"]\n\n' "$1" "$2" "$hash" >> access.toml
    (umask 077 && echo "$token" > "$1.token")
}

[ -e triton_secret ] || openssl rand -hex 24 > triton_secret
add_caller client '"read", "record"'
add_caller operator '"read", "record", "erase", "operate"'
