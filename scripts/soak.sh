#!/usr/bin/env bash
# Churns connections through an echo server for a while and compares what it holds before and after:
# scripts/soak.sh BINARY SECONDS. Finds leaks, not faults: nothing is broken on purpose here.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/probes.sh

binary=${1:?which binary: scripts/soak.sh BINARY SECONDS}
seconds=${2:?for how long: scripts/soak.sh BINARY SECONDS}

[[ -x $binary ]] || die "$binary has not been built"
port=$(free_port)
"$binary" --listen "127.0.0.1:$port" --shards 2 >"$work/stdout" 2>"$work/stderr" &
pid=$!
started+=("$pid")
eventually 10 line_comes_back 127.0.0.1 "$port" || die "no good answer" "$work/stdout" "$work/stderr"

descriptors() {
    find "/proc/$pid/fd" -mindepth 1 | wc -l
}

resident_kib() {
    awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status"
}

# churn SECONDS: one connection after the other, each with a line; some are left without a goodbye by their process.
churned=0
churn() {
    local until=$((SECONDS + $1))
    while ((SECONDS < until)); do
        line_comes_back 127.0.0.1 "$port" || die "no good answer after $churned connections" "$work/stderr"
        churned=$((churned + 1))
        # Lets a hundred go at once every hundred connections.
        if ((churned % 100 == 0)); then
            (
                for _ in {1..100}; do
                    exec {held}<>"/dev/tcp/127.0.0.1/$port"
                    printf 'unread answer\n' >&"$held"
                done
            ) || die "100 connections at once were refused after $churned" "$work/stderr"
            churned=$((churned + 100))
        fi
    done
}

at_rest() {
    [[ $(descriptors) -le $descriptors_before ]]
}

churn $((seconds / 10 + 1)) # caches and pools reach their size
sleep 1                     # the last of them close
descriptors_before=$(descriptors)
resident_before=$(resident_kib)
churn "$seconds"
eventually 30 at_rest || die "$descriptors_before descriptors before, $(descriptors) after $churned connections"
resident_after=$(resident_kib)
echo "$churned connections in $seconds s; $(descriptors) descriptors; resident $resident_before KiB before, $resident_after KiB after"
((resident_after <= resident_before + 2048)) || die "resident memory has grown by more than 2 MiB"
kill -TERM "$pid"
exits "$pid" 35 0 "after SIGTERM" "$work/stdout" "$work/stderr"
