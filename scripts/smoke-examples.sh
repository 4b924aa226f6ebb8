#!/usr/bin/env bash
# Starts every example as a user would and checks what all of them promise: scripts/smoke-examples.sh FOLDER [NAME...]
# FOLDER holds the built binaries. They listen on 127.0.0.1, say where, answer, end with 0 on SIGTERM, and refuse to
# start with a code and a reason.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/probes.sh

binaries=${1:?where are the built examples: scripts/smoke-examples.sh FOLDER [NAME...]}
shift

# Sets how an example is asked, and the arguments it needs beside the common ones.
describe() {
    arguments=()
    case $1 in
    quickstart)
        probe=line_comes_back
        arguments=(--seconds 60) # it is ended by SIGTERM, like the others
        ;;
    cross_shard) probe=counter_counts ;;
    *udp*) probe=datagram_comes_back ;;
    tls_echo)
        probe=tls_line_comes_back
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
            -addext subjectAltName=DNS:localhost -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
        arguments=(--cert "$work/cert.pem" --key "$work/key.pem")
        ;;
    portforward)
        probe=line_comes_back
        "$binaries/echo" --listen 127.0.0.1:0 --shards 1 >"$work/upstream" 2>/dev/null &
        started+=("$!")
        eventually 10 grep -q '^listening on ' "$work/upstream" || die "$1: its upstream does not listen"
        arguments=(--connect "$(sed -n 's/^listening on //p;q' "$work/upstream")")
        ;;
    *echo*) probe=line_comes_back ;;
    *http* | *hello* | *static* | *metrics*) probe=http_answers ;;
    *redis* | *resp* | *kv*) probe=redis_answers ;;
    *chat*) probe=connects ;;
    *) die "no probe for the example '$1': say in scripts/smoke-examples.sh how to ask it" ;;
    esac
}

# start ARGUMENT...: in the background, its output in files of this run.
start() {
    "$binary" "${arguments[@]}" "$@" >"$work/stdout" 2>"$work/stderr" &
    pid=$!
    started+=("$pid")
}

told_address() {
    address=$(sed -n 's/^listening on \(.*\)$/\1/p;T;q' "$work/stdout")
    [[ -n $address ]] || gone "$pid"
}

no_panic() {
    ! grep -l 'panicked at' "$work/stderr" || die "$1: it panicked" "$work/stderr"
}

serves_and_ends() {
    start --listen 127.0.0.1:0 --shards 2
    eventually 10 told_address || die "$name: no address within 10 s" "$work/stdout" "$work/stderr"
    [[ -n $address ]] || die "$name: it ended instead of listening" "$work/stdout" "$work/stderr"
    eventually 5 "$probe" "${address%:*}" "${address##*:}" ||
        die "$name: no good answer at $address ($probe)" "$work/stdout" "$work/stderr"
    refuses_a_used_port "$address"
    "$probe" "${address%:*}" "${address##*:}" ||
        die "$name: a second copy at $address has harmed the first" "$work/stdout" "$work/stderr"
    kill -TERM "$pid"
    exits "$pid" 35 0 "$name after SIGTERM" "$work/stdout" "$work/stderr"
    no_panic "$name"
}

# A copy of itself is the hard case: two sockets with SO_REUSEPORT would share the port in silence.
refuses_a_used_port() {
    local second
    "$binary" "${arguments[@]}" --listen "$1" >"$work/second.stdout" 2>"$work/second.stderr" &
    second=$!
    started+=("$second")
    exits "$second" 3 1 "$name at a port in use" "$work/second.stdout" "$work/second.stderr"
    grep -qF "$1" "$work/second.stderr" || die "$name: does not say that $1 is in use" "$work/second.stderr"
    ! grep -q 'panicked at' "$work/second.stderr" || die "$name: panics at a port in use" "$work/second.stderr"
    ! grep -q '^listening on' "$work/second.stdout" || die "$name: says it listens at a port in use" "$work/second.stdout"
}

# refuses WORD ARGUMENT...: exit code 2, and a text that names WORD.
refuses() {
    local word=$1
    shift
    start "$@"
    exits "$pid" 3 2 "$name $*" "$work/stdout" "$work/stderr"
    grep -qe "$word" "$work/stderr" || die "$name $*: the refusal does not name $word" "$work/stderr"
    no_panic "$name $*"
}

# Rows 92 and 93 of the fault catalogue: nobody may stop a server by not reading what it says.
lives_without_output() {
    local port how
    for how in closed full; do
        port=$(free_port)
        if [[ $how == closed ]]; then
            "$binary" "${arguments[@]}" --listen "127.0.0.1:$port" <&- >&- 2>&- &
        else
            "$binary" "${arguments[@]}" --listen "127.0.0.1:$port" >/dev/full 2>/dev/full &
        fi
        pid=$!
        started+=("$pid")
        eventually 10 "$probe" 127.0.0.1 "$port" || die "$name with its output $how: no good answer"
        kill -TERM "$pid"
        exits "$pid" 35 0 "$name with its output $how, after SIGTERM"
    done
}

helps() {
    start --help
    exits "$pid" 3 0 "$name --help" "$work/stderr"
    local flag
    for flag in --listen --shards --cpus --driver; do
        grep -qe "$flag" "$work/stdout" || die "$name --help does not explain $flag" "$work/stdout"
    done
}

if [[ $# -gt 0 ]]; then
    names=("$@")
else
    names=()
    for source in examples/*.rs examples/*/main.rs; do
        [[ -e $source ]] || continue
        source=${source%/main.rs}
        names+=("$(basename "${source%.rs}")")
    done
fi
[[ ${#names[@]} -gt 0 ]] || die "there are no examples"

for name in "${names[@]}"; do
    binary=$binaries/$name
    [[ -x $binary ]] || die "$binary has not been built"
    describe "$name"
    serves_and_ends
    refuses --no-such-option --no-such-option
    refuses --shards --shards 0
    refuses --listen --listen 127.0.0.1:65536
    lives_without_output
    helps
    echo "example $name: ok"
done
