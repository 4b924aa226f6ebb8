# shellcheck shell=bash
# Starting a server, asking it something, and ending it: what the scripts that run real binaries share. Sourced.

set -euo pipefail

work=$(mktemp -d)
started=()
trap 'end_all' EXIT

# Ends whatever this script has started, and nothing else.
end_all() {
    local pid
    for pid in "${started[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}

die() {
    echo "failed: $1" >&2
    shift
    local file
    for file in "$@"; do
        [[ ! -s $file ]] || sed "s/^/    $(basename "$file"): /" "$file" >&2
    done
    exit 1
}

# Waits up to $1 seconds for the rest of the line to succeed.
eventually() {
    local until=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
    shift
    while ! "$@"; do
        ((${EPOCHREALTIME/[.,]/} < until)) || return 1
        sleep 0.02
    done
}

gone() {
    ! kill -0 "$1" 2>/dev/null
}

# exits PID SECONDS CODE WHAT FILE...: the process ends in time, with that code.
exits() {
    local pid=$1 seconds=$2 expected=$3 what=$4 code=0
    shift 4
    eventually "$seconds" gone "$pid" || die "$what: still running after $seconds s" "$@"
    wait "$pid" || code=$?
    [[ $code -eq $expected ]] || die "$what: exit code $code, not $expected" "$@"
}

# A port on which nobody listens now, below those that the kernel gives away.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# ---- probes: each takes HOST PORT and succeeds if the server there answers well

connects() {
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

line_comes_back() {
    (
        exec 3<>"/dev/tcp/$1/$2"
        printf 'hello, shards\n' >&3
        IFS= read -r -t 5 -u 3 answer
        [[ $answer == 'hello, shards' ]]
    ) 2>/dev/null
}

tls_line_comes_back() {
    local answer
    # The line has to come back before the end of the input ends the connection.
    answer=$({ echo 'hello, shards'; sleep 0.5; } |
        timeout 5 openssl s_client -connect "$1:$2" -CAfile "$work/cert.pem" -verify_return_error \
            -servername localhost -quiet -no_ign_eof 2>/dev/null)
    [[ $answer == 'hello, shards' ]]
}

datagram_comes_back() {
    (
        exec 3<>"/dev/udp/$1/$2"
        printf 'hello, shards\n' >&3
        # Not `read`, which takes one byte at a time: of a datagram the rest is lost then.
        answer=$(timeout 5 dd bs=2048 count=1 status=none <&3)
        [[ $answer == 'hello, shards' ]]
    ) 2>/dev/null
}

http_answers() {
    curl --silent --show-error --fail --noproxy '*' --max-time 5 --output /dev/null "http://$1:$2/"
}

counter_counts() {
    (
        exec 3<>"/dev/tcp/$1/$2"
        printf 'INCR probe\nGET probe\n' >&3
        IFS= read -r -t 5 -u 3 counted
        IFS= read -r -t 5 -u 3 answer
        [[ $answer -ge 1 && $answer -ge $counted ]]
    ) 2>/dev/null
}

redis_answers() {
    (
        exec 3<>"/dev/tcp/$1/$2"
        # shellcheck disable=SC2016 # the dollar is RESP's
        printf '*1\r\n$4\r\nPING\r\n' >&3
        IFS= read -r -t 5 -u 3 answer
        [[ $answer == $'+PONG\r' ]]
    ) 2>/dev/null
}
