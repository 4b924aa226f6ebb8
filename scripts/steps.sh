# shellcheck shell=bash
# Runs named steps one after the other, each bounded, timed and printed. Sourced by .ci/run and .ci/extended, which
# define a function `step_NAME` for each. Knows nothing of what a step does.
#
# A step is run by a fresh shell with errexit on, so that its first failing command ends it. One failure does not
# stop the others: a run tells all it can.

set -euo pipefail
exec </dev/null # nobody answers questions

readonly SKIPPED=75

# Ends the current step as skipped. A reason is not optional.
skip() {
    echo "skipped: $1"
    exit "$SKIPPED"
}

fail() {
    echo "failed: $1" >&2
    exit 1
}

# Installs the Debian package $2 unless the command $1 exists.
need() {
    command -v "$1" >/dev/null && return
    local as_root=()
    [[ $(id -u) -eq 0 ]] || as_root=(sudo -n)
    echo "installing $2, for $1"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get install -y --no-install-recommends "$2" ||
        { "${as_root[@]}" apt-get update && "${as_root[@]}" apt-get install -y --no-install-recommends "$2"; }
    command -v "$1" >/dev/null || fail "$2 did not bring $1"
}

# run_steps LIMIT_SECONDS ARGUMENT... -- STEP...: runs the steps named by ARGUMENTs, or all. Each may take LIMIT_SECONDS.
run_steps() {
    local limit=$1
    shift
    local chosen=() all=()
    while [[ $1 != -- ]]; do
        chosen+=("$1")
        shift
    done
    shift
    all=("$@")
    if [[ ${chosen[0]-} == --inside ]]; then
        "step_${chosen[1]}"
        return
    fi
    [[ ${#chosen[@]} -gt 0 ]] || chosen=("${all[@]}")

    local passed=0 failed=() skipped=() name code began whole=$SECONDS
    for name in "${chosen[@]}"; do
        if ! declare -F "step_$name" >/dev/null; then
            echo "there is no step '$name'; there are: ${all[*]}" >&2
            return 2
        fi
        printf '\n==> %s\n' "$name"
        began=$SECONDS
        code=0
        timeout --kill-after=10 "$limit" bash "$0" --inside "$name" 2>&1 || code=$?
        case $code in
        0) passed=$((passed + 1)) && printf '<== %s: ok, %d s\n' "$name" $((SECONDS - began)) ;;
        "$SKIPPED") skipped+=("$name") && printf '<== %s: skipped, %d s\n' "$name" $((SECONDS - began)) ;;
        124 | 137) failed+=("$name") && printf '<== %s: FAILED, not done after %d s\n' "$name" "$limit" ;;
        *) failed+=("$name") && printf '<== %s: FAILED with code %d, %d s\n' "$name" "$code" $((SECONDS - began)) ;;
        esac
    done

    echo
    [[ ${#skipped[@]} -eq 0 ]] || echo "skipped, with the reasons above: ${skipped[*]}"
    [[ ${#failed[@]} -eq 0 ]] || echo "failed: ${failed[*]}"
    local verdict=ok
    [[ ${#failed[@]} -eq 0 ]] || verdict=FAILED
    printf '%s result: %s. %d steps passed; %d failed; %d skipped; finished in %d s\n' \
        "$(basename "$0")" "$verdict" "$passed" "${#failed[@]}" "${#skipped[@]}" $((SECONDS - whole))
    [[ $verdict == ok ]]
}
