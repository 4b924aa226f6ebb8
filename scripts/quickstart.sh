#!/usr/bin/env bash
# Builds the server of README.md's quickstart as a user would, in a package of its own, and talks to it.
# The ports are exchanged for free ones; the rest is the text that readers copy.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/probes.sh

package=target/quickstart
mkdir -p "$package/src"
cat >"$package/Cargo.toml" <<MANIFEST
[package]
name = "quickstart"
version = "0.0.0"
edition = "2024"
publish = false

[dependencies]
shardwise = { path = "$PWD" }

[workspace]
MANIFEST
cp Cargo.lock "$package/Cargo.lock" # the same versions as everywhere else
code=$(scripts/readme-block.sh quickstart)
[[ $code == *"fn main"* ]] || die "the quickstart of README.md has no main"

taken=()
for port in $(grep -oE '"[0-9.]+:[0-9]+"' <<<"$code" | grep -oE '[0-9]+"' | tr -d '"' | sort -u); do
    free=$(free_port)
    code=${code//":$port\""/":$free\""}
    taken+=("$free")
    echo "port $port is $free here"
done
[[ ${#taken[@]} -gt 0 ]] || die "the quickstart of README.md listens nowhere"
printf '%s\n' "$code" >"$package/src/main.rs"

CARGO_TARGET_DIR=target cargo build --manifest-path "$package/Cargo.toml"
target/debug/quickstart >"$work/stdout" 2>"$work/stderr" &
pid=$!
started+=("$pid")
for port in "${taken[@]}"; do
    eventually 10 line_comes_back 127.0.0.1 "$port" || die "no line came back from port $port" "$work/stdout" "$work/stderr"
done
kill -TERM "$pid"
exits "$pid" 35 0 "quickstart after SIGTERM" "$work/stdout" "$work/stderr"
echo "quickstart: ok"
